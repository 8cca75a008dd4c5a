"""One process of several: what `test_hosts` compares, and what becomes of it when one has to go.

    python hosts_worker.py FOLDER INDEX PROCESSES PORT TASK...

FOLDER/model is a checkpoint. A task is `values`, or NAME:DATAxTENSOR, a sweep into NAME.jsonl on
that mesh, or NAME:DATAxTENSOR:EVENT:WHO. The event is a signal that process WHO sends itself behind
its second chunk, or `small`: it has room for two rows at once, or `full`: its second chunk fails.
"""

import os
import signal
import sys
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jaxsteer
from experiments.pipeline.stage_runner import run_stage
from jaxsteer.decoding.samplers import sampling
from jaxsteer.directions.activations import Trace, activation_moments
from jaxsteer.files.integrity import check_together
from jaxsteer.llama.model import Model
from jaxsteer.runtime import hosts, preemption
from jaxsteer.sweeps import chunks as sweeping

G = 3
LENGTHS = (3, 8, 5, 1)
ROWS_PER_CHUNK = 4


def vector(width: int) -> np.ndarray:
    return np.random.default_rng(7).standard_normal(width)


def prompts(model: Model) -> jaxsteer.TokenBatch:
    rng = np.random.default_rng(8)
    rows = [rng.integers(model.config.vocab_size, size=n).tolist() for n in LENGTHS]
    return jaxsteer.left_pad(rows, length=9)


def load(folder: Path, mesh: str) -> Model:
    data, tensor = map(int, mesh.split("x"))
    return jaxsteer.load(folder / "model", mesh=jaxsteer.make_mesh(data=data, tensor=tensor))[0]


def sweep(folder: Path, name: str, mesh: str, **options: Any) -> None:
    model = load(folder, mesh)
    cells = jaxsteer.grid(
        {"v": vector(model.config.d_model)}, layers=[0], coeffs=np.linspace(0, 5, 6).tolist()
    )
    jaxsteer.sweep_to_file(
        folder / f"{name}.jsonl",
        model,
        prompts(model),
        cells,
        max_new_tokens=G,
        rows_per_chunk=ROWS_PER_CHUNK,
        sampling_params=sampling(len(LENGTHS), temperature=1.0, seed=3),
        **options,
    )


def small_loop(cond: Any, body: Any, state: Any) -> Any:
    """A loop whose program does not compile for more than two rows."""
    if state.done.size > 2:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory")
    return jax.lax.while_loop(cond, body, state)


def fail_in_the_second_chunk() -> None:
    real, calls = sweeping._run_cells, []

    def run(*args: Any, **options: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory")
        return real(*args, **options)

    run.lower = real.lower  # type: ignore[attr-defined]
    sweeping._run_cells = run


def queue(model: Model, batch: jaxsteer.TokenBatch, **options: Any) -> np.ndarray:
    request = jaxsteer.make_request(model, batch, **options)
    rows = jaxsteer.generate_queue(model, batch, request, slots=2, max_new_tokens=G)
    return np.array([row.tokens for row in sorted(rows, key=lambda row: row.index)])


def values(folder: Path) -> dict[str, Any]:
    """On a mesh whose rows are on one host each, what comes out of everything but sweeps."""
    model = load(folder, "2x2")
    batch = prompts(model)
    options = {"max_new_tokens": G, "sampling_params": sampling(4, temperature=1.0, seed=3)}
    out = jaxsteer.generate(model, batch, **options)
    mesh = jaxsteer.llama.mesh_of(model)
    again = jaxsteer.generate(model, jaxsteer.shard_batch(batch, mesh), **options)
    traces = [
        Trace(row[mask].tolist(), 0, range(mask.sum()), ["odd"] * int(mask.sum()))
        for row, mask in zip(*map(np.asarray, (batch.tokens, batch.mask)), strict=True)
    ]
    return {
        "tokens": out.tokens,
        "logprobs": out.logprobs,
        "again": again.tokens,
        "queue": queue(model, batch, **options) if hosts.several() else out.tokens,
        "sums": activation_moments(model, traces, labels=["odd"], offsets=[0], length=9).squares,
        "weights": hosts.gather(model.params["lm_head"]["kernel"]),
    }


def signal_behind_the_second_chunk(kind: signal.Signals) -> None:
    real, calls = preemption.stop_if_asked, []

    def stop_if_asked(where: str) -> None:
        calls.append(where)
        if len(calls) == 2:
            signal.raise_signal(kind)
        real(where)

    preemption.stop_if_asked = stop_if_asked


def agreements() -> None:
    """The small ways in which processes talk."""
    index = jax.process_index()
    assert hosts.several()
    assert hosts.smallest(2**40 + 7 - index) == 2**40 + 7 - (jax.process_count() - 1)
    assert hosts.any_of(index == 1)
    assert not hosts.any_of(False)
    assert hosts.from_writer(lambda: {"long": "ä" * 5000, "i": index}) == {
        "long": "ä" * 5000,
        "i": 0,
    }
    for kind in (FileExistsError, MemoryError, KeyError):
        known = kind if kind is not KeyError or index == 0 else RuntimeError

        def fail(kind: type[Exception] = kind) -> None:
            raise kind("in the way")

        with pytest.raises(known, match="in the way"):
            hosts.from_writer(fail)
    hosts.barrier("end")


def stages(folder: Path) -> None:
    """A stage of the first process alone, and one of all that is interrupted once."""
    index, seen = jax.process_index(), []

    def alone(here: Path) -> None:
        seen.append(here)
        (here / "who").write_text(str(index))

    made = run_stage(folder, "alone", {}, alone, alone=True)
    assert (made / "who").read_text() == "0"
    assert len(seen) == (index == 0)

    def together(here: Path) -> None:
        seen.append(here)
        before = sorted(file.name for file in here.iterdir() if file.name != "stage.json")
        (here / f"file{len(before)}").write_text(str(index))
        if not before:
            raise ValueError("interrupted")
        assert before == ["file0"]
        assert (here / "file0").read_text() == "0"  # what the first process wrote

    with pytest.raises(ValueError, match="interrupted"):
        run_stage(folder, "together", {}, together)
    for _ in range(2):  # the second time it is there
        made = run_stage(folder, "together", {}, together)
    assert [(made / name).read_text() for name in ("file0", "file1")] == ["0", "0"]
    assert len({here for here in seen if here.is_relative_to(folder)}) == (2 if index == 0 else 0)


def damaged(folder: Path) -> None:
    """Each process checks some of the files; all refuse what one finds."""
    size = (folder / "together" / "file0").stat().st_size
    crc = zlib.crc32(b"0")
    files = {f"together/file{i}": [size, crc] for i in range(2)}
    check_together(folder, files)
    own = jax.process_index() == 0  # whose part the missing one is, the first by its name
    with pytest.raises(ValueError, match="missing: nothing" if own else "as another host says"):
        check_together(folder, files | {"nothing": [1, 1]})
    with pytest.raises(ValueError, match="written by one process that works alone"):
        jaxsteer.save(folder / "another", load(folder, "2x2"))


def main(folder: Path, index: int, processes: int, port: str, tasks: list[str]) -> None:
    jaxsteer.compile_cache.turn_off()
    if processes > 1:
        hosts.start(f"localhost:{port}", processes, index, timeout=10)
    for task in tasks:
        if task == "values":
            if processes > 1:
                agreements()
                stages(folder)
                damaged(folder)
            np.savez(folder / f"values-{processes}-{index}.npz", **values(folder))
            continue
        name, mesh, *rest = task.split(":")
        options = {}
        if rest and int(rest[1]) == index:
            if rest[0] == "small":
                options = {"loop": small_loop}
            elif rest[0] == "full":
                fail_in_the_second_chunk()
            else:
                signal_behind_the_second_chunk(signal.Signals[rest[0]])
        sweep(folder, name, mesh, **options)


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5:])

"""What of a model fits on which chips, and how long it will take, before anyone rents them.

    python -m jaxsteer.plan llama31_8b v5e-8 --rows 160 --prompt 512 --new 1024
    python -m jaxsteer.plan checkpoints/r1-distill-llama-8b v6e-4 --sweep figure3

The model is a preset, a converted checkpoint (on a disk or at `gs://`), or a Hugging Face folder or
`config.json`; the topology one that `jaxsteer.chips` knows, or "here". Memory comes from the
formula of `jaxsteer.memory`; with libtpu installed, `--compile` compiles the real program for that
topology and prints what the TPU's compiler says instead. Times are floors: what reading weights and
cache, multiplying, and adding up over chips take at least at the published rates.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType

from jaxsteer import aot
from jaxsteer.attention import cudnn_attention, xla_attention
from jaxsteer.chips import HERE, TOPOLOGIES, Topology, find
from jaxsteer.config import PRESETS, LlamaConfig
from jaxsteer.files import as_path
from jaxsteer.floor import decode_seconds, prefill_operations, step_seconds
from jaxsteer.memory import cache_bytes, program_bytes, sweep_bytes
from jaxsteer.model import Model
from jaxsteer.paths import flatten
from jaxsteer.sharding import DATA, TENSOR, check_tensor

# Of a chip's memory: left to the program's code and to the error of the formula.
_MARGIN = 0.07
# The sweep of Figure 3 took 27.7 s on an H200, with nothing left to compile: 1.47 times the floor
# at the published rates of that chip (experiments/benchmarks/RESULTS.md). No other was measured.
MEASURED_OVER_FLOOR = 1.47
_MOST_ROWS = 1 << 16


@dataclass(frozen=True)
class Work:
    """What is asked for: so many rows of a prompt and new tokens each."""

    rows: int
    prompt: int
    new: int
    prompts: int | None = None  # of a sweep, whose cells share them; each row's own, if not given


# Sweeps by name. Figure 3 of the paper, for one model: 16 cells × 20 prompts.
SWEEPS = {"figure3": Work(rows=16 * 20, prompt=128, new=1500, prompts=20)}


@dataclass(frozen=True)
class Bytes:
    """Memory on one chip."""

    weights: int
    cache: int
    temporaries: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.cache + self.temporaries


@dataclass(frozen=True)
class Plan:
    """A model on a mesh of chips, and what it takes there."""

    topology: Topology
    model: Model  # of shapes, split over the mesh
    data: int
    tensor: int
    work: Work
    memory: Bytes
    largest: int  # rows that fit at once; 0 if the weights alone do not

    @property
    def fits(self) -> bool:
        """Whether all rows fit at once."""
        return self.work.rows <= self.largest

    @property
    def batch(self) -> int:
        """Rows that run at once: equal parts of the work, of at most the largest batch."""
        chunks = -(-self.work.rows // max(1, self.largest))
        return -(-self.work.rows // (chunks * self.data)) * self.data

    def step_seconds(self) -> float:
        """Floor of a decode step, half-way through the new tokens."""
        tokens = self.work.prompt + self.work.new / 2
        chip = self.topology.chip.machine
        return step_seconds(
            self.model, chip, rows=self.batch, tokens=tokens, data=self.data, tensor=self.tensor
        )

    def seconds(self) -> float:
        """Floor of the whole work, in as many batches as it takes."""
        chip, work = self.topology.chip.machine, self.work
        decoding = decode_seconds(
            self.model,
            chip,
            rows=self.batch,
            prompt=work.prompt,
            steps=work.new,
            data=self.data,
            tensor=self.tensor,
        )
        rows = min(work.prompts or self.batch, self.batch)
        operations = prefill_operations(self.model, rows=rows, prompt=work.prompt)
        prompts = operations / (chip.rate * self.data * self.tensor)
        return -(-work.rows // self.batch) * (decoding + prompts)


def plan(
    config: LlamaConfig,
    topology: Topology,
    work: Work,
    *,
    dtype: Any = jnp.bfloat16,
    mesh: tuple[int, int] | None = None,
) -> Plan:
    """The mesh on which the work takes the least time of those on which it fits.

    `mesh` (data, tensor) asks for one instead. Where nothing fits, the plan of the mesh that needs
    the least memory comes back, with `largest` 0.

    Raises:
        ValueError: for sizes below 1, a mesh of another size, or one that cannot split the model.
    """
    for name, value in vars(work).items():
        if value is not None and value < 1:
            raise ValueError(f"{name}: got {value}, expected at least 1")
    if mesh is not None and mesh[0] * mesh[1] != topology.chips:
        raise ValueError(f"mesh: got {mesh[0]} × {mesh[1]}, expected {topology.chips} chips in all")
    if mesh is not None:
        check_tensor(config, mesh[1])
    meshes = list(_meshes(config, topology.chips)) if mesh is None else [mesh]
    plans = [_on_mesh(config, topology, work, dtype, *sizes) for sizes in meshes]
    fitting = [one for one in plans if one.largest]
    if fitting:
        return min(fitting, key=lambda one: (one.seconds(), one.tensor))
    return min(plans, key=lambda one: one.memory.total)


def _meshes(config: LlamaConfig, chips: int) -> Iterator[tuple[int, int]]:
    """Meshes of all chips that the model can be split over: `tensor` a power of two."""
    tensor = 1
    while tensor <= chips:
        try:
            check_tensor(config, tensor)
        except ValueError:
            tensor *= 2
            continue
        if chips % tensor == 0:
            yield chips // tensor, tensor
        tensor *= 2


def _on_mesh(
    config: LlamaConfig, topology: Topology, work: Work, dtype: Any, data: int, tensor: int
) -> Plan:
    mesh = AbstractMesh((data, tensor), (DATA, TENSOR), axis_types=(AxisType.Auto,) * 2)
    model = aot.abstract_model(config, mesh, dtype=dtype)
    if not topology.is_tpu:
        gpu = topology.chip.name.startswith("NVIDIA")
        model = model.with_attention(cudnn_attention if gpu else xla_attention)
    room = int((1 - _MARGIN) * topology.chip.memory)

    def fits(rows: int) -> bool:
        return footprint(model, replace(work, rows=rows)).total <= room

    largest = data * _largest(lambda n: fits(n * data), _MOST_ROWS // data)
    memory = footprint(model, work)
    return Plan(topology, model, data, tensor, work, memory, largest)


def _largest(fits: Any, most: int) -> int:
    """The largest number up to `most` that fits, 0 if 1 does not."""
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def footprint(model: Model, work: Work) -> Bytes:
    """What one chip holds of a model split over a mesh, by calculation."""
    sizes = (
        int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize
        for _, x in flatten(model.params)
    )
    asked = {"prompt_length": work.prompt, "new_tokens": work.new}
    cache = cache_bytes(model, rows=work.rows, **asked)
    if work.prompts is None:
        program = program_bytes(model, rows=work.rows, prompt_rows=work.rows, **asked)
        return Bytes(sum(sizes), cache, program - cache)
    cells = -(-work.rows // work.prompts)
    program = sweep_bytes(
        model,
        cells=cells,
        prompts=work.prompts,
        prompt_length=work.prompt,
        new_tokens=work.new,
    )
    return Bytes(sum(sizes), cache, program - cache)


def compiled_footprint(found: Plan) -> tuple[Bytes, int]:
    """What libtpu's compiler says of the same work, and the bytes of the program itself.

    Raises:
        ValueError: for a topology that is none of TPUs.
        ImportError: without libtpu.
        jax.errors.JaxRuntimeError: if the compiler says that it does not fit.
    """
    mesh = aot.mesh_for(found.topology, data=found.data, tensor=found.tensor)
    # The heads are repeated already, as often as the mesh asks for.
    model = aot.abstract_model(found.model.config, mesh, dtype=found.model.dtype)
    work = found.work
    if work.prompts:
        cells = -(-work.rows // work.prompts)
        sizes = {"cells": cells, "prompts": work.prompts, "prompt": work.prompt, "new": work.new}
        done = aot.compile_sweep(model, mesh, **sizes)
    else:
        done = aot.compile_generate(model, mesh, rows=work.rows, prompt=work.prompt, new=work.new)
    weights, cache = found.memory.weights, found.memory.cache
    return Bytes(weights, cache, done.total - weights - cache), done.code


def read_config(name: str) -> LlamaConfig:
    """The config of a preset, a converted checkpoint, or a Hugging Face folder or `config.json`.

    Raises:
        ValueError: if it is none of them, or asks for what is not implemented.
    """
    if name in PRESETS:
        config: LlamaConfig = getattr(LlamaConfig, name)()
        return config
    path = as_path(name)
    file = path / "config.json" if (path / "config.json").is_file() else path
    if file.is_file():
        try:
            fields = json.loads(file.read_text())
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{file}: no JSON: {error}") from None
        if not isinstance(fields, dict):
            raise ValueError(f"{file}: expected a JSON object")
        return LlamaConfig.from_hf(fields)
    if path.is_dir():
        from jaxsteer.checkpoint import read_manifest  # here, because Orbax takes a second

        return read_manifest(path).config
    known = ", ".join(PRESETS)
    raise ValueError(f"model: got {name!r}, expected a folder, a config.json, or one of {known}")


def lines(found: Plan, *, sweep: str | None = None, compiled: bool = False) -> Iterator[str]:
    """What the command prints."""
    topology, work, memory = found.topology, found.work, found.memory
    chip, source, code = topology.chip, "by calculation", None
    plural = "chip" if topology.chips == 1 else "chips"
    yield f"{topology.name}: {topology.chips} {plural} {chip.name}, {_gb(chip.memory)} each"
    yield f"mesh: {found.data}x{found.tensor} (rows in {found.data}, the model in {found.tensor})"
    if compiled and found.fits:
        memory, code = compiled_footprint(found)
        source = "by the TPU's compiler"
    yield f"{work.rows} rows, prompt {work.prompt}, new {work.new}; on each chip, {source}:"
    for name, size in (
        ("weights", memory.weights),
        ("cache", memory.cache),
        ("temporaries", memory.temporaries),
        ("program", code),
        ("headroom", chip.memory - memory.total - (code or 0)),
    ):
        if size is not None:
            yield f"  {name:<12}{_gb(size):>10}"
    if not found.largest:
        yield "does not fit: not even one row beside the weights"
        return
    yield f"largest batch that fits: {found.largest} rows" + (
        "" if found.fits else f"; the {work.rows} run in batches of {found.batch}"
    )
    step, whole = found.step_seconds(), found.seconds()
    rate = found.batch / step
    yield f"decode step of {found.batch} rows: at least {step * 1e3:.2f} ms ({rate:,.0f} tokens/s)"
    name = f"sweep {sweep}" if sweep else f"all {work.rows} rows"
    yield (
        f"{name}: at least {_time(whole)}, predicted {_time(whole * MEASURED_OVER_FLOOR)} "
        f"({MEASURED_OVER_FLOOR} × the floor, as measured on an H200), and compiling once"
    )


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def _mesh(text: str) -> tuple[int, int]:
    data, _, tensor = text.partition("x")
    return int(data), int(tensor)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m jaxsteer.plan", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("model", help=f"a folder, a config.json, or one of {', '.join(PRESETS)}")
    parser.add_argument("topology", help=f"one of {', '.join(TOPOLOGIES)}, {HERE}")
    parser.add_argument("--rows", type=int, default=160)
    parser.add_argument("--prompt", type=int, default=512, help="tokens of a prompt, padded")
    parser.add_argument("--new", type=int, default=1024, help="new tokens")
    parser.add_argument("--sweep", choices=SWEEPS, help="rows and lengths of a named sweep")
    parser.add_argument("--mesh", type=_mesh, metavar="DATAxTENSOR", help="instead of the best")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--compile", action="store_true", help="ask the TPU's compiler (minutes)")
    args = parser.parse_args(argv)
    work = SWEEPS[args.sweep] if args.sweep else Work(args.rows, args.prompt, args.new)
    try:
        config, topology = read_config(args.model), find(args.topology)
        found = plan(config, topology, work, dtype=args.dtype, mesh=args.mesh)
        if args.compile and topology.shape is None:
            raise ValueError(f"--compile: got {topology.name}, expected a topology of TPUs")
        for line in lines(found, sweep=args.sweep, compiled=args.compile):
            print(line, flush=True)
    except (ValueError, ImportError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except jax.errors.JaxRuntimeError as error:
        print(f"error: {str(error).splitlines()[0]}", file=sys.stderr)
        return 1
    return 0 if found.largest else 1


if __name__ == "__main__":
    sys.exit(main())

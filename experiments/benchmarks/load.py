"""How long a model takes to its devices: a Hugging Face folder beside the checkpoint made of it.

    python -m experiments.benchmarks.load --work /data/load

A folder of Llama-3.1-8B's shape with random weights (16 GB) is written and converted; `--source`
takes a folder that is there, and `--preset tiny` tries the command in a minute. Then each is loaded
in processes of its own: first with its files dropped from the system's cache, where that can be
done, then again. One JSON line a load, and one that compares them.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from experiments.benchmarks.disk import forget, sequential_speed, used
from jaxsteer.files import as_path
from jaxsteer.runtime import guarded, run, seconds_by_part

ROOT = Path(__file__).parents[2]
KINDS = ("folder", "checkpoint")
PRESETS = ("llama31_8b", "llama32_1b", "tiny")  # of `full_size`
_RWF_NOWAIT = getattr(os, "RWF_NOWAIT", 0)
_SAMPLES = 64  # places of a folder at which the cache is asked


def cached(folder: Path) -> float | None:
    """Share of a folder that is in the system's cache, by samples; None if it cannot be told."""
    sizes = [(file, file.stat().st_size) for file in sorted(folder.rglob("*")) if file.is_file()]
    large = [(file, size) for file, size in sizes if size >= max(s for _, s in sizes) // 2]
    answers = []
    for file, size in large:
        handle = os.open(file, os.O_RDONLY)
        try:
            for i in range(_SAMPLES // len(large) + 1):
                at = i * len(large) * size // (_SAMPLES + len(large))
                try:
                    answers.append(os.preadv(handle, [bytearray(1)], at, _RWF_NOWAIT) == 1)
                except BlockingIOError:
                    answers.append(False)
        except (OSError, AttributeError):  # another system, or file system
            return None
        finally:
            os.close(handle)
    return round(sum(answers) / len(answers), 2) if _RWF_NOWAIT else None


def load_once(path: Path) -> dict[str, Any]:
    """Load one model in this process; seconds from the call until the weights are in their places.

    The device is started before, and what is imported is what `import jaxsteer` imports.
    """
    import jax

    import jaxsteer

    jax.block_until_ready(jax.device_put(1.0))
    before = _peak()
    started, cpu = time.perf_counter(), time.process_time()
    with seconds_by_part() as parts:
        loaded = jaxsteer.load(path)
        jax.block_until_ready(loaded.model.params)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    leaves = jax.tree.leaves(loaded.model.params)
    size = sum(x.nbytes for x in leaves)
    on_host = size if jax.default_backend() == "cpu" else 0  # where weights themselves stay
    return {
        "seconds": round(seconds, 2),
        "cpu_s": round(cpu, 2),  # of all threads
        "GB": round(size / 1e9, 3),
        "device": jax.devices()[0].device_kind,
        "host_memory_GB": round(_peak() / 1e9, 2),
        "of_that_for_loading_GB": round((_peak() - before - on_host) / 1e9, 2),
        "largest_tensor_GB": round(max(x.nbytes for x in leaves) / 1e9, 3),
        "parts_s": {
            name: round(x, 2) for name, x in sorted(parts.items()) if not name.startswith("/")
        },
    }


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(paths: dict[str, Path]) -> list[dict[str, Any]]:
    """Each kind twice, in processes of its own; the second time its files are in the cache."""
    rows = []
    for kind, path in paths.items():
        for cold in (True, False):
            if cold:
                forget(path)
            share = cached(path)
            row = _in_process("--inside", kind, str(path))
            rows.append({"kind": kind, "cold": cold, "in_cache_before": share, **row})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def compare(rows: list[dict[str, Any]], read_speed: float) -> dict[str, Any]:
    """The folder's seconds as multiples of the checkpoint's, and the share of the disk's speed."""
    seconds = {(row["kind"], row["cold"]): row["seconds"] for row in rows}
    size = rows[0]["GB"] * 1e9
    return {
        "folder_over_checkpoint_cold": round(
            seconds["folder", True] / seconds["checkpoint", True], 3
        ),
        "folder_over_checkpoint_warm": round(
            seconds["folder", False] / seconds["checkpoint", False], 3
        ),
        "disk_read_GB_s": round(read_speed / 1e9, 3),
        **{
            f"{kind}_share_of_disk_speed": round(size / read_speed / seconds[kind, True], 3)
            for kind in KINDS
        },
    }


def prepare(work: Path, preset: str, source: Path | None) -> dict[str, Path]:
    """The folder and the checkpoint, written where they are not there yet."""
    folder = work / "source" if source is None else source
    if source is None and not (folder / "config.json").is_file():
        from experiments.benchmarks.fake_llama import write_fake_llama
        from experiments.benchmarks.full_size import PRESETS

        started = time.perf_counter()
        write_fake_llama(folder, PRESETS[preset], shards=4, perturbed=0.0, chat=True)
        print(json.dumps({"written_s": round(time.perf_counter() - started, 1)}), flush=True)
    if not (work / "checkpoint").is_dir():
        command("weights.convert", str(folder), str(work / "checkpoint"))
    return {"folder": folder, "checkpoint": work / "checkpoint"}


def command(module: str, *argv: str, **environment: str) -> str:
    """What a command prints; its errors go to the terminal."""
    done = subprocess.run(
        [sys.executable, "-m", module, *argv],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ValueError(f"{module} {' '.join(argv)}: ended with {done.returncode}")
    return done.stdout


def _in_process(*argv: str) -> dict[str, Any]:
    return json.loads(command("experiments.benchmarks.load", *argv).splitlines()[-1])


@guarded("load")
def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.load")
    parser.add_argument("--work", type=as_path, help="folder to write to, 32 GB at full size")
    parser.add_argument("--preset", choices=PRESETS, default=PRESETS[0])
    parser.add_argument("--source", type=as_path, help="a Hugging Face folder in place of random")
    parser.add_argument("--inside", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.inside:
        print(json.dumps(load_once(Path(args.inside[1]))))
        return 0
    if args.work is None:
        parser.error("--work: expected a folder")
    args.work.mkdir(parents=True, exist_ok=True)
    work = args.work.absolute()
    paths = prepare(work, args.preset, args.source and args.source.absolute())
    _, read_speed = sequential_speed(work, min(used(paths["folder"]), 4_000_000_000))
    print(json.dumps(compare(measure(paths), read_speed)), flush=True)
    return 0


if __name__ == "__main__":
    run(main)

"""Seconds from the start of a process to the last token of Figure 3: loading, compiling, decoding.

    python -m experiments.benchmarks.cold_start --work /data/load

The models are those of `load`: a Hugging Face folder with random weights, and its checkpoint. While
weights are read, the sweep is compiled (`jaxsteer.load(…, warm=…)`). Each case is a process of its
own and one JSON line:

    cold   the files are dropped from the system's cache before, and no compiled program is kept
    kept   the files are in the system's cache, and so are the programs of the case before
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from experiments.benchmarks import full_size
from experiments.benchmarks.disk import forget, sequential_speed, used
from experiments.benchmarks.load import KINDS, PRESETS, cached, command, prepare
from experiments.benchmarks.machine import Compilations, peak_GB, say
from experiments.benchmarks.sweep import SIZES, cells_of, into_a_file
from experiments.benchmarks.sweep_work import Work
from jaxsteer.files import as_path
from jaxsteer.runtime import guarded, run, seconds_by_part
from jaxsteer.runtime.compile_cache import VARIABLE


def run_once(path: Path, preset: str, started: float) -> dict[str, Any]:
    """Load a model and run Figure 3 on it; `started` is when the process was, by `time.time`."""
    import jaxsteer

    config = full_size.PRESETS[preset]
    work = Work(config=config, layer=config.n_layers // 3, **SIZES[preset])
    batch, cells = cells_of(work)
    jax.block_until_ready(batch)
    compilations = Compilations()
    ready = time.time()

    compiled = []

    def compile_ahead(lm: jaxsteer.LanguageModel) -> None:
        jaxsteer.compile_sweep(lm.model, batch, cells, max_new_tokens=work.new_tokens)
        compiled.append(time.time())

    with seconds_by_part() as parts:
        lm = jaxsteer.load(path, warm=compile_ahead)
        jax.block_until_ready(lm.model.params)
    loaded = time.time()
    _, lines = into_a_file(lm.model, batch, cells, new_tokens=work.new_tokens)
    ended = time.time()
    return {
        "device": jax.devices()[0].device_kind,
        "imported_s": ready - started,
        "loaded_and_compiled_s": loaded - ready,
        "of_that_until_compiled_s": compiled[0] - ready,
        "sweep_s": ended - loaded,
        "seconds": ended - started,
        "rows": len(lines),
        "compilations": compilations.count,
        "compile_s": compilations.seconds,
        "peak_GB": peak_GB(),
        "loading_parts_s": {
            name: round(x, 2) for name, x in sorted(parts.items()) if not name.startswith("/")
        },
    }


def measure(paths: dict[str, Path], preset: str) -> None:
    """Print both cases of each kind of source."""
    for kind, path in paths.items():
        with tempfile.TemporaryDirectory() as programs:
            for case in ("cold", "kept"):
                if case == "cold":
                    forget(path)
                labels = {"kind": kind, "case": case, "in_cache_before": cached(path)}
                given = ("--preset", preset, "--inside", str(path), str(time.time()))
                printed = command(
                    "experiments.benchmarks.cold_start", *given, **{VARIABLE: programs}
                )
                say(labels | json.loads(printed.splitlines()[-1]))


@guarded("cold_start")
def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.cold_start")
    parser.add_argument("--work", type=as_path, help="folder to write to, 32 GB at full size")
    parser.add_argument("--preset", choices=PRESETS, default=PRESETS[0])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--inside", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.inside:
        say(run_once(Path(args.inside[0]), args.preset, float(args.inside[1])))
        return 0
    if args.work is None:
        parser.error("--work: expected a folder")
    args.work.mkdir(parents=True, exist_ok=True)
    paths = prepare(args.work.absolute(), args.preset, None)
    _, read = sequential_speed(args.work, min(used(paths["folder"]), 4_000_000_000))
    say({"disk_read_GB_s": read / 1e9, "model_GB": used(paths["checkpoint"]) / 1e9})
    measure({kind: paths[kind] for kind in args.kinds}, args.preset)
    return 0


if __name__ == "__main__":
    run(main)

"""Time a steered sweep with random weights of a preset, and the same by transformers.

    python -m experiments.benchmarks.sweep --preset llama31_8b

Prints one JSON line a case:

    figure 3        cells × prompts × new tokens by `sweep_to_file`: seconds of everything after
                    loading, compilation included
    figure 3 again  the same in the same process, with nothing left to compile
    rows            plain rows, each steered by its own cell's intervention: ms a step
    vmapped         the same rows as cells × prompts, cells vmapped: ms a step, ratio to plain rows
    sweep, …        figure 3 by transformers with a forward hook (`sweep_transformers`)
    compared        how many times faster

Each engine runs in a process of its own, so that neither holds memory that the other needs.
"""

import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")  # before JAX is imported

import jax
import jax.numpy as jnp

from experiments.benchmarks.decode import limited
from experiments.benchmarks.machine import (
    PRESETS,
    Compilations,
    about,
    config_of,
    peak_GB,
    preset_parser,
    random_model,
    say,
)
from experiments.benchmarks.sweep_work import Work, make_work
from jaxsteer.decoding import greedy, make_request
from jaxsteer.llama import Model, TokenBatch
from jaxsteer.planning import Machine, decode_seconds
from jaxsteer.runtime import compile_cache, matrix_rate, read_bandwidth
from jaxsteer.steering import add, as_tuple
from jaxsteer.steering import rows as as_rows
from jaxsteer.sweeps import Cell, stack_cells, sweep_to_file
from jaxsteer.sweeps import chunks as sweeping

FIGURE_3 = {"cells": 16, "prompts": 20, "prompt_length": 128, "new_tokens": 1500}
SIZES = dict.fromkeys(PRESETS, FIGURE_3) | {
    "tiny": {"cells": 4, "prompts": 3, "prompt_length": 8, "new_tokens": 12},
}


def cells_of(work: Work) -> tuple[TokenBatch, list[Cell]]:
    """The work in jaxsteer's terms."""
    prompts, mask, vectors, coeffs = make_work(work)
    batch = TokenBatch(jnp.asarray(prompts, jnp.int32), jnp.asarray(mask))
    steered = zip(vectors, coeffs, strict=True)
    return batch, [
        Cell({"cell": i}, add(vector, layer=work.layer, coeff=coeff))
        for i, (vector, coeff) in enumerate(steered)
    ]


def time_steps(
    model: Model, work: Work, machine: Machine, *, steps: int, repeats: int
) -> Iterator[dict[str, Any]]:
    """Milliseconds a step of plain rows, and of the same rows as vmapped cells."""
    batch, cells = cells_of(work)
    C, B = work.cells, work.prompts
    options: dict[str, Any] = {"max_new_tokens": steps + 1}
    shared = make_request(model, batch, **options)
    request = replace(shared, steering=stack_cells(cells, work.config))
    wide = TokenBatch(jnp.tile(batch.tokens, (C, 1)), jnp.tile(batch.mask, (C, 1)))
    each = as_rows([one for cell in cells for one in as_tuple(cell.steering) * B])
    plain = make_request(model, wide, steering=each, **options)
    cells_of_prompts: dict[str, Any] = {"program": sweeping.run_cells, "steer_prompt": False}
    programs = {
        "rows": jax.jit(functools.partial(limited, sampler=greedy)),
        "vmapped": jax.jit(functools.partial(limited, sampler=greedy, **cells_of_prompts)),
    }
    arguments = {"rows": (model, wide, plain), "vmapped": (model, batch, request)}
    compiled = {}
    for name, program in programs.items():
        compilations = Compilations()
        jax.block_until_ready(program(*arguments[name], jnp.int32(1)))
        compiled[name] = _told(compilations)

    def seconds(name: str, limit: int) -> float:
        started = time.perf_counter()
        jax.block_until_ready(programs[name](*arguments[name], jnp.int32(limit)))
        return time.perf_counter() - started

    # In turns, so that a machine that slows down does so for both.
    spent = {
        limit: [{name: seconds(name, limit) for name in programs} for _ in range(repeats)]
        for limit in (1, steps + 1)
    }
    floor_ms = (
        decode_seconds(model, machine, rows=C * B, prompt=work.prompt_length, steps=steps)
        / steps
        * 1e3
    )
    step_ms = {}
    for name in programs:
        first, whole = (min(times[name] for times in spent[limit]) for limit in (1, steps + 1))
        step_ms[name] = (whole - first) / steps * 1e3
        figures = {
            "case": name,
            "rows": C * B,
            "prompt": work.prompt_length,
            "steps": steps,
            "step_ms": step_ms[name],
            "tokens_per_s": C * B / step_ms[name] * 1e3,
            "floor_ms": floor_ms,
            "ratio": step_ms[name] / floor_ms,
            **compiled[name],
        }
        if name == "vmapped":
            figures["ratio_to_rows"] = step_ms["vmapped"] / step_ms["rows"]
        yield figures | _memory()


def into_a_file(
    model: Model, batch: TokenBatch, cells: list[Cell], *, new_tokens: int
) -> tuple[float, list[str]]:
    """Seconds of `sweep_to_file`, and the lines of its file, which is removed."""
    with tempfile.TemporaryDirectory() as folder:
        started, file = time.perf_counter(), Path(folder) / "sweep.jsonl"
        sweep_to_file(file, model, batch, cells, max_new_tokens=new_tokens, progress=None)
        return time.perf_counter() - started, file.read_text().splitlines()


def time_figure(
    model: Model, work: Work, machine: Machine, *, case: str = "figure 3"
) -> Iterator[dict[str, Any]]:
    """The whole sweep into a file, from prompts to rows, compilation included."""
    batch, cells = cells_of(work)
    compilations, loops = Compilations(), sweeping._run_cells._cache_size()  # type: ignore[attr-defined]
    seconds, lines = into_a_file(model, batch, cells, new_tokens=work.new_tokens)
    tokens = sum(len(json.loads(line)["tokens"]) for line in lines)
    rows = work.cells * work.prompts
    floor = decode_seconds(
        model, machine, rows=rows, prompt=work.prompt_length, steps=work.new_tokens
    )
    yield {
        "case": case,
        "cells": work.cells,
        "prompts": work.prompts,
        "new_tokens": work.new_tokens,
        "seconds": seconds,
        **_told(compilations),  # with all the small programs around the loop
        "loops_compiled": sweeping._run_cells._cache_size() - loops,  # type: ignore[attr-defined]
        "tokens_per_s": tokens / seconds,
        "floor_s": floor,  # of decoding all rows at once
        "ratio": seconds / floor,
    } | _memory()


def _told(compilations: Compilations) -> dict[str, Any]:
    return {"compile_s": compilations.seconds, "compilations": compilations.count}


def _memory() -> dict[str, float]:
    peak = peak_GB()
    return {} if peak is None else {"peak_GB": peak}


def measure(work: Work, *, steps: int, repeats: int) -> Iterator[dict[str, Any]]:
    """All of jaxsteer's cases."""
    compile_cache.turn_off()
    machine = Machine(read_bandwidth(), matrix_rate())
    yield about(machine)
    model = random_model(work.config)
    yield from time_figure(model, work, machine)
    yield from time_figure(model, work, machine, case="figure 3 again")
    yield from time_steps(model, work, machine, steps=steps, repeats=repeats)


def compare(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """How many times faster jaxsteer made the figure, from both engines' lines."""
    cases = {line["case"]: line for line in lines if "case" in line}
    ours, theirs = cases["figure 3"], cases["sweep, transformers with a hook"]
    extrapolated = "seconds_extrapolated" in theirs
    seconds = theirs["seconds_extrapolated" if extrapolated else "seconds"]
    return {
        "case": "compared",
        "jaxsteer_s": ours["seconds"],
        "transformers_s": seconds,
        "transformers_s_is": "extrapolated" if extrapolated else "measured",
        "times_faster": seconds / ours["seconds"],
    }


def _child(argv: list[str]) -> Iterator[str]:
    """Lines of this module run with other arguments in a process of its own.

    Raises:
        RuntimeError: if it fails.
    """
    command = [sys.executable, "-m", "experiments.benchmarks.sweep", *argv]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield from process.stdout
    if process.returncode:
        raise RuntimeError(f"{' '.join(argv)}: ended with exit code {process.returncode}")


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = preset_parser("sweep")
    parser.add_argument("--engine", choices=("both", "jaxsteer", "transformers"), default="both")
    for name in ("cells", "prompts", "prompt-length", "new-tokens"):
        parser.add_argument(f"--{name}", type=int, help="the preset's, if not given")
    parser.add_argument("--steps", type=int, default=256, help="of plain and vmapped rows")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=160, help="rows of transformers' batches")
    parser.add_argument(
        "--transformers-tokens", type=int, help="time only so many of each batch, extrapolate"
    )
    args = parser.parse_args(argv)
    if args.engine == "both":
        given = sys.argv[1:] if argv is None else argv
        printed = []
        for engine in ("jaxsteer", "transformers"):
            for text in _child([*given, "--engine", engine]):
                print(text, end="", flush=True)
                printed.append(json.loads(text))
        say(compare(printed))
        return 0
    usual = SIZES[args.preset]
    sizes = {k: n if getattr(args, k) is None else getattr(args, k) for k, n in usual.items()}
    config = config_of(args.preset)
    work = Work(config=config, layer=config.n_layers // 3, **sizes)
    if args.engine == "jaxsteer":
        lines = measure(work, steps=min(args.steps, work.new_tokens), repeats=args.repeats)
    else:
        from experiments.benchmarks import sweep_transformers  # PyTorch, in this process only

        tokens = min(args.transformers_tokens or work.new_tokens, work.new_tokens)
        lines = sweep_transformers.measure(work, batch=args.batch, tokens=tokens)
    for line in lines:
        say(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())

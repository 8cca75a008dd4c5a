"""Compile the engine's programs for TPUs that are not here, and check what the compiler made.

    python -m experiments.benchmarks.tpu_aot
    python -m experiments.benchmarks.tpu_aot --topology v5e-8 --program decode sweep --table FILE

Llama-8B for v5e-8, v4-8, v5p-8 and v6e-8, Llama-70B for v5p-16, each on the mesh that
`jaxsteer.plan` recommends: prompts, the decoding loop, a sweep of vmapped cells (Figure 3 of the
paper) and the pass that sums activations. Needs `jaxsteer[tpu]` on Linux, no TPU, 6 GB of memory
and minutes. One JSON line a program; `--table` writes a Markdown table. Asserted, for exit code 0:

    it fits the chip, with its code
    two all-reduces of the stream a layer, and one for the embedding, in the decoding loop
    no other collective there of more than some numbers a row, none of the cache
    nothing there writes a layer's keys or values anew: no copy, no select
    temporaries of the decoding loop below 0.5 GB a chip
    weights, cache and temporaries as the formula of `jaxsteer.plan` has them, within 5%
"""

import argparse
import datetime
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before JAX is imported: no TPU is looked for

import jax

from experiments.benchmarks import hlo
from experiments.benchmarks.machine import config_of, rounded
from jaxsteer.config import LlamaConfig
from jaxsteer.files import as_path, write_atomic
from jaxsteer.planning import SWEEPS, Plan, Work, find_topology, footprint, plan
from jaxsteer.planning import tpu_programs as aot
from jaxsteer.runtime import compile_cache

TOPOLOGIES = {
    "v5e-8": "llama31_8b",
    "v4-8": "llama31_8b",
    "v5p-8": "llama31_8b",
    "v6e-8": "llama31_8b",
    "v5p-16": "llama31_70b",
}
PROGRAMS = ("decode", "sweep", "prefill", "capture")
DECODING = Work(rows=320, prompt=512, new=1024)
CAPTURE = {"rows": 16, "length": 2048, "sentences": 96, "labels": 8, "offsets": 35}
MOST_TEMPORARIES = 0.5e9
FORMULA_ERROR = 0.05
_SMALL = 32  # numbers a row that a collective of the loop may move, the stream apart


@dataclass(frozen=True)
class Checked:
    """One program: what the compiler says, and what of it is not as it should be."""

    facts: dict[str, Any]
    problems: list[str]


def check(name: str, config: LlamaConfig, topology: str, program: str, work: Work) -> Checked:
    """Compile one program and look at it; rows that do not fit at once are left out."""
    made = plan(config, find_topology(topology), work)
    if not made.fits:
        each = work.prompts or 1
        work = replace(work, rows=made.largest // each * each)
        made = plan(config, find_topology(topology), work)
    labels = {
        "model": name,
        "topology": topology,
        "mesh": f"{made.data}x{made.tensor}",
        "program": program,
        "layers": config.n_layers,
        **(CAPTURE if program == "capture" else vars(work)),
    }
    started = time.perf_counter()
    try:
        compiled = compile_program(made, program)
    except jax.errors.JaxRuntimeError as error:
        return Checked(labels, [str(error).splitlines()[0]])
    seconds = time.perf_counter() - started
    facts = labels | {
        "weights_GB": made.memory.weights / 1e9,
        "cache_GB": 0.0 if program == "capture" else made.memory.cache / 1e9,
        "temporaries_GB": compiled.temporaries / 1e9,
        "total_GB": compiled.total / 1e9,
        "code_GB": compiled.code / 1e9,
        "chip_GB": made.topology.chip.memory / 1e9,
        "compile_s": seconds,
    }
    problems = []
    if compiled.total + compiled.code > made.topology.chip.memory:
        problems.append("does not fit")
    if program in ("decode", "sweep"):
        more, wrong = check_loop(made, compiled.text)
        facts |= more
        problems += wrong
    if program == "decode" and compiled.temporaries >= MOST_TEMPORARIES:
        problems.append(f"temporaries of {compiled.temporaries / 1e9:.2f} GB")
    if program in ("prefill", "sweep"):
        expected = footprint(made.model, made.work).total
        facts["formula_GB"] = expected / 1e9
        if abs(expected / compiled.total - 1) > FORMULA_ERROR:
            problems.append(f"the formula is off by {expected / compiled.total - 1:+.1%}")
    return Checked(facts, problems)


def compile_program(made: Plan, program: str) -> aot.Compiled:
    """One of `PROGRAMS` for a plan's topology, mesh and work."""
    mesh = aot.mesh_for(made.topology, data=made.data, tensor=made.tensor)
    model = aot.abstract_model(made.model.config, mesh)
    work = made.work
    if program == "capture":
        return aot.compile_capture(model, mesh, **CAPTURE)
    if program == "sweep":
        assert work.prompts is not None
        sizes = {"cells": work.rows // work.prompts, "prompts": work.prompts}
        return aot.compile_sweep(model, mesh, **sizes, prompt=work.prompt, new=work.new)
    compiling = {"decode": aot.compile_decode, "prefill": aot.compile_prefill}[program]
    return compiling(model, mesh, rows=work.rows, prompt=work.prompt, new=work.new)


def check_loop(made: Plan, text: str) -> tuple[dict[str, Any], list[str]]:
    """Collectives and writes of the last loop of a program, which is the one that decodes."""
    config, problems = made.model.config, []
    loop = hlo.loops(text)[-1]
    rows = math.ceil(made.work.rows / made.data)
    moved = hlo.collectives(loop)
    stream = {key: n for key, n in moved.items() if key[1][-1:] == (config.d_model,)}
    reduces = sum(n for (kind, _), n in stream.items() if kind == "all-reduce")
    expected = 2 * config.n_layers + 1 if made.tensor > 1 else 0
    if reduces != expected or sum(stream.values()) != reduces:
        problems.append(f"all-reduces of the stream: {reduces}, expected {expected}")
    large = [
        f"{kind} {list(shape)}"
        for kind, shape in moved
        if shape[-1:] != (config.d_model,) and math.prod(shape) > _SMALL * rows
    ]
    problems += [f"moves in each step: {name}" for name in large]
    # Keys of one layer on one chip; of a prompt that is shared, a row has the last token.
    slots = made.work.new + (1 if made.work.shared else made.work.prompt)
    elements = rows * slots * config.n_kv_heads // made.tensor * config.head_dim
    written = hlo.rewritten(text, loop, elements=elements)
    problems += [f"writes a whole cache in each step: {kind} × {n}" for kind, n in written.items()]
    return {"all_reduces": reduces, "whole_caches_written": sum(written.values())}, problems


def table(lines: list[dict[str, Any]]) -> Iterator[str]:
    """The JSON lines as a Markdown table."""
    yield (
        "| model | topology | mesh | program | rows | weights | cache | temporaries | total "
        "| of chip | formula | all-reduces a step | compile, s |"
    )
    yield "|" + " --- |" * 13
    for x in lines:
        if "total_GB" not in x:
            problem = x["problems"][0]
            yield f"| {x['model']} | {x['topology']} | {x['mesh']} | {x['program']} | | {problem} |"
            continue
        length = x.get("length") or f"{x['prompt']} → {x['prompt'] + x['new']}"
        formula = f"{x['formula_GB'] / x['total_GB'] - 1:+.1%}" if "formula_GB" in x else ""
        yield (
            f"| {x['model']} | {x['topology']} | {x['mesh']} | {x['program']} "
            f"| {x['rows']} × {length} | {x['weights_GB']:.2f} | {x['cache_GB']:.2f} "
            f"| {x['temporaries_GB']:.2f} | {x['total_GB']:.2f} "
            f"| {(x['total_GB'] + x['code_GB']) / x['chip_GB']:.0%} | {formula} "
            f"| {x.get('all_reduces', '')} | {x['compile_s']:.0f} |"
        )


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.tpu_aot")
    parser.add_argument("--topology", nargs="+", choices=TOPOLOGIES, default=list(TOPOLOGIES))
    parser.add_argument("--program", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument("--layers", type=int, help="of the model's, for a quicker look")
    parser.add_argument("--table", type=as_path, help="write a Markdown table to this file")
    args = parser.parse_args(argv)
    if not aot.available():
        print("error: libtpu is not installed: pip install 'jaxsteer[tpu]'", file=sys.stderr)
        return 2
    compile_cache.turn_off()
    versions = {"date": datetime.date.today().isoformat(), "jax": jax.__version__}
    print(json.dumps(versions | {"libtpu": aot.version()}), flush=True)
    lines = []
    for topology in args.topology:
        preset = TOPOLOGIES[topology]
        config = config_of(preset)
        config = replace(config, n_layers=args.layers or config.n_layers)
        for program in args.program:
            work = SWEEPS["figure3"] if program == "sweep" else DECODING
            checked = check(preset, config, topology, program, work)
            line = rounded(checked.facts) | {"problems": checked.problems}
            print(json.dumps(line), flush=True)
            lines.append(line)
    if args.table:
        write_atomic(args.table, ("\n".join(table(lines)) + "\n").encode())
    return 1 if any(line["problems"] for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())

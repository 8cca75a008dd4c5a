"""What of a model fits on which chips, and how long it will take, before anyone rents them.

    python -m jaxsteer.plan llama31_8b v5e-8 --rows 160 --prompt 512 --new 1024
    python -m jaxsteer.plan checkpoints/r1-distill-llama-8b v6e-4 --sweep figure3

The model is a preset, a converted checkpoint (on a disk or at `gs://`), or a Hugging Face folder or
`config.json`; the topology one that `planning.chips` knows, or "here". Memory comes from the
formula of `decoding.memory`; with libtpu installed, `--compile` compiles the real program for that
topology and prints what the TPU's compiler says instead. Times are floors: what reading weights and
cache, multiplying, and adding up over chips take at least at the published rates.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType

from jaxsteer.config import PRESETS, LlamaConfig
from jaxsteer.decoding import USABLE, weight_bytes
from jaxsteer.files import as_path, read_json_object
from jaxsteer.llama import DATA, TENSOR, Model, check_tensor, cudnn_attention, xla_attention
from jaxsteer.planning import tpu_programs as aot
from jaxsteer.planning.chip_memory import Bytes, Work, capture_bytes, footprint
from jaxsteer.planning.chips import HERE, TOPOLOGIES, Chip, Topology, find_topology
from jaxsteer.planning.roofline import decode_seconds, prefill_operations, step_seconds
from jaxsteer.runtime import compile_cache, guarded
from jaxsteer.sweeps import chunk_shape

# Of a chip's memory: left to the program's code and to the error of the formula.
_MARGIN = 0.07
# The sweep of Figure 3 took 27.7 s on an H200, with nothing left to compile, when each cell had its
# prompts for itself: 1.47 times the floor of that at the published rates of that chip
# (experiments/benchmarks/RESULTS.md). No other was measured.
MEASURED_OVER_FLOOR = 1.47
_MOST_ROWS = 1 << 16


# Sweeps by name. Figure 3 of the paper, for one model: 16 cells × 20 prompts.
SWEEPS = {"figure3": Work(rows=16 * 20, prompt=128, new=1500, prompts=20)}


@dataclass(frozen=True)
class Plan:
    """A model on a mesh of chips, and what it takes there."""

    topology: Topology
    model: Model  # of shapes, split over the mesh
    data: int
    tensor: int
    work: Work
    at_once: Work  # all of it, or one of the equal parts in which it runs
    memory: Bytes  # of what runs at once
    largest: int  # rows that fit at once; 0 if the weights alone do not

    @property
    def parts(self) -> int:
        """How many of `at_once` the work takes."""
        work, part = self.work, self.at_once
        if work.prompts is None or part.prompts is None:
            return -(-work.rows // part.rows)
        return -(-work.cells // part.cells) * -(-work.prompts // part.prompts)

    @property
    def fits(self) -> bool:
        """Whether all rows fit at once."""
        return self.largest > 0 and self.parts == 1

    @property
    def batch(self) -> int:
        """Rows that run at once."""
        return self.at_once.rows

    def step_seconds(self) -> float:
        """Floor of a decode step, half-way through the new tokens."""
        tokens, sizes = self._tokens()
        chip = self.topology.chip.machine
        return step_seconds(
            self.model, chip, rows=self.batch, tokens=tokens + self.work.new / 2, **sizes
        )

    def seconds(self) -> float:
        """Floor of the whole work, in as many parts as it takes."""
        chip, work = self.topology.chip.machine, self.work
        prompt, sizes = self._tokens()
        decoding = decode_seconds(
            self.model, chip, rows=self.batch, prompt=prompt, steps=work.new, **sizes
        )
        rows = self.at_once.prompts or self.batch
        shared = self.data if rows % self.data == 0 else 1  # or each part runs all of them
        operations = prefill_operations(self.model, rows=rows, prompt=work.prompt)
        return self.parts * (decoding + operations / (chip.rate * shared * self.tensor))

    def _tokens(self) -> tuple[int, dict[str, int]]:
        """Prompt tokens that each row reads by itself, and what `step_seconds` asks beside."""
        shared = self.at_once.shared
        sizes = {"shared": shared, "prefixes": self.at_once.prompts or 1}
        return self.work.prompt - shared, sizes | {"data": self.data, "tensor": self.tensor}


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
    room = room_for_programs(topology.chip, weight_bytes(model))

    def fits(part: Work) -> bool:
        needed = footprint(model, part)
        return needed.total - needed.weights <= room

    def rows_fit(n: int) -> bool:
        prompts = None if work.prompts is None else min(work.prompts, n)
        return fits(replace(work, rows=n, prompts=prompts))

    largest = data * _largest(lambda n: rows_fit(n * data), _MOST_ROWS // data)
    at_once = _at_once(work, fits, largest, data)
    return Plan(topology, model, data, tensor, work, at_once, footprint(model, at_once), largest)


def room_for_programs(chip: Chip, weights: int) -> int:
    """Bytes for cache and temporaries beside the weights: no more than the library would take."""
    free = chip.memory - weights
    return min(int((1 - _MARGIN) * chip.memory) - weights, int(USABLE * (chip.share or free)))


def _at_once(work: Work, fits: Callable[[Work], bool], largest: int, data: int) -> Work:
    """The work, or the part of it that runs at a time, as `sweep` and callers of `generate` do."""
    if work.prompts is None:
        parts = -(-work.rows // max(1, largest))
        return replace(work, rows=-(-work.rows // (parts * data)) * data)

    def part(C: int, B: int) -> Work:
        return replace(work, rows=C * B, prompts=B)

    shape = chunk_shape(work.cells, work.prompts, lambda C, B: fits(part(C, B)), data)
    return part(*shape)


def _largest(fits: Any, most: int) -> int:
    """The largest number up to `most` that fits, 0 if 1 does not."""
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def compiled_footprint(plan: Plan) -> tuple[Bytes, int]:
    """What libtpu's compiler says of what runs at once, and the bytes of the program itself.

    Raises:
        ValueError: for a topology that is none of TPUs.
        ImportError: without libtpu.
        jax.errors.JaxRuntimeError: if the compiler says that it does not fit.
    """
    mesh = aot.mesh_for(plan.topology, data=plan.data, tensor=plan.tensor)
    # The heads are repeated already, as often as the mesh asks for.
    model = aot.abstract_model(plan.model.config, mesh, dtype=plan.model.dtype)
    work = plan.at_once
    if work.prompts:
        sizes = {"cells": work.cells, "prompts": work.prompts}
        sizes |= {"prompt": work.prompt, "new": work.new}
        done = aot.compile_sweep(model, mesh, **sizes)
    else:
        done = aot.compile_generate(model, mesh, rows=work.rows, prompt=work.prompt, new=work.new)
    weights, cache = plan.memory.weights, plan.memory.cache
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
        return LlamaConfig.from_hf(read_json_object(file))
    if path.is_dir():
        from jaxsteer.checkpoints import read_manifest  # here, as Orbax takes a second

        return read_manifest(path).config
    known = ", ".join(PRESETS)
    raise ValueError(f"model: got {name!r}, expected a folder, a config.json, or one of {known}")


def lines(
    plan: Plan, *, sweep: str | None = None, compiled: tuple[Bytes, int] | None = None
) -> Iterator[str]:
    """What the command prints; `compiled` is the `compiled_footprint`, if it was asked for."""
    topology, work = plan.topology, plan.work
    chip, source = topology.chip, "by the TPU's compiler" if compiled else "by calculation"
    memory, code = compiled or (plan.memory, None)
    plural = "chip" if topology.chips == 1 else "chips"
    yield (
        f"{topology.name}: {topology.chips} {plural} {chip.name}, "
        f"{_gb(chip.memory)} each for programs"
    )
    yield f"mesh: {plan.data}x{plan.tensor} (rows in {plan.data}, the model in {plan.tensor})"
    rows = f"{work.rows} rows" if plan.fits else f"{plan.batch} of {work.rows} rows"
    yield f"{rows}, prompt {work.prompt}, new {work.new}; each chip, {source}:"
    for name, size in (
        ("weights", memory.weights),
        ("cache", memory.cache),
        ("temporaries", memory.temporaries),
        ("program", code),
        ("headroom", chip.memory - memory.total - (code or 0)),
    ):
        if size is not None:
            yield f"  {name:<12}{_gb(size):>10}"
    if not plan.largest:
        room = max(0, room_for_programs(chip, memory.weights))
        needed = memory.total - memory.weights
        yield f"does not fit: needs {_gb(needed)} beside the weights, may use {_gb(room)}"
        return
    together = "" if plan.fits else f"; the {work.rows} run in {plan.parts} parts"
    yield f"largest batch that fits: {plan.largest} rows{together}"
    step, whole = plan.step_seconds(), plan.seconds()
    rate = plan.batch / step
    yield f"decode step of {plan.batch} rows: at least {step * 1e3:.2f} ms ({rate:,.0f} tokens/s)"
    name = f"sweep {sweep}" if sweep else f"all {work.rows} rows"
    yield (
        f"{name}: at least {_time(whole)}, predicted {_time(whole * MEASURED_OVER_FLOOR)} "
        f"({MEASURED_OVER_FLOOR} × the floor, as measured on an H200), and compiling once"
    )


def facts(plan: Plan, *, compiled: tuple[Bytes, int] | None = None) -> dict[str, Any]:
    """A plan, JSON-ready: bytes of each chip, seconds at least."""
    memory, code = compiled or (plan.memory, None)
    fitting = bool(plan.largest)
    return {
        "topology": plan.topology.name,
        "chips": plan.topology.chips,
        "chip_bytes": plan.topology.chip.memory,
        "mesh": [plan.data, plan.tensor],
        "rows": plan.work.rows,
        "rows_at_once": plan.batch if fitting else 0,
        "largest": plan.largest,
        "weights_bytes": memory.weights,
        "cache_bytes": memory.cache,
        "temporaries_bytes": memory.temporaries,
        "program_bytes": code,
        "step_seconds": plan.step_seconds() if fitting else None,
        "seconds": plan.seconds() if fitting else None,
    }


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _mesh(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"got {text}, expected DATAxTENSOR, as in 2x4")
    return int(match[1]), int(match[2])


@guarded(failed=2)
def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m jaxsteer.plan", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("model", help=f"a folder, a config.json, or one of {', '.join(PRESETS)}")
    parser.add_argument("topology", help=f"one of {', '.join(TOPOLOGIES)}, {HERE}")
    parser.add_argument("--rows", type=int, default=160)
    parser.add_argument("--prompt", type=int, default=512, help="tokens of a prompt, padded")
    parser.add_argument("--new", type=int, default=1024, help="new tokens")
    parser.add_argument("--prompts", type=int, help="that rows share; each its own, if not given")
    parser.add_argument("--capture", type=int, metavar="LAYERS", help="raw, of each new token")
    parser.add_argument("--directions", type=int, default=0, help="products with them, not raw")
    parser.add_argument("--sweep", choices=SWEEPS, help="rows and lengths of a named sweep")
    parser.add_argument("--mesh", type=_mesh, metavar="DATAxTENSOR", help="instead of the best")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--compile", action="store_true", help="ask the TPU's compiler (minutes)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    work = Work(args.rows, args.prompt, args.new, args.prompts)
    work = SWEEPS[args.sweep] if args.sweep else work
    config, topology = read_config(args.model), find_topology(args.topology)
    if args.capture is not None:
        layers = {"layers": args.capture, "directions": args.directions}
        work = replace(work, captured=capture_bytes(config, args.dtype, tokens=work.new, **layers))
    made = plan(config, topology, work, dtype=args.dtype, mesh=args.mesh)
    if args.compile and topology.shape is None:
        raise ValueError(f"--compile: got {topology.name}, expected a topology of TPUs")
    compiled = None
    if args.compile and made.largest:
        print(f"compiling for {topology.name}: minutes", file=sys.stderr, flush=True)
        jax.config.update("jax_platforms", "cpu")  # no TPU is looked for
        compile_cache.turn_off()  # programs for what is not here cannot be read back
        compiled = compiled_footprint(made)
    if args.json:
        print(json.dumps(facts(made, compiled=compiled), indent=1))
    else:
        print("\n".join(lines(made, sweep=args.sweep, compiled=compiled)))
    return 0 if made.largest else 1

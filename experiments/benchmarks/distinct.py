"""Time a batch whose rows are steered by 1, 4, 16, … distinct configurations against none.

    python -m experiments.benchmarks.distinct

By default 256 rows at the shapes of R1-Distill-Qwen-1.5B, with random bf16 weights. A configuration
is a vector, a layer and a coefficient of its own, and in the cases "all operations" one of add,
ablate, clamp, replace and amplify. Configuration i belongs to the rows i, i + n, i + 2n, …

Prints one JSON line a case: milliseconds a step, tokens a second in decoding and with the prompt,
and how many times the step of none it takes. All cases take turns. Then the same by transformers,
where forward hooks can: vectors added at each row's layer. It runs in a process of its own, as it
needs the memory (and PyTorch). The whole takes some minutes; `--steps 64 --repeats 1` is shorter.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from experiments.benchmarks.decode import limited
from experiments.benchmarks.machine import (
    Compilations,
    about,
    config_of,
    preset_parser,
    random_model,
    say,
)
from jaxsteer.config import LlamaConfig
from jaxsteer.decoding import Request, greedy, make_request
from jaxsteer.llama import Model, TokenBatch, left_pad
from jaxsteer.planning import Machine, decode_seconds
from jaxsteer.runtime import compile_cache, matrix_rate, read_bandwidth
from jaxsteer.steering import Steering, ablate, add, amplify, clamp, replace
from jaxsteer.steering import rows as as_rows

COUNTS = (1, 4, 16, 64, 256)
_LENGTH = 0.01  # of a vector's entries: as the stream's of random weights


def plan(config: LlamaConfig, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors `[n, D]`, layers `[n]` and coefficients `[n]` of `count` configurations."""
    random = np.random.default_rng(0)
    vectors = random.normal(size=(count, config.d_model)).astype(np.float32) * _LENGTH
    layers = np.arange(count) * config.n_layers // count
    return vectors, layers, np.linspace(1, 4, count)


def steer(config: LlamaConfig, *, rows: int, count: int, operations: bool) -> Steering:
    """`count` configurations as the rows of a batch, added or by all operations in turn."""

    def one(i: int, vector: np.ndarray, layer: int, coeff: float) -> Steering:
        kinds = (
            lambda: add(vector, layer=layer, coeff=coeff),
            lambda: ablate(vector, layer=layer),
            lambda: clamp(vector, coeff, layer=layer),
            lambda: replace(vector, layer=layer),
            lambda: amplify(layer=layer, coeff=coeff, width=config.d_model),
        )
        return kinds[i % len(kinds) if operations else 0]()

    vectors, layers, coeffs = plan(config, count)
    each = as_rows([one(i, vectors[i], int(layers[i]), float(coeffs[i])) for i in range(count)])
    return jax.tree.map(lambda x: x[np.arange(rows) % count], each)


def requests(
    model: Model, batch: TokenBatch, counts: list[int], *, steps: int
) -> dict[tuple[str, int], Request]:
    """What is timed, by operations and number of configurations."""
    rows = batch.tokens.shape[0]
    asked = {("none", 0): make_request(model, batch, max_new_tokens=steps + 1)}
    for name in ("add", "all operations"):
        for count in counts:
            steering = steer(
                model.config, rows=rows, count=count, operations=name == "all operations"
            )
            asked[name, count] = make_request(
                model, batch, max_new_tokens=steps + 1, steering=steering
            )
    return asked


def measure(
    config: LlamaConfig, *, rows: int, prompt: int, steps: int, counts: list[int], repeats: int
) -> Iterator[dict[str, Any]]:
    """Jaxsteer's cases: a line for the machine, then one a case."""
    compile_cache.turn_off()
    machine = Machine(read_bandwidth(), matrix_rate())
    yield about(machine)
    model = random_model(config)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (rows, prompt))
    batch = left_pad(tokens.tolist(), length=prompt)
    asked = requests(model, batch, counts, steps=steps)
    program = jax.jit(limited, static_argnames="sampler")

    def seconds(request: Request, limit: int) -> float:
        started = time.perf_counter()
        out = program(model, batch, request, np.int32(limit), sampler=greedy)
        jax.block_until_ready(out)
        return time.perf_counter() - started

    compiled = {}
    for case, request in asked.items():
        compilations = Compilations()
        seconds(request, 1)
        compiled[case] = compilations.count
    spent: dict[Any, list[tuple[float, float]]] = {case: [] for case in asked}
    for _ in range(repeats):  # in turns, so that a machine that slows down does so for all
        for case, request in asked.items():
            spent[case].append((seconds(request, 1), seconds(request, steps + 1)))
    floor = decode_seconds(model, machine, rows=rows, prompt=prompt, steps=steps)
    none = None
    for (name, count), times in spent.items():
        first, whole = (min(side) for side in zip(*times, strict=True))
        step_ms = (whole - first) / steps * 1e3
        none = none or step_ms
        yield {
            "engine": "jaxsteer",
            "operations": name,
            "configurations": count,
            "rows": rows,
            "prompt": prompt,
            "steps": steps,
            "step_ms": step_ms,
            "times_none": step_ms / none,
            "tokens_per_s": rows / step_ms * 1e3,
            "tokens_per_s_with_prompt": rows * (steps + 1) / whole,
            "floor_ms": floor / steps * 1e3,
            "compilations": compiled[name, count],
        }


def measure_transformers(
    config: LlamaConfig, *, rows: int, prompt: int, steps: int, counts: list[int]
) -> Iterator[dict[str, Any]]:
    """Transformers' cases: none, and vectors added by one hook per layer."""
    import torch

    from experiments.benchmarks import sweep_transformers as engine

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = engine.random_model(config, device)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (rows, prompt))
    ids = torch.tensor(tokens, device=device)
    mask = torch.ones_like(ids)
    none = None
    for count in (0, *counts):
        shifts = {}
        if count:
            vectors, layers, coeffs = plan(config, count)
            row = np.arange(rows) % count
            for layer in np.unique(layers):
                strength = np.where(layers == layer, coeffs, 0)[row]
                each = (vectors[row] * strength[:, None])[:, None]
                shifts[int(layer)] = torch.tensor(each, dtype=torch.bfloat16, device=device)
        engine.generate(model, ids, mask, shifts, tokens=2)
        started = time.perf_counter()
        engine.generate(model, ids, mask, shifts, tokens=steps)
        seconds = time.perf_counter() - started
        none = none or seconds
        yield {
            "engine": "transformers",
            "operations": "add" if count else "none",
            "configurations": count,
            "rows": rows,
            "prompt": prompt,
            "steps": steps,
            "step_ms": seconds / steps * 1e3,  # prompt included
            "times_none": seconds / none,
            "tokens_per_s_with_prompt": rows * steps / seconds,
        }


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = preset_parser("distinct", default="r1_distill_qwen_1_5b")
    parser.add_argument("--engine", choices=("both", "jaxsteer", "transformers"), default="both")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--steps", type=int, default=256)
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--transformers-steps", type=int, default=64)
    args = parser.parse_args(argv)
    if args.engine == "both":
        given = sys.argv[1:] if argv is None else argv
        for engine in ("jaxsteer", "transformers"):
            command = [sys.executable, "-m", "experiments.benchmarks.distinct", *given]
            subprocess.run([*command, "--engine", engine], check=True)
        return 0
    config = config_of(args.preset)
    sizes = {"rows": args.rows, "prompt": args.prompt, "counts": list(args.counts)}
    if args.engine == "jaxsteer":
        lines = measure(config, steps=args.steps, repeats=args.repeats, **sizes)
    else:
        lines = measure_transformers(config, steps=args.transformers_steps, **sizes)
    for line in lines:
        say(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())

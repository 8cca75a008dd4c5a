"""Time prefill, decoding and steering with random weights of a preset.

    python -m experiments.benchmarks.decode --preset llama31_8b --rows 1 160

Prints the machine's read bandwidth and matrix rate, then one JSON line a case: milliseconds a
step, tokens a second, the floor, and their ratio. The floor of a step is the time to read every
weight and the filled part of the cache once, or the time of its matrix products, if longer.
"""

import argparse
import json
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.machine import matrix_rate, read_bandwidth
from jaxsteer.config import LlamaConfig
from jaxsteer.generate import generate
from jaxsteer.interventions import add
from jaxsteer.model import Model, init
from jaxsteer.steering import Steering
from jaxsteer.tokens import TokenBatch, left_pad

PRESETS = ("llama31_8b", "tiny")


def floor_seconds(
    model: Model, *, rows: int, prompt: int, steps: int, bandwidth: float, rate: float
) -> float:
    """The least time that `steps` decode steps from a prompt of `prompt` tokens can take.

    Weights and cache are read through the same memory, so their times add up; the products of a
    row's token with every weight run beside the reading, so the longer of the two counts. The
    embedding is looked up, not read.
    """
    config = model.config
    embedding = model.params["embed"]["embedding"]
    read = sum(x.nbytes for x in jax.tree.leaves(model.params))
    if not config.tie_embeddings:
        read -= embedding.nbytes
    token_bytes = (
        2 * config.n_layers * config.n_kv_heads * config.head_dim * embedding.dtype.itemsize
    )
    parameters = read / embedding.dtype.itemsize
    total = 0.0
    for step in range(steps):
        memory = (read + rows * (prompt + step) * token_bytes) / bandwidth
        products = 2 * rows * parameters / rate
        total += max(memory, products)
    return total


def time_case(
    model: Model, batch: TokenBatch, *, steps: int, steering: Steering | None
) -> dict[str, float]:
    """Seconds of a whole `generate`, of its first call, and of one decode step."""

    def run(new_tokens: int) -> float:
        started = time.perf_counter()
        generate(model, batch, max_new_tokens=new_tokens, steering=steering)
        return time.perf_counter() - started

    first = run(steps)
    whole = min(run(steps) for _ in range(2))
    # The cache has the same size in both, so the difference is that of the steps alone.
    prefill = _prefill_seconds(model, batch, steps, steering)
    return {
        "compile_s": first - whole,
        "whole_s": whole,
        "prefill_s": prefill,
        "step_ms": (whole - prefill) / (steps - 1) * 1e3,
    }


def _prefill_seconds(
    model: Model, batch: TokenBatch, steps: int, steering: Steering | None
) -> float:
    from jaxsteer.generate import make_request, run
    from jaxsteer.sampling import greedy

    request = make_request(model, batch, max_new_tokens=steps, steering=steering)

    def only_first(model: Model, batch: TokenBatch, request: Any) -> jax.Array:
        return run(
            model,
            batch,
            request,
            max_new_tokens=steps,
            sampler=greedy,
            loop=lambda cond, body, state: state,
        ).token

    jitted = jax.jit(only_first)
    times = []
    for _ in range(3):
        started = time.perf_counter()
        jax.block_until_ready(jitted(model, batch, request))
        times.append(time.perf_counter() - started)
    return min(times[1:])


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.decode")
    parser.add_argument("--preset", choices=PRESETS, default="llama31_8b")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 160])
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--steps", type=int, default=256)
    args = parser.parse_args(argv)
    bandwidth, rate = read_bandwidth(), matrix_rate()
    device = jax.devices()[0].device_kind
    print(json.dumps({"device": device, "read_GB_s": bandwidth / 1e9, "TFLOP_s": rate / 1e12}))
    config: LlamaConfig = getattr(LlamaConfig, args.preset)()
    model = init(config, dtype=jnp.bfloat16)
    random = np.random.default_rng(0)
    for rows in args.rows:
        lengths = random.integers(args.prompt // 2, args.prompt + 1, rows)
        lengths[0] = args.prompt
        batch = left_pad(
            [random.integers(0, config.vocab_size, n).tolist() for n in lengths], length=args.prompt
        )
        each = add(
            random.normal(size=(rows, config.d_model)) * 0.01,
            layer=random.integers(0, config.n_layers, rows),
            coeff=random.normal(size=rows),
        )
        floor = floor_seconds(
            model, rows=rows, prompt=args.prompt, steps=args.steps, bandwidth=bandwidth, rate=rate
        )
        for name, steering in (("unsteered", None), ("steered, each row differently", each)):
            times = time_case(model, batch, steps=args.steps, steering=steering)
            floor_ms = floor / args.steps * 1e3
            case = {"rows": rows, "prompt": args.prompt, "steps": args.steps, "case": name}
            speed = {
                "tokens_per_s": rows / times["step_ms"] * 1e3,
                "floor_ms": floor_ms,
                "ratio": times["step_ms"] / floor_ms,
            }
            print(
                json.dumps(case | {k: round(v, 3) for k, v in (times | speed).items()}), flush=True
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())

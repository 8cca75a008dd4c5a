"""Time the activation pass with random weights of a preset.

    python -m experiments.benchmarks.capture --preset llama31_8b

Moments of 7 behaviours at 35 offsets in every layer, over two halves of the traces, as the pipeline
takes them: from tokens on the host to sums on the host. Prints one JSON line: tokens a second of
that, of a forward pass alone and of a pass with sums that stay on the device, each with its share
of the measured rate of matrix products, and the peak of memory.
"""

import functools
import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.machine import config_of, peak_GB, preset_parser, random_model
from experiments.stages import derive
from jaxsteer.analysis import LABELS
from jaxsteer.config import LlamaConfig
from jaxsteer.directions import Trace, event_positions
from jaxsteer.llama import Model, forward, left_pad
from jaxsteer.planning import prefill_operations
from jaxsteer.runtime import compile_cache, matrix_rate, seconds
from jaxsteer.steering import Capture

OFFSETS = range(-30, 5)
SENTENCE = 24  # tokens


def make_traces(config: LlamaConfig, *, count: int, length: int, seed: int = 0) -> list[Trace]:
    """Random tokens, with a sentence of a random behaviour every `SENTENCE` of them."""
    random = np.random.default_rng(seed)
    prompt = length // 64
    starts = range(prompt, length, SENTENCE)
    return [
        Trace(
            tokens=random.integers(0, config.vocab_size, length).tolist(),
            prompt_length=prompt,
            starts=starts,
            labels=random.choice(LABELS, len(starts)).tolist(),
        )
        for _ in range(count)
    ]


@jax.jit
def _pass(model: Model, tokens: jax.Array, capture: Capture | None) -> jax.Array:
    """A pass whose result waits for every layer; the head runs for the last token only."""
    out = forward(model, tokens, capture=capture, last_only=True)
    return jnp.sum(out.logits) + sum(jnp.sum(x) for x in out.captured.values())


def device_seconds(model: Model, traces: list[Trace], *, length: int) -> dict[str, float]:
    """Seconds of one batch on the device, by what is summed there."""
    tokens = left_pad([trace.tokens for trace in traces], length=length).tokens
    shape = len(traces), len(traces[0].starts)
    positions, groups = (
        jnp.asarray(x) for x in event_positions(traces, LABELS, list(OFFSETS), shape)
    )
    captures = {
        "forward": None,
        "sums": Capture(squares=True, positions=positions, weights=groups),
    }
    return {
        name: seconds(functools.partial(_pass, model, tokens, capture), repeats=3)
        for name, capture in captures.items()
    }


def pipeline_seconds(model: Model, traces: list[Trace]) -> float:
    """Seconds of the moments of both halves, after a run that compiles."""

    def run(some: list[Trace]) -> None:
        derive.moments_of_parts(model, some, offsets=list(OFFSETS), site="resid_post")

    run(traces)
    started = time.perf_counter()
    run(traces)
    return time.perf_counter() - started


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = preset_parser("capture")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--batches", type=int, default=10, help="of both halves together")
    args = parser.parse_args(argv)
    compile_cache.turn_off()
    config = config_of(args.preset)
    rate = matrix_rate()
    model = random_model(config)
    count = args.rows * args.batches
    traces = make_traces(config, count=count, length=args.length)
    spent = device_seconds(model, traces[: args.rows], length=args.length)
    spent = {name: one * args.batches for name, one in spent.items()}
    spent["pipeline"] = pipeline_seconds(model, traces)
    operations = prefill_operations(model, rows=count, prompt=args.length)
    figures = {
        name: {
            "tokens_per_s": round(count * args.length / one),
            "share_of_matrix_rate": round(operations / one / rate, 3),
        }
        for name, one in spent.items()
    }
    sizes = {
        "rows": args.rows,
        "length": args.length,
        "batches": args.batches,
        "layers": config.n_layers,
        "offsets": len(OFFSETS),
        "labels": len(LABELS),
        "matrix_TFLOP_s": round(rate / 1e12, 1),
        "peak_GB": peak_GB(),
    }
    print(json.dumps(sizes | figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())

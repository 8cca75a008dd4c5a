"""Time the activation pass with random weights of a preset.

    python -m experiments.benchmarks.capture --preset llama31_8b

Sums of activations at 31 offsets for every layer, reduced on the device; prints one JSON line.
"""

import argparse
import json
import sys
import time

import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.decode import PRESETS
from jaxsteer.config import LlamaConfig
from jaxsteer.directions import Trace, activation_sums
from jaxsteer.model import init
from jaxsteer.packing import pack


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.capture")
    parser.add_argument("--preset", choices=PRESETS, default="llama31_8b")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--batches", type=int, default=4)
    args = parser.parse_args(argv)
    config: LlamaConfig = getattr(LlamaConfig, args.preset)()
    model = pack(init(config, dtype=jnp.bfloat16), donate=True)
    random = np.random.default_rng(0)
    starts = list(range(64, args.length, 24))
    traces = [
        Trace(
            tokens=random.integers(0, config.vocab_size, args.length).tolist(),
            prompt_length=32,
            starts=starts,
            positive=(random.random(len(starts)) < 0.13).tolist(),
        )
        for _ in range(args.rows)
    ]
    offsets = list(range(-30, 1))

    def run() -> float:
        started = time.perf_counter()
        activation_sums(model, traces, offsets=offsets, length=args.length)
        return time.perf_counter() - started

    run()
    spent = sum(run() for _ in range(args.batches))
    tokens = args.rows * args.length * args.batches
    print(
        json.dumps(
            {
                "rows": args.rows,
                "length": args.length,
                "layers": config.n_layers,
                "offsets": len(offsets),
                "tokens_per_s": round(tokens / spent),
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

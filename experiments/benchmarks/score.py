"""Time the scoring of given texts with random weights of a preset.

    python -m experiments.benchmarks.score --preset llama31_8b

Prints one JSON line: tokens a second of `jaxsteer.score`, from tokens on the host to numbers on the
host, after a run that compiles; its share of the measured rate of matrix products; rows at once and
the peak of memory.
"""

import argparse
import json
import os
import sys
import time

os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.96")  # before JAX

import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.decode import PRESETS
from experiments.benchmarks.machine import peak_GB
from jaxsteer.analysis import rows_that_score, score
from jaxsteer.config import LlamaConfig
from jaxsteer.llama import init, pack
from jaxsteer.planning import prefill_operations
from jaxsteer.runtime import compile_cache, matrix_rate


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.score")
    parser.add_argument("--preset", choices=PRESETS, default="llama31_8b")
    parser.add_argument("--texts", type=int, default=320)
    parser.add_argument("--length", type=int, default=1536)
    parser.add_argument("--rows", type=int, help="at once; what fits, if not given")
    args = parser.parse_args(argv)
    compile_cache.turn_off()
    config: LlamaConfig = getattr(LlamaConfig, args.preset)()
    rate = matrix_rate()
    model = pack(init(config, dtype=jnp.bfloat16), donate=True)
    random = np.random.default_rng(0)
    texts = random.integers(0, config.vocab_size, (args.texts, args.length)).tolist()
    rows = min(args.texts, args.rows or rows_that_score(model, length=args.length))
    score(model, texts[:rows], rows_per_batch=rows)
    started = time.perf_counter()
    score(model, texts, rows_per_batch=rows)
    spent = time.perf_counter() - started
    tokens = args.texts * args.length
    heads = 2 * (tokens - args.texts) * config.vocab_size * config.d_model  # of all tokens
    operations = prefill_operations(model, rows=args.texts, prompt=args.length) + heads
    figures = {
        "texts": args.texts,
        "length": args.length,
        "rows": rows,
        "tokens_per_s": round(tokens / spent),
        "share_of_matrix_rate": round(operations / spent / rate, 3),
        "matrix_TFLOP_s": round(rate / 1e12, 1),
        "peak_GB": peak_GB(),
    }
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())

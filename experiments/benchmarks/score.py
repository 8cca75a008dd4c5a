"""Time the scoring of given texts with random weights of a preset.

    python -m experiments.benchmarks.score --preset llama31_8b

Prints one JSON line: tokens a second of `jaxsteer.score`, from tokens on the host to numbers on the
host, after a run that compiles; its share of the measured rate of matrix products; rows at once and
the peak of memory.
"""

import json
import sys
import time

import numpy as np

from experiments.benchmarks.machine import config_of, peak_GB, preset_parser, random_model
from jaxsteer.analysis import rows_that_score, score
from jaxsteer.planning import prefill_operations
from jaxsteer.runtime import compile_cache, matrix_rate


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = preset_parser("score")
    parser.add_argument("--texts", type=int, default=320)
    parser.add_argument("--length", type=int, default=1536)
    parser.add_argument("--rows", type=int, help="at once; what fits, if not given")
    args = parser.parse_args(argv)
    compile_cache.turn_off()
    config = config_of(args.preset)
    rate = matrix_rate()
    model = random_model(config)
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

"""Time the analyses of Figures 5 and 6 and the sensitivity with random weights of a preset.

    python -m experiments.benchmarks.analyses --preset llama31_8b

Prints one JSON line: seconds of each to its first result (compilation with it) and again, tokens a
second of the projections, and the peak of memory after each.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.benchmarks.capture import make_traces
from experiments.benchmarks.machine import config_of, peak_GB, preset_parser, random_model
from experiments.searches.sensitivity import Text, slopes
from jaxsteer.analysis import lens, project_texts

DIRECTIONS = 44  # of Figure 6: two sources with 5 folds and all traces, and 32 random ones
COLUMNS = 8  # of the sensitivity: seven offsets and the window


def timed(work: Callable[[], object]) -> dict[str, Any]:
    """Seconds of the first and of a second call, and the peak of memory after them."""
    spent = []
    for _ in range(2):
        started = time.perf_counter()
        work()
        spent.append(float(f"{time.perf_counter() - started:.3g}"))
    return {
        "first_s": spent[0],
        "again_s": spent[1],
        "peak_GB": peak_GB(),
    }


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = preset_parser("analyses")
    parser.add_argument("--texts", type=int, default=56)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--layer", type=int, default=10)
    parser.add_argument("--sensitivity-layers", type=int, default=4, help="of all; time adds up")
    parser.add_argument("--sensitivity-texts", type=int, default=2)
    args = parser.parse_args(argv)
    config = config_of(args.preset)
    model = random_model(config)
    random = np.random.default_rng(0)
    vectors = random.normal(size=(2 * config.n_layers + 32, config.d_model)).astype(np.float32)
    traces = make_traces(config, count=args.texts, length=args.length)
    texts = [trace.tokens for trace in traces]
    layer = min(args.layer, config.n_layers - 1)
    drawn = random.normal(size=(DIRECTIONS, config.d_model)).astype(np.float32)
    stacked = random.normal(size=(args.sensitivity_layers, COLUMNS, config.d_model))
    asked = [
        Text(list(trace.tokens), trace.prompt_length, list(trace.starts[1:]))
        for trace in traces[: args.sensitivity_texts]
    ]
    times = {
        "lens": timed(lambda: lens(model, vectors, range(8))),
        "projections": timed(
            lambda: list(project_texts(model, texts, drawn, [layer] * DIRECTIONS))
        ),
        "sensitivity": timed(
            lambda: slopes(
                model,
                asked,
                stacked.astype(np.float32),
                range(8),
                site="resid_post",
                name="sensitivity",
            )
        ),
    }
    again = times["projections"]["again_s"]
    sizes = {
        "preset": args.preset,
        "texts": args.texts,
        "length": args.length,
        "lens_directions": len(vectors),
        "projection_tokens_per_s": round(args.texts * args.length / again),
        "sensitivity_cells": args.sensitivity_layers * COLUMNS,
        "sensitivity_texts": args.sensitivity_texts,
    }
    print(json.dumps(sizes | times))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Time the learning of directions with random weights of a preset.

    python -m experiments.benchmarks.learned --preset llama31_8b

Prints one JSON line: seconds a step, directions × tokens a second, the share of the measured rate
of matrix products (the gradient with respect to a vector costs one more pass, blocks that run again
another), and the peak of memory beside what `step_bytes` expects of it.
"""

import json
import sys
import time

import jax
import numpy as np

from experiments.benchmarks.machine import config_of, peak_GB, preset_parser, random_model
from jaxsteer.config import LlamaConfig
from jaxsteer.directions import Targets, learn_directions, make_targets, step_bytes
from jaxsteer.llama import Model
from jaxsteer.planning import prefill_operations
from jaxsteer.runtime import compile_cache, matrix_rate

SENTENCE, EVERY = 24, 400  # tokens of a target, and one in so many


def make_texts(config: LlamaConfig, *, rows: int, length: int, seed: int = 0) -> Targets:
    """Random tokens, the last of them and some before being targets."""
    random = np.random.default_rng(seed)
    texts = [random.integers(0, config.vocab_size, length).tolist() for _ in range(rows)]
    spans = [(stop - SENTENCE, stop) for stop in range(length, length // 4, -EVERY)]
    return make_targets(texts, [length // 16] * rows, [spans] * rows, length=length)


def step_seconds(
    model: Model, targets: Targets, *, directions: int, rows: int, steps: int, remat: bool
) -> float:
    """Seconds of a step, after one that compiles."""

    def run(steps: int) -> None:
        learn_directions(
            model,
            targets,
            layers=[model.config.n_layers // 3],
            seeds=range(directions),
            norm=1.0,
            steps=steps,
            rows_per_step=rows,
            remat=remat,
        )

    run(1)
    started = time.perf_counter()
    run(steps)
    return (time.perf_counter() - started) / steps


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = preset_parser("learned")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--directions", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--keep", action="store_true", help="keep activations: no blocks run again")
    args = parser.parse_args(argv)
    compile_cache.turn_off()
    config = config_of(args.preset)
    rate, remat = matrix_rate(), not args.keep
    model = random_model(config)
    targets = make_texts(config, rows=args.rows, length=args.length)
    spent = step_seconds(
        model,
        targets,
        directions=args.directions,
        rows=args.rows,
        steps=args.steps,
        remat=remat,
    )
    passes = 3 if remat else 2
    operations = prefill_operations(model, rows=args.rows, prompt=args.length) * passes
    most = targets.position.shape[1]
    each = step_bytes(model, rows=args.rows, length=args.length, targets=most, remat=remat)
    weights = sum(x.nbytes for x in jax.tree.leaves(model.params))
    print(
        json.dumps(
            {
                **vars(args),
                "seconds_a_step": float(f"{spent:.4g}"),
                "tokens_per_s": round(args.directions * args.rows * args.length / spent),
                "share_of_matrix_rate": round(args.directions * operations / spent / rate, 3),
                "weights_GB": round(weights / 1e9, 2),
                "expected_GB_a_direction": round(each / 1e9, 2),
                "peak_GB": peak_GB(),
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Where the time of a decode step goes, kernel by kernel, on a GPU.

    python -m experiments.benchmarks.profile --preset llama31_8b --rows 160

Traces prefill alone and prefill with some steps, and prints a JSON line for each kernel that takes
more than 1% of a step: microseconds a call, calls and milliseconds a step. What runs under another
name in both is prefill and cancels out.
"""

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.benchmarks.decode import limited
from experiments.benchmarks.machine import config_of, preset_parser, random_model
from jaxsteer.decoding import greedy, make_request
from jaxsteer.llama import left_pad


def traced(work: Callable[[], Any]) -> tuple[Counter[str], Counter[str]]:
    """Nanoseconds and calls of each kernel on the first GPU while `work` runs."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(work())
        (file,) = Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(file))
    spent: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for plane in data.planes:
        if not plane.name.startswith("/device:GPU:0"):
            continue
        for line in plane.lines:
            if line.name.startswith("Stream"):
                for event in line.events:
                    spent[event.name] += int(event.duration_ns)
                    calls[event.name] += 1
    return spent, calls


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = preset_parser("profile")
    parser.add_argument("--rows", type=int, default=160)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument(
        "--room", type=int, default=900, help="new tokens that the cache has room for"
    )
    parser.add_argument("--separate", action="store_true", help="do not pack the projections")
    args = parser.parse_args(argv)
    if jax.default_backend() != "gpu":
        print("error: kernels are traced on NVIDIA GPUs only", file=sys.stderr)
        return 2
    config = config_of(args.preset)
    model = random_model(config, packed=not args.separate)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (args.rows, args.prompt))
    batch = left_pad(tokens.tolist(), length=args.prompt)
    request = make_request(model, batch, max_new_tokens=args.room)
    program = jax.jit(limited, static_argnames="sampler")

    def run(limit: int) -> jax.Array:
        return program(model, batch, request, np.int32(limit), sampler=greedy)

    jax.block_until_ready(run(1))  # compile
    spent, calls = traced(lambda: run(1 + args.steps))
    prefill_spent, prefill_calls = traced(lambda: run(1))
    spent.subtract(prefill_spent)
    calls.subtract(prefill_calls)
    # A kernel that only prefill calls leaves the difference of two timings behind.
    spent = Counter({name: time for name, time in spent.items() if calls[name] > 0})
    total = sum(spent.values()) / args.steps
    sizes = {"rows": args.rows, "prompt": args.prompt, "steps": args.steps}
    print(json.dumps(sizes | {"step_ms": round(total / 1e6, 3)}))
    for name, nanoseconds in spent.most_common():
        if nanoseconds / args.steps > total / 100:
            kernel = {
                "kernel": name[:60],
                "us_a_call": round(nanoseconds / calls[name] / 1e3, 1),
                "calls_a_step": round(calls[name] / args.steps, 1),
                "ms_a_step": round(nanoseconds / args.steps / 1e6, 3),
            }
            print(json.dumps(kernel))
    return 0


if __name__ == "__main__":
    sys.exit(main())

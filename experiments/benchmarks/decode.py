"""Time prefill, decoding, steering and sampling with random weights of a preset.

    python -m experiments.benchmarks.decode --preset llama31_8b

Measures the machine's read bandwidth and matrix rate first, then prints one JSON line a case:
milliseconds a step, tokens a second, the floor (`floor`), their ratio, compile time, compilations
and peak memory; with `capture` also what a step takes longer than the greedy one, as a share.
`--case 160,512,900` runs cases of your own: rows, prompt, steps.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.benchmarks.machine import (
    Compilations,
    about,
    config_of,
    peak_GB,
    preset_parser,
    random_model,
    say,
)
from jaxsteer.config import LlamaConfig
from jaxsteer.decoding import (
    DecodeState,
    Outcome,
    Request,
    Sampler,
    choose_sampler,
    make_request,
    run,
    sampling,
)
from jaxsteer.llama import Model, TokenBatch, left_pad, spread_rows
from jaxsteer.planning import Machine, decode_seconds, prefill_operations
from jaxsteer.runtime import compile_cache, matrix_rate, read_bandwidth
from jaxsteer.steering import Capture, Project, RowSums, add, noise

CASES = {"tiny": ("2,16,8", "4,16,8")}
LARGE = ("1,512,1024", "160,512,900", "640,512,512")  # of every other preset


def variants(config: LlamaConfig, rows: int) -> dict[str, dict[str, Any]]:
    """What is timed for one batch: options of `make_request`, by name."""
    random = np.random.default_rng(0)
    each = add(
        random.normal(size=(rows, config.d_model)) * 0.01,
        layer=random.integers(0, config.n_layers, (rows, 1)),
        coeff=random.normal(size=rows),
    )
    layers = random.integers(0, config.n_layers, (rows, 1))
    fresh = noise(0.01, layer=layers, coeff=1.0, width=config.d_model)
    top_p = sampling(rows, temperature=0.6, top_p=0.95)
    directions = random.normal(size=(8, config.d_model))
    middle = (config.n_layers // 2,)
    return {
        "greedy": {},
        "steered, each row with its own vector, layer and coefficient": {"steering": each},
        "noise, drawn anew at each token": {"steering": fresh},
        "top-p": {"sampling_params": top_p},
        "capture, projections on 8 directions at all layers": {
            "capture": Capture(read=Project(directions))
        },
        "capture, one layer raw": {"capture": Capture(layers=middle)},
        "capture, sums at all layers": {"capture": Capture(read=RowSums([1.0]))},
    }


def time_case(
    model: Model, batch: TokenBatch, *, steps: int, options: dict[str, Any], repeats: int
) -> dict[str, float]:
    """Seconds of prefill and of a whole run of `steps` steps, the best of `repeats`."""
    request = make_request(model, batch, max_new_tokens=steps + 1, **options)
    sampler = choose_sampler(request.sampling)
    batch, request = spread_rows((batch, request), model)
    program = jax.jit(limited, static_argnames="sampler")

    def timed(limit: int) -> float:
        started = time.perf_counter()
        out = program(model, batch, request, np.int32(limit), sampler=sampler)
        jax.block_until_ready(out)
        return time.perf_counter() - started

    compilations = Compilations()
    timed(1)
    prefill = min(timed(1) for _ in range(repeats))
    whole = min(timed(steps + 1) for _ in range(repeats))
    return {
        "prefill_s": prefill,
        "step_ms": (whole - prefill) / steps * 1e3,
        "compile_s": compilations.seconds,
        "compilations": compilations.count,
    }


def limited(
    model: Model,
    batch: TokenBatch,
    request: Request,
    limit: jax.Array,
    *,
    sampler: Sampler,
    program: Callable[..., DecodeState] = run,
    **options: Any,
) -> Outcome:
    """A program up to `limit` steps, as data: prefill alone is timed in the same program."""

    def loop(cond: Callable[..., Any], body: Callable[..., Any], state: Any) -> Any:
        return jax.lax.while_loop(lambda s: cond(s) & (s.step < limit), body, state)

    return Outcome.of(program(model, batch, request, sampler=sampler, loop=loop, **options))


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = preset_parser("decode")
    parser.add_argument("--case", nargs="+", metavar="ROWS,PROMPT,STEPS")
    parser.add_argument("--only", nargs="+", help="words that the variants' names start with")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--separate", action="store_true", help="do not pack the projections")
    args = parser.parse_args(argv)
    compile_cache.turn_off()
    config = config_of(args.preset)
    machine = Machine(read_bandwidth(), matrix_rate())
    say(about(machine))
    model = random_model(config, packed=not args.separate)
    random = np.random.default_rng(0)
    for case in args.case or CASES.get(args.preset, LARGE):
        rows, prompt, steps = (int(number) for number in case.split(","))
        batch = left_pad(
            random.integers(0, config.vocab_size, (rows, prompt)).tolist(), length=prompt
        )
        floor_ms = (
            decode_seconds(model, machine, rows=rows, prompt=prompt, steps=steps) / steps * 1e3
        )
        operations = prefill_operations(model, rows=rows, prompt=prompt)
        greedy_ms = None
        for name, options in variants(config, rows).items():
            if args.only and not name.startswith(tuple(args.only)):
                continue
            figures = time_case(model, batch, steps=steps, options=options, repeats=args.repeats)
            figures |= {
                "tokens_per_s": rows / figures["step_ms"] * 1e3,
                "floor_ms": floor_ms,
                "ratio": figures["step_ms"] / floor_ms,
                "prefill_share_of_rate": operations / figures["prefill_s"] / machine.rate,
            }
            greedy_ms = figures["step_ms"] if name == "greedy" else greedy_ms
            if "capture" in options and greedy_ms is not None:
                figures["added_share"] = figures["step_ms"] / greedy_ms - 1
            figures["peak_GB"] = peak_GB() or 0.0
            labels = {"rows": rows, "prompt": prompt, "steps": steps, "case": name}
            say(labels | figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())

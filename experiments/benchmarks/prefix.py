"""Time rows that share one prompt against rows that each keep it, with random weights of a preset.

    python -m experiments.benchmarks.prefix

By default at the shapes of Llama-8B: 100 rows on one prompt of 1,536 and of 8,192 tokens, and 1,000
rows on 1,536, each 512 new tokens. Prints one JSON line a case, the smaller caches first:

    seconds        the whole of it, prompt included, compiled
    step_ms        a step, the prompt's time taken off; `floor_ms` and `ratio` as in `decode`
    attention_ms   what of it attention takes: a step less one that attends to nothing
    program_GB     what the compiled program holds beside the weights; `peak_GB` the process so far

and a last line of how many times faster steps and attention are at equal rows. Private caches that
do not fit say so, and are tried with half of the rows. `--case 100,1536,64` is one case of one's
own: rows, prompt, steps.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.decode import limited
from experiments.benchmarks.machine import (
    Compilations,
    about,
    config_of,
    peak_GB,
    preset_parser,
    random_model,
    say,
)
from jaxsteer.decoding import cache_bytes, greedy, is_out_of_memory, make_request
from jaxsteer.llama import Model, TokenBatch
from jaxsteer.planning import Machine, decode_seconds
from jaxsteer.runtime import compile_cache, matrix_rate, read_bandwidth

CASES = {"tiny": ("4,16,6",)}
LARGE = ("100,1536,512", "100,8192,512", "1000,1536,512")  # of every other preset
PRIVATE_UP_TO = 200  # rows: more of them are run on a shared prompt only


@dataclass(frozen=True)
class Case:
    """Rows on one prompt, with or without sharing it."""

    rows: int
    prompt: int
    steps: int
    shared: bool


def nothing(q: jax.Array, k: jax.Array, v: jax.Array, **where: Any) -> jax.Array:
    """In the place of attention: reads no keys and values."""
    return q


def cases(given: Sequence[str], model: Model) -> list[Case]:
    """What is run, the smaller caches first, so that the peak of memory is each case's own."""
    every = []
    for text in given:
        rows, prompt, steps = (int(number) for number in text.split(","))
        every.append(Case(rows, prompt, steps, shared=True))
        if rows <= PRIVATE_UP_TO:
            every.append(Case(rows, prompt, steps, shared=False))
    return sorted(every, key=lambda case: _cache_bytes(model, case))


def _cache_bytes(model: Model, case: Case) -> int:
    own = 1 if case.shared else case.prompt
    return cache_bytes(model, rows=case.rows, prompt_length=own, new_tokens=case.steps)


def time_case(model: Model, machine: Machine, case: Case) -> dict[str, Any]:
    """One case's line.

    Raises:
        JaxRuntimeError: if it does not fit the device.
    """
    tokens = np.random.default_rng(0).integers(0, model.config.vocab_size, (1, case.prompt))
    prompt = TokenBatch(jnp.asarray(tokens, jnp.int32), jnp.ones(tokens.shape, bool))
    request = make_request(model, prompt, samples=case.rows, max_new_tokens=case.steps + 1)
    batch = prompt
    if not case.shared:
        batch = jax.tree.map(lambda x: jnp.repeat(x, case.rows, axis=0), prompt)
    compilations = Compilations()
    steps, first, whole, program = _times(model, batch, request, case.steps)
    without, *_ = _times(model.with_attention(nothing), prompt, request, case.steps)
    sizes = {"prompt": 0, "shared": case.prompt} if case.shared else {"prompt": case.prompt}
    floor = decode_seconds(model, machine, rows=case.rows, steps=case.steps, **sizes)
    floor_ms = floor / case.steps * 1e3
    counts = program.memory_analysis()
    assert counts is not None
    held = counts.temp_size_in_bytes + counts.output_size_in_bytes
    return {
        "seconds": whole,
        "prompt_s": first,
        "step_ms": steps,
        "attention_ms": steps - without,
        "tokens_per_s": case.rows / steps * 1e3,
        "floor_ms": floor_ms,
        "ratio": steps / floor_ms,
        "program_GB": held / 1e9,
        "peak_GB": peak_GB(),
        "compile_s": compilations.seconds,
    }


def _times(
    model: Model, batch: TokenBatch, request: Any, steps: int
) -> tuple[float, float, float, jax.stages.Compiled]:
    """Milliseconds a step; seconds up to the first token, and of the whole; the program."""
    program = jax.jit(limited, static_argnames="sampler")
    compiled = program.lower(model, batch, request, np.int32(1), sampler=greedy).compile()

    def seconds(limit: int) -> float:
        started = time.perf_counter()
        jax.block_until_ready(compiled(model, batch, request, np.int32(limit)))
        return time.perf_counter() - started

    seconds(1)
    first, whole = seconds(1), seconds(steps + 1)
    return (whole - first) / steps * 1e3, first, whole, compiled


def measure(model: Model, machine: Machine, every: list[Case]) -> Iterator[dict[str, Any]]:
    """A line a case, and how they compare."""
    by_case: dict[tuple[int, int, bool], dict[str, Any]] = {}
    todo = list(every)
    while todo:
        case = todo.pop(0)
        labels = {
            "case": "shared" if case.shared else "private",
            "rows": case.rows,
            "prompt": case.prompt,
            "steps": case.steps,
        }
        try:
            line = time_case(model, machine, case)
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            yield labels | {"fits": False}
            if not case.shared and case.rows > 1:
                half = case.rows // 2
                todo[:0] = [Case(half, case.prompt, case.steps, shared) for shared in (True, False)]
            continue
        by_case[case.rows, case.prompt, case.shared] = line
        yield labels | line
    for (rows, prompt, shared), private in by_case.items():
        if not shared and (ours := by_case.get((rows, prompt, True))):
            yield {
                "case": "compared",
                "rows": rows,
                "prompt": prompt,
                "steps_times_faster": private["step_ms"] / ours["step_ms"],
                "attention_times_faster": private["attention_ms"] / ours["attention_ms"],
                "memory_times_smaller": private["program_GB"] / ours["program_GB"],
            }


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = preset_parser("prefix")
    parser.add_argument("--case", nargs="+", metavar="ROWS,PROMPT,STEPS")
    args = parser.parse_args(argv)
    compile_cache.turn_off()
    machine = Machine(read_bandwidth(), matrix_rate())
    say(about(machine))
    model = random_model(config_of(args.preset))
    every = cases(args.case or CASES.get(args.preset, LARGE), model)
    for line in measure(model, machine, every):
        say(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())

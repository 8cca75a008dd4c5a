"""Rows in equal parts that run at the same time, on the cores of a CPU.

In a step XLA spreads large products over the cores and does all else on one, attention included. So
rows are cut into parts, and each runs the program in a thread. No row knows of the others, so all
get the tokens that they would get together.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from jaxsteer.decoding.memory import cache_bytes, weight_bytes
from jaxsteer.decoding.request import Request, map_rows
from jaxsteer.llama import Model, TokenBatch, compiled_for_cpu, mesh_of
from jaxsteer.runtime import hosts

Part = tuple[TokenBatch, Request]

# Every part reads all weights. Caches of this share of the weights make up for one part more
# (`experiments/benchmarks/RESULTS.md`: measured at 24 and 538 MB of weights, on two cores).
CACHE_SHARE = 0.5
LEAST_ROWS = 16  # of a part: with fewer, products slow down; and a container may have fewer cores


def count_parts(
    model: Model, request: Request, *, rows: int, prompt_length: int, divides: int, plain: bool
) -> int:
    """Parts of `rows` rows that pay, at most one for each core; it divides `divides`.

    1 if the device is not a single CPU, or if something may look at several rows: a capture, which
    may add them up, or what is not `plain` (`is_plain`).
    """
    alone = compiled_for_cpu(model.attention) and mesh_of(model) is None
    if not (alone and plain) or request.capture is not None or jax.config.values["jax_disable_jit"]:
        return 1
    new = request.max_new_tokens
    cached = cache_bytes(model, rows=rows, prompt_length=prompt_length, new_tokens=new)
    pays = 1 + int(cached / (CACHE_SHARE * weight_bytes(model)))
    most = max(1, min(_cores(), rows // LEAST_ROWS, pays))
    return max(n for n in range(1, most + 1) if divides % n == 0)


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def row_parts(model: Model, batch: TokenBatch, request: Request, *, plain: bool) -> list[Part]:
    """The rows in parts that are worth running at the same time: whole prompts, or rows of one."""
    (P, T), B = batch.tokens.shape, request.max_tokens.shape[0]
    divides = B if P == 1 else P
    count = count_parts(model, request, rows=B, prompt_length=T, divides=divides, plain=plain)
    if count == 1:
        return [(batch, request)]
    batch, request = hosts.gather((batch, request))  # on the host, where a slice compiles nothing

    def part(i: int) -> Part:
        def take(x: np.ndarray) -> np.ndarray:  # a single prompt serves all
            return x if len(x) == 1 else np.split(x, count)[i]

        return jax.tree.map(take, batch), map_rows(take, request)

    return [part(i) for i in range(count)]


def run_parts(
    program: Any, model: Model, parts: Sequence[Part], *, axis: int = 0, **options: Any
) -> Any:
    """What a jitted `program` makes of all parts, which it runs at once, put together along `axis`.

    `options` are its static arguments. The result is on the host.
    """
    if len(parts) == 1:
        return hosts.gather(program(model, *parts[0], **options))
    # Compiled here, once, and under the settings of this thread, which others do not see.
    compiled = program.lower(model, *parts[0], **options).compile()
    with ThreadPoolExecutor(len(parts)) as threads:
        made = list(threads.map(lambda part: hosts.gather(compiled(model, *part)), parts))
    return jax.tree.map(lambda *x: np.concatenate(x, axis), *made)

"""Decode many prompts in a fixed number of slots; finished rows make room for others.

    batch = left_pad(prompts)                                       # say 300 of them
    for row in generate_queue(model, batch, slots=64, max_new_tokens=2000, stop_tokens=[eos]):
        print(row.index, row.tokens)                                # as they finish

Once a sixteenth of the slots is free, that many prompts are prefilled and put into them. When no
prompt is waiting, the pool halves as its rows end, at most twice. So there are three sizes, and
three compiled programs, whatever the number of prompts.

Each row has its own cursor, so it keeps its place in the cache from its first token to its last.
The alternative is one cursor for all, with rows moved up to it at each refill: then every step
reads as many slots of every row as the oldest row has filled. Arithmetic for the lengths of 300
reasoning traces, bytes at Llama-8B shapes in bf16 over 4.4 TB/s
(`python -m experiments.benchmarks.refill_simulation`):

    slots                                       64             100
    batches, one after the other           53 s, 68%      40 s, 70% of row-steps live
    refill, one cursor, rows moved         48 s, 94%      40 s, 92%
    refill, one cursor per row (this module)   37 s, 94%      29 s, 92%

Refills are some hundred steps apart and write a sixteenth of the cache each. A step reads the
weights and at least a third of the cache. So refills write 0.2% of all bytes.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from jaxsteer.decoding import (
    Asked,
    DecodeState,
    Request,
    Sampler,
    Step,
    capture_bytes,
    check_capture_fits,
    decode_step,
    map_rows,
    prefill,
    prepare,
    repeat_prompts,
    warn_not_finite,
)
from jaxsteer.llama import (
    Model,
    TokenBatch,
    TokenRows,
    mesh_sizes,
    should_copy_prompts,
    spread_rows,
)
from jaxsteer.queues.shared_queue import count_groups, run_shared_queue
from jaxsteer.queues.slots import FinishedRow, Occupancy, put_into, run_pool, with_cursors
from jaxsteer.runtime import hosts


def start(model: Model, batch: TokenBatch, request: Request, *, sampler: Sampler) -> DecodeState:
    """Like `prefill`, with one cursor per row; pure."""
    return with_cursors(prefill(model, batch, request, sampler=sampler))


def admit(
    model: Model,
    state: DecodeState,
    request: Request,
    batch: TokenBatch,
    new: Request,
    slots: jax.Array,
    *,
    sampler: Sampler,
) -> tuple[DecodeState, Request]:
    """Prefill the rows of `batch` and put them into `slots` `[P]`; pure.

    A slot past the last one drops its row. Everything a slot held is replaced.
    """
    fresh = start(model, batch, new, sampler=sampler)
    put = partial(put_into, slots)
    return jax.tree.map(put, state, fresh), map_rows(put, request, new)


_start = jax.jit(start, static_argnames="sampler")
_admit = jax.jit(admit, static_argnames="sampler", donate_argnames=("state", "request"))


def generate_queue(
    model: Model,
    batch: TokenBatch | TokenRows,
    request: Request | None = None,
    *,
    slots: int,
    sampler: Sampler | None = None,
    step: Step = decode_step,
    occupancy: Occupancy | None = None,
    **asked: Unpack[Asked],
) -> Iterator[FinishedRow]:
    """Yield every row of `batch` as it finishes; the same tokens as `generate`.

    A pass through the model serves `slots` rows at once, whatever the number of prompts. Random
    numbers belong to (seed, row, position), so they are those of the plain loop, too.

    Args:
        model: the weights.
        batch: left-padded prompts, or token ids row by row, as many as there are; they wait in the
            host's memory.
        request: what is asked of the batch, as `make_request` makes it.
        slots: rows that are decoded at once. If they are at most a third of the prompts, nine
            tenths of the row-steps are spent on live rows.
        sampler: chooses tokens; by default the cheapest sampler that serves the request.
        step: what is repeated; it must eventually finish every row.
        occupancy: counts what the slots are spent on, if given.
        **asked: in place of a request, the keywords of `make_request`; `max_tokens` may differ
            from row to row. With `samples` rows share their prompts (`shared_queue`), unless each
            runs its own faster (`should_copy_prompts`).

    Raises:
        ValueError: for input that does not fit the model, before any work starts.
    """
    batch, request, sampler = prepare(model, batch, request, sampler, asked)
    if slots < 1:
        raise ValueError(f"slots: got {slots}, expected at least 1")
    length, rows = batch.tokens.shape[1], request.max_tokens.shape[0]
    new_tokens = request.max_new_tokens
    if should_copy_prompts(model.attention, prompt_length=length, new_tokens=new_tokens):
        batch = repeat_prompts(batch, rows)
    prompts = batch.tokens.shape[0]
    slots, (data, _) = min(slots, rows), mesh_sizes(model)
    groups = count_groups(slots, prompts, rows // prompts, data)
    check_capture_fits(
        model,
        rows=slots,
        prompts=None if prompts == rows else groups,
        prompt_length=length,
        new_tokens=new_tokens,
        captured=capture_bytes(request.capture, model),
    )
    options: dict[str, Any] = {
        "slots": slots,
        "sampler": sampler,
        "step": step,
        "occupancy": Occupancy() if occupancy is None else occupancy,
    }
    on_host = _on_host(batch, request, rows)
    if prompts != rows:
        return run_shared_queue(model, *on_host, groups=groups, **options)
    return _run_queue(model, *on_host, **options)


def _on_host(batch: TokenBatch, request: Request, rows: int) -> tuple[TokenBatch, Request]:
    """Both as numpy arrays with one row per prompt; rows that wait take no memory on the device."""

    def widen(x: np.ndarray) -> np.ndarray:
        return np.broadcast_to(x, (rows, *x.shape[1:]))

    return hosts.gather(batch), map_rows(widen, hosts.gather(request))


def _run_queue(
    model: Model,
    batch: TokenBatch,
    request: Request,
    *,
    slots: int,
    sampler: Sampler,
    occupancy: Occupancy,
    **options: Any,
) -> Iterator[FinishedRow]:
    prompts = batch.tokens.shape[0]
    holds = np.arange(slots)
    asks = jax.tree.map(jnp.asarray, map_rows(lambda x: x[holds], request))
    first, asks = spread_rows((_rows(batch, holds), asks), model)

    def put(
        state: DecodeState, asks: Request, rows: np.ndarray, places: np.ndarray
    ) -> tuple[DecodeState, Request]:
        new = map_rows(lambda x: x[rows], request)
        return _admit(model, state, asks, _rows(batch, rows), new, places, sampler=sampler)

    yield from run_pool(
        model,
        _start(model, first, asks, sampler=sampler),
        asks,
        request,
        [list(range(slots, prompts))],
        holds=holds,
        live=np.ones(slots, bool),
        group=np.zeros(slots, int),
        put=put,
        sampler=sampler,
        occupancy=occupancy,
        **options,
    )
    warn_not_finite(occupancy.not_finite, prompts)


def _rows(batch: TokenBatch, rows: np.ndarray) -> TokenBatch:
    return jax.tree.map(lambda x: x[rows], batch)

"""A queue of rows that share prompts: slots in groups, each on a prompt of its own.

    slot      0 1 2 3 | 4 5 6 7        two groups, prompts 0 and 1
    row       0 1 2 3 | 9 10 11 12     each holds rows of its prompt, and takes the next of them

A prompt runs once, when its group begins. A row begins with the prompt's last token, so putting it
into a slot runs nothing: the next step of all slots gives it its first token. There are so many
groups that each slot holds several rows one after another; further prompts follow when these are
done.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsteer.decoding import (
    DecodeState,
    Request,
    begin_shared,
    map_rows,
    new_state,
    thinking_in,
    warn_not_finite,
)
from jaxsteer.llama import Model, TokenBatch, spread_rows
from jaxsteer.queues.slots import FinishedRow, Occupancy, put_into, run_pool, with_cursors

_ROWS_A_SLOT = 4  # that a slot should hold one after another, or ends of groups leave it idle


def count_groups(slots: int, prompts: int, samples: int, data: int = 1) -> int:
    """The number of groups that slots are cut into; on a mesh one, or a multiple of its `data`.

    >>> count_groups(64, 10, 100), count_groups(64, 100, 8), count_groups(64, 1, 500)
    (4, 32, 1)
    """
    fitting = [n for n in range(1, slots + 1) if slots % n == 0 and (n == 1 or n % data == 0)]
    fitting = [n for n in fitting if n <= prompts]
    enough = [n for n in fitting if n * samples >= _ROWS_A_SLOT * slots]
    return enough[0] if enough else fitting[-1]


def begin(model: Model, batch: TokenBatch, request: Request) -> DecodeState:
    """Like `begin_shared`, with one cursor per row and nothing copied, for `restart`; pure."""
    return with_cursors(begin_shared(model, batch, request, may_copy=False))


def restart(
    model: Model,
    state: DecodeState,
    request: Request,
    batch: TokenBatch,
    new: Request,
    slots: jax.Array,
) -> tuple[DecodeState, Request]:
    """New rows in `slots`, one on each prompt of `batch`, instead of the old ones; pure.

    A slot past the last one drops its row. Keys and values that it held stay, and are not read.
    """
    thinking = thinking_in(batch.tokens, batch.mask, new.think_tokens)[:, -1]
    cache, last, G = state.cache, batch.tokens[:, -1], state.tokens.shape[1]
    fresh = new_state(model, last, thinking, new, cache, max_new_tokens=G)
    put = partial(put_into, slots)
    bare, fresh = (replace(x, cache=None, extra=None) for x in (state, fresh))  # type: ignore[arg-type]
    cache = replace(
        cache,
        valid=cache.valid.at[slots].set(False, mode="drop"),
        cursor=cache.cursor.at[slots].set(0, mode="drop"),
    )
    state = replace(jax.tree.map(put, bare, fresh), cache=cache, extra=state.extra)
    return state, map_rows(put, request, new)


_begin = jax.jit(begin)
_restart = jax.jit(restart, donate_argnames=("state", "request"))


def run_shared_queue(
    model: Model,
    batch: TokenBatch,
    request: Request,
    *,
    groups: int,
    slots: int,
    occupancy: Occupancy,
    **options: Any,
) -> Iterator[FinishedRow]:
    """The rows of `request`, R on each prompt of `batch`, both on the host, as they finish.

    `options` are `sampler` and `step`, as `run_pool` takes them.
    """
    P = batch.tokens.shape[0]
    rows = np.arange(request.max_tokens.shape[0]).reshape(P, -1)
    for first in range(0, P, groups):
        # The last groups are filled up with a prompt that is done: nobody asks for its rows.
        index = np.minimum(np.arange(first, first + groups), P - 1)
        asked = [list(rows[p]) if p >= first + i else [] for i, p in enumerate(index)]
        yield from _run_groups(
            model,
            jax.tree.map(lambda x, index=index: x[index], batch),
            request,
            asked,
            slots=slots,
            occupancy=occupancy,
            **options,
        )
    warn_not_finite(occupancy.not_finite, rows.size)


def _run_groups(
    model: Model,
    batch: TokenBatch,
    request: Request,
    asked: list[list[int]],
    *,
    slots: int,
    **options: Any,
) -> Iterator[FinishedRow]:
    """`asked` are the rows that each prompt of `batch` still has to generate; they are used up."""
    W = len(asked)
    group = np.repeat(np.arange(W), slots // W)  # of each slot
    holds, live = np.zeros(slots, int), np.zeros(slots, bool)
    for slot, g in enumerate(group):
        if asked[g]:
            holds[slot], live[slot] = asked[g].pop(0), True
    # Slots without a row stand still: they ask for no tokens.
    asks = map_rows(lambda x: x[holds], request)
    asks = replace(asks, max_tokens=jnp.where(live, asks.max_tokens, 0))
    prompts, asks = spread_rows((batch, jax.tree.map(jnp.asarray, asks)), model)

    def put(
        state: DecodeState, asks: Request, rows: np.ndarray, places: np.ndarray
    ) -> tuple[DecodeState, Request]:
        prompt = group[np.where(places < slots, places, places[0])]
        own = jax.tree.map(lambda x: x[prompt], batch)
        new = map_rows(lambda x: x[rows], request)
        return _restart(model, state, asks, own, new, places)

    yield from run_pool(
        model,
        _begin(model, prompts, asks),
        asks,
        request,
        asked,
        holds=holds,
        live=live,
        group=group,
        put=put,
        **options,
    )

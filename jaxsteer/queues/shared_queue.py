"""A queue of rows that share prompts: slots in groups, each on a prompt of its own.

    slot      0 1 2 3 | 4 5 6 7        two groups, prompts 0 and 1
    row       0 1 2 3 | 9 10 11 12     each holds rows of its prompt, and takes the next of them

A prompt is run once, when its group begins. A row begins with the prompt's last token, so putting
it into a slot runs nothing: the next step of all slots gives it its first token. Groups are as many
as let each slot hold some rows one after another; further prompts follow when these are done.
"""

from collections.abc import Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxsteer.decoding import (
    DecodeState,
    Request,
    Sampler,
    Step,
    begin_shared,
    map_rows,
    new_state,
    nothing_kept,
    tell_not_finite,
    thinking_in,
)
from jaxsteer.llama import Model, TokenBatch, spread_rows
from jaxsteer.queues.slots import (
    REFILL_SHARE,
    FinishedRow,
    Occupancy,
    count_steps,
    decode_until,
    keep_slots,
    pool_sizes,
    read_rows,
)
from jaxsteer.runtime import hosts

_ROWS_A_SLOT = 4  # that a slot should hold one after another, or ends of groups leave it idle


def count_groups(slots: int, prompts: int, samples: int, data: int = 1) -> int:
    """Into how many groups slots are cut; on a mesh one, or a multiple of its `data`.

    >>> count_groups(64, 10, 100), count_groups(64, 100, 8), count_groups(64, 1, 500)
    (4, 32, 1)
    """
    fitting = [n for n in range(1, slots + 1) if slots % n == 0 and (n == 1 or n % data == 0)]
    fitting = [n for n in fitting if n <= prompts]
    enough = [n for n in fitting if n * samples >= _ROWS_A_SLOT * slots]
    return enough[0] if enough else fitting[-1]


def begin(model: Model, batch: TokenBatch, request: Request) -> DecodeState:
    """Like `begin_shared`, with a cursor a row; pure."""
    state = begin_shared(model, batch, request)
    cursor = jnp.broadcast_to(state.cache.cursor, state.done.shape)
    return replace(state, cache=replace(state.cache, cursor=cursor))


def restart(
    model: Model,
    state: DecodeState,
    request: Request,
    batch: TokenBatch,
    new: Request,
    slots: jax.Array,
) -> tuple[DecodeState, Request]:
    """Rows on the prompts of `batch`, one each, in the place of what `slots` held; pure.

    A slot past the last one drops its row. Keys and values that it held stay, and are not read.
    """
    thinking = thinking_in(batch.tokens, batch.mask, new.think_tokens)[:, -1]
    keeping = new.keeping
    kept = None if keeping is None else nothing_kept(keeping, model, rows=len(slots))
    cache = state.cache
    fresh = new_state(
        batch.tokens[:, -1], thinking, new, cache, kept, max_new_tokens=state.tokens.shape[1]
    )

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        return old if old.ndim == 0 else old.at[slots].set(new, mode="drop")

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
    sampler: Sampler,
    step: Step,
    occupancy: Occupancy,
) -> Iterator[FinishedRow]:
    """The rows of `request`, R on each prompt of `batch`, both on the host, as they finish."""
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
            sampler=sampler,
            step=step,
            occupancy=occupancy,
        )
    tell_not_finite(occupancy.not_finite, rows.size)


def _run_groups(
    model: Model,
    batch: TokenBatch,
    request: Request,
    asked: list[list[int]],
    *,
    slots: int,
    sampler: Sampler,
    step: Step,
    occupancy: Occupancy,
) -> Iterator[FinishedRow]:
    """`asked` are the rows that each prompt of `batch` still has to generate; they are used up."""
    W = len(asked)
    group = np.repeat(np.arange(W), slots // W)  # of each slot
    refill = max(1, slots // REFILL_SHARE)
    holds, live = np.zeros(slots, int), np.zeros(slots, bool)
    for slot, g in enumerate(group):
        if asked[g]:
            holds[slot], live[slot] = asked[g].pop(0), True
    # Slots without a row stand still: they ask for no tokens.
    asks = map_rows(lambda x: x[holds], request)
    asks = replace(asks, max_tokens=jnp.where(live, asks.max_tokens, 0))
    prompts, asks = spread_rows((batch, jax.tree.map(jnp.asarray, asks)), model)
    state = _begin(model, prompts, asks)
    while live.any():
        waiting = sum(map(len, asked))
        smaller = max((n for n in pool_sizes(slots) if n < len(holds) and n % W == 0), default=0)
        floor = min(len(holds) - refill if waiting else smaller, int(live.sum()) - 1)
        before = hosts.gather((state.step, state.length))
        state = decode_until(model, state, asks, np.int32(floor), sampler=sampler, step=step)
        count_steps(occupancy, before, hosts.gather((state.step, state.length)))
        ended = live & hosts.gather(state.settled)
        finished = read_rows(state, request, holds, ended)
        occupancy.not_finite += sum(not row.finite for row in finished)
        live &= ~ended
        into = _free(live, group, [len(rows) for rows in asked])[:refill]
        if into:
            new = [asked[group[slot]].pop(0) for slot in into]
            state, asks = _put_rows(model, state, asks, batch, request, new, into, group, refill)
            holds[into], live[into] = new, True
            occupancy.refills += 1
        elif live.any() and not waiting:
            most = max(int(live[group == g].sum()) for g in range(W))
            sizes = [n for n in pool_sizes(slots) if n % W == 0 and n >= most * W]
            if (size := min(sizes)) < len(holds):
                left = _live_first(live, group, size // W)
                state, asks = keep_slots(state, asks, left)
                holds, live, group = holds[left], live[left], group[left]
        yield from finished


def _free(live: np.ndarray, group: np.ndarray, waiting: list[int]) -> list[int]:
    """Slots that are free and have rows waiting for them, as many in each group at most."""
    left, free = list(waiting), []
    for slot in np.flatnonzero(~live).tolist():
        if left[group[slot]] > 0:
            left[group[slot]] -= 1
            free.append(slot)
    return free


def _put_rows(
    model: Model,
    state: DecodeState,
    asks: Request,
    batch: TokenBatch,
    request: Request,
    new: list[int],
    into: list[int],
    group: np.ndarray,
    refill: int,
) -> tuple[DecodeState, Request]:
    """The rows `new` in the slots `into`; made up to `refill`, of which the last are dropped."""
    missing = refill - len(new)
    index = np.array(new + new[-1:] * missing)
    slots = np.array(into + [len(group)] * missing)
    prompt = group[np.array(into + into[-1:] * missing)]
    rows = jax.tree.map(lambda x: x[prompt], batch)
    return _restart(model, state, asks, rows, map_rows(lambda x: x[index], request), slots)


def _live_first(live: np.ndarray, group: np.ndarray, size: int) -> np.ndarray:
    """`size` slots of each group, the live ones among them."""
    order = np.lexsort((~live, group))
    return order.reshape(group.max() + 1, -1)[:, :size].ravel()

"""A pool of slots in which rows are decoded: a slot whose row has ended takes one that waits."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxsteer.decoding import (
    Captured,
    DecodeState,
    Outcome,
    Request,
    Sampler,
    Step,
    check_activations_kept,
    decode_step,
    generated_row,
    map_rows,
)
from jaxsteer.llama import Model
from jaxsteer.runtime import hosts

Counts = tuple[np.ndarray, np.ndarray]  # steps made, tokens of each row
# (state, asks, rows, slots) -> state and asks with these rows in these slots.
Put = Callable[[DecodeState, Request, np.ndarray, np.ndarray], tuple[DecodeState, Request]]

_FEWEST_SLOTS = 8  # smaller pools do not shrink
REFILL_SHARE = 16  # a refill waits until one slot in so many is free


@dataclass(frozen=True)
class FinishedRow:
    """What was generated from one prompt."""

    index: int  # the prompt's row in the batch
    tokens: list[int]  # a stop token included
    logprobs: list[float]  # of these tokens, under the steered model at temperature 1
    finite: bool = True  # False: the row ended because its log-probabilities were not finite
    captured: Captured | None = None  # of this row, if `capture` asked for it


@dataclass
class Occupancy:
    """How the slots were used; counted while rows are yielded."""

    steps: int = 0
    row_steps: int = 0  # slots there were, summed over the steps
    live_row_steps: int = 0  # those that held a row which was not done
    refills: int = 0
    not_finite: int = 0  # rows that ended because their log-probabilities were not finite

    @property
    def live_share(self) -> float:
        """Share of the row-steps spent on rows that were not done; 1 before the first step."""
        return self.live_row_steps / self.row_steps if self.row_steps else 1.0


def pool_sizes(slots: int) -> list[int]:
    """The sizes that a pool has, one after the other; each size compiles a program.

    All, a half and a quarter, but not below 8 slots, where a program costs more than it saves.

    >>> pool_sizes(64), pool_sizes(20), pool_sizes(6)
    ([64, 32, 16], [20, 10], [6])
    """
    return [slots, *(slots // share for share in (2, 4) if slots // share >= _FEWEST_SLOTS)]


def with_cursors(state: DecodeState) -> DecodeState:
    """The same rows with a cursor each, instead of one for all; pure."""
    cursor = jnp.broadcast_to(state.cache.cursor, state.done.shape)
    return replace(state, cache=replace(state.cache, cursor=cursor))


def put_into(slots: jax.Array, old: jax.Array, new: jax.Array) -> jax.Array:
    """`old` with the rows of `new` in `slots` `[P]`; a slot past the last one drops its row."""
    return old if old.ndim == 0 else old.at[slots].set(new, mode="drop")


def advance(
    model: Model,
    state: DecodeState,
    request: Request,
    floor: jax.Array,
    *,
    sampler: Sampler,
    step: Step = decode_step,
) -> DecodeState:
    """Decode until no more than `floor` rows are live; pure."""

    def going(state: DecodeState) -> jax.Array:
        return jnp.sum(~state.settled) > floor

    def body(state: DecodeState) -> DecodeState:
        state = step(model, state, request, sampler=sampler)
        # A row that has ended writes to its first slot, and has no more of its cache read.
        cursor = jnp.where(state.settled, 0, state.cache.cursor)
        return replace(state, cache=replace(state.cache, cursor=cursor))

    return jax.lax.while_loop(going, body, state)


def keep(state: DecodeState, request: Request, slots: jax.Array) -> tuple[DecodeState, Request]:
    """The pool with only `slots` `[R]` left, as many for each shared prompt; pure."""

    def take(x: jax.Array) -> jax.Array:
        return x if x.ndim == 0 else x[slots]

    prefix = state.cache.prefix
    state = jax.tree.map(take, replace(state, cache=replace(state.cache, prefix=None)))
    return replace(state, cache=replace(state.cache, prefix=prefix)), map_rows(take, request)


decode_until = jax.jit(advance, static_argnames=("sampler", "step"), donate_argnames="state")
keep_slots = jax.jit(keep)


def count_steps(occupancy: Occupancy, before: Counts, after: Counts) -> None:
    """Add what came between two counts of the pool."""
    steps = int(after[0] - before[0])
    occupancy.steps += steps
    occupancy.row_steps += steps * len(after[1])
    occupancy.live_row_steps += int(np.sum(after[1] - before[1]))  # a live row gains one per step


def read_rows(
    state: DecodeState, request: Request, holds: np.ndarray, ended: np.ndarray
) -> list[FinishedRow]:
    """The rows in the `ended` slots. Whole buffers are read: a slice of each size would compile."""
    if not ended.any():
        return []
    made = hosts.gather(Outcome.of(state))
    rows = []
    for slot in np.flatnonzero(ended):
        row = jax.tree.map(lambda x, slot=slot: x[slot], made)
        check_activations_kept(row)
        rows.append(FinishedRow(int(holds[slot]), *generated_row(row, request.capture)))
    return rows


def run_pool(
    model: Model,
    state: DecodeState,
    asks: Request,
    request: Request,
    waiting: list[list[int]],
    *,
    holds: np.ndarray,
    live: np.ndarray,
    group: np.ndarray,
    put: Put,
    sampler: Sampler,
    step: Step,
    occupancy: Occupancy,
) -> Iterator[FinishedRow]:
    """Decode the rows that slots hold and those that wait, and yield each as it finishes.

    Args:
        model: the weights.
        state: of the slots.
        asks: the requests of the rows that slots hold.
        request: the requests of all rows, on the host.
        waiting: by group, the rows that have had no slot yet, in order; they are used up.
        holds: int `[slots]`, the row that each slot holds.
        live: bool `[slots]`, whether it is still to be yielded.
        group: int `[slots]`, the group whose rows a slot takes.
        put: puts rows into slots. A slot past the last one drops its row.
        sampler: chooses tokens.
        step: what is repeated.
        occupancy: counts what the slots are spent on.
    """
    slots, W = len(holds), len(waiting)
    refill = max(1, slots // REFILL_SHARE)
    sizes = [n for n in pool_sizes(slots) if n % W == 0]
    stuck = False  # whether slots that are free could not be filled or dropped
    while live.any():
        smaller = max((n for n in sizes if n < len(holds)), default=0)
        floor = len(holds) - refill if any(waiting) else smaller
        floor = min(floor, int(live.sum()) - 1) if stuck else floor
        before = hosts.gather((state.step, state.length))
        state = decode_until(model, state, asks, np.int32(floor), sampler=sampler, step=step)
        count_steps(occupancy, before, hosts.gather((state.step, state.length)))
        ended = live & hosts.gather(state.settled)
        finished = read_rows(state, request, holds, ended)
        occupancy.not_finite += sum(not row.finite for row in finished)
        live = live & ~ended
        into = _free(live, group, list(map(len, waiting)))[:refill]
        size = min(n for n in sizes if n >= W * np.bincount(group, live).max())
        stuck = False
        if into:
            new = [waiting[group[slot]].pop(0) for slot in into]
            missing = refill - len(new)  # the last refill has fewer rows: it drops its last one
            rows, places = new + new[-1:] * missing, into + [len(holds)] * missing
            state, asks = put(state, asks, np.array(rows), np.array(places))
            holds[into], live[into] = new, True
            occupancy.refills += 1
        elif live.any() and not any(waiting) and size < len(holds):
            left = np.lexsort((~live, group)).reshape(W, -1)[:, : size // W].ravel()  # live first
            state, asks = keep_slots(state, asks, left)
            holds, live, group = holds[left], live[left], group[left]
        else:
            stuck = True
        yield from finished


def _free(live: np.ndarray, group: np.ndarray, waiting: list[int]) -> list[int]:
    """Slots that are free, for each group at most as many as rows of it are waiting."""
    left, free = list(waiting), []
    for slot in np.flatnonzero(~live).tolist():
        if left[group[slot]] > 0:
            left[group[slot]] -= 1
            free.append(slot)
    return free

"""The slots of a pool in which rows are decoded: until some have ended, and what they hold then."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxsteer.decoding import (
    Captured,
    DecodeState,
    Request,
    Sampler,
    Step,
    captured_of,
    check_read,
    decode_step,
    map_rows,
    outcome,
)
from jaxsteer.llama import Model
from jaxsteer.runtime import hosts

Counts = tuple[np.ndarray, np.ndarray]  # steps made, tokens of each row

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
    """What the slots were spent on; counted while the rows come."""

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
    """Numbers of slots that a pool has one after the other; each compiles a program of its own.

    Half and a quarter, but nothing below 8 slots, where a program costs more than it saves.

    >>> pool_sizes(64), pool_sizes(20), pool_sizes(6)
    ([64, 32, 16], [20, 10], [6])
    """
    return [slots, *(slots // share for share in (2, 4) if slots // share >= _FEWEST_SLOTS)]


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
    """The pool with only `slots` `[R]` left, of a shared prefix as many for each; pure."""

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
    occupancy.live_row_steps += int(np.sum(after[1] - before[1]))  # a live row gains one a step


def read_rows(
    state: DecodeState, request: Request, holds: np.ndarray, ended: np.ndarray
) -> list[FinishedRow]:
    """The rows in the `ended` slots, whole buffers at a time: a slice of every size compiles."""
    if not ended.any():
        return []
    made = hosts.gather(outcome(state))
    rows = []
    for slot in np.flatnonzero(ended):
        row = jax.tree.map(lambda x, slot=slot: x[slot], made)
        check_read(row)
        rows.append(
            FinishedRow(
                int(holds[slot]),
                row.tokens[: row.length].tolist(),
                row.logprobs[: row.length].tolist(),
                bool(row.finite),
                None if request.keeping is None else captured_of(row.kept, request.keeping),
            )
        )
    return rows

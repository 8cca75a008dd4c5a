"""Scopes: which positions of a row an intervention touches, as data.

Positions count a row's real tokens from 0. With a prompt of P tokens, position P is the first
generated token. Its *logits* were made at position P - 1, so under `generated()` the first
sampled token is still the unsteered model's; `from_last_prompt_token()` steers it too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxsteer.steering import small_arrays

_END = 2**30  # past any position

Tree = TypeVar("Tree")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Scope:
    """Half-open windows of positions; excluded windows are subtracted from the others.

    Bounds count from the row's first token, or from the end of its prompt where `from_prompt_end`
    is set. Rows of one batch may differ in all of it.
    """

    bounds: jax.Array  # int32 [B, W, 2]: start and stop of each window
    from_prompt_end: jax.Array  # bool [B, W, 2]
    excluded: jax.Array  # bool [B, W]: the window is cut out instead of added
    # bool [B, W]: the window holds only inside <think>…</think>; None if no window is so confined.
    in_thinking: jax.Array | None = None

    @property
    def needs_thinking(self) -> bool:
        """Whether `covers` needs to know which tokens lie inside <think>…</think>."""
        return self.in_thinking is not None

    def covers(
        self, position: jax.Array, prompt_length: jax.Array, thinking: jax.Array | None = None
    ) -> jax.Array:
        """Whether each position `[B, T]` is in scope, given prompts of `[B]` tokens.

        `thinking` `[B, T]` says which of these tokens lie inside <think>…</think>: from the token
        after the opening one up to, not including, the closing one.

        Raises:
            ValueError: if `needs_thinking` and `thinking` is None.
        """
        bounds = self.bounds + self.from_prompt_end * prompt_length[:, None, None]
        start, stop = bounds[:, None, :, 0], bounds[:, None, :, 1]  # [B, 1, W]
        inside = (position[:, :, None] >= start) & (position[:, :, None] < stop)  # [B, T, W]
        if self.in_thinking is not None:
            if thinking is None:
                raise ValueError(
                    "thinking: got None, expected bool [B, T], because the scope is confined to "
                    "<think>…</think>"
                )
            inside &= ~self.in_thinking[:, None] | thinking[:, :, None]
        cut = self.excluded[:, None]
        return jnp.any(inside & ~cut, axis=-1) & ~jnp.any(inside & cut, axis=-1)

    def may_cover(self, position: jax.Array, prompt_length: jax.Array) -> jax.Array:
        """Whether each position may be in scope, wherever <think>…</think> turns out to be."""
        never, always = (jnp.full(position.shape, thinking) for thinking in (False, True))
        return self.covers(position, prompt_length, never) | self.covers(
            position, prompt_length, always
        )

    def begins_after(self, prompt_length: int) -> bool:
        """Whether it covers no position of a prompt of that length, but would without a prompt."""
        with jax.ensure_compile_time_eval():  # `forward` asks while it is traced
            lengths = jnp.full(len(self.bounds), prompt_length)
            position = jnp.broadcast_to(jnp.arange(prompt_length), (len(lengths), prompt_length))
            covered = jnp.any(self.may_cover(position, lengths))
            return not covered and bool(jnp.any(self.may_cover(position, 0 * lengths)))


def _one_window(start: int, start_at_end: bool, stop: int, stop_at_end: bool) -> Scope:
    return Scope(
        bounds=jax.device_put(np.array([[[start, stop]]], np.int32)),
        from_prompt_end=jax.device_put(np.array([[[start_at_end, stop_at_end]]])),
        excluded=jax.device_put(np.zeros((1, 1), bool)),
    )


def everywhere() -> Scope:
    """Every position, prompt and generated."""
    return _one_window(0, False, _END, False)


def prompt() -> Scope:
    """The prompt's positions."""
    return _one_window(0, False, 0, True)


def generated() -> Scope:
    """Positions from the prompt's length on: the paper's choice (Section 3)."""
    return _one_window(0, True, _END, False)


def from_last_prompt_token() -> Scope:
    """The prompt's last token and all that follows, so that the first sampled token is steered."""
    return _one_window(-1, True, _END, False)


def window(start: int, stop: int | None = None) -> Scope:
    """Positions from `start` up to, not including, `stop`; without `stop`, to the end.

    Negative numbers count from the prompt's end: `window(-5, -1)` is the four tokens before
    the prompt's last one.

    Raises:
        ValueError: for a bound that is no integer, and for a window that is empty in every row.
    """
    _check_bound("window: start", start)
    if stop is not None:
        _check_bound("window: stop", stop)
    if stop is not None and (start < 0) == (stop < 0) and stop <= start:
        raise ValueError(f"window: got start={start} and stop={stop}, expected start < stop")
    if stop is None:
        return _one_window(start, start < 0, _END, False)
    return _one_window(start, start < 0, stop, stop < 0)


def positions(wanted: ArrayLike) -> Scope:
    """Exactly these positions: int `[N]`, or one list per row, `[B, N]` or of unequal lengths.

    Negative numbers count from the prompt's end: `positions([3, -1])` is the fourth token and the
    prompt's last. A position that a row does not have is ignored.

    Raises:
        ValueError: for no positions, or numbers that are not integers.
    """
    start = np.atleast_2d(_table(wanted, lambda row: row[-1]))
    if start.ndim != 2 or start.size == 0:
        raise ValueError(f"positions: got shape {start.shape}, expected [N] or [B, N]")
    if not np.issubdtype(start.dtype, np.integer):
        raise ValueError(f"positions: got dtype {start.dtype}, expected integers")
    _check_bound("positions", int(start[np.unravel_index(np.abs(start).argmax(), start.shape)]))
    return Scope(
        bounds=jax.device_put(np.stack([start, start + 1], axis=-1).astype(np.int32)),
        from_prompt_end=jax.device_put(np.stack([start < 0] * 2, axis=-1)),
        excluded=jax.device_put(np.zeros(start.shape, bool)),
    )


def mask(covered: ArrayLike) -> Scope:
    """Positions where `covered`, bool `[P]`, `[B, P]` or one list per row, is True; none from P on.

    Each run of True becomes one window.

    Raises:
        ValueError: for another shape or dtype.
    """
    rows = np.atleast_2d(_table(covered, lambda row: False))
    if rows.ndim != 2 or rows.shape[0] == 0:
        raise ValueError(f"mask: got shape {rows.shape}, expected [P] or [B, P]")
    if rows.dtype != np.bool_:
        raise ValueError(f"mask: got dtype {rows.dtype}, expected bool")
    # A run starts where the mask rises and stops where it falls.
    edges = [np.flatnonzero(np.diff(row, prepend=False, append=False)) for row in rows]
    bounds = np.zeros((len(rows), max(1, *(len(e) // 2 for e in edges)), 2), np.int32)
    for row, edge in zip(bounds, edges, strict=True):
        row[: len(edge) // 2] = edge.reshape(-1, 2)
    return Scope(
        bounds=jax.device_put(bounds),
        from_prompt_end=jax.device_put(np.zeros(bounds.shape, bool)),
        excluded=jax.device_put(np.zeros(bounds.shape[:2], bool)),
    )


def thinking(*, within: Scope | None = None) -> Scope:
    """The positions of `within`, by default all, that lie inside <think>…</think>.

    That is from the token after the opening one up to, not including, the closing one, in the
    prompt or generated. `thinking(within=generated())` leaves the prompt alone.
    """
    within = everywhere() if within is None else within
    # Windows that `within` excludes stay excluded, inside <think>…</think> or not.
    return replace(within, in_thinking=~within.excluded)


def union(*scopes: Scope, exclude: Sequence[Scope] = ()) -> Scope:
    """Positions that lie in any of `scopes` and in none of `exclude`.

    Positions that one of `scopes` excludes are excluded from the whole union.

    Raises:
        ValueError: for no scope, or an excluded scope that itself excludes something.
    """
    if not scopes:
        raise ValueError("union: got no scope, expected at least one")
    if any(np.any(np.asarray(scope.excluded)) for scope in exclude):
        raise ValueError("union: got exclude=… with an exclusion of its own, expected windows only")
    cut = [replace(scope, excluded=jnp.ones_like(scope.excluded)) for scope in exclude]
    parts = _same_fields([*scopes, *cut])
    rows = max(part.excluded.shape[0] for part in parts)
    parts = [broadcast_rows(part, rows, "scope") for part in parts]
    return jax.tree.map(lambda *leaves: small_arrays.concatenate(leaves, axis=1), *parts)


def rows(scopes: Sequence[Scope]) -> Scope:
    """Scopes as the rows of one, each of one row or several, one after another."""
    return jax.tree.map(lambda *leaves: small_arrays.concatenate(leaves), *align(scopes))


def align(scopes: Sequence[Scope]) -> list[Scope]:
    """The scopes with equally many windows and the same fields, so that they can be stacked.

    Raises:
        ValueError: for no scope.
    """
    if not scopes:
        raise ValueError("scopes: got none, expected at least one")
    windows = max(scope.excluded.shape[1] for scope in scopes)
    return _same_fields([pad_windows(scope, windows) for scope in scopes])


def pad_windows(scope: Scope, windows: int) -> Scope:
    """The same scope with empty windows added up to `windows`."""
    return jax.tree.map(lambda leaf: small_arrays.pad_second(leaf, windows), scope)


def _table(rows: Any, fill: Callable[[list[Any]], Any]) -> np.ndarray:
    """An array of rows; shorter lists are filled up with `fill(row)`."""
    if isinstance(rows, list | tuple) and all(
        isinstance(row, list | tuple) and row for row in rows
    ):
        longest = max(map(len, rows), default=0)
        rows = [[*row, *[fill(list(row))] * (longest - len(row))] for row in rows]
    return np.asarray(rows)


def _same_fields(scopes: Sequence[Scope]) -> list[Scope]:
    if not any(scope.needs_thinking for scope in scopes):
        return list(scopes)
    return [
        scope
        if scope.needs_thinking
        else replace(scope, in_thinking=small_arrays.zeros_like(scope.excluded))
        for scope in scopes
    ]


def _check_bound(name: str, value: int) -> None:
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise ValueError(f"{name}: got {value!r}, expected an integer")
    if abs(value) >= _END:
        raise ValueError(f"{name}: got {value}, expected less than 2**30 either way")


def broadcast_rows(tree: Tree, rows: int, name: str) -> Tree:
    """Give every array of `tree` a row axis of `rows`: a single row is repeated.

    Raises:
        ValueError: if an array has neither one row nor `rows`.
    """

    def widen(leaf: jax.Array) -> jax.Array:
        if leaf.shape[0] not in (1, rows):
            raise ValueError(f"{name}: got {leaf.shape[0]} rows, expected 1 or {rows}")
        if leaf.shape[0] == rows:
            return leaf
        return small_arrays.repeat_row(leaf, rows)

    return jax.tree.map(widen, tree)

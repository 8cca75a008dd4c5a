"""Scopes: which positions of a row an intervention touches, as data.

Positions count a row's real tokens from 0. With a prompt of P tokens, position P is the first
generated token. Its *logits* were made at position P - 1, so under `generated()` the first
sampled token is still the unsteered model's; `from_last_prompt_token()` steers it too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

_END = 2**30  # past any position

Tree = TypeVar("Tree")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Scope:
    """Half-open windows of positions, less the excluded ones. An exclusion always wins.

    The bounds of a window are `bounds`, counted from the row's first token, or from the end of
    its prompt where `from_prompt_end` is set. Rows of one batch may differ in all of it.
    """

    bounds: jax.Array  # int32 [B, W, 2]: start and stop of each window
    from_prompt_end: jax.Array  # bool [B, W, 2]
    excluded: jax.Array  # bool [B, W]: the window is cut out instead of added

    def covers(self, position: jax.Array, prompt_length: jax.Array) -> jax.Array:
        """Whether each position `[B, T]` is in scope, given prompts of `[B]` tokens."""
        bounds = self.bounds + self.from_prompt_end * prompt_length[:, None, None]
        start, stop = bounds[:, None, :, 0], bounds[:, None, :, 1]  # [B, 1, W]
        inside = (position[:, :, None] >= start) & (position[:, :, None] < stop)  # [B, T, W]
        cut = self.excluded[:, None]
        return jnp.any(inside & ~cut, axis=-1) & ~jnp.any(inside & cut, axis=-1)


def _one_window(start: int, start_at_end: bool, stop: int, stop_at_end: bool) -> Scope:
    return Scope(
        bounds=jnp.array([[[start, stop]]], jnp.int32),
        from_prompt_end=jnp.array([[[start_at_end, stop_at_end]]]),
        excluded=jnp.zeros((1, 1), bool),
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

    Negative numbers count from the prompt's end: `window(-5, -1)` is the prompt's last five
    tokens but the very last.

    Raises:
        ValueError: if both bounds count from the same end and the window is empty.
    """
    if stop is not None and (start < 0) == (stop < 0) and stop <= start:
        raise ValueError(f"window: got start={start} and stop={stop}, expected start < stop")
    if stop is None:
        return _one_window(start, start < 0, _END, False)
    return _one_window(start, start < 0, stop, stop < 0)


def union(*scopes: Scope, exclude: Sequence[Scope] = ()) -> Scope:
    """Positions that lie in any of `scopes` and in none of `exclude`.

    Raises:
        ValueError: for no scope, or an excluded scope that itself excludes something.
    """
    if not scopes:
        raise ValueError("union: got no scope, expected at least one")
    if any(np.any(np.asarray(scope.excluded)) for scope in exclude):
        raise ValueError("union: got exclude=… with an exclusion of its own, expected windows only")
    cut = [replace(scope, excluded=jnp.ones_like(scope.excluded)) for scope in exclude]
    parts = [*scopes, *cut]
    rows = max(part.excluded.shape[0] for part in parts)
    parts = [broadcast_rows(part, rows, "scope") for part in parts]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=1), *parts)


def pad_windows(scope: Scope, windows: int) -> Scope:
    """The same scope with empty windows added up to `windows`."""
    missing = windows - scope.excluded.shape[1]

    def pad(leaf: jax.Array) -> jax.Array:
        return jnp.pad(leaf, ((0, 0), (0, missing)) + ((0, 0),) * (leaf.ndim - 2))

    return jax.tree.map(pad, scope)


def broadcast_rows(tree: Tree, rows: int, name: str) -> Tree:
    """Give every array of `tree` a row axis of `rows`: a single row is repeated.

    Raises:
        ValueError: if an array has neither one row nor `rows`.
    """

    def widen(leaf: jax.Array) -> jax.Array:
        if leaf.shape[0] not in (1, rows):
            raise ValueError(f"{name}: got {leaf.shape[0]} rows, expected 1 or {rows}")
        return jnp.broadcast_to(leaf, (rows, *leaf.shape[1:]))

    return jax.tree.map(widen, tree)

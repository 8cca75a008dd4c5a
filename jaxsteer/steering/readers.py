"""Readers: what is read of the stream at a captured site, raw or reduced on the device.

A reader is data with a `check` against a model and a call `reader(x, first)`, for the stream `x`
`[B, T, D]` at one site of one layer; `first` `[B]` is the slot of the row's position 0 in it
(negative when an earlier pass held position 0). Positions count a row's real tokens from 0,
whatever its padding. Arrays may be given as lists.

    All()                     [B, T, D]      every token, padding included
    At(positions)             [B, P, D]      the tokens at some positions
    TokenSums(weights)        [G, D]         sums over all tokens of all rows, by group
    EventSums(positions, …)   [G, O, D]      sums over events of some tokens each, by group
    RowSums(weights)          [B, G, D]      sums over each row's tokens, by group
    Project(directions)       [R, B, T]      products with directions
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxsteer.config import LlamaConfig
from jaxsteer.steering.operation_arguments import as_arrays, int32s
from jaxsteer.steering.sites import site_width
from jaxsteer.steering.weighted_sums import event_sums, row_sums, token_sums


class Reader(Protocol):
    """What `Capture` takes to read with."""

    @property
    def row_axis(self) -> int | None:
        """The axis of rows in what is read of a layer; None if rows are summed."""

    def check(self, sites: tuple[str, ...], config: LlamaConfig) -> None:
        """Raise `ValueError` for arrays of other shapes and dtypes."""

    def __call__(self, x: jax.Array, first: jax.Array) -> jax.Array:
        """What is read of the stream `x` `[B, T, D]`."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class All:
    """Every token of the pass, `[B, T, D]`, padding included."""

    row_axis: ClassVar[int | None] = 0

    def check(self, sites: tuple[str, ...], config: LlamaConfig) -> None:
        """Nothing can be wrong."""

    def __call__(self, x: jax.Array, first: jax.Array) -> jax.Array:
        return x


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class At:
    """The tokens at some positions, `[B, P, D]`; NaN where the pass has no such token."""

    positions: Any  # int [B, P], or [P] for all rows

    def __post_init__(self) -> None:
        _from_lists(self)

    row_axis: ClassVar[int | None] = 0

    def check(self, sites: tuple[str, ...], config: LlamaConfig) -> None:
        _check_shape("positions", self.positions, "[B, P] or [P]", (1, 2))
        _check_integers(self.positions)

    def __call__(self, x: jax.Array, first: jax.Array) -> jax.Array:
        slots = _slots(jnp.atleast_2d(self.positions), x, first)
        tokens = jnp.take_along_axis(x, jnp.maximum(slots, 0)[..., None], axis=1)
        return jnp.where((slots >= 0)[..., None], tokens, jnp.nan)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenSums:
    """`Σ_bt weights[b, t, g] · x[b, t]`, float32 `[G, D]`; `squares` also sums x², `[2, G, D]`."""

    weights: Any  # float [B, T, G]
    squares: bool = field(default=False, metadata={"static": True})

    def __post_init__(self) -> None:
        _from_lists(self)

    row_axis: ClassVar[int | None] = None

    def check(self, sites: tuple[str, ...], config: LlamaConfig) -> None:
        _check_shape("weights", self.weights, "[B, T, G]", (3,))

    def __call__(self, x: jax.Array, first: jax.Array) -> jax.Array:
        return token_sums(x, self.weights, squares=self.squares)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EventSums:
    """Sums over E events of O tokens each, float32 `[G, O, D]`; with `squares` `[2, G, O, D]`.

    `Σ_be groups[b, e, g] · x[b, positions[b, e, o]]`. A position that the pass does not have, -1
    say, adds nothing. Boolean groups are the fastest.
    """

    positions: Any  # int [B, E, O]
    groups: Any  # bool or float [B, E, G]
    squares: bool = field(default=False, metadata={"static": True})

    def __post_init__(self) -> None:
        _from_lists(self)

    row_axis: ClassVar[int | None] = None

    def check(self, sites: tuple[str, ...], config: LlamaConfig) -> None:
        _check_shape("positions", self.positions, "[B, E, O]", (3,))
        _check_shape("weights", self.groups, "[B, E, G]", (3,))
        _check_integers(self.positions)

    def __call__(self, x: jax.Array, first: jax.Array) -> jax.Array:
        slots = _slots(self.positions, x, first)
        return event_sums(x, slots, self.groups, squares=self.squares)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RowSums:
    """`Σ_t weights[b, t, g] · x[b, t]`, float32 `[B, G, D]`; with `squares` `[2, B, G, D]`.

    While a text is generated, t counts the tokens that are kept: weights are `[t, G]`, or `[G]`
    for all of them, the same in every row, and the last t holds from there on.
    """

    weights: Any  # float [B, T, G]
    squares: bool = field(default=False, metadata={"static": True})

    def __post_init__(self) -> None:
        _from_lists(self)

    @property
    def row_axis(self) -> int | None:
        return 1 if self.squares else 0

    def check(self, sites: tuple[str, ...], config: LlamaConfig) -> None:
        _check_shape("weights", self.weights, "[B, T, G]", (3,))

    def __call__(self, x: jax.Array, first: jax.Array) -> jax.Array:
        return row_sums(x, self.weights, squares=self.squares)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Project:
    """Products `directions[r] · x[b, t]`, float32 `[R, B, T]`; directions keep their length."""

    directions: Any  # float [R, D], or a list of `Direction`

    def __post_init__(self) -> None:
        _from_lists(self)

    row_axis: ClassVar[int | None] = 1

    def check(self, sites: tuple[str, ...], config: LlamaConfig) -> None:
        _check_shape("directions", self.directions, "[R, D]", (2,))
        width = self.directions.shape[1]
        for site in sites:
            if width != (expected := site_width(site, config)):
                raise ValueError(
                    f"capture.directions: got width {width}, expected {expected} at {site}"
                )

    def __call__(self, x: jax.Array, first: jax.Array) -> jax.Array:
        exact = jax.lax.Precision.HIGHEST
        vectors = self.directions.astype(jnp.float32)
        return jnp.einsum("RD,BTD->RBT", vectors, x.astype(jnp.float32), precision=exact)


def _from_lists(reader: Any) -> None:
    """Lists and directions become arrays; what JAX puts in their place stays as it is."""
    for name, value in vars(reader).items():
        if hasattr(value, "vector"):
            object.__setattr__(reader, name, value.vector[None])
        elif isinstance(value, list | tuple | range):
            rows = as_arrays(list(value))
            if name == "positions" and rows and all(isinstance(row, list) for row in rows):
                longest = max(map(len, rows))  # rows of unequal length end in positions of none
                rows = [row + [-1] * (longest - len(row)) for row in rows]
            object.__setattr__(reader, name, np.asarray(rows))


def _slots(positions: jax.Array, x: jax.Array, first: jax.Array) -> jax.Array:
    """Where in `x` the positions `[B, …]` are; -1 for those that it does not have."""
    slots = positions + first.reshape(-1, *[1] * (positions.ndim - 1))
    return jnp.where((positions >= 0) & (slots >= 0) & (slots < x.shape[1]), slots, -1)


def _check_shape(name: str, array: Any, shapes: str, ndims: tuple[int, ...]) -> None:
    shape = getattr(array, "shape", type(array).__name__)
    if getattr(array, "ndim", None) not in ndims:
        raise ValueError(f"capture.{name}: got shape {shape}, expected {shapes}")


def _check_integers(positions: jax.Array) -> None:
    if not jnp.issubdtype(positions.dtype, jnp.integer):
        raise ValueError(f"capture.positions: got {positions.dtype}, expected integers")
    if isinstance(positions, np.ndarray):  # in the program they are cast to int32
        int32s("capture.positions", positions, low=-(2**31))

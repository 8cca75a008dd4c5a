"""Arguments of operations as checked arrays with a row axis, in sizes that programs share.

Each function raises `ValueError` naming the argument, what it is and what is expected.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, Protocol, TypedDict, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxsteer.steering import scope as scopes
from jaxsteer.steering.scope import Scope, broadcast_rows
from jaxsteer.steering.sites import SITES, site_index
from jaxsteer.steering.steering import EVERY_LAYER, NO_LAYER, Steering

Layers = int | Literal["all"] | Sequence[Any] | ArrayLike


class Located(Protocol):
    """A vector that knows where it was read: a `Direction`."""

    @property
    def vector(self) -> NDArray[np.float32]: ...

    @property
    def layer(self) -> int: ...

    @property
    def site(self) -> str: ...


class Layered(Protocol):
    """A vector for each layer: what `jaxsteer.direction` gives."""

    def at_layer(self, layer: int) -> Located: ...


Vectors = ArrayLike | Located | Sequence[Located] | Layered


class Where(TypedDict, total=False):
    """Arguments that all operations share: where they act, and how strongly at which token.

    Each is one value for all rows, or has a leading row axis.
    """

    # The block, counted from 0: a number, "all", or `[B, A]`, several of each row. A flat list
    # `[B]` is one per row, if the coefficient or another of these has as many rows. A `Direction`
    # knows its own layer and site.
    layer: Layers
    site: str | Sequence[str]  # one of `SITES`, or one per row; "resid_post" if not given
    scope: Scope | None  # where in the row; `generated()` if not given
    # Factor on the coefficient by generated position: a number, `[G]` or `[B, G]`; `schedules`
    # makes some. The prompt has the first entry, and the last one holds.
    schedule: ArrayLike
    preserve_norm: ArrayLike  # rescale each steered token to the length it had; bool or `[B]`


# Of a direction's length: less than this outside the others' span is rounding of float32 input.
_DEPENDENT = 1e-5


def checked_steering(
    vector: np.ndarray, coeff: ArrayLike, where: Where, **own: np.ndarray
) -> Steering:
    """A `Steering` of checked arrays, all with the same rows; `own` are the operation's own fields.

    Raises:
        ValueError: naming the argument that does not fit.
        TypeError: for an argument that `where` does not have.
    """
    if unknown := where.keys() - Where.__annotations__.keys():
        expected = ", ".join(Where.__annotations__)
        raise TypeError(f"unexpected argument {min(unknown)!r}, expected {expected}")
    if "layer" not in where:
        raise ValueError("layer: got none, expected a layer, or a Direction, which knows its own")
    site = where.get("site", "resid_post")
    names: list[Any] = list(site) if is_several(site) else [site]
    schedule = where.get("schedule", 1.0)
    steps = finite_array("schedule", schedule, 1, "a number, [G] or [B, G]", at_least=0)
    scope = where.get("scope")
    scope = scopes.generated() if scope is None else scope
    if not isinstance(scope, Scope):
        raise ValueError(f"scope: got {scope!r}, expected a Scope such as scope.generated()")
    preserve_norm = where.get("preserve_norm", False)
    keep = np.atleast_1d(np.asarray(preserve_norm))
    if keep.dtype != np.bool_ or keep.ndim != 1:
        raise ValueError(f"preserve_norm: got {preserve_norm!r}, expected a bool or bool [B]")
    arrays = own | {
        "vector": vector,
        "coeff": finite_array("coeff", coeff, 0, "a number or [B]"),
        "site": np.array([site_index(name) for name in names], np.int32),
        "schedule": np.pad(
            steps, ((0, 0), (0, power_of_two(steps.shape[1], 8) - steps.shape[1])), mode="edge"
        ),
    }
    if keep.any():
        arrays["preserve_norm"] = keep
    scope = scopes.pad_windows(scope, power_of_two(scope.excluded.shape[1], 2))
    rows = {"scope": scope.excluded, "preserve_norm": keep}
    given = "basis" if "basis" in own else "vector"  # what the caller calls vectors
    others = {name: array for name, array in (arrays | rows).items() if name != given}
    check_layer_meaning(where["layer"], vectors=len(arrays[given]), rows=row_count(others))
    arrays["layer"] = layer_table(where["layer"])
    count = row_count(arrays | rows)
    wide = {k: broadcast_rows(jax.device_put(a), count, k) for k, a in arrays.items()}
    used = tuple(s for i, s in enumerate(SITES) if i in arrays["site"])
    return Steering(**wide, scope=broadcast_rows(scope, count, "scope"), sites=used)


def power_of_two(size: int, least: int) -> int:
    """`size` rounded up to a power of two, `least` or more: other sizes seldom compile anew."""
    return max(least, 1 << (size - 1).bit_length())


def as_arrays(vectors: Any) -> Any:
    """Directions as their vectors, in a list of them, too; anything else as it is."""
    if isinstance(vectors, list | tuple):
        return [as_arrays(one) for one in vectors]
    return getattr(vectors, "vector", vectors)


def at_layers(vectors: Vectors, where: "Where") -> Vectors:
    """Of a vector for each layer, that of the layer asked for, or one per row.

    Raises:
        ValueError: if no layer is asked for, or several at once, which have different vectors.
    """
    if not hasattr(vectors, "at_layer"):
        return vectors
    layer: Any = where.get("layer")
    each = list(layer) if is_several(layer) else [[layer]]
    one_a_row = all(is_several(row) and len(list(row)) == 1 for row in each)
    numbers = [row[0] for row in each] if one_a_row else []
    if not numbers or not all(isinstance(number, int | np.integer) for number in numbers):
        raise ValueError(
            f"layer: got {layer!r}, expected a number, or [[3], [4]] for one per row: each layer "
            "has its own vector"
        )
    found = [vectors.at_layer(int(number)) for number in numbers]
    return found if is_several(layer) else found[0]


def own_layers(directions: Any) -> list[int]:
    """The layer of each of several directions.

    Raises:
        ValueError: for vectors that know none.
    """
    try:
        return [one.layer for one in directions]
    except (AttributeError, TypeError):
        raise ValueError("layers: got none, expected one for each vector") from None


def with_own_layer(vectors: Vectors, where: Where) -> Where:
    """`where`, completed with the layer and the site of `vectors` that are directions."""
    each: Iterable[Any] = vectors if is_several(vectors) else [vectors]
    directions: list[Located] = [one for one in each if hasattr(one, "vector")]
    if not directions:
        return where
    where = where.copy()
    if "layer" not in where:
        where["layer"] = _shared("layer", directions)
    if "site" not in where:
        where["site"] = _shared("site", directions)
    return where


def _shared(name: str, directions: Sequence[Located]) -> Any:
    values = sorted({getattr(one, name) for one in directions})
    if len(values) > 1:
        raise ValueError(f"{name}: got directions of {values}, expected it to be given")
    return values[0]


def row_count(arrays: dict[str, Any]) -> int:
    """The common row count; an array of one row goes with any.

    Raises:
        ValueError: naming the first array that does not fit the one with the most rows.
    """
    count = max(len(array) for array in arrays.values())
    for name, array in arrays.items():
        if len(array) not in (1, count):
            raise ValueError(f"{name}: got {len(array)} rows, expected 1 or {count}")
    return count


def finite_array(
    name: str, value: Vectors, ndim: int, shapes: str, *, at_least: int | None = None
) -> np.ndarray:
    """`value` as finite float32 with `ndim` axes after the row axis, which may be missing."""
    try:
        array = np.asarray(as_arrays(value))
    except jax.errors.TracerArrayConversionError as error:
        raise ValueError(
            f"{name}: got a traced array, expected numbers to check on the host: build the "
            "steering outside jax.jit and jax.grad, and put traced arrays in with "
            "dataclasses.replace"
        ) from error
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}: got {type(value).__name__}, expected {shapes}") from error
    if not (jnp.issubdtype(array.dtype, np.floating) or jnp.issubdtype(array.dtype, np.integer)):
        got = f"dtype {array.dtype}" if array.dtype != object else type(value).__name__
        raise ValueError(f"{name}: got {got}, expected real numbers, {shapes}")
    least = ndim if at_least is None else at_least
    if not least <= array.ndim <= ndim + 1 or array.size == 0:
        raise ValueError(f"{name}: got shape {array.shape}, expected {shapes}")
    array = array.reshape((1,) * (ndim + 1 - array.ndim) + array.shape)
    with np.errstate(over="ignore"):  # numbers too large for float32 are refused below
        array = array.astype(np.float32)
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{name}: got NaN or infinity, expected finite numbers in float32")
    return array


def int32s(name: str, values: ArrayLike, *, low: int = 0, high: int = 2**31 - 1) -> np.ndarray:
    """`values` as int32; raises unless all are whole numbers from `low` to `high`.

    A cast alone would wrap larger numbers.

    >>> int32s("offsets", [-13, 4], low=-100).tolist()
    [-13, 4]
    """
    array = np.asarray(values)
    if array.size and array.dtype.kind not in "iu":
        raise ValueError(f"{name}: got {values!r:.80}, expected whole numbers to {high}")
    if array.size and (array.min() < low or array.max() > high):
        wrong = array.min() if array.min() < low else array.max()
        raise ValueError(f"{name}: got {wrong}, expected {low} to {high}")
    return array.astype(np.int32)


def orthonormal(name: str, directions: np.ndarray) -> np.ndarray:
    """Orthonormal float32 rows that span `directions` `[B, R, D]`, row by row of the batch."""
    _, R, D = directions.shape
    wide = directions.astype(np.float64)
    length = np.linalg.norm(wide, axis=-1, keepdims=True)
    if not length.all():
        row, which, _ = np.argwhere(length == 0)[0]
        raise ValueError(f"{name}: got 0 for direction {which} of row {row}, expected a length")
    if R > D:
        raise ValueError(f"{name}: got {R} directions of width {D}, expected at most {D}")
    q, r = np.linalg.qr(np.swapaxes(wide / length, -1, -2))  # [B, D, R], [B, R, R]
    outside = np.abs(np.diagonal(r, axis1=-2, axis2=-1))
    if outside.min() < _DEPENDENT:
        row, which = np.argwhere(outside < _DEPENDENT)[0]
        raise ValueError(
            f"{name}: got direction {which} of row {row} in the span of those before it, "
            "expected linearly independent ones"
        )
    q = q * np.sign(np.diagonal(r, axis1=-2, axis2=-1))[:, None]  # the first one, not its opposite
    padding = power_of_two(R, 1) - R
    return np.pad(np.swapaxes(q, -1, -2), ((0, 0), (0, padding), (0, 0))).astype(np.float32)


def layer_table(layer: Layers) -> np.ndarray:
    """Layers of each row, int32 `[B, A]`, A a power of two."""
    if hasattr(layer, "dtype"):
        layer = np.asarray(layer).tolist()
    given = layer if is_several(layer) else [layer]
    rows = [list(row) if is_several(row) else [row] for row in given]
    if not rows or not all(rows):
        raise ValueError(f"layer: got {layer!r}, expected at least one per row")
    table = np.full((len(rows), power_of_two(max(map(len, rows)), 2)), NO_LAYER, np.int32)
    for i, row in enumerate(rows):
        table[i, : len(row)] = [_layer(one) for one in row]
    return table


def check_layer_meaning(layer: Layers, *, vectors: int, rows: int) -> None:
    """Refuse a flat list of layers if it may mean one per row, and also several in every row.

    `vectors` counts the vectors, one per row; `rows` counts the rows of the other arguments.
    """
    if hasattr(layer, "dtype"):
        layer = np.asarray(layer).tolist()
    if not is_several(layer) or any(is_several(row) for row in layer):
        return
    flat = list(layer)
    if len(flat) < 2 or (vectors == 1 and rows > 1):
        return
    a_row = f"[[{flat[0]}], [{flat[1]}]{', …' if len(flat) > 2 else ''}] for one per row"
    shown = ", ".join(map(str, flat[:6])) + (", …" if len(flat) > 6 else "")
    every = f"[[{shown}]] for these in every row"
    if vectors > 1:
        every = "for one vector per layer one intervention each, [add(v, layer=l, …) for …]"
    raise ValueError(f"layer: got [{shown}] for {vectors} vectors, expected {a_row}, or {every}")


def is_several(value: Any) -> TypeGuard[Iterable[Any]]:
    """Whether `value` is several values, one per row."""
    return isinstance(value, Sequence | np.ndarray) and not isinstance(value, str)


def _layer(layer: Any) -> int:
    if isinstance(layer, str) and layer == "all":
        return EVERY_LAYER
    if not isinstance(layer, int | np.integer) or isinstance(layer, bool):
        raise ValueError(f'layer: got {layer!r}, expected an integer or "all"')
    if not 0 <= layer < 2**31:
        raise ValueError(f"layer: got {layer}, expected 0 or more (layers count from 0)")
    return int(layer)


def seed_array(seed: ArrayLike) -> np.ndarray:
    """One seed, or one per row, as uint32 `[B]`."""
    array = np.atleast_1d(np.asarray(seed))
    if array.dtype.kind not in "iu" or array.ndim != 1 or array.size == 0:
        raise ValueError(f"seed: got {seed!r}, expected an integer or [B] of them")
    if array.min() < 0 or array.max() >= 2**32:
        raise ValueError(f"seed: got {seed!r}, expected 0 to {2**32 - 1}")
    return array.astype(np.uint32)


def whole_number(name: str, value: Any, *, least: int) -> int:
    """`value`, if it is an integer of at least `least`."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}: got {value!r}, expected an integer of at least {least}")
    return int(value)

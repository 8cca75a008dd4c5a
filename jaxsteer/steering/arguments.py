"""Arguments of interventions as checked arrays with a row axis, in sizes that programs share.

Each function raises `ValueError` naming the argument, what was found and what was expected.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxsteer.steering.steering import EVERY_LAYER, NO_LAYER

Layers = int | Literal["all"] | Sequence[Any] | ArrayLike

# Of a direction's length: less than this outside the others' span is rounding of float32 input.
_DEPENDENT = 1e-5


def bucket(size: int, least: int) -> int:
    """How much is missing from `size` to the next power of two, `least` or more."""
    return max(least, 1 << (size - 1).bit_length()) - size


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


def numbers(
    name: str, value: ArrayLike, ndim: int, shapes: str, *, at_least: int | None = None
) -> np.ndarray:
    """`value` as finite float32 with `ndim` axes after the row axis, which may be missing."""
    try:
        array = np.asarray(value)
    except jax.errors.TracerArrayConversionError as error:
        raise ValueError(
            f"{name}: got a traced array, expected numbers to check on the host: build the "
            "steering outside jax.jit and jax.grad, and put traced arrays in with "
            "dataclasses.replace"
        ) from error
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}: got {type(value).__name__}, expected {shapes}") from error
    if not (jnp.issubdtype(array.dtype, np.floating) or jnp.issubdtype(array.dtype, np.integer)):
        found = f"dtype {array.dtype}" if array.dtype != object else type(value).__name__
        raise ValueError(f"{name}: got {found}, expected real numbers, {shapes}")
    least = ndim if at_least is None else at_least
    if not least <= array.ndim <= ndim + 1 or array.size == 0:
        raise ValueError(f"{name}: got shape {array.shape}, expected {shapes}")
    array = array.reshape((1,) * (ndim + 1 - array.ndim) + array.shape)
    with np.errstate(over="ignore"):  # what float32 cannot hold is told below
        array = array.astype(np.float32)
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{name}: got NaN or infinity, expected finite numbers in float32")
    return array


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
    return np.pad(np.swapaxes(q, -1, -2), ((0, 0), (0, bucket(R, 1)), (0, 0))).astype(np.float32)


def layers(layer: Layers) -> np.ndarray:
    """Layers of each row, int32 `[B, A]`, A a power of two."""
    if hasattr(layer, "dtype"):
        layer = np.asarray(layer).tolist()
    table = [list(row) if many(row) else [row] for row in (layer if many(layer) else [layer])]
    if not table or not all(table):
        raise ValueError(f"layer: got {layer!r}, expected at least one a row")
    widest = max(map(len, table))
    found = np.full((len(table), widest + bucket(widest, 2)), NO_LAYER, np.int32)
    for i, row in enumerate(table):
        for j, one in enumerate(row):
            found[i, j] = _layer(one)
    return found


def many(value: Any) -> TypeGuard[Iterable[Any]]:
    """Whether `value` is several values, one a row."""
    return isinstance(value, Sequence | np.ndarray) and not isinstance(value, str)


def _layer(layer: Any) -> int:
    if isinstance(layer, str) and layer == "all":
        return EVERY_LAYER
    if not isinstance(layer, int | np.integer) or isinstance(layer, bool):
        raise ValueError(f'layer: got {layer!r}, expected an integer or "all"')
    if not 0 <= layer < 2**31:
        raise ValueError(f"layer: got {layer}, expected 0 or more (layers count from 0)")
    return int(layer)


def seeds(seed: ArrayLike) -> np.ndarray:
    """One seed, or one a row, as uint32 `[B]`."""
    array = np.atleast_1d(np.asarray(seed))
    if array.dtype.kind not in "iu" or array.ndim != 1 or array.size == 0:
        raise ValueError(f"seed: got {seed!r}, expected an integer or [B] of them")
    if array.min() < 0 or array.max() >= 2**32:
        raise ValueError(f"seed: got {seed!r}, expected 0 to {2**32 - 1}")
    return array.astype(np.uint32)

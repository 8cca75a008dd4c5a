"""Small arrays put together by numpy where their values are at hand, which compiles nothing.

JAX compiles a program for each operation and shape: tens of milliseconds each in a new process.
What is traced, or spread over several hosts, is put together by JAX.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def at_hand(*arrays: Any) -> bool:
    """Whether all values can be read in this process now."""
    return all(
        not isinstance(x, jax.core.Tracer)
        and (not isinstance(x, jax.Array) or x.is_fully_addressable)
        for x in arrays
    )


def concatenate(arrays: Sequence[Any], *, axis: int = 0) -> jax.Array:
    """Arrays one behind the other."""
    if at_hand(*arrays):
        return jax.device_put(np.concatenate([np.asarray(x) for x in arrays], axis=axis))
    return jnp.concatenate(arrays, axis=axis)


def stack(arrays: Sequence[Any]) -> jax.Array:
    """Arrays of one shape under a new leading axis."""
    if at_hand(*arrays):
        return jax.device_put(np.stack([np.asarray(x) for x in arrays]))
    return jnp.stack(arrays)


def pad_second(x: Any, size: int, **how: Any) -> jax.Array:
    """`x` with its second axis filled up to `size`; `how` as in `numpy.pad`, zeros by default."""
    missing = size - x.shape[1]
    if not missing:
        return x
    widths = ((0, 0), (0, missing)) + ((0, 0),) * (x.ndim - 2)
    if at_hand(x):
        return jax.device_put(np.pad(np.asarray(x), widths, **how))
    return jnp.pad(x, widths, **how)


def zeros_like(x: Any) -> jax.Array:
    """Zeros in the shape and dtype of `x`."""
    return jax.device_put(np.zeros(x.shape, x.dtype))


def repeat_row(x: Any, rows: int) -> jax.Array:
    """An array of one row with that row `rows` times."""
    shape = (rows, *x.shape[1:])
    if at_hand(x):
        return jax.device_put(np.broadcast_to(np.asarray(x), shape))
    return jnp.broadcast_to(x, shape)

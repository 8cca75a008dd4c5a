"""Attention over a shared prefix and a row's own tokens: two passes, merged.

Softmax over both is the mean of the softmax over each, weighted by how much of the sum of
exponentials lies in each part. So a part hands on the logarithm of that sum beside its output.
All queries of a prefix's rows are one matrix against it, which is read once for all of them.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

Part = tuple[jax.Array, jax.Array]  # out [B, T, N, H]; log of the sum of exponentials [B, T, N]


def merge(parts: Sequence[Part]) -> jax.Array:
    """The attention over all parts, `[B, T, N, H]`, merged in float32."""
    largest = functools.reduce(jnp.maximum, [log_sum for _, log_sum in parts])
    weights = [jnp.exp(log_sum - largest) for _, log_sum in parts]
    total = functools.reduce(jnp.add, weights)
    merged = [
        (weight / total)[..., None] * out.astype(jnp.float32)
        for weight, (out, _) in zip(weights, parts, strict=True)
    ]
    return functools.reduce(jnp.add, merged).astype(parts[0][0].dtype)


def by_prefix(x: jax.Array, prefixes: int) -> jax.Array:
    """Queries `[B, T, …]` or `[C, B, T, …]` of rows in cells as `[P, C · R · T, …]`."""
    lead = 1 if x.ndim == 4 else 2
    T = x.shape[lead]
    x = x.reshape(-1, prefixes, x.shape[lead - 1] // prefixes * T, *x.shape[lead + 1 :])
    return jnp.moveaxis(x, 1, 0).reshape(prefixes, -1, *x.shape[3:])


def by_row(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """What `by_prefix` gave, back in the order of rows; `shape` begins with `[B, T]`, or C first.

    >>> x = jnp.arange(24).reshape(2, 6, 2, 1, 1)  # two cells, six rows, two tokens
    >>> bool(jnp.all(by_row(by_prefix(x, 3), x.shape) == x))
    True
    """
    P = x.shape[0]
    cells = 1 if len(shape) == 4 else shape[0]
    x = jnp.moveaxis(x.reshape(P, cells, -1, *x.shape[2:]), 0, 1)
    return x.reshape(*shape[: len(shape) - 2], *x.shape[3:])

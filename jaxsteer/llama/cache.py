"""The key/value cache of a batch of left-padded rows."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxsteer.config import LlamaConfig


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """Keys and values of every layer, written left to right by all rows together.

    Rows are left-padded to one prompt length, so one scalar cursor serves the whole batch and
    `valid` says which slots of a row hold real tokens. Where rows start at different times
    (`refill`) the cursor has a row axis, and each row writes at its own.

        slot     0 1 2 3 4 5 6 7
        row 0    . . x x x y y _     . padding   x prompt   y generated   _ not written yet
        row 1    x x x x x y y _     cursor = 7
    """

    k: list[jax.Array]  # one a layer, each [B, S, K, H]
    v: list[jax.Array]  # one a layer, each [B, S, K, H]
    valid: jax.Array  # bool [B, S]: the slot holds a real token of this row
    cursor: jax.Array  # int32 scalar, or [B]: slots written so far

    @property
    def capacity(self) -> int:
        """Slots a row has, S."""
        return self.valid.shape[-1]


def empty_cache(config: LlamaConfig, *, rows: int, capacity: int, dtype: jnp.dtype) -> KVCache:
    """A cache of `rows` rows with room for `capacity` tokens each, padding included."""
    shape = (rows, capacity, config.n_kv_heads, config.head_dim)
    return KVCache(
        k=[jnp.zeros(shape, dtype) for _ in range(config.n_layers)],
        v=[jnp.zeros(shape, dtype) for _ in range(config.n_layers)],
        valid=jnp.zeros((rows, capacity), bool),
        cursor=jnp.zeros((), jnp.int32),
    )


def lengthen(cache: KVCache, capacity: int) -> KVCache:
    """The same cache with more slots behind its own; cells may stand before its rows."""

    def longer(x: jax.Array, axis: int) -> jax.Array:
        more = [(0, 0)] * x.ndim
        more[axis] = (0, capacity - cache.capacity)
        return jnp.pad(x, more)

    k, v = ([longer(x, -3) for x in side] for side in (cache.k, cache.v))
    return KVCache(k, v, longer(cache.valid, -1), cache.cursor)


def write(buffer: jax.Array, new: jax.Array, cursor: jax.Array) -> jax.Array:
    """`buffer` `[B, S, …]` with `new` `[B, T, …]` written from slot `cursor` on.

    One cursor for all rows is one slice, updated in place in a loop; `[B]` of them a scatter.
    """
    if cursor.ndim == 0:
        return jax.lax.dynamic_update_slice_in_dim(buffer, new, cursor, 1)

    def row(buffer: jax.Array, new: jax.Array, cursor: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(buffer, new, cursor, 0)

    return jax.vmap(row)(buffer, new, cursor)

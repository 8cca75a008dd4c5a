"""The key/value cache of a batch of left-padded rows."""

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsteer.config import LlamaConfig


class Shared(NamedTuple):
    """Keys and values of P prefixes at one layer, each shared by several rows."""

    k: jax.Array  # [P, S, K, H], real tokens first
    v: jax.Array  # [P, S, K, H]
    length: jax.Array  # int32 [P]: real tokens of each


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Prefix:
    """Keys and values of P prefixes, kept once: rows b · R to b · R + R - 1 continue prefix b.

    Real tokens come first and padding last; in a cache it is the other way round.
    """

    k: list[jax.Array]  # one per layer, in the order of the cache
    v: list[jax.Array]
    length: jax.Array  # int32 [P]: real tokens of each


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

    Rows that continue a shared `prefix` hold their own tokens only, without padding. `by_head`
    selects the order of axes in memory (see `attention.cached_by_head`); attention always gets
    `[B, S, K, H]`.
    """

    k: list[jax.Array]  # one per layer, each [B, S, K, H], or by head [B, K, H, S]
    v: list[jax.Array]  # one per layer, each [B, S, K, H], or by head [B, K, S, H]
    valid: jax.Array  # bool [B, S]: the slot holds a real token of this row
    cursor: jax.Array  # int32 scalar, or [B]: slots written so far
    prefix: Prefix | None = None
    by_head: bool = field(default=False, metadata={"static": True})

    @property
    def capacity(self) -> int:
        """Slots a row has, S."""
        return self.valid.shape[-1]


# Where the axes of [B, S, K, H] are in keys and values that are kept by head, and back.
_KEYS, _VALUES = (0, 2, 3, 1), (0, 2, 1, 3)
_KEYS_BACK, _VALUES_BACK = (0, 3, 1, 2), (0, 2, 1, 3)


def empty_cache(
    config: LlamaConfig, *, rows: int, capacity: int, dtype: jnp.dtype, by_head: bool = False
) -> KVCache:
    """A cache of `rows` rows with room for `capacity` tokens each, padding included."""
    B, S, K, H = rows, capacity, config.n_kv_heads, config.head_dim
    keys, values = ((B, K, H, S), (B, K, S, H)) if by_head else ((B, S, K, H), (B, S, K, H))
    return KVCache(
        k=[jnp.zeros(keys, dtype) for _ in range(config.n_layers)],
        v=[jnp.zeros(values, dtype) for _ in range(config.n_layers)],
        valid=jnp.zeros((B, S), bool),
        cursor=jnp.zeros((), jnp.int32),
        by_head=by_head,
    )


def lengthen(cache: KVCache, capacity: int) -> KVCache:
    """The same cache with slots appended up to `capacity`; a cell axis may precede the rows."""

    def longer(x: jax.Array, axis: int) -> jax.Array:
        more = [(0, 0)] * x.ndim
        more[axis] = (0, capacity - cache.capacity)
        return jnp.pad(x, more)

    keys, values = (-1, -2) if cache.by_head else (-3, -3)
    k, v = [longer(x, keys) for x in cache.k], [longer(x, values) for x in cache.v]
    return replace(cache, k=k, v=v, valid=longer(cache.valid, -1))


def write(buffer: jax.Array, new: jax.Array, cursor: jax.Array, *, axis: int = 1) -> jax.Array:
    """`buffer` `[B, S, …]` with `new` `[B, T, …]` written from slot `cursor` on, along `axis`.

    A scalar cursor writes one slice, in place inside a loop; a cursor `[B]` is a scatter.
    """
    if cursor.ndim == 0:
        return jax.lax.dynamic_update_slice_in_dim(buffer, new, cursor, axis)

    def row(buffer: jax.Array, new: jax.Array, cursor: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(buffer, new, cursor, axis - 1)

    return jax.vmap(row)(buffer, new, cursor)


def write_layer(
    cache: KVCache, layer: int, k: jax.Array, v: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The keys and values of a layer with those of T new tokens `[B, T, K, H]` at the cursor."""
    if not cache.by_head:
        return write(cache.k[layer], k, cache.cursor), write(cache.v[layer], v, cache.cursor)
    return (
        write(cache.k[layer], k.transpose(_KEYS), cache.cursor, axis=3),
        write(cache.v[layer], v.transpose(_VALUES), cache.cursor, axis=2),
    )


def by_slot(cache: KVCache, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys and values of a layer as attention sees them, `[B, S, K, H]`."""
    return (k.transpose(_KEYS_BACK), v.transpose(_VALUES_BACK)) if cache.by_head else (k, v)


def shared_layer(cache: KVCache, layer: int) -> Shared | None:
    """The prefixes of a layer, as attention sees them; None without a prefix."""
    if cache.prefix is None:
        return None
    k, v = by_slot(cache, cache.prefix.k[layer], cache.prefix.v[layer])
    return Shared(k, v, cache.prefix.length)


def prefix_lengths(cache: KVCache) -> jax.Array | int:
    """Tokens of the prefix before each row's own tokens, int32 `[B]`; 0 without a prefix."""
    if cache.prefix is None:
        return 0
    length, rows = cache.prefix.length, cache.valid.shape[0]
    return jnp.repeat(length, rows // length.shape[0])

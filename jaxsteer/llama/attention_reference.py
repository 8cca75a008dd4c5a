"""Plain attention in XLA: it runs on every backend, and is what the kernels are held against."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxsteer.llama.attention_prefix import Part, by_prefix, by_row, merge
from jaxsteer.llama.cache import Shared

NEGATIVE = -1e30  # finite, so that a query that sees nothing gives numbers instead of NaN
_FEW = 16  # queries of a head, up to which a step is bound by reading keys and values

Product = Callable[[jax.Array, jax.Array], jax.Array]


def visible(valid: jax.Array, start: jax.Array, n_queries: int) -> jax.Array:
    """Which slots each query sees, bool `[B, T, S]`: real ones, up to its own.

    ASCII picture of one row with one slot of padding, `start=2`, `T=2`, `S=5`:

        slot       0 1 2 3 4
        query 0    . x x . .
        query 1    . x x x .
    """
    slot = jnp.arange(valid.shape[-1])
    query_slot = start[..., None] + jnp.arange(n_queries)  # [T] or [B, T]
    return valid[:, None, :] & (slot <= query_slot[..., None])


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> Part:
    """Attention of `q` `[B, T, N, H]` over the slots where `mask` `[B, T or 1, S]` holds.

    Softmax in float32. The second result is the log of each query's sum of exponentials.
    """
    B, T, N, H = q.shape
    S, K = k.shape[1:3]
    # All queries of a key/value head in one matrix, before anything else: keys and values that
    # are kept by head are then multiplied as they lie.
    grouped = q.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4).reshape(B, K, -1, H)
    scores = _product(_rows_by_columns, _rows_by_columns_in_sums, grouped, k)
    scores = scores.reshape(B, K, -1, T, S)
    scores = jnp.where(mask[:, None, None], scores * H**-0.5, NEGATIVE)
    largest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - largest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    probs = (weights / total).astype(v.dtype).reshape(B, K, -1, S)
    out = _product(_weighted_rows, _weighted_rows_in_sums, probs, v).reshape(B, K, -1, T, H)
    log_sum = (largest + jnp.log(total))[..., 0]  # [B, K, N / K, T]
    return (
        out.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H),
        log_sum.transpose(0, 3, 1, 2).reshape(B, T, N),
    )


def _product(product: Product, in_sums: Product, x: jax.Array, cache: jax.Array) -> jax.Array:
    """`product` of queries with keys, or of weights with values.

    With one row or head, a CPU's matrix product first drops that axis, for which XLA copies the
    whole cache in each step. Sums written out take it as it is, in half the time.
    """
    if x.shape[2] > _FEW or 1 not in x.shape[:2]:
        return product(x, cache)
    return jax.lax.platform_dependent(x, cache, cpu=in_sums, default=product)


def _rows_by_columns(q: jax.Array, k: jax.Array) -> jax.Array:
    return jnp.einsum("BKXH,BSKH->BKXS", q, k, preferred_element_type=jnp.float32)


def _rows_by_columns_in_sums(q: jax.Array, k: jax.Array) -> jax.Array:
    keys = k.astype(jnp.float32).transpose(0, 2, 3, 1)  # [B, K, H, S]
    return jnp.sum(q.astype(jnp.float32)[..., None] * keys[:, :, None], axis=3)


def _weighted_rows(probs: jax.Array, v: jax.Array) -> jax.Array:
    return jnp.einsum("BKXS,BSKH->BKXH", probs, v)


def _weighted_rows_in_sums(probs: jax.Array, v: jax.Array) -> jax.Array:
    values = v.astype(jnp.float32).transpose(0, 2, 1, 3)  # [B, K, S, H]
    mixed = jnp.sum(probs.astype(jnp.float32)[..., None] * values[:, :, None], axis=3)
    return mixed.astype(v.dtype)


def xla_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    valid: jax.Array,
    start: jax.Array,
    prefix: Shared | None = None,
) -> jax.Array:
    """Plain attention, softmax in float32; runs on every backend and is the reference."""
    own = attend(q, k, v, visible(valid, start, q.shape[1]))
    if prefix is None:
        return own[0]
    real = jnp.arange(prefix.k.shape[1]) < prefix.length[:, None]  # [P, S']
    wide = by_prefix(q, len(prefix.length))
    out, log_sum = attend(wide, prefix.k, prefix.v, real[:, None])
    return merge([own, (by_row(out, q.shape), by_row(log_sum, q.shape))])

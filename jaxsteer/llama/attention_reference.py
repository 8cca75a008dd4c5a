"""Plain attention in XLA: it runs on every backend, and is what the kernels are held against."""

import jax
import jax.numpy as jnp

NEGATIVE = -1e30  # finite, so that a query that sees nothing gives numbers instead of NaN


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


def xla_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, *, valid: jax.Array, start: jax.Array
) -> jax.Array:
    """Plain attention, softmax in float32; runs on every backend and is the reference."""
    B, T, N, H = q.shape
    K = k.shape[2]
    grouped = q.reshape(B, T, K, N // K, H)
    scores = jnp.einsum("BTKGH,BSKH->BKGTS", grouped, k, preferred_element_type=jnp.float32)
    mask = visible(valid, start, T)[:, None, None]
    scores = jnp.where(mask, scores * H**-0.5, NEGATIVE)
    probs = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("BKGTS,BSKH->BTKGH", probs, v).reshape(B, T, N, H)

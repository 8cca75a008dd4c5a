"""Sums of the residual stream over chosen tokens, by group: the reductions of `Capture`.

Letters: B rows, T tokens, D width, G groups, E events a row, O offsets.
"""

import jax
import jax.numpy as jnp

# Most bytes that a block of gathered tokens takes, in float32.
_BLOCK_BYTES = 2**28
# Sums over many tokens need full float32 products, which some hardware rounds by default.
_EXACT = jax.lax.Precision.HIGHEST


def token_sums(x: jax.Array, weights: jax.Array, *, squares: bool) -> jax.Array:
    """`Σ_bt weights[b, t, g] · x[b, t]`, float32 `[G, D]`; with squares `[2, G, D]`, also of x²."""
    return _sums("BTG,BTD->GD", weights, x, squares=squares)


def row_sums(x: jax.Array, weights: jax.Array, *, squares: bool) -> jax.Array:
    """`Σ_t weights[b, t, g] · x[b, t]`, float32 `[B, G, D]`; with squares `[2, B, G, D]`."""
    return _sums("BTG,BTD->BGD", weights, x, squares=squares)


def _sums(spec: str, weights: jax.Array, x: jax.Array, *, squares: bool) -> jax.Array:
    """The product of `spec` in float32; with squares two of them, the second one with x²."""
    wide, weights = x.astype(jnp.float32), weights.astype(jnp.float32)
    powers = [wide, wide**2] if squares else [wide]
    sums = [jnp.einsum(spec, weights, power, precision=_EXACT) for power in powers]
    return jnp.stack(sums) if squares else sums[0]


def event_sums(x: jax.Array, slots: jax.Array, groups: jax.Array, *, squares: bool) -> jax.Array:
    """`Σ_be groups[b, e, g] · x[b, slots[b, e, o]]`, float32 `[G, O, D]`, or `[2, G, O, D]`.

    Each token lies in few events, so gathering tokens first is cheaper than a product over all.

    Args:
        x: the stream, `[B, T, D]`.
        slots: int32 `[B, E, O]`, which token of the row; negative where there is none.
        groups: bool or float `[B, E, G]`, what each event counts for in each group.
        squares: also the same sums of x², from the float32 squares.
    """
    B, E, n_offsets = slots.shape
    D = x.shape[-1]
    block = max(1, _BLOCK_BYTES // (4 * B * E * D))
    parts = []
    for first in range(0, n_offsets, block):
        at = slots[:, :, first : first + block]
        flat = jnp.maximum(at, 0).reshape(B, -1, 1)
        tokens = jnp.take_along_axis(x, flat, axis=1).reshape(*at.shape, D)
        tokens = jnp.where(at[..., None] >= 0, tokens, 0)
        parts.append(_sums("BEG,BEOD->GOD", groups, tokens, squares=squares))
    return jnp.concatenate(parts, axis=-2)

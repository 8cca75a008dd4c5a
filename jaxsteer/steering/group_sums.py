"""Sums of the residual stream over chosen tokens, by group: the reductions of `Capture`.

Letters: B rows, T tokens, D width, G groups, E events a row, O offsets.
"""

import jax
import jax.numpy as jnp

# What a block of gathered tokens may take, in float32.
_BLOCK_BYTES = 2**28
# On hardware whose float32 products are not float32: sums over many tokens need them to be.
_EXACT = jax.lax.Precision.HIGHEST


def token_sums(x: jax.Array, weights: jax.Array, *, squares: bool) -> jax.Array:
    """`Σ_bt weights[b, t, g] · x[b, t]`, float32 `[G, D]`; with squares `[2, G, D]`, also of x²."""
    wide = x.astype(jnp.float32)
    powers = [wide, wide**2] if squares else [wide]
    weights = weights.astype(jnp.float32)
    sums = [jnp.einsum("BTG,BTD->GD", weights, p, precision=_EXACT) for p in powers]
    return jnp.stack(sums) if squares else sums[0]


def row_sums(x: jax.Array, weights: jax.Array, *, squares: bool) -> jax.Array:
    """`Σ_t weights[b, t, g] · x[b, t]`, float32 `[B, G, D]`; with squares `[2, B, G, D]`."""
    wide = x.astype(jnp.float32)
    powers = [wide, wide**2] if squares else [wide]
    weights = weights.astype(jnp.float32)
    sums = [jnp.einsum("BTG,BTD->BGD", weights, p, precision=_EXACT) for p in powers]
    return jnp.stack(sums) if squares else sums[0]


def event_sums(x: jax.Array, slots: jax.Array, groups: jax.Array, *, squares: bool) -> jax.Array:
    """`Σ_be groups[b, e, g] · x[b, slots[b, e, o]]`, float32 `[G, O, D]`, or `[2, G, O, D]`.

    Tokens lie in few events each, so they are gathered and only then multiplied.

    Args:
        x: the stream, `[B, T, D]`.
        slots: int32 `[B, E, O]`, which token of the row; negative where there is none.
        groups: bool or float `[B, E, G]`, what each event counts for in each group.
        squares: also the same sums of x², from the float32 squares.
    """
    B, E, n_offsets = slots.shape
    D = x.shape[-1]
    block = max(1, _BLOCK_BYTES // (4 * B * E * D))
    groups = groups.astype(jnp.float32)
    parts = []
    for first in range(0, n_offsets, block):
        at = slots[:, :, first : first + block]
        flat = jnp.maximum(at, 0).reshape(B, -1, 1)
        tokens = jnp.take_along_axis(x, flat, axis=1).reshape(*at.shape, D)
        wide = jnp.where(at[..., None] >= 0, tokens, 0).astype(jnp.float32)
        powers = [wide, wide**2] if squares else [wide]
        parts.append([jnp.einsum("BEG,BEOD->GOD", groups, p, precision=_EXACT) for p in powers])
    sums = [jnp.concatenate(part, axis=1) for part in zip(*parts, strict=True)]
    return jnp.stack(sums) if squares else sums[0]

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


def event_sums(x: jax.Array, slots: jax.Array, groups: jax.Array, *, squares: bool) -> jax.Array:
    """`Σ_be groups[b, e, g] · x[b, slots[b, e, o]]`, float32 `[G, O, D]`, or `[2, G, O, D]`.

    Tokens lie in few events each, so in float32 they are gathered and only then multiplied. In
    bfloat16 one product of all tokens with a matrix of 0 and 1 is faster on matrix units, and as
    exact: a product with 1 is, and accumulation is in float32.

    Args:
        x: the stream, `[B, T, D]`.
        slots: int32 `[B, E, O]`, which token of the row; negative where there is none.
        groups: bool or float `[B, E, G]`, what each event counts for in each group.
        squares: also the same sums of x², from the float32 squares.
    """
    if x.dtype == jnp.bfloat16 and groups.dtype == jnp.bool_:
        return _multiplied(x, slots, groups, squares)
    return _gathered(x, slots, groups, squares)


def _gathered(x: jax.Array, slots: jax.Array, groups: jax.Array, squares: bool) -> jax.Array:
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


def _multiplied(x: jax.Array, slots: jax.Array, groups: jax.Array, squares: bool) -> jax.Array:
    (B, T, _), n_offsets, G = x.shape, slots.shape[-1], groups.shape[-1]
    offset = jnp.arange(n_offsets)

    def mark(at: jax.Array, group: jax.Array) -> jax.Array:
        """How often each token of a row counts, `[T, O, G]`."""
        at = jnp.where(at < 0, T, at)  # out of bounds, so it is dropped
        counted = group[:, None].astype(x.dtype)
        return jnp.zeros((T, n_offsets, G), x.dtype).at[at, offset].add(counted, mode="drop")

    marks = jax.vmap(mark)(slots, groups).reshape(B, T, n_offsets * G)
    powers = [x, *(_squares_in_two(x) if squares else ())]
    found = [
        jnp.einsum("BTM,BTD->MD", marks, p, preferred_element_type=jnp.float32) for p in powers
    ]
    sums = [part.reshape(n_offsets, G, -1).swapaxes(0, 1) for part in found]
    return jnp.stack([sums[0], sums[1] + sums[2]]) if squares else sums[0]


def _squares_in_two(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two bfloat16 arrays that add up to the float32 squares of a bfloat16 array, exactly.

    A square has at most 16 significant bits; rounding to 8 leaves at most 8.
    """
    wide = _rounded(x.astype(jnp.float32)) ** 2
    high = _rounded(wide)
    return high.astype(x.dtype), (wide - high).astype(x.dtype)


def _rounded(x: jax.Array) -> jax.Array:
    """Float32 numbers as bfloat16 has them: the compiler may leave out a cast there and back."""
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)

"""Drawing a token of a large vocabulary with two random numbers."""

import math

import jax
import jax.numpy as jnp


def draw(
    logits: jax.Array, key: jax.Array, temperature: jax.Array, *, above: jax.Array
) -> jax.Array:
    """A token whose logit exceeds `above` `[B]`, int32 `[B]`; the likeliest at temperature 0.

    The vocabulary is cut into blocks. First a block is drawn by its share of the mass, then a token
    by its share of the block, each with one random number. So there is no noise for every token,
    and no cumulative sum over all of them.
    """
    B, V = logits.shape
    blocks = count_blocks(V)
    largest = jnp.max(logits, axis=-1, keepdims=True)
    hot = temperature[:, None]
    parted = jnp.pad(logits, ((0, 0), (0, -V % blocks)), constant_values=-jnp.inf)
    parted = parted.reshape(B, blocks, -1)

    def weigh(some: jax.Array) -> jax.Array:  # [B, …]
        wide = (slice(None),) + (None,) * (some.ndim - 1)
        weight = jnp.exp((some - largest[:, 0][wide]) / jnp.where(hot > 0, hot, 1.0)[:, 0][wide])
        return jnp.where(some > above[wide], weight, 0.0)

    u = jax.vmap(lambda k: jax.random.uniform(k, (2,), jnp.float32))(key)  # [B, 2]
    block = _by_share(jnp.sum(weigh(parted), axis=-1), u[:, 0])
    inside = jnp.take_along_axis(parted, block[:, None, None], axis=1)[:, 0]
    token = block * parted.shape[-1] + _by_share(weigh(inside), u[:, 1])
    cold = jnp.any(hot <= 0)
    best = jax.lax.cond(
        cold, lambda: jnp.argmax(logits, axis=-1).astype(jnp.int32), lambda: jnp.zeros(B, jnp.int32)
    )
    return jnp.where(hot[:, 0] > 0, token, best).astype(jnp.int32)


def _by_share(weights: jax.Array, u: jax.Array) -> jax.Array:
    """The index that each row's `u` `[B]` falls to, by the shares of its weights `[B, N]`."""
    sums = jnp.cumsum(weights, axis=-1)
    passed = jnp.sum(sums <= (u * sums[:, -1])[:, None], axis=-1, dtype=jnp.int32)
    return jnp.minimum(passed, weights.shape[-1] - 1)


def count_blocks(vocabulary: int) -> int:
    """About as many blocks as tokens in a block; a divisor of the vocabulary if there is one near.

    >>> count_blocks(49_152), count_blocks(128_256), count_blocks(369), count_blocks(7)
    (192, 334, 9, 1)
    """
    root = math.isqrt(vocabulary)
    near = [n for n in range(max(1, root // 2), 2 * root + 1) if vocabulary % n == 0]
    return min(near, key=lambda n: abs(n - root), default=root)


def at_token(x: jax.Array, token: jax.Array) -> jax.Array:
    """`x` `[B, V]` at each row's token."""
    return jnp.take_along_axis(x, token[:, None], axis=1)[:, 0]

"""Fresh noise at each token, the same for a token however it is batched and whenever it is run.

Random numbers belong to (seed, row, position, layer, site): those of a token do not depend on the
rows beside it, on its padding, nor on whether it is read with the prompt or decoded.
"""

import jax
import jax.numpy as jnp

# Sampling draws from the same seeds and rows; this keeps its numbers apart from these.
_APART = 0x6E6F6973


def unit_noise(
    seed: jax.Array, row: jax.Array, position: jax.Array, place: jax.Array, *, width: int
) -> jax.Array:
    """Gaussian noise of length 1 for each token, float32 `[B, T, width]`.

    `seed` and `row` are uint32 `[B]`, `place` int32 `[B]` numbers layer and site, `position` is
    int32 `[B, T]`. Each token's draw is brought to length 1, so that what is added is no longer at
    one token than at another.
    """

    def token(key: jax.Array, position: jax.Array) -> jax.Array:
        return jax.random.normal(jax.random.fold_in(key, position), (width,), jnp.float32)

    def tokens(seed: jax.Array, row: jax.Array, place: jax.Array, position: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(seed), _APART)
        key = jax.random.fold_in(jax.random.fold_in(key, place), row)
        return jax.vmap(token, in_axes=(None, 0))(key, position)

    drawn = jax.vmap(tokens)(seed, row, place, position)
    return drawn / jnp.linalg.norm(drawn, axis=-1, keepdims=True)

"""The rule of speculative decoding: which drafts stand, so that the distribution does not change.

Draft x drawn from q is accepted with probability min(1, p(x) / q(x)), and replaced by a draw from
max(p - q, 0), normalised, if it is not. What comes out is distributed as p: token x is accepted
with probability min(p(x), q(x)), and the rest of p(x) is the replacement's (Leviathan et al.,
arXiv 2211.17192, A.1). At temperature 0, p and q are one-hot, and greedy decoding comes out.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp

from jaxsteer import Request
from jaxsteer.decoding import DecodeState
from jaxsteer.llama import write


def chances(logits: jax.Array, temperature: jax.Array) -> jax.Array:
    """Probabilities of `logits` `[B, T, V]` at the temperature `[B]` of each row."""
    t = temperature[:, None, None]
    soft = jax.nn.softmax(logits / jnp.where(t > 0, t, 1.0), axis=-1)
    return jnp.where(t > 0, soft, jax.nn.one_hot(jnp.argmax(logits, -1), logits.shape[-1]))


@jax.vmap
def draw(key: jax.Array, p: jax.Array) -> jax.Array:
    """A token `[B]` from each row of `p` `[B, V]`, which need not be normalised."""
    return jax.random.categorical(key, jnp.log(p)).astype(jnp.int32)


@jax.vmap
def accept(key: jax.Array, x: jax.Array, p: jax.Array, q: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Judge drafts `x` `[B, k]`, of chances `q` `[B, k, V]`, where `p` `[B, k + 1, V]` is wanted.

    Gives the new tokens `[B, k + 1]` and how many of them count, `[B]`: the drafts accepted, and
    one from the residual of the first refused, or from the last of `p` if none was.
    """
    k = len(x)
    for_test, for_draw = jax.random.split(key)
    at = jnp.arange(k), x
    n = jnp.sum(jnp.cumprod(jax.random.uniform(for_test, (k,)) * q[at] < p[:k][at]))
    q = jnp.pad(q, ((0, 1), (0, 0)))
    rest = jnp.maximum(p[n] - q[n], 0.0)
    rest = jnp.where(jnp.any(rest > 0), rest, p[n])  # p = q but for rounding
    token = jax.random.categorical(for_draw, jnp.log(rest))
    return jnp.append(x, 0).at[n].set(token.astype(x.dtype)), n + 1


def extend(
    state: DecodeState, new: jax.Array, count: jax.Array, request: Request
) -> tuple[DecodeState, jax.Array]:
    """`state` with the first `count` `[B]` of `new` `[B, k + 1]`, or those up to a stop token.

    Gives the tokens added, too, `[B]`: 0 to a row that was done. `state.tokens` needs k + 1 columns
    more than are wanted: what does not count is written behind each row's length.
    """
    place = jnp.arange(new.shape[1])
    stop = jnp.any(new[..., None] == request.stop_tokens[:, None], axis=-1)
    ends = stop | (place == count[:, None] - 1)
    last = jnp.argmax(ends, axis=1)
    stopped = jnp.take_along_axis(stop, last[:, None], axis=1)[:, 0]
    length = jnp.where(state.done, state.length, state.length + last + 1)
    length = jnp.minimum(length, request.max_tokens)
    longer = replace(
        state,
        token=jnp.take_along_axis(new, last[:, None], axis=1)[:, 0],
        tokens=write(state.tokens, new, state.length),
        length=length,
        done=state.done | stopped | (length >= request.max_tokens),
    )
    return longer, length - state.length

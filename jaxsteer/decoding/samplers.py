"""Choosing the next token: pure functions `(logits, key, params) -> token`, settings per row.

A sampler takes logits `[B, V]`, one key a row, and `Sampling`, and returns int32 `[B]`. Random
numbers belong to (seed, row, position): a row draws the same ones alone or in any batch, and
cells of a sweep that differ in their steering share them, so that comparisons are paired.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

# A retry of `truncated_sample` looks at one in so many rows: few refuse their first token.
_ROWS_SHARE = 8

Sampler = Callable[[jax.Array, jax.Array, "Sampling"], jax.Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sampling:
    """Per-row settings; make one with `sampling`."""

    temperature: jax.Array  # float32 [B]; 0 takes the most likely token
    top_k: jax.Array  # int32 [B]; 0 keeps all tokens
    top_p: jax.Array  # float32 [B]; 1 keeps all tokens
    min_p: jax.Array  # float32 [B]; 0 keeps all tokens
    seed: jax.Array  # uint32 [B]
    row: jax.Array  # uint32 [B]: who the row is, wherever it stands in a batch


def sampling(
    rows: int,
    *,
    temperature: ArrayLike = 0.0,
    top_k: ArrayLike = 0,
    top_p: ArrayLike = 1.0,
    min_p: ArrayLike = 0.0,
    seed: ArrayLike = 0,
    row: ArrayLike | None = None,
) -> Sampling:
    """Settings for `rows` rows, each one value or one a row; `row` counts up if not given.

    Raises:
        ValueError: naming the setting that is out of range or has another number of rows.
    """
    limits = {
        "temperature": (temperature, np.float32, 0.0, np.inf),
        "top_k": (top_k, np.int32, 0, 2**31 - 1),
        "top_p": (top_p, np.float32, 1e-6, 1.0),
        "min_p": (min_p, np.float32, 0.0, 1.0),
        "seed": (seed, np.uint32, 0, 2**32 - 1),
        "row": (np.arange(rows) if row is None else row, np.uint32, 0, 2**32 - 1),
    }
    arrays = {}
    for name, (value, dtype, low, high) in limits.items():
        array = np.asarray(value)
        if array.ndim > 1 or (array.ndim == 1 and len(array) != rows):
            raise ValueError(f"{name}: got shape {array.shape}, expected one value or [{rows}]")
        wanted, kinds = ("integers", "iu") if np.dtype(dtype).kind in "iu" else ("numbers", "iuf")
        if array.dtype.kind not in kinds:
            raise ValueError(f"{name}: got dtype {array.dtype}, expected {wanted}")
        if not np.all((array >= low) & (array <= high)):  # NaN fails this, too
            raise ValueError(f"{name}: got {value}, expected {low} to {high}")
        arrays[name] = jnp.asarray(np.broadcast_to(array.astype(dtype), (rows,)))
    return Sampling(**arrays)


def check_sampling(params: Sampling, *, rows: int) -> None:
    """Check settings that may have been made by hand, as `sampling` checks its arguments.

    Raises:
        ValueError: naming the setting, what was found and what was expected.
    """
    if np.shape(params.seed) != (rows,):
        raise ValueError(
            f"sampling: got {np.shape(params.seed)[0]} rows, expected the batch's {rows}"
        )
    sampling(rows, **{field.name: getattr(params, field.name) for field in fields(params)})


def keys(params: Sampling, position: jax.Array) -> jax.Array:
    """One key a row for the generated token at `position`, a scalar or `[B]`; gives `[B]`."""

    def row_key(seed: jax.Array, row: jax.Array, position: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), row), position)

    each = jnp.broadcast_to(position, params.seed.shape)
    return jax.vmap(row_key)(params.seed, params.row, each)


def greedy(logits: jax.Array, key: jax.Array, params: Sampling) -> jax.Array:
    """The most likely token of each row; draws no random numbers."""
    del key, params
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def sample(logits: jax.Array, key: jax.Array, params: Sampling) -> jax.Array:
    """Sample at each row's temperature from the whole distribution (Gumbel-max)."""
    return jnp.argmax(_perturbed(logits, key, params), axis=-1).astype(jnp.int32)


def truncated_sample(logits: jax.Array, key: jax.Array, params: Sampling) -> jax.Array:
    """Sample at each row's temperature among its top-k, top-p and min-p tokens.

    A token is kept if fewer than `top_k` tokens are strictly likelier, if these have less than
    `top_p` of the mass, and if it is at least `min_p` times as likely as the likeliest. So tokens
    that are equally likely are kept or dropped together, and the likeliest is always kept.

    What is taken is the kept token whose logit is largest after Gumbel noise, without sorting and
    without finding out which tokens are kept: first the largest of all is tried, as in `sample`.
    If it is not kept, nothing is that is as likely or less, so the largest of the likelier ones
    comes next, until one is kept. Most rows keep their first.
    """
    rows = -(-logits.shape[0] // _ROWS_SHARE)
    token = sample(logits, key, params)

    def retry(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        token, refused = carry
        _, index = jax.lax.top_k(refused.astype(jnp.int32), rows)
        some: tuple[jax.Array, jax.Array, jax.Array, jax.Array, Sampling] = jax.tree.map(
            lambda x: x[index], (token, refused, logits, key, params)
        )
        old, wrong, their_logits, their_key, their_params = some
        new = _largest_likelier(old, their_logits, their_key, their_params)
        new = jnp.where(wrong, new, old)
        still = _refused(new, their_logits, their_params)
        return token.at[index].set(new), refused.at[index].set(still)

    # The carry is of size [B], because under `vmap` it goes through a select in each round.
    token, _ = jax.lax.while_loop(
        lambda carry: jnp.any(carry[1]), retry, (token, _refused(token, logits, params))
    )
    return token


def choose_sampler(params: Sampling) -> Sampler:
    """The cheapest sampler that serves every row of `params` (looks at values: host only)."""
    top_k, top_p, min_p = (np.asarray(x) for x in (params.top_k, params.top_p, params.min_p))
    if not np.any(np.asarray(params.temperature)):
        return greedy
    if np.any(top_k) or np.any(top_p < 1) or np.any(min_p):
        return truncated_sample
    return sample


def _at(x: jax.Array, token: jax.Array) -> jax.Array:
    """`x` `[B, V]` at each row's token."""
    return jnp.take_along_axis(x, token[:, None], axis=1)[:, 0]


def _tempered(logits: jax.Array, params: Sampling) -> jax.Array:
    """Logits over temperature, the likeliest at 0; at temperature 0 as at 1."""
    temperature = jnp.where(params.temperature > 0, params.temperature, 1.0)
    return (logits - jnp.max(logits, axis=-1, keepdims=True)) / temperature[:, None]


def _perturbed(logits: jax.Array, key: jax.Array, params: Sampling) -> jax.Array:
    """Tempered logits with Gumbel noise, the largest of which is a sample; at 0 without."""
    noise = jax.vmap(lambda k: jax.random.gumbel(k, logits.shape[-1:], jnp.float32))(key)
    return _tempered(logits, params) + jnp.where(params.temperature[:, None] > 0, noise, 0.0)


def _refused(token: jax.Array, logits: jax.Array, params: Sampling) -> jax.Array:
    """Whether each row's token is outside its top-k, top-p and min-p tokens, `[B]`.

    Comparisons with NaN give False, so that broken logits end the search instead of looping.
    """
    tempered = _tempered(logits, params)
    mine = _at(tempered, token)
    likelier = tempered > mine[:, None]
    weight = jnp.exp(tempered)
    mass = jnp.sum(jnp.where(likelier, weight, 0.0), axis=-1)
    count = jnp.sum(likelier, axis=-1, dtype=jnp.int32)
    outside_p = (params.top_p < 1) & (mass >= params.top_p * jnp.sum(weight, axis=-1))
    outside_k = (params.top_k > 0) & (count >= params.top_k)
    return outside_p | outside_k | (mine < jnp.log(params.min_p))


def _largest_likelier(
    token: jax.Array, logits: jax.Array, key: jax.Array, params: Sampling
) -> jax.Array:
    """Of the tokens that are strictly likelier than `token`, the one largest after noise."""
    tempered = _tempered(logits, params)
    likelier = tempered > _at(tempered, token)[:, None]
    perturbed = jnp.where(likelier, _perturbed(logits, key, params), -jnp.inf)
    return jnp.argmax(perturbed, axis=-1).astype(jnp.int32)

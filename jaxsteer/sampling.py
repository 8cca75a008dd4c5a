"""Choosing the next token: pure functions `(logits, key, params) -> token`, settings per row.

A sampler takes logits `[B, V]`, one key a row, and `Sampling`, and returns int32 `[B]`. Random
numbers belong to (seed, row, position): a row draws the same ones alone or in any batch, and
cells of a sweep that differ in their steering share them, so that comparisons are paired.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

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
    fields = {}
    for name, (value, dtype, low, high) in limits.items():
        array = np.asarray(value)
        if array.ndim > 1 or (array.ndim == 1 and len(array) != rows):
            raise ValueError(f"{name}: got shape {array.shape}, expected one value or [{rows}]")
        if not np.all((array >= low) & (array <= high)):  # NaN fails this, too
            raise ValueError(f"{name}: got {value}, expected {low} to {high}")
        fields[name] = jnp.asarray(np.broadcast_to(array.astype(dtype), (rows,)))
    return Sampling(**fields)


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

    A token is kept if fewer than `top_k` tokens are strictly more likely than it, if these have
    less than `top_p` of the mass, and if it is at least `min_p` times as likely as the most likely
    one; so equally likely tokens are kept or dropped together. Of the kept ones the token with the
    largest Gumbel-perturbed logit is taken, as `sample` does of all.

    Nothing is sorted: the largest of all is tried first, and while it is not kept, neither are the
    tokens that are as likely or less, so the largest of the others is next. A try is one pass over
    the logits, and a few settle every row: what is left has top-p's share of the mass or little
    more after the first refusals.
    """
    perturbed = _perturbed(logits, key, params)
    total = jnp.sum(jnp.exp(_tempered(logits, params)), axis=-1)
    mass_limit = jnp.where(params.top_p < 1, params.top_p * total, jnp.inf)
    count_limit = jnp.where(params.top_k > 0, params.top_k, logits.shape[-1])
    lowest = jnp.log(params.min_p)

    def settle(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        token, _ = carry
        tempered = _tempered(logits, params)
        likelier = logits > _at(logits, token)[:, None]
        mass = jnp.sum(jnp.where(likelier, jnp.exp(tempered), 0.0), axis=-1)
        count = jnp.sum(likelier, axis=-1, dtype=jnp.int32)
        refused = (mass >= mass_limit) | (count >= count_limit) | (_at(tempered, token) < lowest)
        other = jnp.argmax(jnp.where(likelier, perturbed, -jnp.inf), axis=-1).astype(jnp.int32)
        return jnp.where(refused, other, token), ~refused

    # A row that is settled stays so: its token passes every further try. What the loop carries is
    # of size [B], because under `vmap` it goes through a select in each round.
    first = jnp.argmax(perturbed, axis=-1).astype(jnp.int32)
    unsettled = jnp.zeros(first.shape, bool)
    token, _ = jax.lax.while_loop(lambda c: ~jnp.all(c[1]), settle, (first, unsettled))
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
    """Logits over temperature, less those of the most likely token; its share of the mass is 1."""
    temperature = jnp.where(params.temperature > 0, params.temperature, 1.0)
    return (logits - jnp.max(logits, axis=-1, keepdims=True)) / temperature[:, None]


def _perturbed(logits: jax.Array, key: jax.Array, params: Sampling) -> jax.Array:
    """Tempered logits and Gumbel noise: the largest is a sample, at temperature 0 the likeliest."""
    noise = jax.vmap(lambda k: jax.random.gumbel(k, logits.shape[-1:], jnp.float32))(key)
    return _tempered(logits, params) + jnp.where(params.temperature[:, None] > 0, noise, 0.0)

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
    """One key a row for the token at `position` (a scalar), `[B]`."""

    def row_key(seed: jax.Array, row: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), row), position)

    return jax.vmap(row_key)(params.seed, params.row)


def greedy(logits: jax.Array, key: jax.Array, params: Sampling) -> jax.Array:
    """The most likely token of each row; draws no random numbers."""
    del key, params
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def sample(logits: jax.Array, key: jax.Array, params: Sampling) -> jax.Array:
    """Sample at each row's temperature from the whole distribution (Gumbel-max)."""
    return _gumbel_max(_tempered(logits, params), logits, key, params)


def truncated_sample(logits: jax.Array, key: jax.Array, params: Sampling) -> jax.Array:
    """Sample at each row's temperature among its top-k, top-p and min-p tokens."""
    tempered = _tempered(logits, params)
    kept = tempered >= _cutoff(tempered, params)[:, None]
    return _gumbel_max(jnp.where(kept, tempered, -jnp.inf), logits, key, params)


def choose_sampler(params: Sampling) -> Sampler:
    """The cheapest sampler that serves every row of `params` (looks at values: host only)."""
    top_k, top_p, min_p = (np.asarray(x) for x in (params.top_k, params.top_p, params.min_p))
    if not np.any(np.asarray(params.temperature)):
        return greedy
    if np.any(top_k) or np.any(top_p < 1) or np.any(min_p):
        return truncated_sample
    return sample


def _tempered(logits: jax.Array, params: Sampling) -> jax.Array:
    temperature = jnp.where(params.temperature > 0, params.temperature, 1.0)
    return logits / temperature[:, None]


def _gumbel_max(
    tempered: jax.Array, logits: jax.Array, key: jax.Array, params: Sampling
) -> jax.Array:
    noise = jax.vmap(lambda k: jax.random.gumbel(k, logits.shape[-1:], jnp.float32))(key)
    sampled = jnp.argmax(tempered + noise, axis=-1)
    return jnp.where(params.temperature > 0, sampled, jnp.argmax(logits, axis=-1)).astype(jnp.int32)


def _cutoff(logits: jax.Array, params: Sampling) -> jax.Array:
    """The logit from which on a row's tokens are kept, `[B]`.

    Top-k and top-p are found by bisection on the cutoff, each step one pass over the logits:
    sorting a vocabulary of 128,256 for every row and token costs many times more. After 32
    halvings the bracket is narrower than float32 can tell apart.
    """
    V = logits.shape[-1]
    top = jnp.max(logits, axis=-1)
    probs = jax.nn.softmax(logits, axis=-1)
    k = jnp.where(params.top_k > 0, params.top_k, V)

    def enough(cutoff: jax.Array) -> jax.Array:
        kept = logits >= cutoff[:, None]
        mass = jnp.sum(jnp.where(kept, probs, 0.0), axis=-1)
        return (mass >= params.top_p) & (params.top_p < 1) | (jnp.sum(kept, axis=-1) >= k)

    def halve(_: int, bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bracket  # keeping from `low` is enough, from `high` is not
        middle = (low + high) / 2
        ok = enough(middle)
        return jnp.where(ok, middle, low), jnp.where(ok, high, middle)

    # Tokens further than 40 nats below the top have no mass that float32 could add up.
    low = top - 40.0
    low, _ = jax.lax.fori_loop(0, 32, halve, (low, top + 1e-3))
    limited = (params.top_k > 0) | (params.top_p < 1)
    low = jnp.where(limited, low, -jnp.inf)
    return jnp.maximum(low, top + jnp.log(jnp.maximum(params.min_p, 1e-30)))

"""Choosing the next token: pure functions `(logits, key, params) -> token`, settings per row.

A sampler takes logits `[B, V]`, one key per row, and `Sampling`, and returns int32 `[B]`. Random
numbers belong to (seed, row, position). So a row draws the same ones alone or in any batch, and the
cells of a sweep share them, which pairs their comparisons.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxsteer.decoding.draws import at_token, draw

# A retry of `truncated_sample` serves 1/8 of the rows: few refuse their first token.
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
    row: jax.Array  # uint32 [B]: identifies the row in any batch; its random numbers belong to it


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
    """Settings for `rows` rows, each one value or `[rows]`; by default `row` is 0, 1, 2, ….

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
        arrays[name] = jax.device_put(np.broadcast_to(array.astype(dtype), (rows,)))
    return Sampling(**arrays)


def check_sampling(params: Sampling, *, rows: int) -> None:
    """Check settings that may have been made by hand, as `sampling` checks its arguments.

    Raises:
        ValueError: naming the setting, what it is and what is expected.
    """
    if np.shape(params.seed) != (rows,):
        raise ValueError(
            f"sampling: got {np.shape(params.seed)[0]} rows, expected the batch's {rows}"
        )
    sampling(rows, **{field.name: getattr(params, field.name) for field in fields(params)})


def keys(params: Sampling, position: jax.Array) -> jax.Array:
    """One key a row, `[B]`, for the generated token at `position`, a scalar or `[B]`."""

    def row_key(seed: jax.Array, row: jax.Array, position: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), row), position)

    each = jnp.broadcast_to(position, params.seed.shape)
    return jax.vmap(row_key)(params.seed, params.row, each)


def greedy(logits: jax.Array, key: jax.Array, params: Sampling) -> jax.Array:
    """The most likely token of each row."""
    del key, params
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def sample(logits: jax.Array, key: jax.Array, params: Sampling) -> jax.Array:
    """Sample at each row's temperature from the whole distribution."""
    lowest = jnp.full(logits.shape[:1], -jnp.inf, logits.dtype)
    return draw(logits, key, params.temperature, above=lowest)


def truncated_sample(logits: jax.Array, key: jax.Array, params: Sampling) -> jax.Array:
    """Sample at each row's temperature among its top-k, top-p and min-p tokens.

    A token is kept if fewer than `top_k` tokens are strictly likelier, if these have less than
    `top_p` of the mass, and if it is at least `min_p` times as likely as the likeliest. So equally
    likely tokens are kept or dropped together, and the likeliest is always kept.

    Nothing is sorted: the token is drawn by rejection. The first draw is from all tokens, as in
    `sample`. If that token is not kept, neither is any that is as likely or less, so the next draw
    is from the likelier tokens, until a token is kept. Most rows keep their first draw. Every draw
    is from a set that contains all kept tokens, in proportion to their probabilities, so the result
    is a draw from the kept tokens.
    """
    rows = -(-logits.shape[0] // _ROWS_SHARE)
    token = sample(logits, key, params)

    def retry(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        token, tries = carry  # tries is 0 for rows that are settled
        _, index = jax.lax.top_k((tries > 0).astype(jnp.int32), rows)
        retried: tuple[jax.Array, jax.Array, jax.Array, jax.Array, Sampling] = jax.tree.map(
            lambda x: x[index], (token, tries, logits, key, params)
        )
        old, count, own_logits, own_key, own_params = retried
        new_key = jax.vmap(jax.random.fold_in)(own_key, count)
        new = draw(own_logits, new_key, own_params.temperature, above=at_token(own_logits, old))
        new = jnp.where(count > 0, new, old)
        refused = _refused(new, own_logits, own_params)
        left = jnp.where(refused, count + 1, 0)
        return token.at[index].set(new), tries.at[index].set(left)

    # The carry has only [B] entries, because under `vmap` each round puts it through a select.
    tries = _refused(token, logits, params).astype(jnp.int32)
    token, _ = jax.lax.while_loop(lambda carry: jnp.any(carry[1] > 0), retry, (token, tries))
    return token


def choose_sampler(params: Sampling) -> Sampler:
    """The cheapest sampler that serves every row of `params`; reads their values on the host."""
    top_k, top_p, min_p = (np.asarray(x) for x in (params.top_k, params.top_p, params.min_p))
    if not np.any(np.asarray(params.temperature)):
        return greedy
    if np.any(top_k) or np.any(top_p < 1) or np.any(min_p):
        return truncated_sample
    return sample


def _refused(token: jax.Array, logits: jax.Array, params: Sampling) -> jax.Array:
    """Whether each row's token is outside its top-k, top-p and min-p tokens, bool `[B]`.

    Comparisons with NaN are False, so logits of NaN end the search.
    """
    hot = jnp.where(params.temperature > 0, params.temperature, 1.0)
    tempered = (logits - jnp.max(logits, axis=-1, keepdims=True)) / hot[:, None]
    likelier = logits > at_token(logits, token)[:, None]
    weight = jnp.exp(tempered)
    mass = jnp.sum(jnp.where(likelier, weight, 0.0), axis=-1)
    count = jnp.sum(likelier, axis=-1, dtype=jnp.int32)
    outside_p = (params.top_p < 1) & (mass >= params.top_p * jnp.sum(weight, axis=-1))
    outside_k = (params.top_k > 0) & (count >= params.top_k)
    return outside_p | outside_k | (at_token(tempered, token) < jnp.log(params.min_p))

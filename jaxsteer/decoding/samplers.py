"""Choosing the next token: pure functions `(logits, key, params) -> token`, settings per row.

A sampler takes logits `[B, V]`, one key a row, and `Sampling`, and returns int32 `[B]`. Random
numbers belong to (seed, row, position): a row draws the same ones alone or in any batch, and
cells of a sweep that differ in their steering share them, so that comparisons are paired.
"""

import math
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
    """Sample at each row's temperature from the whole distribution."""
    return _draw(logits, _unbounded(logits), key, params)


def truncated_sample(logits: jax.Array, key: jax.Array, params: Sampling) -> jax.Array:
    """Sample at each row's temperature among its top-k, top-p and min-p tokens.

    A token is kept if fewer than `top_k` tokens are strictly likelier, if these have less than
    `top_p` of the mass, and if it is at least `min_p` times as likely as the likeliest. So tokens
    that are equally likely are kept or dropped together, and the likeliest is always kept.

    Nothing is sorted, and nobody finds out which tokens are kept: one of all is drawn first, as in
    `sample`. If it is not kept, nothing is that is as likely or less, so one of the likelier ones
    is drawn next, until one is kept. Most rows keep their first. It is a draw from the kept tokens:
    each try is one from a set that holds them all, and tells them apart by their own shares.
    """
    rows = -(-logits.shape[0] // _ROWS_SHARE)
    token = sample(logits, key, params)

    def retry(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        token, tries = carry  # tries is 0 for rows that are settled
        _, index = jax.lax.top_k((tries > 0).astype(jnp.int32), rows)
        some: tuple[jax.Array, jax.Array, jax.Array, jax.Array, Sampling] = jax.tree.map(
            lambda x: x[index], (token, tries, logits, key, params)
        )
        old, count, their_logits, their_key, their_params = some
        again = jax.vmap(jax.random.fold_in)(their_key, count)
        new = _draw(their_logits, _at(their_logits, old), again, their_params)
        new = jnp.where(count > 0, new, old)
        refused = _refused(new, their_logits, their_params)
        left = jnp.where(refused, count + 1, 0)
        return token.at[index].set(new), tries.at[index].set(left)

    # The carry is of size [B], because under `vmap` it goes through a select in each round.
    tries = _refused(token, logits, params).astype(jnp.int32)
    token, _ = jax.lax.while_loop(lambda carry: jnp.any(carry[1] > 0), retry, (token, tries))
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


def _unbounded(logits: jax.Array) -> jax.Array:
    """A bound that no number is below, `[B]`."""
    return jnp.full(logits.shape[:1], -jnp.inf, logits.dtype)


def _draw(logits: jax.Array, above: jax.Array, key: jax.Array, params: Sampling) -> jax.Array:
    """One of the tokens whose logit is larger than `above` `[B]`; the likeliest at temperature 0.

    The vocabulary is cut into blocks. A block is drawn by its share, and then a token of it by its
    own, each by one number between 0 and 1: no noise for every token, and no sum over all of them
    in order.
    """
    B, V = logits.shape
    blocks = _count_blocks(V)
    largest = jnp.max(logits, axis=-1, keepdims=True)
    hot = params.temperature[:, None]
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


def _count_blocks(vocabulary: int) -> int:
    """About as many blocks as tokens in a block; a divisor of the vocabulary if there is one near.

    >>> _count_blocks(49_152), _count_blocks(128_256), _count_blocks(369), _count_blocks(7)
    (192, 334, 9, 1)
    """
    root = math.isqrt(vocabulary)
    near = [n for n in range(max(1, root // 2), 2 * root + 1) if vocabulary % n == 0]
    return min(near, key=lambda n: abs(n - root), default=root)


def _refused(token: jax.Array, logits: jax.Array, params: Sampling) -> jax.Array:
    """Whether each row's token is outside its top-k, top-p and min-p tokens, `[B]`.

    Comparisons with NaN give False, so that broken logits end the search instead of looping.
    """
    hot = jnp.where(params.temperature > 0, params.temperature, 1.0)
    tempered = (logits - jnp.max(logits, axis=-1, keepdims=True)) / hot[:, None]
    likelier = logits > _at(logits, token)[:, None]
    weight = jnp.exp(tempered)
    mass = jnp.sum(jnp.where(likelier, weight, 0.0), axis=-1)
    count = jnp.sum(likelier, axis=-1, dtype=jnp.int32)
    outside_p = (params.top_p < 1) & (mass >= params.top_p * jnp.sum(weight, axis=-1))
    outside_k = (params.top_k > 0) & (count >= params.top_k)
    return outside_p | outside_k | (_at(tempered, token) < jnp.log(params.min_p))

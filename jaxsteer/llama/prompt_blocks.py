"""Running the prompts of a batch, a block of rows at a time, into the cache they decode from."""

from dataclasses import replace
from typing import TypeVar, Unpack

import jax
import jax.numpy as jnp

from jaxsteer.llama.attention_splash import heads_first, tpu_attention
from jaxsteer.llama.cache import KVCache, empty_cache
from jaxsteer.llama.model import Model, forward
from jaxsteer.llama.sharding import mesh_sizes
from jaxsteer.llama.tokens import TokenBatch
from jaxsteer.steering import RowFacts, Steering

# Tokens that run at once. The MLP's temporaries grow with them (640 x 512 tokens of an 8B model
# would take 111 GB), while matrix products have reached their full rate far below this.
BLOCK_TOKENS = 2**15

Tree = TypeVar("Tree")


def count_blocks(rows: int, length: int, *, limit: int = BLOCK_TOKENS) -> int:
    """The fewest equal blocks of rows with at most `limit` tokens (or one row) each.

    >>> count_blocks(64, 512), count_blocks(160, 512), count_blocks(7, 2**15)
    (1, 4, 7)
    """
    fits = (n for n in range(1, rows + 1) if rows % n == 0 and rows // n * length <= limit)
    return next(fits, rows)


def run_prompts(
    model: Model,
    batch: TokenBatch,
    *,
    capacity: int,
    steering: tuple[Steering, ...],
    block_tokens: int = BLOCK_TOKENS,
    **row_facts: Unpack[RowFacts],
) -> tuple[jax.Array, KVCache]:
    """Logits behind each prompt, float32 `[B, V]`, and a cache of `capacity` slots a row; pure.

    A block attends over its own T tokens only, whatever the capacity, and its keys and values are
    written into the large cache in place. Of n blocks, block j takes the rows j, j + n, j + 2n …:
    rows that are sharded over devices in contiguous parts then stay where they are, and each
    device runs at most `block_tokens` of its own.
    """
    B, T = batch.tokens.shape
    data, _ = mesh_sizes(model)
    n = count_blocks(B // data if B % data == 0 else B, T, limit=block_tokens)

    def one_block(j: jax.Array | int) -> tuple[jax.Array, KVCache]:
        tokens, mask, steered, facts = _block(
            (batch.tokens, batch.mask, steering, row_facts), j, n, B
        )
        out = forward(
            model,
            tokens,
            mask=mask,
            cache=empty_cache(model.config, rows=B // n, capacity=T, dtype=model.dtype),
            steering=steered,
            last_only=True,
            **facts,
        )
        assert out.cache is not None
        return out.logits[:, 0], out.cache

    def write(j: jax.Array | int, carry: tuple[jax.Array, KVCache]) -> tuple[jax.Array, KVCache]:
        logits, cache = one_block(j)
        put = jax.tree.map(lambda whole, part: _put(whole, part, j, n), carry, (logits, cache))
        return put[0], in_order(put[1], model)

    empty = empty_cache(model.config, rows=B, capacity=capacity, dtype=model.dtype)
    carry = jnp.zeros((B, model.config.vocab_size), jnp.float32), in_order(empty, model)
    return write(0, carry) if n == 1 else jax.lax.fori_loop(0, n, write, carry)


def in_order(cache: KVCache, model: Model) -> KVCache:
    """The cache in the order in which decode steps read it, where that is not the usual one."""
    if model.attention is not tpu_attention:
        return cache
    mesh = jax.typeof(model.params["embed"]["embedding"]).sharding.mesh
    k, v = ([heads_first(x, mesh) for x in side] for side in (cache.k, cache.v))
    return replace(cache, k=k, v=v)


def _block(tree: Tree, j: jax.Array | int, n: int, rows: int) -> Tree:
    """Rows j, j + n, … of every array that has a row axis of `rows`; a single row serves all."""

    def rows_of(x: jax.Array) -> jax.Array:
        if n == 1 or x.shape[0] == 1:
            return x
        column = x.reshape(rows // n, n, *x.shape[1:])
        return jax.lax.dynamic_index_in_dim(column, j, axis=1, keepdims=False)

    return jax.tree.map(rows_of, tree)


def _put(whole: jax.Array, part: jax.Array, j: jax.Array | int, n: int) -> jax.Array:
    """`whole` `[B, …]` with rows j, j + n, … begun by `part`; a scalar (the cursor) is replaced."""
    if whole.ndim == 0:
        return part
    columns = whole.reshape(part.shape[0], n, *whole.shape[1:])
    start = (0, j, *(0 for _ in part.shape[1:]))
    return jax.lax.dynamic_update_slice(columns, part[:, None], start).reshape(whole.shape)

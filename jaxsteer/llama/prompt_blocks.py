"""Prefill in blocks of rows, which bounds the memory of its temporaries."""

from dataclasses import replace
from typing import Any, TypeVar, Unpack

import jax
import jax.numpy as jnp

from jaxsteer.llama.attention import cached_by_head
from jaxsteer.llama.attention_splash import heads_first, tpu_attention
from jaxsteer.llama.cache import KVCache, Prefix, empty_cache, lengthen
from jaxsteer.llama.model import Model, Output, forward
from jaxsteer.llama.sharding import mesh_sizes
from jaxsteer.llama.tokens import TokenBatch
from jaxsteer.steering import Capture, Project, RowFacts, Steering

# Tokens that run at once. The MLP's temporaries grow with them (640 x 512 tokens of an 8B model
# would take 111 GB), while matrix products have reached their full rate far below this.
BLOCK_TOKENS = 2**15

Tree = TypeVar("Tree")
Block = tuple[jax.Array, KVCache, dict[str, jax.Array]]  # logits, cache, captured with rows first


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
    capture: Capture | None = None,
    block_tokens: int = BLOCK_TOKENS,
    **row_facts: Unpack[RowFacts],
) -> Output:
    """Logits behind each prompt, `[B, V]`, and a cache of `capacity` slots a row; pure.

    A block attends over its own T tokens, whatever the capacity; its keys and values are then
    written into the large cache in place. Of n blocks, block j takes the rows j, j + n, j + 2n, ….
    So rows that are sharded in contiguous parts stay on their devices, and each device runs at most
    `block_tokens` tokens. `capture` may not sum over rows.
    """
    B, T = batch.tokens.shape
    data, _ = mesh_sizes(model)
    n = count_blocks(B // data if B % data == 0 else B, T, limit=block_tokens)

    # Directions have no row axis; positions and weights do.
    rowwise = None if capture is None or isinstance(capture.read, Project) else capture

    def one_block(j: jax.Array | int) -> Block:
        tokens, mask, steered, facts, reads = _block(
            (batch.tokens, batch.mask, steering, row_facts, rowwise), j, n, B
        )
        out = forward(
            model,
            tokens,
            mask=mask,
            cache=make_cache(model, rows=B // n, capacity=T),
            steering=steered,
            capture=capture if reads is None else reads,
            last_only=True,
            **facts,
        )
        assert out.cache is not None
        return out.logits[:, 0], out.cache, _rows_first(out.captured, capture)

    def write(j: jax.Array | int, carry: Block) -> Block:
        put = jax.tree.map(lambda whole, part: _put(whole, part, j, n), carry, one_block(j))
        return put[0], in_order(put[1], model), put[2]

    empty = make_cache(model, rows=B, capacity=capacity)
    logits = jnp.zeros((B, model.config.vocab_size), jnp.float32)
    read = {} if capture is None else jax.eval_shape(one_block, 0)[2]
    carry = (
        logits,
        in_order(empty, model),
        {site: jnp.zeros((B, *x.shape[1:]), x.dtype) for site, x in read.items()},
    )
    logits, cache, rows = write(0, carry) if n == 1 else jax.lax.fori_loop(0, n, write, carry)
    return Output(logits, cache, _rows_first(rows, capture, back=True))


def _rows_first(
    captured: dict[str, jax.Array], capture: Capture | None, *, back: bool = False
) -> dict[str, jax.Array]:
    """Captured arrays with the axis of rows moved to the front, or back."""
    if capture is None:
        return {}
    axis = capture.read.row_axis
    if axis is None:
        raise ValueError(f"capture.read: got {type(capture.read).__name__}, expected rows")
    moved = (0, axis + 1) if back else (axis + 1, 0)
    return {site: jnp.moveaxis(x, *moved) for site, x in captured.items()}


def share_prompts(model: Model, batch: TokenBatch, *, block_tokens: int = BLOCK_TOKENS) -> Prefix:
    """The keys and values of a batch's P prompts, each run once, for rows that continue them; pure.

    They cover all tokens of a prompt but the last. Each row runs that token itself, with its own
    steering, and gets its first logits from it.
    """
    T, length = batch.tokens.shape[1], batch.lengths - 1
    # Real tokens first, so that a length says which are real: kernels need no mask then.
    column = (jnp.arange(T) - batch.lengths[:, None]) % T
    tokens = jnp.take_along_axis(batch.tokens, column, axis=1)
    shared = TokenBatch(tokens, jnp.arange(T) < length[:, None])
    cache = run_prompts(
        model, shared, capacity=T, steering=(), block_tokens=block_tokens, prompt_length=length
    ).cache
    assert cache is not None
    return Prefix(cache.k, cache.v, length)


def rows_after(model: Model, prefix: Prefix, *, rows: int, capacity: int) -> KVCache:
    """An empty cache for `rows` rows that continue shared prompts, with `capacity` slots each."""
    own = in_order(make_cache(model, rows=rows, capacity=capacity), model)
    return replace(own, prefix=prefix)


def copy_prompts(model: Model, batch: TokenBatch, *, rows: int, capacity: int) -> KVCache:
    """A cache of `rows` rows, each with a copy of its prompt; pure.

    Like `share_prompts`, each of the P prompts is run once, up to its last token. The rows of a
    prompt lie one after another, and have `capacity` slots for their own tokens.
    """
    T = batch.tokens.shape[1] - 1
    shared = TokenBatch(batch.tokens[:, :T], batch.mask[:, :T])
    length = batch.lengths - 1
    cache = run_prompts(model, shared, capacity=T, steering=(), prompt_length=length).cache
    assert cache is not None
    times = rows // batch.tokens.shape[0]
    copies = jax.tree.map(lambda x: jnp.repeat(x, times, axis=0) if x.ndim else x, cache)
    return in_order(lengthen(copies, T + capacity), model)


def make_cache(model: Model, *, rows: int, capacity: int) -> KVCache:
    """An empty cache in the order that suits the model's attention."""
    by_head = cached_by_head(model.attention)
    options: dict[str, Any] = {"dtype": model.dtype, "by_head": by_head}
    return empty_cache(model.config, rows=rows, capacity=capacity, **options)


def in_order(cache: KVCache, model: Model) -> KVCache:
    """The cache in the order in which decode steps read it."""
    if model.attention is not tpu_attention:
        return cache
    mesh = jax.typeof(model.params["embed"]["embedding"]).sharding.mesh
    k, v = ([heads_first(x, mesh) for x in side] for side in (cache.k, cache.v))
    return replace(cache, k=k, v=v)


def _block(tree: Tree, j: jax.Array | int, n: int, rows: int) -> Tree:
    """Rows j, j + n, … of every array that has a row axis of `rows`; single rows stay."""

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
    put = jax.lax.dynamic_update_slice_in_dim(columns, part[:, None], j, 1)
    return put.reshape(whole.shape)

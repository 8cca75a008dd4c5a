"""Attention by cuDNN's kernels, on NVIDIA GPUs."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxsteer.llama.attention_mesh import (
    attend_on_each_device,
    attend_with_prefix_on_each_device,
)
from jaxsteer.llama.attention_prefix import Part, by_prefix, by_row, merge
from jaxsteer.llama.attention_reference import NEGATIVE, attend, visible
from jaxsteer.llama.cache import Shared

_QUERIES = 128  # of one block of cuDNN's kernel
_BLOCKS = 132  # that run at once on an H100 or H200
_FEWEST_KEYS = 256  # of a piece: fewer are not worth a block


@jax.custom_batching.custom_vmap
def _cudnn(
    q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array, start: jax.Array
) -> jax.Array:
    return attend_on_each_device(_cudnn_rows, q, k, v, valid, start)


def _cudnn_rows(
    q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array, start: jax.Array
) -> jax.Array:
    B, T = q.shape[:2]
    if T == 1:
        # One query: causality is a length, padding a bias that all heads share. A boolean mask
        # would work too, at half as much time again.
        bias = _bias(valid, q.dtype)[:, None, None, :]
        lengths = jnp.broadcast_to(start + 1, (B,)).astype(jnp.int32)
        queries = jnp.ones((B,), jnp.int32)
        return jax.nn.dot_product_attention(
            q,
            k,
            v,
            bias=bias,
            query_seq_lengths=queries,
            key_value_seq_lengths=lengths,
            implementation="cudnn",
        )
    if k.shape[1] == T:  # as many queries as slots: `start` can only be 0
        return _cudnn_whole(q, k, v, valid)
    bias = _bias(visible(valid, start, T), q.dtype)[:, None]  # T spelled out, for cuDNN
    return jax.nn.dot_product_attention(q, k, v, bias=bias, implementation="cudnn")


def _cudnn_whole(q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array) -> jax.Array:
    """Whole texts, causal and without a bias, so that cuDNN leaves out what no query may see.

    Each row is turned until its padding comes last, where causality hides it, and back again.
    """
    padding = jnp.argmax(valid, axis=1)
    q, k, v = (_turn(x, padding) for x in (q, k, v))
    out = jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")
    return _turn(out, -padding)


def _turn(x: jax.Array, by: jax.Array) -> jax.Array:
    """`x` `[B, T, …]` with the first `by` `[B]` tokens of each row moved to its end.

    >>> _turn(jnp.array([[1, 2, 3], [4, 5, 6]]), jnp.array([1, -1])).tolist()
    [[2, 3, 1], [6, 4, 5]]
    """
    B, T = x.shape[:2]
    return x[jnp.arange(B)[:, None], (jnp.arange(T) + by[:, None]) % T]


def _bias(mask: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """0 where `mask` holds, the most negative finite number that will do elsewhere."""
    return jnp.where(mask, 0.0, max(NEGATIVE, float(jnp.finfo(dtype).min))).astype(dtype)


@_cudnn.def_vmap
def _cudnn_over_cells(
    axis_size: int, batched: list[bool], *args: jax.Array
) -> tuple[jax.Array, bool]:
    """Fold a vmapped axis into the rows: cuDNN refuses a shared bias under `vmap`."""
    *rows, start = args
    if batched[-1]:
        raise NotImplementedError("cells of a sweep share one cursor; `start` was vmapped")
    cells = [
        x if is_batched else jnp.broadcast_to(x, (axis_size, *x.shape))
        for x, is_batched in zip(rows, batched[:-1], strict=True)
    ]
    q, k, v, valid = cells
    return attend_on_each_device(_cudnn_rows, q, k, v, valid, start), True


def _after_prefix(
    q: jax.Array, k: jax.Array, v: jax.Array, start: jax.Array, prefix: Shared
) -> jax.Array:
    """Rows `[B, …]` or cells of rows `[C, B, …]` that have no padding, behind their prefixes."""
    own_q, own_k, own_v = (x.reshape(-1, *x.shape[-3:]) for x in (q, k, v))
    rows, T = own_q.shape[:2]
    starts = jnp.tile(start, rows // start.size) if start.ndim else jnp.broadcast_to(start, (rows,))
    S = k.shape[-3]
    if T in (1, S):  # a decode step, or as many queries as slots
        own = flash(own_q, own_k, own_v, lengths=starts + T, causal=T > 1)
    else:
        slots = jnp.ones((rows, S), bool)
        own = attend(own_q, own_k, own_v, visible(slots, starts, T))
    shared = [
        (by_row(out, q.shape).reshape(own[0].shape), by_row(log_sum, q.shape).reshape(own[1].shape))
        for out, log_sum in _over_prefix(by_prefix(q, prefix.length.shape[0]), prefix)
    ]
    return merge([own, *shared]).reshape(q.shape)


def _over_prefix(q: jax.Array, prefix: Shared) -> list[Part]:
    """Attention of all queries of a prefix's rows, `[P, X, N, H]`, over pieces of the prefix.

    The kernel goes through the keys of 128 queries of a head in order. A hundred rows on one prefix
    would keep a quarter of the GPU busy, so long prefixes are cut, and their pieces read at once.
    """
    (P, X, N, _), S = q.shape, prefix.k.shape[1]
    pieces = count_pieces(S, blocks=P * N * -(-X // _QUERIES))
    width = S // pieces
    lengths = jnp.clip(prefix.length[:, None] - jnp.arange(pieces) * width, 0, width).reshape(-1)
    k, v = (x.reshape(P * pieces, width, *x.shape[2:]) for x in (prefix.k, prefix.v))
    every = jnp.repeat(q, pieces, axis=0)
    out, log_sum = flash(every, k, v, lengths=jnp.maximum(lengths, 1), causal=False)
    # Nothing of a piece without tokens, of which the kernel has read one all the same.
    log_sum = jnp.where(lengths[:, None, None] > 0, log_sum, NEGATIVE)
    return [(out[i::pieces], log_sum[i::pieces]) for i in range(pieces)]


def count_pieces(slots: int, *, blocks: int) -> int:
    """Into how many equal pieces a prefix is cut whose queries make `blocks` blocks.

    >>> count_pieces(8192, blocks=32), count_pieces(192, blocks=32), count_pieces(8192, blocks=256)
    (4, 1, 1)
    """
    wanted = min(_BLOCKS // blocks, slots // _FEWEST_KEYS)
    return next((n for n in range(wanted, 1, -1) if slots % n == 0), 1)


def flash(q: jax.Array, k: jax.Array, v: jax.Array, *, lengths: jax.Array, causal: bool) -> Part:
    """CuDNN's attention over the first `lengths` `[B]` slots, with the log of each sum, float32.

    `jax.nn.dot_product_attention` has it, too, but in q's dtype: at a sum's logarithm of 8 or more,
    bf16 makes 3% of a rounding.
    """
    # Here, because it is not public.
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    out, log_sum = cudnn.dot_product_attention(
        q,
        k,
        v,
        q_seqlen=jnp.full(q.shape[:1], q.shape[1], jnp.int32),
        kv_seqlen=lengths.astype(jnp.int32),
        scale=q.shape[-1] ** -0.5,
        mask_type=cudnn.MaskType.PADDING_CAUSAL if causal else cudnn.MaskType.PADDING,
        return_residual=True,
    )
    return out, log_sum.swapaxes(1, 2).astype(jnp.float32)


@jax.custom_batching.custom_vmap
def _cudnn_after_prefix(
    q: jax.Array, k: jax.Array, v: jax.Array, start: jax.Array, prefix: Shared
) -> jax.Array:
    return attend_with_prefix_on_each_device(_after_prefix, q, k, v, start, prefix)


@_cudnn_after_prefix.def_vmap
def _cudnn_after_prefix_over_cells(
    axis_size: int, batched: list[Any], *args: Any
) -> tuple[jax.Array, bool]:
    *rows, start, prefix = args
    if any(jax.tree.leaves(batched[3:])):
        raise NotImplementedError("cells of a sweep share one cursor and prefix; they were vmapped")
    q, k, v = (
        x if is_batched else jnp.broadcast_to(x, (axis_size, *x.shape))
        for x, is_batched in zip(rows, batched[:3], strict=True)
    )
    return attend_with_prefix_on_each_device(_after_prefix, q, k, v, start, prefix), True


def cudnn_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    valid: jax.Array,
    start: jax.Array,
    prefix: Shared | None = None,
) -> jax.Array:
    """Flash attention of cuDNN: NVIDIA GPUs, bf16 or fp16, head width a multiple of 8.

    It has no reverse-mode gradient (folding cells under `vmap` costs it that): train with
    `xla_attention`.
    """
    if prefix is None:
        return _cudnn(q, k, v, valid, start)
    return _cudnn_after_prefix(q, k, v, start, prefix)

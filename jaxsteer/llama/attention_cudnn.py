"""Attention by cuDNN's kernels, on NVIDIA GPUs."""

import jax
import jax.numpy as jnp

from jaxsteer.llama.attention_mesh import attend_on_each_device
from jaxsteer.llama.attention_reference import NEGATIVE, visible


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


def cudnn_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, *, valid: jax.Array, start: jax.Array
) -> jax.Array:
    """Flash attention of cuDNN: NVIDIA GPUs, bf16 or fp16, head width a multiple of 8.

    It has no reverse-mode gradient (folding cells under `vmap` costs it that): train with
    `xla_attention`.
    """
    return _cudnn(q, k, v, valid, start)

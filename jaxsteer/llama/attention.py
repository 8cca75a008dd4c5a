"""Attention over the cache: one function signature, three implementations behind it.

Swap in your own: a callable `(q, k, v, *, valid, start) -> out` with

    q      [B, T, N, H]   queries of the T newest tokens
    k, v   [B, S, K, H]   keys and values, K divides N
    valid  bool [B, S]    slots that hold a real token of the row
    start  int32 scalar, or [B]   slot of the first query; slot `start + t` may see up to itself
    out    [B, T, N, H]   rows of padding queries hold finite numbers that nobody reads

Where rows go on from P prefixes that they share, it is called with `prefix=Shared(k, v, length)`,
too: keys and values `[P, S', K, H]` of which the first `length` `[P]` are real. Row b reads all of
those of prefix b · P // B, and then its own, which have no padding (`attention_prefix`).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxsteer.llama.attention_cudnn import cudnn_attention
from jaxsteer.llama.attention_reference import xla_attention
from jaxsteer.llama.attention_splash import tpu_attention

AttentionFn = Callable[..., jax.Array]


def default_attention(dtype: jnp.dtype, head_dim: int) -> AttentionFn:
    """Choose cuDNN or the TPU's kernels where they run, the XLA path everywhere else."""
    half = dtype in (jnp.bfloat16, jnp.float16)
    if jax.default_backend() == "tpu" and dtype == jnp.bfloat16:
        return tpu_attention
    if jax.default_backend() == "gpu" and half and head_dim % 8 == 0:
        return cudnn_attention
    return xla_attention


def compiled_for_cpu(attention: AttentionFn) -> bool:
    """Whether a program with this attention is for a CPU; a TPU's are made there, too."""
    kernels = attention is cudnn_attention or attention is tpu_attention
    return jax.default_backend() == "cpu" and not kernels


def cached_by_head(attention: AttentionFn) -> bool:
    """Whether caches for this attention are kept by head, `[B, K, H, S]` and `[B, K, S, H]`.

    On CPUs, where products of other orders copy keys and values, or take several times as long.
    """
    return compiled_for_cpu(attention)


def should_copy_prompts(attention: AttentionFn, *, prompt_length: int, new_tokens: int) -> bool:
    """Whether rows of one prompt keep copies of its keys and values, though they could share them.

    On NVIDIA GPUs, behind prompts at most half as long as what follows: cuDNN's kernel whose parts
    can be merged is slower than its kernel for decoding (`experiments/benchmarks/RESULTS.md`).
    """
    return attention is cudnn_attention and 1 < prompt_length <= new_tokens // 2

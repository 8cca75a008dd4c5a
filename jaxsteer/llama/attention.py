"""Attention over the cache: one function signature, three implementations behind it.

Swap in your own: a callable `(q, k, v, *, valid, start) -> out` with

    q      [B, T, N, H]   queries of the T newest tokens
    k, v   [B, S, K, H]   keys and values, K divides N
    valid  bool [B, S]    slots that hold a real token of the row
    start  int32 scalar, or [B]   slot of the first query; slot `start + t` may see up to itself
    out    [B, T, N, H]   rows of padding queries hold finite numbers that nobody reads
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

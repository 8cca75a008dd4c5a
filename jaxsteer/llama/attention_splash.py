"""Attention on TPUs: splash attention of JAX's own Pallas collection for prompts, XLA for the rest.

A pass over whole prompts attends over its own T tokens (`prompts.run_prompts`, `capture`). There
the scores `[B, N, T, T]` that XLA writes to memory and reads again are the largest array; splash
attention keeps them on the chip, and skips the blocks above the diagonal. Left padding is a
segment of its own. Decode steps attend with one query per row, where XLA's program has nothing of
that size; and of JAX's kernels for decoding (`paged_attention`, `ragged_paged_attention`) none
leaves out slots at a row's start, as left padding asks for.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec as P

from jaxsteer.llama.attention_mesh import attend_on_each_device, is_split, split_rows
from jaxsteer.llama.attention_reference import xla_attention
from jaxsteer.llama.cache import Shared

_LANES = 128  # of a TPU's registers: the kernel's blocks are multiples of it
_BLOCK = 512  # tokens of a block, where the prompt's length allows it


def suits_kernel(length: int) -> bool:
    """Whether the kernel takes prompts of this length, a multiple of 128 tokens."""
    return length % _LANES == 0


def heads_first(x: jax.Array, mesh: Any) -> jax.Array:
    """Keys or values `[…, B, S, K, H]`, the slots of each head together in memory.

    A decode step reads them so. Said where a cache is made, or the compiler fills it in another
    order first and then copies the whole of it, or pads its rows to a multiple of 8.
    """
    axes = list(range(x.ndim))
    axes[-3], axes[-2] = axes[-2], axes[-3]

    def ordered(x: jax.Array) -> jax.Array:
        return with_layout_constraint(x, Layout(major_to_minor=tuple(axes)))

    if not is_split(mesh):
        return ordered(x)
    # Said of what each device holds: of the whole, the compiler would gather it first.
    where = P(*split_rows(x.shape[:-3], mesh.shape["data"]), None, "tensor", None)
    return jax.shard_map(ordered, mesh=mesh, in_specs=where, out_specs=where, check_vma=False)(x)


def tpu_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    valid: jax.Array,
    start: jax.Array,
    prefix: Shared | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Splash attention for whole prompts of 128, 256, … tokens; XLA's for all else.

    It has no reverse-mode gradient for those prompts: train with `xla_attention`. `interpret` runs
    the kernel's code on any backend, slowly.
    """
    # As many queries as slots: `start` can only be 0.
    if q.shape[1] != k.shape[1] or not suits_kernel(q.shape[1]) or prefix is not None:
        return xla_attention(q, k, v, valid=valid, start=start, prefix=prefix)
    attend = functools.partial(_prompts, interpret=interpret)
    return attend_on_each_device(attend, q, k, v, valid, start)


def _prompts(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    valid: jax.Array,
    start: jax.Array,
    *,
    interpret: bool,
) -> jax.Array:
    # Here, because importing Pallas takes a while.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    T, N, H = q.shape[1:]
    block = next(n for n in range(min(_BLOCK, T), 0, -_LANES) if T % n == 0)
    kernel = splash.make_splash_mha_single_device(
        mask=splash.MultiHeadMask([splash.CausalMask((T, T)) for _ in range(N)]),
        block_sizes=splash.BlockSizes(block_q=block, block_kv=block),
        interpret=interpret,
    )
    # Rows first, then heads: `[B, N, T, H]`, as wide as a register. The kernel does not scale.
    wider = ((0, 0), (0, 0), (0, 0), (0, -H % _LANES))
    q, k, v = (jnp.pad(x, wider).swapaxes(1, 2) for x in (q * H**-0.5, k, v))
    segment = valid.astype(jnp.int32)
    out = jax.vmap(kernel)(q, k, v, segment_ids=splash.SegmentIds(segment, segment))
    return out[..., :H].swapaxes(1, 2)

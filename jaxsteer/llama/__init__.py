"""The network: a Llama in Flax NNX with named sites, its attention kernels, cache and meshes.

Tokens `[B, T]`, steering and capture in; logits `[B, T, V]`, the cache and what was read out.
Start with `Block.__call__` in `model`.

Uses `runtime`, `config`, `steering`.
"""

from jaxsteer.llama.attention import (
    cached_by_head,
    compiled_for_cpu,
    cudnn_attention,
    default_attention,
    should_copy_prompts,
    xla_attention,
)
from jaxsteer.llama.attention_splash import suits_kernel, tpu_attention
from jaxsteer.llama.cache import KVCache, Prefix, Shared, lengthen, write
from jaxsteer.llama.model import (
    Model,
    abstract_params,
    bind,
    forward,
    from_params,
    init,
    is_packed,
)
from jaxsteer.llama.packing import arrange, heads_first, pack, unpack
from jaxsteer.llama.parameters import (
    ParamPath,
    Row,
    axes_of,
    dotted,
    family_rows,
    flatten,
    nest,
    shape_of,
)
from jaxsteer.llama.prompt_blocks import (
    BLOCK_TOKENS,
    copy_prompts,
    count_blocks,
    in_order,
    rows_after,
    run_prompts,
    share_prompts,
)
from jaxsteer.llama.rope import rope_frequencies
from jaxsteer.llama.sharding import (
    DATA,
    TENSOR,
    abstract_model,
    cache_sharding,
    check_tensor,
    is_abstract,
    make_mesh,
    mesh_of,
    mesh_sizes,
    pad_vocabulary,
    params_sharding,
    rows_sharding,
    shard_batch,
    shard_model,
    sharding_of,
    spread_rows,
    without_padding,
)
from jaxsteer.llama.tokens import TokenBatch, TokenRows, as_batch, bucket, check_batch, left_pad

__all__ = [
    "BLOCK_TOKENS",
    "DATA",
    "TENSOR",
    "KVCache",
    "Model",
    "ParamPath",
    "Prefix",
    "Row",
    "Shared",
    "TokenBatch",
    "TokenRows",
    "abstract_model",
    "abstract_params",
    "arrange",
    "as_batch",
    "axes_of",
    "bind",
    "bucket",
    "cache_sharding",
    "cached_by_head",
    "check_batch",
    "check_tensor",
    "compiled_for_cpu",
    "copy_prompts",
    "count_blocks",
    "cudnn_attention",
    "default_attention",
    "dotted",
    "family_rows",
    "flatten",
    "forward",
    "from_params",
    "heads_first",
    "in_order",
    "init",
    "is_abstract",
    "is_packed",
    "left_pad",
    "lengthen",
    "make_mesh",
    "mesh_of",
    "mesh_sizes",
    "nest",
    "pack",
    "pad_vocabulary",
    "params_sharding",
    "rope_frequencies",
    "rows_after",
    "rows_sharding",
    "run_prompts",
    "shape_of",
    "shard_batch",
    "shard_model",
    "sharding_of",
    "share_prompts",
    "should_copy_prompts",
    "spread_rows",
    "suits_kernel",
    "tpu_attention",
    "unpack",
    "without_padding",
    "write",
    "xla_attention",
]

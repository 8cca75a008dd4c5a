"""Every parameter of a model: a row each, from which shapes, sharding and conversion follow.

A family is a list of rows: Llama (and Mistral), the same with biases (Qwen2) or with norms on
queries and keys (Qwen3). Which rows a model has is data of its config. A new family puts its rows
here and its `config.json` into `config.config_json`.

Letters: V vocabulary, D width, F MLP width, N query heads, K key/value heads, H head width.
Where devices share one copy of the weights they split the axes N, K, F and V; D and H are whole.
"""

import math
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util

from jaxsteer.config import LlamaConfig

ParamPath = tuple[str | int, ...]  # as ("layers", 0, "attn", "q_proj"); layers are numbers


class Row(NamedTuple):
    """A parameter of the model, or of each of its layers."""

    path: str  # ours; {} is the layer
    axes: str  # a letter an axis
    hf_name: str = ""  # Hugging Face's; {} is the layer
    hf_axes: str = ""  # (NH) is one axis that holds all heads, head by head


LLAMA: tuple[Row, ...] = (
    Row("embed.embedding", "VD", "model.embed_tokens.weight", "VD"),
    Row("layers.{}.attn_norm.scale", "D", "model.layers.{}.input_layernorm.weight", "D"),
    Row("layers.{}.attn.q_proj", "DNH", "model.layers.{}.self_attn.q_proj.weight", "(NH)D"),
    Row("layers.{}.attn.k_proj", "DKH", "model.layers.{}.self_attn.k_proj.weight", "(KH)D"),
    Row("layers.{}.attn.v_proj", "DKH", "model.layers.{}.self_attn.v_proj.weight", "(KH)D"),
    Row("layers.{}.attn.o_proj", "NHD", "model.layers.{}.self_attn.o_proj.weight", "D(NH)"),
    Row("layers.{}.mlp_norm.scale", "D", "model.layers.{}.post_attention_layernorm.weight", "D"),
    Row("layers.{}.mlp.gate_proj", "DF", "model.layers.{}.mlp.gate_proj.weight", "FD"),
    Row("layers.{}.mlp.up_proj", "DF", "model.layers.{}.mlp.up_proj.weight", "FD"),
    Row("layers.{}.mlp.down_proj", "FD", "model.layers.{}.mlp.down_proj.weight", "DF"),
    Row("final_norm.scale", "D", "model.norm.weight", "D"),
)
HEAD = Row("lm_head.kernel", "DV", "lm_head.weight", "VD")  # where embeddings are not tied
QKV_BIAS = (
    Row("layers.{}.attn.q_bias", "NH", "model.layers.{}.self_attn.q_proj.bias", "(NH)"),
    Row("layers.{}.attn.k_bias", "KH", "model.layers.{}.self_attn.k_proj.bias", "(KH)"),
    Row("layers.{}.attn.v_bias", "KH", "model.layers.{}.self_attn.v_proj.bias", "(KH)"),
)
QK_NORM = (
    Row("layers.{}.attn.q_norm.scale", "H", "model.layers.{}.self_attn.q_norm.weight", "H"),
    Row("layers.{}.attn.k_norm.scale", "H", "model.layers.{}.self_attn.k_norm.weight", "H"),
)
# Rows that lie side by side in one weight in memory (see `packing`), never in a file.
# G: what belongs to a key/value head, its N / K queries, the key, the value. P: gate and up.
PACKED = {
    Row("layers.{}.attn.qkv_proj", "DKGH"): ("q_proj", "k_proj", "v_proj"),
    Row("layers.{}.attn.qkv_bias", "KGH"): ("q_bias", "k_bias", "v_bias"),
    Row("layers.{}.mlp.gate_up_proj", "DPF"): ("gate_proj", "up_proj"),
}
SPLIT = "NKFV"  # the axes that devices split
ALL = (*LLAMA, HEAD, *QKV_BIAS, *QK_NORM, *PACKED)
AXES = {row.path: row.axes for row in ALL}


def family_rows(config: LlamaConfig) -> tuple[Row, ...]:
    """The rows of a model of this config."""
    rows = LLAMA
    rows += QKV_BIAS if config.qkv_bias else ()
    rows += QK_NORM if config.qk_norm else ()
    return rows if config.tie_embeddings else (*rows, HEAD)


def packed_rows(rows: Iterable[Row]) -> tuple[Row, ...]:
    """The same rows with those joined that `packing` joins."""
    kept = list(rows)
    for joined, parts in PACKED.items():
        place = joined.path.rpartition(".")[0]
        replaced = {f"{place}.{part}" for part in parts}
        if replaced & {row.path for row in kept}:
            kept = [*(row for row in kept if row.path not in replaced), joined]
    return tuple(kept)


def shape_of(axes: str, config: LlamaConfig) -> tuple[int, ...]:
    """Sizes of the axes that letters stand for.

    >>> shape_of("(NH)D", LlamaConfig.tiny()), shape_of("DNH", LlamaConfig.tiny())
    ((32, 32), (32, 4, 8))
    """
    sizes = {
        "V": config.vocab_size,
        "D": config.d_model,
        "F": config.d_mlp,
        "N": config.n_heads,
        "K": config.n_kv_heads,
        "H": config.head_dim,
        "G": config.n_heads // config.n_kv_heads + 2,
        "P": 2,
    }
    groups = re.findall(r"\((\w+)\)|(\w)", axes)
    return tuple(math.prod(sizes[letter] for letter in "".join(group)) for group in groups)


def random_weights(
    config: LlamaConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs, packed: bool
) -> Callable[[str], nnx.Param | None]:
    """Makes the parameter of a path, or None if the model has none: norms 1, others random."""
    rows = family_rows(config)
    axes = {row.path: row.axes for row in (packed_rows(rows) if packed else rows)}

    def weight(path: str) -> nnx.Param | None:
        letters = axes.get(path) or axes.get("layers.{}." + path)
        if letters is None:
            return None
        shape = shape_of(letters, config)
        if path.endswith("norm.scale"):
            return nnx.Param(jnp.ones(shape, dtype))
        return nnx.Param(0.02 * jax.random.normal(rngs.params(), shape, dtype))

    return weight


def axes_of(path: ParamPath) -> str:
    """The letters of a parameter's axes, by its path.

    Raises:
        ValueError: for a path that no family has.

    >>> axes_of(("layers", 3, "attn", "k_proj"))
    'DKH'
    """
    axes = AXES.get(dotted(["{}" if isinstance(part, int) else part for part in path]))
    if axes is None:
        raise ValueError(f"{dotted(path)}: no row in the table of parameters, expected one")
    return axes


def flatten(params: Any) -> Iterable[tuple[ParamPath, Any]]:
    """Paths and leaves of nested dicts, in the dicts' order.

    >>> list(flatten({"layers": {0: {"scale": 1.0}}}))
    [(('layers', 0, 'scale'), 1.0)]
    """
    return traverse_util.flatten_dict(params).items()


def nest(leaves: Iterable[tuple[ParamPath, Any]]) -> dict[Any, Any]:
    """Nested dicts from paths and leaves; the inverse of `flatten`."""
    return traverse_util.unflatten_dict(dict(leaves))


def dotted(path: Iterable[str | int]) -> str:
    """A path as people write it.

    >>> dotted(("layers", 0, "attn", "q_proj"))
    'layers.0.attn.q_proj'
    """
    return ".".join(map(str, path))

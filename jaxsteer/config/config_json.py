"""Hugging Face's `config.json` of a Llama or Qwen2, and the fields of `LlamaConfig`: both ways.

Strict: every field must either be one that is implemented here, have a value that asks for
nothing, or be known not to change the numbers.
"""

from collections.abc import Mapping
from typing import Any

_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
_OPTIONAL = ("num_key_value_heads", "head_dim")  # may be null or 0, too
_WHOLE = (*_REQUIRED, *_OPTIONAL, "max_position_embeddings")
_READ = {
    *_WHOLE,
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "tie_word_embeddings",
    "layer_types",
}
# What transformers takes when a field is not there.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048},
    "qwen2": {"max_position_embeddings": 32_768, "num_key_value_heads": 32},
}
# Fields that must hold one of these values, because another value would ask for other arithmetic.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "model_type": tuple(_DEFAULTS),
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "attention_dropout": (0, 0.0, None),
    "pretraining_tp": (1, None),
    "sliding_window": (None,),
    "use_sliding_window": (False, None),
    "max_window_layers": (None,),
    "use_mrope": (False, None),
    "quantization_config": (None,),
    "partial_rotary_factor": (1, 1.0, None),
    "logits_soft_cap": (None,),
    "attn_logit_softcapping": (None,),
}
# Fields that say how a sliding window would look if `use_sliding_window` asked for one.
_WINDOW = {"sliding_window", "max_window_layers"}
# Fields that describe the file or how it is used, never the arithmetic of a forward pass.
_NO_EFFECT = {
    "architectures",
    "auto_map",
    "_name_or_path",
    "_attn_implementation",
    "_attn_implementation_autoset",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "sep_token_id",
    "initializer_range",
    "torch_dtype",
    "dtype",
    "transformers_version",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "is_encoder_decoder",
    "chunk_size_feed_forward",
    "id2label",
    "label2id",
    "problem_type",
    "unsloth_fixed",
    "unsloth_version",
}
_ROPE_KEYS = {
    "default": set(),
    "linear": {"factor"},
    "llama3": {
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    },
}


def read(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `LlamaConfig`, as `LlamaConfig.to_dict` has them, from a parsed `config.json`.

    Raises:
        ValueError: naming every field that is missing or not implemented, all at once.
    """
    model_type = hf.get("model_type", "llama")
    theta, scaling, rope_problems = _read_rope(hf)
    problems = [f"missing field: {name}" for name in _REQUIRED if name not in hf]
    problems += _refused(hf, model_type)
    problems += [
        f"{name}={hf[name]!r}: expected a whole number of at least 1"
        for name in _WHOLE
        if name in hf and not is_size(hf[name]) and not (name in _OPTIONAL and not hf[name])
    ]
    problems += rope_problems
    if problems:
        raise ValueError("config.json cannot be used:\n  " + "\n  ".join(problems))
    hf = _DEFAULTS[model_type] | dict(hf)
    n_heads = hf["num_attention_heads"]
    return {
        "vocab_size": hf["vocab_size"],
        "d_model": hf["hidden_size"],
        "d_mlp": hf["intermediate_size"],
        "n_layers": hf["num_hidden_layers"],
        "n_heads": n_heads,
        "n_kv_heads": hf.get("num_key_value_heads") or n_heads,
        "head_dim": hf.get("head_dim") or hf["hidden_size"] // n_heads,
        "max_positions": hf["max_position_embeddings"],
        "norm_eps": hf.get("rms_norm_eps", 1e-6),  # transformers' default, not Llama-3's 1e-5
        "rope_theta": theta,
        "rope_scaling": scaling,
        "tie_embeddings": hf.get("tie_word_embeddings", False),
        "qkv_bias": model_type == "qwen2",  # by the type, in transformers too
    }


def write(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A Hugging Face `config.json` from the fields of `LlamaConfig`; the inverse of `read`."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": fields["rope_theta"]}
    if scaling := fields["rope_scaling"]:
        rope |= {"rope_type": scaling["kind"], "factor": scaling["factor"]}
        if scaling["kind"] == "llama3":
            rope |= {
                "low_freq_factor": scaling["low_freq_factor"],
                "high_freq_factor": scaling["high_freq_factor"],
                "original_max_position_embeddings": scaling["original_max_positions"],
            }
    if fields["qkv_bias"]:
        kind = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
        own: dict[str, Any] = {"use_sliding_window": False}
    else:
        kind = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
        own = {"attention_bias": False, "mlp_bias": False}
    return kind | {
        "vocab_size": fields["vocab_size"],
        "hidden_size": fields["d_model"],
        "intermediate_size": fields["d_mlp"],
        "num_hidden_layers": fields["n_layers"],
        "num_attention_heads": fields["n_heads"],
        "num_key_value_heads": fields["n_kv_heads"],
        "head_dim": fields["head_dim"],
        "hidden_act": "silu",
        "max_position_embeddings": fields["max_positions"],
        "rms_norm_eps": fields["norm_eps"],
        "rope_parameters": rope,
        **own,
        "tie_word_embeddings": fields["tie_embeddings"],
    }


def is_size(value: Any) -> bool:
    """Whether it is a whole number of at least 1; JSON's true is none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _refused(hf: Mapping[str, Any], model_type: Any) -> list[str]:
    """A line for each field that is unknown or asks for what is not implemented."""
    # Qwen2 configs carry a window that is off unless it is turned on.
    window_is_off = not hf.get("use_sliding_window", model_type != "qwen2")
    problems = []
    for name, value in hf.items():
        if name in _READ or name in _NO_EFFECT or (name in _WINDOW and window_is_off):
            continue
        if name not in _NEUTRAL:
            problems.append(f"{name}={value!r}: unknown field")
        elif value not in _NEUTRAL[name]:
            allowed = " or ".join(repr(v) for v in _NEUTRAL[name])
            problems.append(f"{name}={value!r}: not implemented, expected {allowed}")
    layer_types = hf.get("layer_types") or []
    if not isinstance(layer_types, list) or any(t != "full_attention" for t in layer_types):
        problems.append(f"layer_types={layer_types!r}: not implemented, expected 'full_attention'")
    return problems


def _read_rope(hf: Mapping[str, Any]) -> tuple[float, dict[str, Any] | None, list[str]]:
    """Rotary base and scaling from transformers 5's `rope_parameters` or 4's two fields."""
    where = "rope_parameters" if hf.get("rope_parameters") else "rope_scaling"
    found = hf.get(where) or {}
    if not isinstance(found, dict):
        return 0.0, None, [f"{where}={found!r}: expected an object"]
    rope = dict(found)
    theta = rope.pop("rope_theta", hf.get("rope_theta", 10_000.0))
    kinds = [rope.pop(key, None) for key in ("rope_type", "type")]  # `type` is older
    kinds = [kind for kind in kinds if kind is not None]
    if len(kinds) > 1 and kinds[0] != kinds[1]:
        return theta, None, [f"{where}: rope_type and type differ: {kinds}"]
    kind = kinds[0] if kinds else "default"
    partial = rope.pop("partial_rotary_factor", 1.0)
    if not isinstance(kind, str) or kind not in _ROPE_KEYS:
        known = ", ".join(_ROPE_KEYS)
        return theta, None, [f"{where}.rope_type={kind!r}: not implemented, expected {known}"]
    problems = [f"{where}: missing {key}" for key in sorted(_ROPE_KEYS[kind] - set(rope))]
    problems += [f"{where}.{key}: unknown field" for key in sorted(set(rope) - _ROPE_KEYS[kind])]
    if partial != 1.0:
        problems.append(f"{where}.partial_rotary_factor={partial!r}: not implemented, expected 1.0")
    if hf.get("rope_parameters") and hf.get("rope_scaling"):
        problems.append("rope_scaling: given beside rope_parameters, expected one of them")
    if theta != hf.get("rope_theta", theta):
        problems.append(f"{where}.rope_theta={theta!r}: rope_theta={hf['rope_theta']!r} differs")
    if problems or kind == "default":
        return theta, None, problems
    if kind == "linear":
        return theta, {"kind": kind, "factor": rope["factor"]}, []
    scaling = {
        "kind": kind,
        "factor": rope["factor"],
        "low_freq_factor": rope["low_freq_factor"],
        "high_freq_factor": rope["high_freq_factor"],
        "original_max_positions": rope["original_max_position_embeddings"],
    }
    return theta, scaling, []

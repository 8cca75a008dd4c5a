"""Hugging Face's `config.json` and the fields of `LlamaConfig`, both ways, for each model type.

Strict about arithmetic, easy about the rest: a field that would change the numbers and is not
implemented is refused; one that is known to change nothing is taken; an unknown one is taken and
reported. What a missing field means is what transformers takes it for.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from jaxsteer.config.json_values import SHOWN, is_size, short
from jaxsteer.config.rope_json import read_rope, write_rope


@dataclass(frozen=True)
class Family:
    """A model type: its class in transformers, and what it is among the fields of `LlamaConfig`."""

    architecture: str
    traits: dict[str, bool]
    defaults: dict[str, Any]  # of fields that are not there, in transformers
    neutral: dict[str, Any]  # fields that say: nothing beyond this


_LLAMA = {"qkv_bias": False, "qk_norm": False}
# A new family goes here, and its parameters into `llama.parameters`.
FAMILIES = {
    "llama": Family(
        "LlamaForCausalLM",
        _LLAMA,
        {"max_position_embeddings": 2048},
        {"attention_bias": False, "mlp_bias": False},
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        _LLAMA | {"qkv_bias": True},
        {
            "max_position_embeddings": 32_768,
            "num_key_value_heads": 32,
            "use_sliding_window": False,
            "sliding_window": 4096,
            "max_window_layers": 28,
        },
        {"use_sliding_window": False},
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        _LLAMA | {"qk_norm": True},
        {
            "max_position_embeddings": 32_768,
            "num_key_value_heads": 32,
            "head_dim": 128,
            "use_sliding_window": False,
            "sliding_window": 4096,
            "max_window_layers": 28,
        },
        {"attention_bias": False, "use_sliding_window": False},
    ),
    "mistral": Family(
        "MistralForCausalLM",
        _LLAMA,
        {
            "max_position_embeddings": 131_072,
            "num_key_value_heads": 8,
            "sliding_window": 4096,
        },
        {"sliding_window": None},
    ),
}
_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
_OPTIONAL = ("num_key_value_heads", "head_dim")  # may be null or 0, too
_WHOLE = (*_REQUIRED, *_OPTIONAL, "max_position_embeddings")
_WINDOW = ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types")
_READ = {
    *_WHOLE,
    *_WINDOW,
    "model_type",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "original_max_position_embeddings",
    "tie_word_embeddings",
}
_LAYERS = {"full_attention", "sliding_attention"}
# Fields that must hold one of these values, because another would ask for other arithmetic.
_OFF = (False, None)
_NONE = (None,)
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "is_causal": (True, None),
    "partial_rotary_factor": (1, None),
    "logit_scale": (1, None),
    "scale_emb": (1, None),
    "num_experts": (0, None),
    "num_local_experts": (0, None),
    **dict.fromkeys(
        (
            "add_cross_attention", "alibi", "attention_bias", "is_encoder_decoder", "mlp_bias",
            "qk_layernorm", "rope_interleaved", "tie_encoder_decoder", "use_alibi",
            "use_bidirectional_attention", "use_mrope", "use_qk_norm",
        ),
        _OFF,
    ),
    **dict.fromkeys(
        (
            "attention_multiplier", "attn_logit_softcapping", "clip_qkv", "compression_config",
            "embedding_multiplier", "final_logit_softcapping", "logits_scaling",
            "logits_soft_cap", "no_rope_layers", "query_pre_attn_scalar", "residual_multiplier",
        ),
        _NONE,
    ),
}  # fmt: skip
# Fields that describe the file, its history or how it is used, never the numbers of a forward pass.
_NO_EFFECT = set(
    """
    architectures auto_map is_llama_config transformers.js_config tokenizer_class dtype torch_dtype
    transformers_version model_max_length max_sequence_length max_seq_length max_seq_len
    bos_token_id eos_token_id pad_token_id sep_token_id unk_token_id decoder_start_token_id
    initializer_range initializer_factor init_std gradient_checkpointing neftune_noise_alpha
    attention_dropout hidden_dropout residual_dropout resid_pdrop embd_pdrop attn_pdrop dropout
    classifier_dropout pretraining_tp chunk_size_feed_forward is_decoder use_cache pruned_heads
    torchscript use_bfloat16 tf_legacy_loss attn_implementation cache_implementation
    output_attentions output_hidden_states output_router_logits return_dict
    id2label label2id num_labels problem_type finetuning_task task_specific_params prefix
    keys_to_ignore_at_inference cross_attention_hidden_size

    max_length max_new_tokens min_length min_new_tokens do_sample early_stopping num_beams
    num_beam_groups diversity_penalty temperature top_k top_p min_p typical_p repetition_penalty
    length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
    num_return_sequences output_scores return_dict_in_generate forced_bos_token_id
    forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens
    begin_suppress_tokens
    """.split()
)
# `_name_or_path`, `_from_model_config`, `_attn_implementation` … are transformers' own notes.
_NOTES = re.compile(r"_\w+|\w*flash_attn\w*|unsloth_\w+")
_MOST_POSITIONS = 2**31 - 1  # positions are int32


def read(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `LlamaConfig` that a parsed `config.json` asks for.

    Raises:
        ValueError: of a model type that is not implemented, in one line; or naming everything
            that is missing or not implemented, all at once.
    """
    family = FAMILIES.get(hf["model_type"]) if isinstance(hf.get("model_type"), str) else None
    if family is None:
        raise ValueError(_other_type(hf))
    theta, scaling, problems = read_rope(family.defaults | dict(hf))
    missing = [f"{name}: missing" for name in _REQUIRED if name not in hf]
    sizes = [
        f"{name}: got {short(hf[name])}, expected a whole number of at least 1"
        for name in _WHOLE
        if name in hf and not is_size(hf[name]) and not (name in _OPTIONAL and not hf[name])
    ]
    refused = [*missing, *_refused(hf), *sizes, *problems]
    absent, hf = family.defaults.keys() - hf.keys(), family.defaults | dict(hf)
    positions = hf["max_position_embeddings"]
    if not refused:
        positions = _reachable(positions, scaling)
        refused = _window(hf, positions, absent)
    if refused:
        raise ValueError(_message(refused))
    n_heads = hf["num_attention_heads"]
    return {
        "vocab_size": hf["vocab_size"],
        "d_model": hf["hidden_size"],
        "d_mlp": hf["intermediate_size"],
        "n_layers": hf["num_hidden_layers"],
        "n_heads": n_heads,
        "n_kv_heads": hf.get("num_key_value_heads") or n_heads,
        "head_dim": hf.get("head_dim") or hf["hidden_size"] // n_heads,
        "max_positions": positions,
        "norm_eps": hf.get("rms_norm_eps", 1e-6),  # transformers' default, not Llama-3's 1e-5
        "rope_theta": theta,
        "rope_scaling": scaling,
        "tie_embeddings": hf.get("tie_word_embeddings", False),
        **family.traits,
    }


def unknown_fields(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `config.json` of which it is not known what they do.

    >>> unknown_fields({"model_type": "llama", "torch_dtype": "bfloat16", "my_note": 3})
    {'my_note': 3}
    """
    known = _READ | _NEUTRAL.keys() | _NO_EFFECT | {"quantization_config"}
    unknown = {k: v for k, v in hf.items() if k not in known and not _NOTES.fullmatch(k)}
    for where in ("rope_parameters", "rope_scaling"):
        rope = hf.get(where)
        if isinstance(rope, dict) and "attn_factor" in rope:
            unknown[f"{where}.attn_factor"] = rope["attn_factor"]
    return unknown


def write(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A Hugging Face `config.json` from the fields of `LlamaConfig`; the inverse of `read`."""
    traits = {name: fields[name] for name in _LLAMA}
    fitting = [(kind, family) for kind, family in FAMILIES.items() if family.traits == traits]
    if not fitting:
        raise ValueError(f"config: got {traits}, which no model type of transformers has together")
    model_type, family = fitting[0]
    positions = fields["max_positions"]
    scaling = fields["rope_scaling"]
    if scaling and scaling["kind"] == "dynamic":
        positions = scaling["original_max_positions"]
    return {
        "architectures": [family.architecture],
        "model_type": model_type,
        "vocab_size": fields["vocab_size"],
        "hidden_size": fields["d_model"],
        "intermediate_size": fields["d_mlp"],
        "num_hidden_layers": fields["n_layers"],
        "num_attention_heads": fields["n_heads"],
        "num_key_value_heads": fields["n_kv_heads"],
        "head_dim": fields["head_dim"],
        "hidden_act": "silu",
        "max_position_embeddings": positions,
        "rms_norm_eps": fields["norm_eps"],
        "rope_parameters": write_rope(fields["rope_theta"], scaling),
        **family.neutral,
        "tie_word_embeddings": fields["tie_embeddings"],
    }


def _other_type(hf: Mapping[str, Any]) -> str:
    """One line: nothing else in the config of another architecture is of interest."""
    got = short(hf["model_type"]) if "model_type" in hf else "none"
    architectures = hf.get("architectures")
    if isinstance(architectures, list) and architectures and isinstance(architectures[0], str):
        got += f" ({architectures[0][:SHOWN]})"
    *kinds, last = FAMILIES
    return f"config.json: model_type: got {got}, expected {', '.join(kinds)} or {last}"


def _message(problems: list[str]) -> str:
    if len(problems) == 1:
        return f"config.json: {problems[0]}"
    return "config.json cannot be used:\n  " + "\n  ".join(problems)


def _refused(hf: Mapping[str, Any]) -> list[str]:
    """A line for each field that asks for what is not implemented."""
    problems = [
        f"{name}: got {short(hf[name])}, expected {' or '.join(map(short, values))}"
        for name, values in _NEUTRAL.items()
        if name in hf and not _is_one_of(hf[name], values)
    ]
    if quantised := hf.get("quantization_config"):
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        problems.append(
            f"quantization_config: got {short(method)}, expected none: quantised weights are not "
            "implemented"
        )
    return problems


def _reachable(positions: int, scaling: Mapping[str, Any] | None) -> int:
    """How long a text may be: yarn and dynamic reach beyond the context that they begin with."""
    if scaling is None or scaling["kind"] not in ("yarn", "dynamic"):
        return positions
    original = min(scaling["original_max_positions"], _MOST_POSITIONS)
    return max(positions, int(min(scaling["factor"] * original, _MOST_POSITIONS)))


def _window(hf: Mapping[str, Any], positions: int, absent: Collection[str]) -> list[str]:
    """A line if a sliding window would hide a token from another within reach.

    A window of W lets a token see itself and the W - 1 before it, so one that is as large as the
    positions hides nothing.
    """
    window, kinds = hf.get("sliding_window"), hf.get("layer_types") or []
    if not isinstance(kinds, list) or not _LAYERS.issuperset(map(str, kinds)):
        return [f"layer_types: got {short(kinds)}, expected full_attention only"]
    first = hf.get("max_window_layers", 0)
    if hf["model_type"] == "mistral":  # has neither a switch nor layers without the window
        on = True
    elif kinds:
        on = "sliding_attention" in kinds
    else:
        on = hf.get("use_sliding_window", True) and not (
            is_size(first) and first >= hf["num_hidden_layers"]
        )
    if not on or window is None or (is_size(window) and window >= positions):
        return []
    note = " (the default; the file names none)" if "sliding_window" in absent else ""
    return [
        f"sliding_window: got {short(window)}{note}, which hides tokens from each other within "
        f"{positions} positions and is not implemented. Texts of at most {short(window)} tokens "
        f"do not need it: with max_position_embeddings={short(window)} the model loads for them"
    ]


def _is_one_of(value: Any, allowed: tuple[Any, ...]) -> bool:
    """Whether it is one of them; JSON's true is no 1, and 1.0 is."""
    return any(value == x and isinstance(value, bool) == isinstance(x, bool) for x in allowed)

"""The shape of a Llama: a frozen config, presets, and a strict reader of Hugging Face configs."""

import dataclasses
import sys
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the pre-training context.

    `kind` is `"linear"` (all frequencies divided by `factor`) or `"llama3"` (Llama-3.1: long
    wavelengths divided by `factor`, short ones kept, the band between interpolated).
    """

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "llama3"):
            raise ValueError(f"rope_scaling.kind: got {self.kind!r}, expected linear or llama3")
        for name in ("factor", "low_freq_factor", "high_freq_factor", "original_max_positions"):
            if not _is_positive(getattr(self, name)):
                raise ValueError(
                    f"rope_scaling.{name}: got {getattr(self, name)!r}, expected more than 0"
                )
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ValueError(
                f"rope_scaling: got low_freq_factor={self.low_freq_factor} and high_freq_factor="
                f"{self.high_freq_factor}, expected 0 < low < high"
            )


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Static shape of a model; hashable, so it can be a static argument of `jax.jit`."""

    vocab_size: int  # V
    d_model: int  # D
    d_mlp: int  # F
    n_layers: int  # L
    n_heads: int  # N
    n_kv_heads: int  # K
    head_dim: int  # H
    max_positions: int = 8192
    norm_eps: float = 1e-5
    rope_theta: float = 500_000.0
    rope_scaling: RopeScaling | None = None
    tie_embeddings: bool = False

    def __post_init__(self) -> None:
        for name in _SIZES:
            if not _is_size(getattr(self, name)):
                raise ValueError(
                    f"{name}: got {getattr(self, name)!r}, expected a whole number of at least 1"
                )
        if self.n_layers > _MOST_LAYERS:
            raise ValueError(f"n_layers: got {self.n_layers:,}, expected at most {_MOST_LAYERS:,}")
        for name in ("norm_eps", "rope_theta"):
            if not _is_positive(getattr(self, name)):
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected more than 0")
        if not isinstance(self.tie_embeddings, bool):
            raise ValueError(f"tie_embeddings: got {self.tie_embeddings!r}, expected true or false")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"n_kv_heads: got {self.n_kv_heads}, expected a divisor of n_heads={self.n_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim: got {self.head_dim}, expected an even number (RoPE pairs)")

    @classmethod
    def llama31_8b(cls) -> Self:
        """Llama-3.1-8B, and DeepSeek-R1-Distill-Llama-8B, which has the same shape."""
        return cls(
            vocab_size=128_256,
            d_model=4096,
            d_mlp=14_336,
            n_layers=32,
            n_heads=32,
            n_kv_heads=8,
            head_dim=128,
            max_positions=131_072,
            rope_scaling=RopeScaling(kind="llama3", factor=8.0),
        )

    @classmethod
    def tiny(cls) -> Self:
        """A model for tests and examples: 3 layers, two query heads to a key/value head."""
        return cls(
            vocab_size=97,
            d_model=32,
            d_mlp=48,
            n_layers=3,
            n_heads=4,
            n_kv_heads=2,
            head_dim=8,
            max_positions=4096,
            rope_theta=10_000.0,
        )

    @classmethod
    def from_hf(cls, hf: dict[str, Any]) -> Self:
        """Read a Hugging Face `config.json` that was parsed into a dict.

        Every field must either be one that is implemented here, have a value that asks for
        nothing, or be known not to change the numbers.

        Raises:
            ValueError: naming every field that is missing or not implemented, all at once.
        """
        problems = [f"missing field: {name}" for name in _REQUIRED if name not in hf]
        for name, value in hf.items():
            if name in _READ or name in _NO_EFFECT:
                continue
            if name not in _NEUTRAL:
                problems.append(f"{name}={value!r}: unknown field")
            elif value not in _NEUTRAL[name]:
                allowed = " or ".join(repr(v) for v in _NEUTRAL[name])
                problems.append(f"{name}={value!r}: not implemented, expected {allowed}")
        problems += [
            f"{name}={hf[name]!r}: expected a whole number of at least 1"
            for name in _WHOLE
            if name in hf and not _is_size(hf[name]) and not (name in _OPTIONAL and not hf[name])
        ]
        theta, scaling, rope_problems = _read_rope(hf)
        problems += rope_problems
        if problems:
            raise ValueError("config.json cannot be used:\n  " + "\n  ".join(problems))
        n_heads = hf["num_attention_heads"]
        return cls(
            vocab_size=hf["vocab_size"],
            d_model=hf["hidden_size"],
            d_mlp=hf["intermediate_size"],
            n_layers=hf["num_hidden_layers"],
            n_heads=n_heads,
            n_kv_heads=hf.get("num_key_value_heads") or n_heads,
            head_dim=hf.get("head_dim") or hf["hidden_size"] // n_heads,
            max_positions=hf.get("max_position_embeddings", 2048),
            norm_eps=hf.get("rms_norm_eps", 1e-6),  # transformers' default, not Llama-3's 1e-5
            rope_theta=theta,
            rope_scaling=scaling,
            tie_embeddings=hf.get("tie_word_embeddings", False),
        )

    def to_hf(self) -> dict[str, Any]:
        """The same config as the fields of a Hugging Face `config.json`."""
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": self.rope_theta}
        if self.rope_scaling:
            rope |= {"rope_type": self.rope_scaling.kind, "factor": self.rope_scaling.factor}
            if self.rope_scaling.kind == "llama3":
                rope |= {
                    "low_freq_factor": self.rope_scaling.low_freq_factor,
                    "high_freq_factor": self.rope_scaling.high_freq_factor,
                    "original_max_position_embeddings": self.rope_scaling.original_max_positions,
                }
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.d_model,
            "intermediate_size": self.d_mlp,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.max_positions,
            "rms_norm_eps": self.norm_eps,
            "rope_parameters": rope,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": self.tie_embeddings,
        }

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict; `from_dict` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The inverse of `to_dict`; unknown or missing keys raise `ValueError`."""
        data = dict(data)
        try:
            if data.get("rope_scaling"):
                data["rope_scaling"] = RopeScaling(**data["rope_scaling"])
            return cls(**data)
        except (TypeError, ValueError) as error:
            raise ValueError(f"not a jaxsteer config: {error}") from None


_SIZES = (
    "vocab_size", "d_model", "d_mlp", "n_layers", "n_heads", "n_kv_heads", "head_dim",
    "max_positions",
)  # fmt: skip
# Above any Llama; a damaged config must not make us list the tensors of a billion layers.
_MOST_LAYERS = 1000
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
}
# Fields that must hold one of these values, because another value would ask for other arithmetic.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "model_type": ("llama",),
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "attention_dropout": (0, 0.0, None),
    "pretraining_tp": (1, None),
    "sliding_window": (None,),
    "use_sliding_window": (False, None),
    "quantization_config": (None,),
    "partial_rotary_factor": (1, 1.0, None),
    "logits_soft_cap": (None,),
    "attn_logit_softcapping": (None,),
}
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


def _read_rope(hf: dict[str, Any]) -> tuple[float, RopeScaling | None, list[str]]:
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
    if problems or kind == "default":
        return theta, None, problems
    if kind == "linear":
        return theta, RopeScaling(kind=kind, factor=rope["factor"]), []
    scaling = RopeScaling(
        kind=kind,
        factor=rope["factor"],
        low_freq_factor=rope["low_freq_factor"],
        high_freq_factor=rope["high_freq_factor"],
        original_max_positions=rope["original_max_position_embeddings"],
    )
    return theta, scaling, []


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_positive(value: Any) -> bool:
    """Whether it is a finite number above 0; JSON's true and false are no numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 < value <= sys.float_info.max

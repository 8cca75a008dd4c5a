"""The shape of a model: a frozen config, and presets with the published numbers."""

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from jaxsteer.config import config_json
from jaxsteer.config.json_values import is_positive, is_size, listed

_KINDS = ("linear", "llama3", "yarn", "dynamic")
_NUMBERS = (
    "factor", "low_freq_factor", "high_freq_factor", "original_max_positions", "beta_fast",
    "beta_slow", "attention_factor",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the pre-training context.

    `kind` is one of

    - `"linear"`: all frequencies divided by `factor`;
    - `"llama3"` (Llama-3.1): long wavelengths divided by `factor`, short ones kept, the band
      between interpolated;
    - `"yarn"` (arXiv 2309.00071): pairs that turn often kept, pairs that turn seldom divided by
      `factor`, those between interpolated; rotated queries and keys times `attention_factor`;
    - `"dynamic"`: within the original context as it was; beyond it the base grows with the length
      of the text.
    """

    kind: str
    factor: float
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    original_max_positions: int = 8192  # llama3, yarn, dynamic
    beta_fast: float = 32.0  # yarn: turns over the original context above which a pair is kept
    beta_slow: float = 1.0  # yarn: and below which it is divided
    attention_factor: float = 1.0  # yarn
    truncate: bool = True  # yarn: the band between begins and ends at whole pairs

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(
                f"rope_scaling.kind: got {self.kind!r}, expected {' or '.join(_KINDS)}"
            )
        for name in _NUMBERS:
            if not is_positive(getattr(self, name)):
                raise ValueError(
                    f"rope_scaling.{name}: got {getattr(self, name)!r}, expected more than 0"
                )
        if not isinstance(self.truncate, bool):
            raise ValueError(f"rope_scaling.truncate: got {self.truncate!r}, expected a bool")
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
    qkv_bias: bool = False  # queries, keys and values have a bias, as in Qwen2
    qk_norm: bool = False  # queries and keys go through an RMSNorm, head by head, as in Qwen3

    def __post_init__(self) -> None:
        for name in _SIZES:
            if not is_size(getattr(self, name)):
                raise ValueError(
                    f"{name}: got {getattr(self, name)!r}, expected a whole number of at least 1"
                )
            if getattr(self, name) > _MOST:
                raise ValueError(f"{name}: got {getattr(self, name):,}, expected at most {_MOST:,}")
        if self.n_layers > _MOST_LAYERS:
            raise ValueError(f"n_layers: got {self.n_layers:,}, expected at most {_MOST_LAYERS:,}")
        for name in ("norm_eps", "rope_theta"):
            if not is_positive(getattr(self, name)):
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected more than 0")
        for name in ("tie_embeddings", "qkv_bias", "qk_norm"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected true or false")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"n_kv_heads: got {self.n_kv_heads}, expected a divisor of n_heads={self.n_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim: got {self.head_dim}, expected an even number (RoPE pairs)")

    # Sizes in the order V, D, F, L, N, K, H, positions.

    @classmethod
    def llama2_7b(cls) -> Self:
        """Llama-2-7B."""
        return cls(**_sizes(32_000, 4096, 11_008, 32, 32, 32, 128, 4096), rope_theta=10_000.0)

    @classmethod
    def tinyllama(cls) -> Self:
        """TinyLlama-1.1B."""
        return cls(**_sizes(32_000, 2048, 5632, 22, 32, 4, 64, 2048), rope_theta=10_000.0)

    @classmethod
    def llama31_8b(cls) -> Self:
        """Llama-3.1-8B, and DeepSeek-R1-Distill-Llama-8B, which has the same shape."""
        return cls(
            **_sizes(128_256, 4096, 14_336, 32, 32, 8, 128, 131_072),
            rope_scaling=RopeScaling(kind="llama3", factor=8.0),
        )

    @classmethod
    def llama31_70b(cls) -> Self:
        """Llama-3.1-70B, Llama-3.3-70B, and DeepSeek-R1-Distill-Llama-70B."""
        return replace(cls.llama31_8b(), d_model=8192, d_mlp=28_672, n_layers=80, n_heads=64)

    @classmethod
    def llama32_1b(cls) -> Self:
        """Llama-3.2-1B."""
        return cls(
            **_sizes(128_256, 2048, 8192, 16, 32, 8, 64, 131_072),
            rope_scaling=RopeScaling(kind="llama3", factor=32.0),
            tie_embeddings=True,
        )

    @classmethod
    def llama32_3b(cls) -> Self:
        """Llama-3.2-3B."""
        return replace(cls.llama32_1b(), d_model=3072, n_layers=28, n_heads=24, head_dim=128)

    @classmethod
    def r1_distill_qwen_1_5b(cls) -> Self:
        """DeepSeek-R1-Distill-Qwen-1.5B; its base, Qwen2.5-Math-1.5B, ties its embeddings."""
        return cls(
            **_sizes(151_936, 1536, 8960, 28, 12, 2, 128, 131_072),
            norm_eps=1e-6,
            rope_theta=10_000.0,
            qkv_bias=True,
        )

    @classmethod
    def r1_distill_qwen_7b(cls) -> Self:
        """DeepSeek-R1-Distill-Qwen-7B."""
        return cls(
            **_sizes(152_064, 3584, 18_944, 28, 28, 4, 128, 131_072),
            norm_eps=1e-6,
            rope_theta=10_000.0,
            qkv_bias=True,
        )

    @classmethod
    def r1_distill_qwen_14b(cls) -> Self:
        """DeepSeek-R1-Distill-Qwen-14B."""
        return cls(
            **_sizes(152_064, 5120, 13_824, 48, 40, 8, 128, 131_072),
            rope_theta=1_000_000.0,
            qkv_bias=True,
        )

    @classmethod
    def r1_distill_qwen_32b(cls) -> Self:
        """DeepSeek-R1-Distill-Qwen-32B."""
        return replace(cls.r1_distill_qwen_14b(), d_mlp=27_648, n_layers=64)

    @classmethod
    def qwen3_0_6b(cls) -> Self:
        """Qwen3-0.6B."""
        return cls(
            **_sizes(151_936, 1024, 3072, 28, 16, 8, 128, 40_960),
            norm_eps=1e-6,
            rope_theta=1_000_000.0,
            tie_embeddings=True,
            qk_norm=True,
        )

    @classmethod
    def qwen3_4b(cls) -> Self:
        """Qwen3-4B."""
        return replace(cls.qwen3_0_6b(), d_model=2560, d_mlp=9728, n_layers=36, n_heads=32)

    @classmethod
    def mistral_7b(cls) -> Self:
        """Mistral-7B-v0.3; v0.2 has 32,000 tokens."""
        return cls(**_sizes(32_768, 4096, 14_336, 32, 32, 8, 128, 32_768), rope_theta=1_000_000.0)

    @classmethod
    def tiny(cls) -> Self:
        """A model for tests and examples: 3 layers, two query heads to a key/value head."""
        return cls(**_sizes(97, 32, 48, 3, 4, 2, 8, 4096), rope_theta=10_000.0)

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any], *, strict: bool = False) -> Self:
        """Read a Hugging Face `config.json` that was parsed into a dict; see `config_json`.

        Fields of which it is not known what they do are named in one warning.

        Raises:
            ValueError: naming every field that is missing or not implemented, all at once; of an
                architecture that is none of ours, in one line; with `strict`, naming the unknown.
        """
        fields, unknown = config_json.read(hf), config_json.unknown_fields(hf)
        names = listed(unknown)
        if unknown and strict:
            raise ValueError(f"config.json: got unknown fields {names}, expected none (strict)")
        if unknown:
            warnings.warn(f"config.json: unknown fields are ignored: {names}", stacklevel=2)
        return cls(**_with_scaling(fields))

    def to_hf(self) -> dict[str, Any]:
        """The same config as the fields of a Hugging Face `config.json`.

        Raises:
            ValueError: if no model type has this config's biases and norms together.
        """
        return config_json.write(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict; `from_dict` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The inverse of `to_dict`; unknown or missing keys raise `ValueError`."""
        try:
            return cls(**_with_scaling(data))
        except (TypeError, ValueError) as error:
            raise ValueError(f"not a jaxsteer config: {error}") from None


# Classmethods of `LlamaConfig` that give the shape of a published model.
PRESETS = (
    "llama2_7b", "tinyllama", "llama31_8b", "llama31_70b", "llama32_1b", "llama32_3b",
    "r1_distill_qwen_1_5b", "r1_distill_qwen_7b", "r1_distill_qwen_14b", "r1_distill_qwen_32b",
    "qwen3_0_6b", "qwen3_4b", "mistral_7b",
)  # fmt: skip
_SIZES = (
    "vocab_size", "d_model", "d_mlp", "n_layers", "n_heads", "n_kv_heads", "head_dim",
    "max_positions",
)  # fmt: skip
_MOST = 2**31 - 1  # positions and ids are int32
# Above any Llama; a damaged config must not make us list the tensors of a billion layers.
_MOST_LAYERS = 1000


def _sizes(*sizes: int) -> dict[str, Any]:
    return dict(zip(_SIZES, sizes, strict=True))


def _with_scaling(fields: dict[str, Any]) -> dict[str, Any]:
    """The same fields, with the dict under `rope_scaling` made a `RopeScaling`."""
    scaling = fields.get("rope_scaling")
    return fields | {"rope_scaling": RopeScaling(**scaling)} if scaling else fields

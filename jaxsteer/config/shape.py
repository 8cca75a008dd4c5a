"""The shape of a Llama or Qwen2: a frozen config, and presets with the published numbers."""

import dataclasses
import sys
from dataclasses import dataclass, replace
from typing import Any, Self

from jaxsteer.config import config_json as hf_config
from jaxsteer.config.config_json import is_size


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
    qkv_bias: bool = False  # queries, keys and values have a bias, as in Qwen2
    qk_norm: bool = False  # queries and keys go through an RMSNorm, head by head, as in Qwen3

    def __post_init__(self) -> None:
        for name in _SIZES:
            if not is_size(getattr(self, name)):
                raise ValueError(
                    f"{name}: got {getattr(self, name)!r}, expected a whole number of at least 1"
                )
        if self.n_layers > _MOST_LAYERS:
            raise ValueError(f"n_layers: got {self.n_layers:,}, expected at most {_MOST_LAYERS:,}")
        for name in ("norm_eps", "rope_theta"):
            if not _is_positive(getattr(self, name)):
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

    @classmethod
    def llama2_7b(cls) -> Self:
        """Llama-2-7B."""
        return cls(
            vocab_size=32_000,
            d_model=4096,
            d_mlp=11_008,
            n_layers=32,
            n_heads=32,
            n_kv_heads=32,
            head_dim=128,
            max_positions=4096,
            rope_theta=10_000.0,
        )

    @classmethod
    def tinyllama(cls) -> Self:
        """TinyLlama-1.1B."""
        return replace(
            cls.llama2_7b(),
            d_model=2048,
            d_mlp=5632,
            n_layers=22,
            n_kv_heads=4,
            head_dim=64,
            max_positions=2048,
        )

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
    def llama31_70b(cls) -> Self:
        """Llama-3.1-70B, Llama-3.3-70B, and DeepSeek-R1-Distill-Llama-70B."""
        return replace(cls.llama31_8b(), d_model=8192, d_mlp=28_672, n_layers=80, n_heads=64)

    @classmethod
    def llama32_1b(cls) -> Self:
        """Llama-3.2-1B."""
        return replace(
            cls.llama31_8b(),
            d_model=2048,
            d_mlp=8192,
            n_layers=16,
            head_dim=64,
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
            vocab_size=151_936,
            d_model=1536,
            d_mlp=8960,
            n_layers=28,
            n_heads=12,
            n_kv_heads=2,
            head_dim=128,
            max_positions=131_072,
            norm_eps=1e-6,
            rope_theta=10_000.0,
            qkv_bias=True,
        )

    @classmethod
    def r1_distill_qwen_7b(cls) -> Self:
        """DeepSeek-R1-Distill-Qwen-7B."""
        return replace(
            cls.r1_distill_qwen_1_5b(),
            vocab_size=152_064,
            d_model=3584,
            d_mlp=18_944,
            n_heads=28,
            n_kv_heads=4,
        )

    @classmethod
    def r1_distill_qwen_14b(cls) -> Self:
        """DeepSeek-R1-Distill-Qwen-14B."""
        return replace(
            cls.r1_distill_qwen_7b(),
            d_model=5120,
            d_mlp=13_824,
            n_layers=48,
            n_heads=40,
            n_kv_heads=8,
            norm_eps=1e-5,
            rope_theta=1_000_000.0,
        )

    @classmethod
    def r1_distill_qwen_32b(cls) -> Self:
        """DeepSeek-R1-Distill-Qwen-32B."""
        return replace(cls.r1_distill_qwen_14b(), d_mlp=27_648, n_layers=64)

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
        """Read a Hugging Face `config.json` that was parsed into a dict; see `hf_config.read`.

        Raises:
            ValueError: naming every field that is missing or not implemented, all at once.
        """
        return cls(**_with_scaling(hf_config.read(hf)))

    def to_hf(self) -> dict[str, Any]:
        """The same config as the fields of a Hugging Face `config.json`."""
        return hf_config.write(self.to_dict())

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
    "llama2_7b",
    "tinyllama",
    "llama31_8b",
    "llama31_70b",
    "llama32_1b",
    "llama32_3b",
    "r1_distill_qwen_1_5b",
    "r1_distill_qwen_7b",
    "r1_distill_qwen_14b",
    "r1_distill_qwen_32b",
)
_SIZES = (
    "vocab_size", "d_model", "d_mlp", "n_layers", "n_heads", "n_kv_heads", "head_dim",
    "max_positions",
)  # fmt: skip
# Above any Llama; a damaged config must not make us list the tensors of a billion layers.
_MOST_LAYERS = 1000


def _with_scaling(fields: dict[str, Any]) -> dict[str, Any]:
    """The same fields, with the dict under `rope_scaling` made a `RopeScaling`."""
    scaling = fields.get("rope_scaling")
    return fields | {"rope_scaling": RopeScaling(**scaling)} if scaling else fields


def _is_positive(value: Any) -> bool:
    """Whether it is a finite number above 0; JSON's true and false are no numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 < value <= sys.float_info.max

"""A model in a GGUF file, as llama.cpp runs it: its config, and its tensors as float32.

The `gguf` package knows the names of tensors and how quantised ones are unpacked. llama.cpp wants
the two halves of a rotated head's width interleaved, so in files of the architecture `llama` the
rows of q and k are in another order; here they get Hugging Face's order back.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from jaxsteer.config import LlamaConfig
from jaxsteer.files import GgufTensor, as_path, read_gguf_header
from jaxsteer.huggingface import tensor_names as hf
from jaxsteer.huggingface.folder import read_bytes
from jaxsteer.llama import rope_frequencies

ARCHITECTURES = ("llama", "qwen2", "qwen3")
_ROPE_FACTORS = "rope_freqs.weight"  # what Llama-3's scaling divides each frequency by
# Keys of the architecture that are read below, and those that say nothing about the numbers.
_READ = {
    "context_length", "embedding_length", "block_count", "feed_forward_length",
    "attention.head_count", "attention.head_count_kv", "attention.key_length",
    "attention.value_length", "attention.layer_norm_rms_epsilon",
    "rope.dimension_count", "rope.freq_base", "rope.scaling.type", "rope.scaling.factor",
    "rope.scaling.original_context_length",
}  # fmt: skip
_NUMBERS = (_READ - {"rope.scaling.type"}) | {"attention.sliding_window"}
_NO_EFFECT = {"vocab_size", "rope.scaling.finetuned", "tensor_data_layout", "expert_used_count"}
# Keys that change the numbers unless they have this value.
_NEUTRAL = {
    "expert_count": 0,
    "rope.scaling.attn_factor": 1.0,
    "attention.causal": True,
    "use_parallel_residual": False,
    "logit_scale": 1.0,
}


@dataclass(frozen=True)
class GgufModel:
    """A file whose header was read and fits its config; no tensor was read yet."""

    path: Path
    config: LlamaConfig
    config_json: dict[str, Any]  # as the model's `config.json` would say it
    pairs: dict[str, Any]
    entries: dict[str, GgufTensor]  # by Hugging Face name
    unknown_fields: dict[str, Any]  # keys of the architecture of which it is not known what they do

    @property
    def shards(self) -> tuple[Path, ...]:
        """The files with weights, as of a folder: this one."""
        return (self.path,)

    @property
    def companions(self) -> tuple[Path, ...]:
        """Tokenizer and configs beside the weights, as of a folder: they are in the header."""
        return ()

    def check_tied(self) -> None:
        """A tied model has no head in the file, so there is nothing to compare."""

    @property
    def dtypes(self) -> dict[str, int]:
        """How many tensors have each of GGML's types."""
        names = [_kind(entry).name for entry in self.entries.values()]
        return {name: names.count(name) for name in sorted(set(names))}

    def in_file_order(self) -> list[hf.Tensor]:
        """The model's tensors as they stand in the file."""
        tensors = hf.tensors(self.config)
        return sorted(tensors.values(), key=lambda t: self.entries[t.name].begin)

    def read(self, name: str) -> np.ndarray:
        """One tensor as float32, in Hugging Face's layout."""
        return self.read_rows(name, 0, self.entries[name].shape[0])

    def read_rows_into(self, out: np.ndarray, name: str, start: int) -> bool:
        """Rows of a GGUF file are unpacked first, so they cannot be read into place."""
        return False

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop` of a tensor, along its first axis, as float32."""
        entry = self.entries[name]
        if self.config_json["model_type"] != "llama" or not name.endswith(_PERMUTED):
            return self._stored_rows(entry, start, stop)
        width = self.config.head_dim  # rows move within their head
        first, last = start // width * width, -(-stop // width) * width
        x = self._stored_rows(entry, first, last)
        x = x.reshape(-1, width // 2, 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)
        return x[start - first : stop - first]

    def _stored_rows(self, entry: GgufTensor, start: int, stop: int) -> np.ndarray:
        row = _row_bytes(entry)
        data = read_bytes(self.path, entry.begin + start * row, (stop - start) * row)
        if len(entry.shape) > 1:
            data = data.reshape(stop - start, row)
        kind = _kind(entry)
        if kind in _PLAIN:  # the package wants these as numbers
            data = data.view(_PLAIN[kind])
        x = gguf.quants.dequantize(data, kind)
        return np.asarray(x, np.float32).reshape(stop - start, *entry.shape[1:])


_PERMUTED = ("q_proj.weight", "k_proj.weight", "q_proj.bias", "k_proj.bias")
_PLAIN = {gguf.GGMLQuantizationType.F32: "<f4", gguf.GGMLQuantizationType.F16: "<f2"}


def open_gguf(path: str | Path, *, strict: bool = False) -> GgufModel:
    """Open a GGUF file of a Llama or Qwen model.

    Args:
        path: the file.
        strict: refuse keys of the architecture that are not known, instead of a note.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, of another architecture, asks for what is not implemented, or
            its tensors do not fit its config (all named).
    """
    path = as_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    header = read_gguf_header(path)
    architecture = header.pairs.get("general.architecture")
    if architecture not in ARCHITECTURES:
        hint = " (a control vector: load_directions reads it)" * (architecture == "controlvector")
        raise ValueError(
            f"{path}: architecture: got {architecture!r:.80}, "
            f"expected {' or '.join(ARCHITECTURES)}{hint}"
        )
    prefix = f"{architecture}."
    own = {k.removeprefix(prefix): v for k, v in header.pairs.items() if k.startswith(prefix)}
    try:
        factors = _rope_factors(path, header.tensors)
        config_json = _config_json(architecture, header.pairs, own, header.tensors, factors)
        unknown = _unknown_keys(own, prefix, config_json, strict=strict)
        config = LlamaConfig.from_hf(config_json, strict=strict)
        _check_factors(factors, config)
        entries = _entries(architecture, header.tensors, config)
        _check_places(entries.values(), header.size)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return GgufModel(path, config, config_json, header.pairs, entries, unknown)


def _config_json(
    architecture: str,
    pairs: Mapping[str, Any],
    own: Mapping[str, Any],
    tensors: Mapping[str, GgufTensor],
    factors: np.ndarray | None,
) -> dict[str, Any]:
    """The model's `config.json`."""
    wanted = (
        "block_count", "context_length", "embedding_length", "feed_forward_length",
        "attention.head_count", "attention.layer_norm_rms_epsilon",
    )  # fmt: skip
    missing = [f"missing: {architecture}.{key}" for key in wanted if key not in own]
    missing += ["missing: token_embd.weight"] * ("token_embd.weight" not in tensors)
    if missing:
        raise ValueError("\n  ".join(["its header cannot be used:", *missing]))
    for key in sorted(_NUMBERS & own.keys()):
        if isinstance(own[key], bool) or not isinstance(own[key], int | float):
            kind = type(own[key]).__name__
            raise ValueError(
                f"{architecture}.{key}: got a {kind}, expected a number for all layers"
            )
    n_heads = own["attention.head_count"]
    head_dim = own.get("attention.key_length") or own["embedding_length"] // max(n_heads, 1)
    for key in ("attention.value_length", "rope.dimension_count"):
        if own.get(key, head_dim) != head_dim:
            raise ValueError(f"{architecture}.{key}: got {own[key]}, expected {head_dim}")
    tied = "output.weight" not in tensors
    config = {
        "architectures": [f"{architecture.capitalize()}ForCausalLM"],
        "model_type": architecture,
        "vocab_size": tensors["token_embd.weight"].shape[0],
        "hidden_size": own["embedding_length"],
        "intermediate_size": own["feed_forward_length"],
        "num_hidden_layers": own["block_count"],
        "num_attention_heads": n_heads,
        "num_key_value_heads": own.get("attention.head_count_kv", n_heads),
        "head_dim": head_dim,
        "max_position_embeddings": own["context_length"],
        "rms_norm_eps": _shortest(own["attention.layer_norm_rms_epsilon"]),
        "rope_theta": _shortest(own.get("rope.freq_base", 10_000.0)),
        "rope_scaling": _rope_scaling(own, factors),
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
    }
    ids = {name: pairs.get(f"tokenizer.ggml.{name}") for name in ("bos_token_id", "eos_token_id")}
    return config | {name: token for name, token in ids.items() if token is not None}


def _shortest(number: float) -> float:
    """The number that was written before it was rounded to float32, as 1e-5."""
    return float(str(np.float32(number)))


def _rope_scaling(own: Mapping[str, Any], factors: np.ndarray | None) -> dict[str, Any] | None:
    kind = own.get("rope.scaling.type", "none")
    if factors is not None:
        if kind not in ("none", "linear") or own.get("rope.scaling.factor", 1.0) != 1.0:
            raise ValueError(f"rope.scaling.type={kind!r}: not implemented with {_ROPE_FACTORS}")
        return _llama3_scaling(factors)
    if kind == "none":
        return None
    scaling = {"rope_type": kind, "factor": own.get("rope.scaling.factor", 1.0)}
    if "rope.scaling.original_context_length" in own and kind != "linear":
        original = own["rope.scaling.original_context_length"]
        scaling["original_max_position_embeddings"] = original
    return scaling


def _llama3_scaling(factors: np.ndarray) -> dict[str, Any]:
    """Llama-3's scaling from what it divides frequencies by: the largest is `factor`.

    The file keeps the result alone. The three other numbers are those of all models that Meta
    published; `_check_factors` compares what they give with the file.
    """
    return {
        "rope_type": "llama3",
        "factor": float(factors.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def _check_factors(factors: np.ndarray | None, config: LlamaConfig) -> None:
    if factors is None:
        return
    plain = np.asarray(rope_frequencies(replace(config, rope_scaling=None)))
    expected = plain / np.asarray(rope_frequencies(config))
    # Both sides are float32 results of the same formula.
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-4):
        raise ValueError(f"{_ROPE_FACTORS}: not the scaling of a published Llama-3")


def _rope_factors(path: Path, tensors: Mapping[str, GgufTensor]) -> np.ndarray | None:
    """What frequencies are divided by, `[H / 2]`, if the file says so."""
    entry = tensors.get(_ROPE_FACTORS)
    if entry is None:
        return None
    if entry.kind != gguf.GGMLQuantizationType.F32 or math.prod(entry.shape) > 1 << 16:
        raise ValueError(f"{_ROPE_FACTORS}: expected float32, one number for a pair of a head")
    return read_bytes(path, entry.begin, 4 * math.prod(entry.shape)).view("<f4")


def _unknown_keys(
    own: Mapping[str, Any], prefix: str, config: Mapping[str, Any], *, strict: bool
) -> dict[str, Any]:
    """Refuse keys that change the numbers; return those that are not known."""
    problems, unknown = [], {}
    for key, value in own.items():
        if key in _READ or key in _NO_EFFECT:
            continue
        if key == "attention.sliding_window":
            if not value >= config["max_position_embeddings"]:
                problems.append(f"{prefix}{key}={value!r:.80}: not implemented, expected none")
        elif key not in _NEUTRAL:
            unknown[prefix + key] = value
        elif value != _NEUTRAL[key]:
            problems.append(
                f"{prefix}{key}={value!r:.80}: not implemented, expected {_NEUTRAL[key]!r}"
            )
    if strict:
        problems += [f"{key}={value!r:.80}: unknown key" for key, value in unknown.items()]
    if problems:
        raise ValueError("its header cannot be used:\n  " + "\n  ".join(problems))
    return unknown


def _entries(
    architecture: str, tensors: Mapping[str, GgufTensor], config: LlamaConfig
) -> dict[str, GgufTensor]:
    """The model's tensors by Hugging Face name, all there and of their shapes."""
    known = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(known[architecture], config.n_layers)
    expected = hf.tensors(config)
    suffixes = (".weight", ".bias")
    ours = {str(names.get_name(name, suffixes) or name): name for name in expected}
    entries = {ours.get(name, name): x for name, x in tensors.items() if name != _ROPE_FACTORS}
    for name, entry in entries.items():
        _check_kind(name, entry)
    # Whatever they are quantised to, they come out as floats.
    hf.check({name: hf.Header(x.shape, "float32") for name, x in entries.items()}, config)
    return entries


def _check_kind(name: str, entry: GgufTensor) -> None:
    """Raise `ValueError` for a type that the package cannot unpack, or rows of broken blocks."""
    try:
        kind = _kind(entry)
        block, size = gguf.GGML_QUANT_SIZES[kind]
        if kind not in _PLAIN:
            gguf.quants.dequantize(np.zeros((1, size), np.uint8), kind)
    except (ValueError, KeyError, NotImplementedError):
        raise ValueError(f"{name}: GGML type {entry.kind} is not implemented") from None
    if entry.shape[-1] % block or (len(entry.shape) == 1 and block > 1):
        raise ValueError(f"{name}: {kind.name} of {list(entry.shape)}: expected blocks of {block}")


def _check_places(entries: Iterable[GgufTensor], size: int) -> None:
    """Tensors must lie in the file, none over another."""
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.begin):
        if entry.begin < end:
            raise ValueError(f"a tensor at byte {entry.begin:,} overlaps the one before it")
        end = entry.begin + _row_bytes(entry) * entry.shape[0]
    if end > size:
        raise ValueError(
            f"its tensors end at byte {end:,} and the file at {size:,}; fetch it again"
        )


def _kind(entry: GgufTensor) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType(entry.kind)


def _row_bytes(entry: GgufTensor) -> int:
    """Bytes of one index of the first axis."""
    block, size = gguf.GGML_QUANT_SIZES[_kind(entry)]
    return math.prod(entry.shape[1:]) * size // block

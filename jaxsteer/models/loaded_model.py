"""What `jaxsteer.load` returns: a model and all that came with it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax

from jaxsteer.llama import Model
from jaxsteer.runtime import escaped_line


@dataclass(frozen=True, repr=False)
class Loaded:
    """A model, its tokenizer, and what is known of them; printed, it says so in five lines.

    It unpacks as a pair: `model, tokenizer = jaxsteer.load(…)`.
    """

    model: Model
    tokenizer: Any  # of transformers; None where there is none
    end_tokens: tuple[int, ...] = ()  # ids with which a text ends, for `stop_tokens`
    provenance: Mapping[str, Any] = field(default_factory=dict)  # JSON-ready: where it came from
    notes: tuple[str, ...] = ()  # what was unusual, a line each

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model, self.tokenizer))

    def __getitem__(self, index: int) -> Any:
        return (self.model, self.tokenizer)[index]

    def __len__(self) -> int:
        return 2

    def __repr__(self) -> str:
        return "\n".join(
            [
                _shape_line(self.model),
                _size_line(self.model),
                f"devices: {_devices(self.model)}",
                f"tokenizer: {_tokenizer_line(self.tokenizer)}",
                f"end tokens: {_ends_line(self.end_tokens, self.tokenizer)}",
                *(f"note: {escaped_line(note)}" for note in self.notes),
            ]
        )


def _shape_line(model: Model) -> str:
    c = model.config
    heads = f"{c.n_heads} heads of {c.head_dim}"
    if c.n_kv_heads != c.n_heads:
        heads += f" ({c.n_kv_heads} key/value)"
    return (
        f"{c.to_hf()['model_type']}: {c.n_layers} layers, width {c.d_model}, MLP {c.d_mlp}, "
        f"{heads}, vocabulary {c.vocab_size:,}"
    )


def _size_line(model: Model) -> str:
    leaves = jax.tree.leaves(model.params)
    size = sum(x.nbytes for x in leaves)
    return f"size: {sum(x.size for x in leaves):,} parameters, {model.dtype.name}, {_bytes(size)}"


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"


def _devices(model: Model) -> str:
    devices = sorted(
        {d for x in jax.tree.leaves(model.params) for d in x.sharding.device_set},
        key=lambda device: device.id,
    )
    kinds = ", ".join(sorted({device.device_kind for device in devices}))
    return f"{len(devices)} × {kinds}" if len(devices) > 1 else f"{devices[0]} ({kinds})"


def _tokenizer_line(tokenizer: Any) -> str:
    if tokenizer is None:
        return "none"
    template = (
        "a chat template" if getattr(tokenizer, "chat_template", None) else "no chat template"
    )
    return f"{type(tokenizer).__name__}, {len(tokenizer):,} tokens, {template}"


def _ends_line(ids: tuple[int, ...], tokenizer: Any) -> str:
    if not ids:
        return "none known: texts end at `max_new_tokens`"
    if tokenizer is None:
        return ", ".join(map(str, ids))
    return ", ".join(f"{i} {tokenizer.convert_ids_to_tokens(i)!r}" for i in ids)

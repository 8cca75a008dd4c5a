"""Models on disk: an Orbax checkpoint with config, tokenizer and provenance inside.

`save` (`writer`) writes a model; `load` (`checkpoint`) reads it straight to the devices.

Uses `runtime`, `files`, `config`, `llama`, `tokenizers`, `huggingface`.
"""

from jaxsteer.checkpoints.checkpoint import load, read_manifest, save
from jaxsteer.checkpoints.text_ends import end_tokens, named_ends

__all__ = [
    "end_tokens",
    "load",
    "named_ends",
    "read_manifest",
    "save",
]

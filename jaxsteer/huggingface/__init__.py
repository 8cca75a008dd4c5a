"""Other people's files: names of tensors, shards, GGUF, the hub.

A folder, GGUF file or hub id in; tensors in this library's layout, checked, one at a time, out.
Folders are read in `folder`, GGUF files in `gguf_model`. Conversion itself is in the room `models`.

Uses `runtime`, `files`, `config`, `llama`.
"""

from jaxsteer.huggingface.folder import (
    COMPANIONS,
    CONFIGS,
    GENERATION,
    INDEX,
    SINGLE,
    Folder,
    n_bytes,
    open_folder,
)
from jaxsteer.huggingface.gguf_model import GgufModel, open_gguf
from jaxsteer.huggingface.source import Source, find_source, open_source
from jaxsteer.huggingface.stream import tensors_as_ours
from jaxsteer.huggingface.tensor_names import to_hf

__all__ = [
    "COMPANIONS",
    "CONFIGS",
    "GENERATION",
    "INDEX",
    "SINGLE",
    "Folder",
    "GgufModel",
    "Source",
    "find_source",
    "n_bytes",
    "open_folder",
    "open_gguf",
    "open_source",
    "tensors_as_ours",
    "to_hf",
]

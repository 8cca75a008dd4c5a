"""Other people's files: names of tensors, shards, GGUF, tokenizers, the hub.

A folder, GGUF file or hub id in; tensors in this library's layout, checked, one at a time, out.

Uses `runtime`, `files`, `config`, `llama`, and `token_text` of `decoding`.
"""

from jaxsteer.huggingface.folder import (
    CONFIGS,
    GENERATION,
    INDEX,
    SINGLE,
    Folder,
    n_bytes,
    open_folder,
    read_json,
)
from jaxsteer.huggingface.gguf_model import GgufModel, open_gguf
from jaxsteer.huggingface.gguf_tokenizer import gguf_tokenizer
from jaxsteer.huggingface.meta_vocabulary import R1_NAMED, meta_tokenizer
from jaxsteer.huggingface.source import Source, find_source
from jaxsteer.huggingface.strangers import one_line, strangers
from jaxsteer.huggingface.stream import tensors_as_ours
from jaxsteer.huggingface.tensor_names import to_hf
from jaxsteer.huggingface.tokenizer_check import check_tokenizer
from jaxsteer.huggingface.tokenizers import TOKENIZERS, load_tokenizer

__all__ = [
    "CONFIGS",
    "GENERATION",
    "INDEX",
    "R1_NAMED",
    "SINGLE",
    "TOKENIZERS",
    "Folder",
    "GgufModel",
    "Source",
    "check_tokenizer",
    "find_source",
    "gguf_tokenizer",
    "load_tokenizer",
    "meta_tokenizer",
    "n_bytes",
    "one_line",
    "open_folder",
    "open_gguf",
    "read_json",
    "strangers",
    "tensors_as_ours",
    "to_hf",
]

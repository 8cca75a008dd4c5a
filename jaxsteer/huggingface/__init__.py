"""Other people's folders: names of tensors, shards, tokenizers, the hub.

A folder or hub id in; tensors in this library's layout, checked, one at a time, out.

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
    "Source",
    "check_tokenizer",
    "find_source",
    "load_tokenizer",
    "meta_tokenizer",
    "n_bytes",
    "one_line",
    "open_folder",
    "read_json",
    "strangers",
    "tensors_as_ours",
    "to_hf",
]

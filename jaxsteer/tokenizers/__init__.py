"""Texts and chats as token ids: tokenizers of models' folders, and one rule for prompts.

A folder or GGUF header in, a tokenizer that was proved out; a text or a conversation in, ids out,
and what was put before them; what each token writes, as bytes.

Uses `runtime`, `files` and `config`.
"""

from jaxsteer.tokenizers.chat import render
from jaxsteer.tokenizers.encoding import EncodedPrompt, encode, text_beginning
from jaxsteer.tokenizers.gguf_vocabulary import gguf_tokenizer
from jaxsteer.tokenizers.meta_vocabulary import R1_NAMED, meta_tokenizer
from jaxsteer.tokenizers.special_tokens import difference, named_tokens, prompt_facts
from jaxsteer.tokenizers.token_text import byte_alphabet, token_bytes
from jaxsteer.tokenizers.tokenizer_check import check_tokenizer
from jaxsteer.tokenizers.tokenizer_json import TOKENIZERS, load_tokenizer

__all__ = [
    "R1_NAMED",
    "TOKENIZERS",
    "EncodedPrompt",
    "byte_alphabet",
    "check_tokenizer",
    "difference",
    "encode",
    "gguf_tokenizer",
    "load_tokenizer",
    "meta_tokenizer",
    "named_tokens",
    "prompt_facts",
    "render",
    "text_beginning",
    "token_bytes",
]

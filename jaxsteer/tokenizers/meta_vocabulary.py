"""Llama-3's tokenizer from the `tokenizer.model` that Meta publishes, for transformers.

The file has a line for each of 128,000 tokens: its bytes in base64, and its rank. Byte pairs are
merged by the rank of what they make, so the merges that a `tokenizers` model wants are all pairs
of tokens whose bytes together are a token, in the order of that token's rank. The 256 special
tokens are not in the file; their names here are those of Llama 3.1.
"""

import base64
import binascii
import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxsteer.files import as_path
from jaxsteer.tokenizers.token_text import byte_alphabet

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How text is cut before pairs are merged (`Tokenizer.pat_str` of Meta's `llama3/tokenizer.py`)."""

NAMED = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    4: "<|finetune_right_pad_id|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    8: "<|eom_id|>",
    9: "<|eot_id|>",
    10: "<|python_tag|>",
}
"""Special tokens that have a name, counted from the first; the others are reserved."""

R1_NAMED = {
    0: "<｜begin▁of▁sentence｜>",
    1: "<｜end▁of▁sentence｜>",
    11: "<｜User｜>",
    12: "<｜Assistant｜>",
    13: "<think>",
    14: "</think>",
    15: "<｜▁pad▁｜>",
}
"""What DeepSeek-R1-Distill-Llama calls some of them instead."""

FIRST, SPECIAL = 128_000, 256  # id of the first special token, and how many there are
_LINE = re.compile(rb"[A-Za-z0-9+/]+=* \d+")


def is_meta_vocabulary(path: Path) -> bool:
    """Whether a `tokenizer.model` is Meta's, by its first line; SentencePiece's is binary."""
    with open(path, "rb") as file:
        return _LINE.fullmatch(file.readline(1000).strip()) is not None


def meta_tokenizer(path: str | Path, *, renamed: Mapping[int, str] | None = None) -> Any:
    """A `PreTrainedTokenizerFast` that encodes as Meta's tokenizer does, with offsets.

    BOS goes before a text, as Meta's models were trained.

    Args:
        path: Meta's `tokenizer.model`.
        renamed: other names of special tokens, counted from the first, such as `R1_NAMED`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the line, if it is not such a file.
    """
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
        processors,
    )
    from transformers import PreTrainedTokenizerFast

    ranks = _read_ranks(as_path(path))
    letters = {byte: letter for letter, byte in byte_alphabet().items()}
    spelled = {token: "".join(letters[byte] for byte in token) for token in ranks}
    vocabulary = {spelled[token]: rank for token, rank in ranks.items()}
    merges = [(spelled[a], spelled[b]) for a, b in _merges(ranks)]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    names = special_names(renamed)
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in names])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{names[0]} $A",
        pair=f"{names[0]} $A {names[0]}:1 $B:1",
        special_tokens=[(names[0], len(ranks))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=names[0], eos_token=names[1], pad_token=names[4]
    )


def special_names(renamed: Mapping[int, str] | None = None) -> list[str]:
    """Names of the special tokens, in order.

    >>> special_names()[:4]
    ['<|begin_of_text|>', '<|end_of_text|>', '<|reserved_special_token_0|>', \
'<|reserved_special_token_1|>']
    >>> special_names()[11], special_names(R1_NAMED)[11]
    ('<|reserved_special_token_3|>', '<｜User｜>')
    """
    reserved = itertools.count()
    names = [
        NAMED[i] if i in NAMED else f"<|reserved_special_token_{next(reserved)}|>"
        for i in range(SPECIAL)
    ]
    for i, name in (renamed or {}).items():
        names[i] = name
    return names


def _read_ranks(path: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise ValueError(
                f"{path}, line {number}: expected a token in base64 and its rank"
            ) from None
    if sorted(ranks.values()) != list(range(len(ranks))) or any(
        bytes([byte]) not in ranks for byte in range(256)
    ):
        raise ValueError(f"{path}: expected ranks from 0 on, each byte among them")
    return ranks


def _merges(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Pairs of tokens that make a token, in the order in which they are merged."""
    pairs = []
    for token in sorted(ranks, key=ranks.__getitem__):
        halves = [(token[:i], token[i:]) for i in range(1, len(token))]
        whole = [(a, b) for a, b in halves if a in ranks and b in ranks]
        pairs += sorted(whole, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    return pairs

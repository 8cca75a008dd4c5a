"""What each token writes, as bytes: the text of a row is what its tokens' bytes spell together.

A token's bytes may be a part of a character only, and the same bytes can be written by many
sequences of tokens; so text is searched and cut as bytes and decoded when it is whole.
"""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

_SPACE = "\u2581"  # how SentencePiece spells a space
_MOST_TOKENS = 1 << 22
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def token_bytes(tokenizer: Any) -> list[bytes]:
    """The bytes that each token adds to a text that has begun, by id.

    Special tokens write their own names (`<|eot_id|>`), as in `tokenizer.decode`; ids that stand
    for no token write nothing. Byte-level BPE (Llama-3), SentencePiece-style vocabularies with
    byte tokens (Llama-2) and word-level ones, whose words are joined with spaces, are known.

    Raises:
        ValueError: for a tokenizer of another kind, or one that decodes otherwise.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(f"tokenizer: got {type(tokenizer).__name__}, expected a fast tokenizer")
    decoder = backend.decoder  # its state alone: the whole tokenizer is 10 MB of JSON
    state = None if decoder is None else json.loads(decoder.__getstate__())
    kinds = [part["type"] for part in _decoder_parts(state)]
    last = max(tokenizer.get_vocab().values(), default=-1)  # there may be gaps before it
    if last >= _MOST_TOKENS:
        raise ValueError(f"tokenizer: got a token of id {last:,}, expected below {_MOST_TOKENS:,}")
    names = tokenizer.convert_ids_to_tokens(list(range(last + 1)))
    if kinds == ["ByteLevel"]:
        alphabet = byte_alphabet()
        pieces = [_byte_level(name, alphabet) for name in names]
    elif kinds and set(kinds) <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:
        pieces = [_sentencepiece(name, "ByteFallback" in kinds) for name in names]
    elif not kinds:
        pieces = [b"" if name is None else b" " + name.encode() for name in names]
    else:
        raise ValueError(
            f"tokenizer: got one that decodes with {', '.join(kinds)}, expected byte-level BPE, "
            "SentencePiece-style or word-level"
        )
    _check(tokenizer, pieces)
    return pieces


def _decoder_parts(decoder: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if decoder is None:
        return
    if decoder["type"] == "Sequence":
        for part in decoder["decoders"]:
            yield from _decoder_parts(part)
    else:
        yield decoder


def byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in a byte-level vocabulary, the other way round.

    Printable Latin-1 characters stand for themselves, the other bytes for the characters from
    256 on, in order.
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + i): byte for i, byte in enumerate(others)}


def _byte_level(name: str | None, alphabet: dict[str, int]) -> bytes:
    if name is None:
        return b""
    try:
        return bytes(alphabet[char] for char in name)
    except KeyError:  # an added token, spelled as it is
        return name.encode()


def _sentencepiece(name: str | None, byte_fallback: bool) -> bytes:
    if name is None:
        return b""
    if byte_fallback and (match := _BYTE.fullmatch(name)):
        return bytes([int(match[1], 16)])
    return name.replace(_SPACE, " ").encode()


def _check(tokenizer: Any, pieces: Sequence[bytes]) -> None:
    """Compare the pieces with what `tokenizer.decode` makes of random tokens behind a word."""

    def decode(ids: list[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    whole = [i for i, piece in enumerate(pieces) if piece and _is_text(piece)]
    words = [i for i in whole if pieces[i].strip().isalnum()]
    if not words:
        raise ValueError("tokenizer: got no token that is a word, expected some")
    drawn = np.random.default_rng(0).choice(whole, (64, 16))
    for ids in drawn.tolist():
        text = decode([words[0], *ids]).removeprefix(decode([words[0]]))
        expected = b"".join(pieces[i] for i in ids).decode()
        if text != expected:
            raise ValueError(
                f"tokenizer: got {text!r} for the tokens {ids}, expected {expected!r}: its "
                "decoder is not one whose tokens' bytes are known"
            )


def _is_text(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True

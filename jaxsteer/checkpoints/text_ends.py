"""The tokens with which a model ends its text, as the files beside its weights name them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxsteer.checkpoints.checkpoint import companions, read_manifest
from jaxsteer.files import read_json_object


def end_tokens(path: str | Path, tokenizer: Any = None) -> list[int]:
    """End-of-sequence ids of the checkpoint at `path`, for `generate`'s `stop_tokens`.

    Those of `generation_config.json` (a model may have several: Llama-3.1-Instruct ends a turn and
    a text with different ones), or of `config.json` if it names none, and the tokenizer's own.

    Raises:
        FileNotFoundError, ValueError: there is no checkpoint, no file and no tokenizer names an
            end, or a file names what is no id of the model.
    """
    size = read_manifest(path).config.vocab_size
    try:
        return named_ends(companions(path), tokenizer, vocab_size=size)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def named_ends(files: Iterable[Path], tokenizer: Any = None, *, vocab_size: int) -> list[int]:
    """What `end_tokens` gives, from a model's files wherever they lie; other files are ignored.

    Raises:
        ValueError: as `end_tokens`.
    """
    by_name = {file.name: file for file in files}
    found: list[int] = []
    for name in ("generation_config.json", "config.json"):
        if not found and name in by_name:
            found = ends_in(by_name[name], vocab_size)
    own = getattr(tokenizer, "eos_token_id", None)
    found = sorted({*found, *([] if own is None else [own])})
    if not found:
        raise ValueError("no file of the model names an end-of-sequence token (eos_token_id)")
    return found


def ends_in(file: Path, vocab_size: int) -> list[int]:
    """The end-of-sequence ids that one file of a model names; maybe none.

    Raises:
        ValueError: it is no JSON, or names what is no id of the model.
    """
    named = read_json_object(file).get("eos_token_id")
    ids = named if isinstance(named, list) else [] if named is None else [named]
    for token in ids:
        if type(token) is not int or not 0 <= token < vocab_size:
            raise ValueError(
                f"{file}: eos_token_id: got {token!r}, expected ids of 0 to {vocab_size - 1}"
            )
    return ids

"""The tokens that end a model's text, as named by the files beside its weights."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxsteer.checkpoints.checkpoint import companions, read_manifest
from jaxsteer.tokenizers import named_tokens


def end_tokens(path: str | Path, tokenizer: Any = None) -> list[int]:
    """End-of-sequence ids of the checkpoint at `path`, for `generate`'s `stop_tokens`.

    They are those of `generation_config.json` and `config.json`, of the tokenizer, and of its chat
    template after an answer. A model may have several: Llama-3.1-Instruct ends a turn and a text
    with different ones.

    Raises:
        FileNotFoundError, ValueError: there is no checkpoint, no file and no tokenizer names an
            end, or a file names what is no id of the model.
    """
    manifest = read_manifest(path)
    try:
        return named_ends(companions(path), tokenizer, vocab_size=manifest.config.vocab_size)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def named_ends(files: Iterable[Path], tokenizer: Any = None, *, vocab_size: int) -> list[int]:
    """What `end_tokens` gives, from a model's files wherever they lie; other files are ignored.

    Raises:
        ValueError: as `end_tokens`.
    """
    named = named_tokens(files, tokenizer, vocab_size=vocab_size)["eos"]
    ends = sorted({id for ids in named.values() for id in ids})
    if not ends:
        raise ValueError("no file of the model names an end-of-sequence token (eos_token_id)")
    return ends

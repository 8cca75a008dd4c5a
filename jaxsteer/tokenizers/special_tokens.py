"""BOS, EOS and PAD, as the tokenizer, the configs and the chat template each name them."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxsteer.files import read_json_object
from jaxsteer.tokenizers.chat import template_marks
from jaxsteer.tokenizers.encoding import text_beginning

CONFIGS = ("config.json", "generation_config.json")
ROLES = ("bos", "eos", "pad")

Named = dict[str, dict[str, list[int]]]
"""Ids by role ("bos", "eos", "pad") and by who was asked; [] where it names none."""


def named_tokens(files: Iterable[Path], tokenizer: Any = None, *, vocab_size: int) -> Named:
    """Who names which BOS, EOS and PAD, JSON-ready for provenance.

    Args:
        files: of the model; others than `CONFIGS` are ignored.
        tokenizer: of the model; None for none. Tokens that the model has no row for are left out.
        vocab_size: V.

    Raises:
        ValueError: a config is no JSON object, or names what is no id of the model.
    """
    by_name = {file.name: file for file in files}
    named: Named = {role: {} for role in ROLES}
    for name in CONFIGS:
        if name in by_name:
            for role, ids in _in_config(by_name[name], vocab_size).items():
                named[role][name] = ids
    if tokenizer is not None:
        for role in ROLES:
            id = getattr(tokenizer, f"{role}_token_id", None)
            named[role]["tokenizer"] = [] if id is None or id >= vocab_size else [id]
        for role, id in template_marks(tokenizer).items():
            named[role]["chat template"] = [id] if id < vocab_size else []
    return named


def prompt_facts(files: Iterable[Path], tokenizer: Any, *, vocab_size: int) -> dict[str, Any]:
    """What a model's provenance says of its prompts: `named_tokens`, and what texts begin with."""
    beginning = text_beginning(tokenizer)
    return {
        "special_tokens": named_tokens(files, tokenizer, vocab_size=vocab_size),
        "text_beginning": {"ids": beginning.ids, "text": beginning.text, "why": beginning.why},
    }


def difference(named: Mapping[str, Mapping[str, list[int]]]) -> str | None:
    """One line that names every role on which those who name a token do not agree; None if all do.

    One of several ends is no difference, and so is silence, of a tokenizer on BOS apart.

    >>> difference({"bos": {"config.json": [3], "tokenizer": []}, "eos": {"tokenizer": [2]}})
    'special tokens differ: bos: config.json 3, tokenizer none'
    """
    told = []
    for role, by in named.items():
        asked = {w: ids for w, ids in by.items() if ids or (role, w) == ("bos", "tokenizer")}
        if any(asked.values()) and not set.intersection(*map(set, asked.values())):
            said = [f"{who} {' '.join(map(str, ids)) or 'none'}" for who, ids in asked.items()]
            told.append(f"{role}: {', '.join(said)}")
    return f"special tokens differ: {'; '.join(told)}" if told else None


def _in_config(file: Path, vocab_size: int) -> dict[str, list[int]]:
    """The ids that one config names, by role."""
    data = read_json_object(file)
    by_role = {}
    for role in ROLES:
        value = data.get(f"{role}_token_id")
        ids = value if isinstance(value, list) else [] if value is None else [value]
        for id in ids:
            if role == "eos" and (type(id) is not int or not 0 <= id < vocab_size):
                raise ValueError(
                    f"{file}: eos_token_id: got {id!r:.80}, expected ids of 0 to {vocab_size - 1}"
                )
        by_role[role] = [id for id in ids if type(id) is int and 0 <= id < vocab_size]
    return by_role

"""What the models are given to read, and their tokens as text again."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.settings import Prompts


@dataclass(frozen=True)
class Prompt:
    """A problem to solve."""

    id: str
    text: str


def load_prompts(settings: Prompts, split: str, limit: int | None) -> list[Prompt]:
    """The prompts of one split, in the file's order.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a list of {id, prompt, split} with distinct ids, or the split is
            empty.
    """
    path = Path(settings.file)
    if not path.is_file():
        raise FileNotFoundError(f"prompts.file: {path}: no such file")
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"prompts.file: {path}: not JSON ({error})") from None
    if not isinstance(rows, list):
        raise ValueError(f"prompts.file: {path}: expected a list of objects")
    for i, row in enumerate(rows):
        for key in ("id", "prompt", "split"):
            if not isinstance(row, dict) or not isinstance(row.get(key), str) or not row[key]:
                raise ValueError(f"prompts.file: {path}: entry {i}: expected a text {key!r}")
    if len({row["id"] for row in rows}) < len(rows):
        raise ValueError(f"prompts.file: {path}: ids are not distinct")
    chosen = [Prompt(row["id"], row["prompt"]) for row in rows if row["split"] == split][:limit]
    if not chosen:
        splits = sorted({row["split"] for row in rows})
        raise ValueError(f"prompts.file: {path}: no prompt in split {split!r}, found {splits}")
    return chosen


def render(tokenizer: Any, prompt: str, *, role: str, base_template: str = "") -> str:
    """The text before a model's answer: its chat format, or a continuation for the base model.

    A base model that is given the chat format has never seen its tokens, and often writes nothing
    at all.
    """
    if role == "base":
        return (tokenizer.bos_token or "") + base_template.replace("{prompt}", prompt)
    if not tokenizer.chat_template:
        raise ValueError(f"the {role} model's tokenizer has no chat template")
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of rendered text, in which special tokens are spelled out.

    Raises:
        ValueError: for a second begin-of-sequence token, which shifts every position, or words
            that the tokenizer does not know.
    """
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    bos = tokenizer.bos_token_id
    if bos is not None and ids.count(bos) != 1:
        raise ValueError(f"rendered prompt: got {ids.count(bos)} BOS tokens, expected 1: {text!r}")
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
        raise ValueError(f"rendered prompt: the tokenizer does not know all words of {text!r}")
    return list(ids)


def encode_prompts(
    tokenizer: Any, prompts: Sequence[Prompt], *, role: str, base_template: str = ""
) -> list[list[int]]:
    """Token ids of every prompt in the format of the model's role."""
    texts = [render(tokenizer, p.text, role=role, base_template=base_template) for p in prompts]
    return [encode(tokenizer, text) for text in texts]


def decode(
    tokenizer: Any, prompt: Sequence[int], tokens: Sequence[int], stop_tokens: Sequence[int]
) -> str:
    """The text that `tokens` add to `prompt`, without stop tokens; other special ones stay.

    It is what the prompt's own text goes on with: a word-level tokenizer puts a space between.
    """
    kept = [t for t in tokens if t not in stop_tokens]
    before = tokenizer.decode(list(prompt), clean_up_tokenization_spaces=False)
    whole = tokenizer.decode([*prompt, *kept], clean_up_tokenization_spaces=False)
    return whole.removeprefix(before)


def stop_tokens(tokenizer: Any) -> list[int]:
    """Ids after which a text has ended."""
    eos = tokenizer.eos_token_id
    if eos is None:
        raise ValueError("the tokenizer names no end-of-sequence token")
    return [eos]

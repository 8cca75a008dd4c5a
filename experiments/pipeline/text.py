"""What the models are given to read, and their tokens as text again."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.pipeline.settings import Prompts
from jaxsteer.files import read_json
from jaxsteer.tokenizers import EncodedPrompt, encode


@dataclass(frozen=True)
class Prompt:
    """A problem to solve."""

    id: str
    text: str


def load_prompts(settings: Prompts, split: str, limit: int | None) -> list[Prompt]:
    """The prompts of one split, in the file's order.

    The file is a JSON list of {id, prompt, split}, as `experiments.prompts` writes it. Other names
    are known: `question_id`; `question` and `problem`; `category` for `kind`. Entries may be mere
    texts. Where no entry has an id they are numbered; where none has a split, each 15th of its kind
    is held out for `settings.evaluate_split` (20 of 300).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is something else, ids are not distinct, or the split is empty.
    """
    path = Path(settings.file)
    try:
        rows = read_json(path)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"prompts.file: {error}") from None
    try:
        entries = _entries(rows)
    except ValueError as error:
        raise ValueError(f"prompts.file: {path}: {error}") from None
    if not any("split" in entry for entry in entries):
        entries = _split(entries, settings)
    chosen = [Prompt(e["id"], e["prompt"]) for e in entries if e["split"] == split][:limit]
    if not chosen:
        splits = sorted({entry["split"] for entry in entries})
        raise ValueError(
            f"prompts.file: {path}: no prompt in split {split!r}, found {splits!r:.200}"
        )
    return chosen


_NAMES = {
    "id": ("id", "question_id"),
    "prompt": ("prompt", "question", "problem"),
    "kind": ("kind", "category"),
    "split": ("split",),
}
HELD_OUT = 15  # one of so many of a kind, where a file does not say


def _entries(rows: Any) -> list[dict[str, str]]:
    """What a prompts file says, under our names; splits for all of them or for none."""
    if not isinstance(rows, list):
        raise ValueError("expected a list of objects or texts")
    raw = [{"prompt": row} if isinstance(row, str) else row for row in rows]
    entries: list[dict[str, str]] = []
    for i, row in enumerate(raw):
        if not isinstance(row, dict):
            raise ValueError(f"entry {i}: expected an object or a text")
        by_name = {
            ours: row[name] for ours, names in _NAMES.items() for name in names[::-1] if name in row
        }
        for name, value in by_name.items():
            if not isinstance(value, str) or not value:
                raise ValueError(f"entry {i}: expected a text {name!r}")
        entries.append(by_name)
    if not any("id" in entry for entry in entries):
        entries = [{**entry, "id": f"prompt-{i:03}"} for i, entry in enumerate(entries)]
    needed = ["id", "prompt", *(["split"] if any("split" in e for e in entries) else [])]
    for i, entry in enumerate(entries):
        for name in needed:
            if name not in entry:
                raise ValueError(f"entry {i}: expected a text {name!r}")
    if len({entry["id"] for entry in entries}) < len(entries):
        raise ValueError("ids are not distinct")
    return entries


def _split(entries: Sequence[dict[str, str]], settings: Prompts) -> list[dict[str, str]]:
    """The entries with a split each, by their place within their kind."""
    seen: Counter[str] = Counter()
    done = []
    for entry in entries:
        kind = entry.get("kind", "")
        seen[kind] += 1
        held = seen[kind] % HELD_OUT == 0
        split = settings.evaluate_split if held else settings.derive_split
        done.append({**entry, "split": split})
    return done


def default_form(role: str) -> str:
    """The format of a role, if the settings do not say otherwise."""
    return "continuation" if role == "base" else "chat"


def put(
    tokenizer: Any,
    prompt: str,
    *,
    role: str,
    base_template: str | None = None,
    form: str | None = None,
) -> EncodedPrompt:
    """A problem as a model reads it before its answer: a chat format, or text to go on with.

    What is put before it follows from `jaxsteer.encode`, for every model and form.

    Args:
        tokenizer: of the model; for a base model that is given the chat format, the reasoning
            model's.
        prompt: the problem.
        role: the model's.
        base_template: the text to go on with, the problem's place in it marked `{prompt}`.
        form: "chat" or "continuation" (`experiments.formats`); if not given, the latter for the
            base model, which has never seen a chat format and given one often writes nothing.

    Raises:
        ValueError: for a continuation without a template that holds the problem, a tokenizer
            without a chat template or with one that fails, a problem that spells special tokens,
            or words that the tokenizer does not know.
    """
    if (form or default_form(role)) == "continuation":
        if base_template is None or "{prompt}" not in base_template:
            raise ValueError(f"base_template: got {base_template!r}, expected {{prompt}} in it")
        encoded = encode(tokenizer, base_template.replace("{prompt}", prompt))
    elif not tokenizer.chat_template:
        raise ValueError(f"the {role} model's tokenizer has no chat template")
    else:
        encoded = encode(tokenizer, [{"role": "user", "content": prompt}])
    spelled = {tokenizer.bos_token, tokenizer.eos_token} - {None, ""}
    if written := sorted(token for token in spelled if token in prompt):
        raise ValueError(f"prompt: spells {', '.join(written)}, which begins or ends texts")
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in encoded.ids:
        raise ValueError(f"prompt: the tokenizer does not know all words of {encoded.text!r}")
    return encoded


def put_prompts(
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    role: str,
    base_template: str | None = None,
    form: str | None = None,
) -> list[EncodedPrompt]:
    """Every prompt, encoded by `put`."""
    return [
        put(tokenizer, p.text, role=role, base_template=base_template, form=form) for p in prompts
    ]


def encode_prompts(tokenizer: Any, prompts: Sequence[Prompt], **how: Any) -> list[list[int]]:
    """Token ids of every prompt; `how` are the keywords of `put_prompts`."""
    return [prompt.ids for prompt in put_prompts(tokenizer, prompts, **how)]


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

"""One rule for prompts: what is put before a text, never twice, and said with the ids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jaxsteer.runtime import as_value_error
from jaxsteer.tokenizers.chat import Message, render, template_marks, writes_date


@dataclass(frozen=True)
class EncodedPrompt(Sequence[int]):
    """A prompt's token ids, as which it is read (`left_pad` takes it), and how they came about."""

    ids: list[int]
    before: list[int]  # of these ids: what the rule put before the text; [] for nothing
    text: str  # what the ids spell: the text or the rendered conversation, behind what was put
    rule: str  # in words, for a result: what stands at the beginning, and why
    notes: tuple[str, ...] = ()  # what a reader of the result should know: a date in the text

    def __getitem__(self, index: Any) -> Any:
        return self.ids[index]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Beginning:
    """What a model's texts begin with, by the files beside it."""

    ids: list[int]  # [] for nothing
    text: str  # the same as text
    why: str


def encode(
    tokenizer: Any,
    text_or_messages: str | Sequence[Message],
    *,
    bos: Literal["auto"] | bool = "auto",
    add_generation_prompt: bool = True,
    variables: Mapping[str, Any] | None = None,
) -> EncodedPrompt:
    """Token ids of a prompt, by one rule for all models.

    A text gets the begin-of-sequence token exactly when the model was trained with one, as
    `text_beginning` tells from the files beside it; one that begins with it already, such as a
    rendered chat, gets none. A conversation is what the chat template writes, and gets nothing
    more. Special tokens that a text spells out are read as such. Nothing is put at the end.

    Args:
        tokenizer: as `load` gives it, or another one of transformers.
        text_or_messages: a text, or a conversation of `{"role": …, "content": …}`.
        bos: "auto" for the rule; True to begin with BOS in any case, False to put nothing.
        add_generation_prompt: of a conversation: whether it ends where the answer begins.
        variables: what else the chat template knows, such as `{"enable_thinking": False}`.

    Returns:
        `EncodedPrompt`: `ids`, what was put `before`, and the `rule` in words.

    Raises:
        ValueError: for something that is no text or conversation, `bos=True` without a BOS token,
            a beginning that stands there twice, or a tokenizer or template that fails.
    """
    if bos not in ("auto", True, False):
        raise ValueError(f"bos: got {bos!r}, expected 'auto', True or False")
    is_chat = not isinstance(text_or_messages, str)
    beginning = text_beginning(tokenizer)
    if bos is True:
        beginning = _forced(tokenizer, beginning)
    notes: list[str] = []
    if isinstance(text_or_messages, str):
        text = text_or_messages
    else:
        text = render(
            tokenizer,
            text_or_messages,
            add_generation_prompt=add_generation_prompt,
            variables=variables,
        )
        if writes_date(tokenizer, text):
            notes.append("the chat template writes today's date: the prompt is another tomorrow")
    with as_value_error(tokenizer.name_or_path or "tokenizer", "a text cannot be encoded"):
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if ids[:1] == ids[1:2] == [tokenizer.bos_token_id]:
        name = tokenizer.bos_token
        raise ValueError(f"prompt: got {name} twice at its beginning, expected once: {text[:80]!r}")
    n = len(beginning.ids)
    begins = n > 0 and ids[:n] == beginning.ids
    puts = n > 0 and not begins and bos is not False and (bos is True or not is_chat)
    rule = _rule(beginning, begins=begins, puts=puts, is_chat=is_chat, bos=bos)
    if puts:
        return EncodedPrompt(
            beginning.ids + ids, beginning.ids, beginning.text + text, rule, tuple(notes)
        )
    return EncodedPrompt(ids, [], text, rule, tuple(notes))


def text_beginning(tokenizer: Any) -> Beginning:
    """What the model of a tokenizer was trained to find before a plain text.

    The first of these that says something decides:

    1. `add_bos_token` in `tokenizer_config.json`: true or false, if there is a BOS token.
    2. `tokenizer.json` puts tokens before a text (its post-processor).
    3. The chat template begins a conversation with BOS, and writes it nowhere else. (Where each
       turn begins with it, as in SmolLM2, it is a mark of turns.)
    4. Otherwise nothing: a BOS token that is merely named is often an unused name.
    """
    name, id = tokenizer.bos_token, tokenizer.bos_token_id
    own = None if id is None else Beginning([id], name, "")
    added = _post_processed(tokenizer)
    says = tokenizer.init_kwargs.get("add_bos_token")
    if says is False:
        return Beginning([], "", "tokenizer_config.json says add_bos_token=false")
    if added:
        text = "".join(tokenizer.convert_ids_to_tokens(added))
        return Beginning(added, text, "tokenizer.json puts it before a text")
    if own is None:
        return Beginning([], "", "the tokenizer names no BOS")
    if says is True:
        return Beginning(own.ids, name, "tokenizer_config.json says add_bos_token=true")
    if template_marks(tokenizer).get("bos") == id:
        return Beginning(own.ids, name, "the chat template begins with it")
    return Beginning([], "", f"no file of the model says that its texts begin with {name}")


def _forced(tokenizer: Any, beginning: Beginning) -> Beginning:
    """The rule's beginning, or BOS where it has none."""
    if beginning.ids:
        return Beginning(beginning.ids, beginning.text, "bos=True")
    if tokenizer.bos_token_id is None:
        raise ValueError("bos: got True, expected a tokenizer with a BOS token")
    return Beginning([tokenizer.bos_token_id], tokenizer.bos_token, "bos=True")


def _post_processed(tokenizer: Any) -> list[int]:
    """The ids that encoding puts before a text when it may add special tokens."""
    with as_value_error(tokenizer.name_or_path or "tokenizer", "a text cannot be encoded"):
        whole = list(tokenizer("a")["input_ids"])
        bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    for n in range(len(whole) - len(bare) + 1):
        if whole[n : n + len(bare)] == bare:
            return whole[:n]
    return []


def _rule(beginning: Beginning, *, begins: bool, puts: bool, is_chat: bool, bos: Any) -> str:
    """One sentence that says what stands at the beginning of a prompt, and why."""
    named = f"{beginning.text} ({', '.join(map(str, beginning.ids))})"
    if puts:
        return f"{named} put before the text: {beginning.why}"
    if begins:
        writer = "the chat template" if is_chat else "the text"
        return f"{named} is there already: {writer} begins with it"
    if bos is False:
        return "nothing put before the text: bos=False"
    if is_chat:
        without = f", without the {named} of plain texts" if beginning.ids else ""
        return f"nothing put before the text: it is what the chat template writes{without}"
    return f"nothing put before the text: {beginning.why}"

"""Proof that a tokenizer has the ids of `tokenizer.json` and gives back what it was given.

A tokenizer that loads is not yet right: some releases of transformers 5 rebuild a byte-level
tokenizer as another kind from its class name, and every space is lost without a word.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from jaxsteer.config import LlamaConfig
from jaxsteer.runtime import as_value_error
from jaxsteer.tokenizers.chat import render

# What reasoning models read and write: spaces, newlines, LaTeX, digits, code, Unicode.
TEXTS = (
    "Wait, let me check that again.",
    " two  spaces   and a tab\there ",
    "\n\nNewlines\nand\r\nreturns\n",
    r"Thus \( x^{2} + \frac{1}{2} = \sqrt{\pi} \), so $$\boxed{42}$$.",
    "0 1 12 123 1234 12345 3.14159 1,000,000 -7 6.02e23 0x1F",
    "def f(x):\n    return {'a': [x, *y]}  # done!\n",
    "Straße, naïve, Ωμέγα, Привет, 你好, こんにちは, مرحبا, नमस्ते",
    "👩‍👩‍👧‍👦 🇩🇪 ≤ ∑ ∞ → “quotes” – — …\u00a0\u200b end",
    "don't can't it's . , ; : ! ? ' \" n't 's",
)
CHAT = [
    {"role": "user", "content": "What is 2 + 2?\nShow  your work."},
    {"role": "assistant", "content": "2 + 2 = 4 ."},
    {"role": "user", "content": "Are you sure?"},
]
_LONGEST = 300  # characters of one problem
_SPACE = "\u2581"  # how SentencePiece spells a space
_WINDOW = 64  # words in one text of a word-level tokenizer's battery


def check_tokenizer(tokenizer: Any, config: LlamaConfig) -> int:
    """Prove a tokenizer; return how many texts it gave back.

    Its ids must be those that the `tokenizers` library reads from `tokenizer.json`, where there is
    one. Byte-level tokenizers must give back `TEXTS` exactly; SentencePiece's, up to one space at
    the beginning or after a special token, which they cannot give back. A word-level one knows only
    its own words: every word must keep its id when the words are decoded to a text and that text is
    encoded again.

    Raises:
        ValueError: naming every text that changed and every id that does not agree.
    """
    folder = Path(tokenizer.name_or_path)
    with as_value_error(folder, "the tokenizer cannot be used"):
        problems = _size_problems(tokenizer, config)
        file = folder / "tokenizer.json"
        plain = _plain(file) if file.is_file() else None
        if plain is not None and isinstance(plain.model, WordLevel):
            texts = list(_word_texts(tokenizer, plain, problems))
        else:
            texts = [*TEXTS, *_chat_texts(tokenizer, problems)]
        for text in texts:
            problems += text_problems(tokenizer, plain, text)
    if problems:
        told = [problem[:_LONGEST] for problem in problems]
        lines = f" {told[0]}" if len(told) == 1 else "".join(f"\n  {line}" for line in told)
        raise ValueError(f"{folder}: the tokenizer cannot be trusted:{lines}")
    return len(texts)


def _plain(file: Path) -> Tokenizer:
    """What the `tokenizers` library reads, without the padding that may be saved in the file."""
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _size_problems(tokenizer: Any, config: LlamaConfig) -> list[str]:
    """Tokens that the model has no row for, those apart that were added to the tokenizer."""
    added = set(tokenizer.get_added_vocab().values())
    ids = [i for i in tokenizer.get_vocab().values() if i not in added]
    largest = max(ids, default=-1)
    if largest < config.vocab_size:
        return []
    return [
        f"vocabulary: ids go up to {largest}, but config.json has vocab_size={config.vocab_size}"
    ]


def _word_texts(tokenizer: Any, plain: Tokenizer, problems: list[str]) -> Iterator[str]:
    """Texts of the tokenizer's own words, twice each with other neighbours; notes changed ids."""
    special = set(tokenizer.all_special_ids)
    ids = sorted(i for i in plain.get_vocab().values() if i not in special)
    for order in (ids, ids[::2] + ids[1::2]):
        for start in range(0, len(order), _WINDOW):
            words = order[start : start + _WINDOW]
            text = _decode(tokenizer, words)
            back = _encode(tokenizer, text)
            if back != words:
                problems.append(
                    f"{len(words)} words came back as {len(back)} with other ids (are spaces "
                    f"lost?): {text[:60]!r}"
                )
            yield text


def _chat_texts(tokenizer: Any, problems: list[str]) -> list[str]:
    """A conversation in the tokenizer's own format, if it has one; notes why it cannot be told."""
    if not tokenizer.chat_template:
        return []
    try:
        return [render(tokenizer, CHAT)]
    except ValueError as error:
        problems.append(str(error))
        return []


def text_problems(tokenizer: Any, plain: Tokenizer | None, text: str) -> list[str]:
    """What one text becomes when it is encoded and decoded, where that is not itself."""
    ids = _encode(tokenizer, text)
    back = _decode(tokenizer, ids)
    problems = []
    if back != text and not _same_but_for_spaces(tokenizer, text, back):
        problems.append(f"{text!r} came back as {back!r}")
    if plain is not None and plain.encode(text, add_special_tokens=False).ids != ids:
        problems.append(f"{text!r}: transformers' ids differ from those of tokenizer.json")
    return problems


def _same_but_for_spaces(tokenizer: Any, text: str, back: str) -> bool:
    """Whether texts differ by what SentencePiece cannot give back.

    It writes a space before the first word, and some versions after special tokens; decoding
    takes it away, or the text's own one, or neither: each part of the text between special tokens
    may begin with one space more or less.
    """
    backend = tokenizer.backend_tokenizer
    rules = (backend.normalizer, backend.pre_tokenizer, backend.decoder)
    if not any(_SPACE in rule.__getstate__().decode() for rule in rules if rule is not None):
        return False
    special = "|".join(re.escape(name) for name in tokenizer.get_added_vocab() if name)
    parts = [re.split(f"({special})" if special else "(?!)", one) for one in (text, back)]
    if len(parts[0]) != len(parts[1]):
        return False
    return all(
        a.lstrip(" ") == b.lstrip(" ") and abs(_leading(a) - _leading(b)) <= 1
        for a, b in zip(*parts, strict=True)
    )


def _leading(text: str) -> int:
    """How many spaces a text begins with."""
    return len(text) - len(text.lstrip(" "))


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

"""Proof that a tokenizer gives back what it was given, with the ids that the model knows.

A tokenizer that loads is not yet right: some releases of transformers 5 rebuild a byte-level
tokenizer as another kind from its class name, and every space is lost without a word.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from jaxsteer.config import LlamaConfig

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
_WINDOW = 64  # words in one text of a word-level tokenizer's battery


def check_tokenizer(tokenizer: Any, config: LlamaConfig, hf_config: Mapping[str, Any]) -> int:
    """Prove a tokenizer; return how many texts it gave back unchanged.

    Byte-level and SentencePiece tokenizers must give back `TEXTS` exactly. A word-level one knows
    only its own words: every word must keep its id when the words are decoded to a text and that
    text is encoded again. Neither may disagree with `tokenizer.json` on an id.

    Raises:
        ValueError: naming every text that changed and every id that does not agree.
    """
    problems = _id_problems(tokenizer, config, hf_config)
    file = Path(tokenizer.name_or_path) / "tokenizer.json"
    plain = Tokenizer.from_file(str(file)) if file.is_file() else None
    if plain is not None and json.loads(plain.to_str())["model"]["type"] == "WordLevel":
        texts = list(_word_texts(tokenizer, plain, problems))
    else:
        texts = [*TEXTS, *_chat_texts(tokenizer, problems)]
    for text in texts:
        problems += text_problems(tokenizer, plain, text)
    if problems:
        raise ValueError("the tokenizer cannot be trusted:\n  " + "\n  ".join(problems))
    return len(texts)


def _id_problems(tokenizer: Any, config: LlamaConfig, hf_config: Mapping[str, Any]) -> list[str]:
    problems = []
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= config.vocab_size:
        problems.append(
            f"vocabulary: ids go up to {largest}, but config.json has vocab_size="
            f"{config.vocab_size}"
        )
    for name in ("bos_token_id", "eos_token_id"):
        wanted, found = hf_config.get(name), getattr(tokenizer, name)
        allowed = wanted if isinstance(wanted, list) else [wanted]
        if wanted is not None and found not in allowed:
            problems.append(f"{name}: got {found} from the tokenizer, config.json says {wanted}")
    return problems


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
        return [tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)]
    except Exception as error:  # a template is a program, and may raise anything
        problems.append(f"chat template: {type(error).__name__}: {error}")
        return []


def text_problems(tokenizer: Any, plain: Tokenizer | None, text: str) -> list[str]:
    """What one text becomes when it is encoded and decoded, where that is not itself."""
    ids = _encode(tokenizer, text)
    back = _decode(tokenizer, ids)
    problems = []
    if back != text:
        problems.append(f"{text!r} came back as {back!r}")
    if plain is not None and plain.encode(text, add_special_tokens=False).ids != ids:
        problems.append(f"{text!r}: transformers' ids differ from those of tokenizer.json")
    return problems


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

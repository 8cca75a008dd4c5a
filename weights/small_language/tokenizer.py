"""The small pair's word-level tokenizer, as files that `transformers.AutoTokenizer` loads."""

import json
from functools import cache
from pathlib import Path

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from jaxsteer.files import write_atomic
from weights.small_language.parser import grammar_words
from weights.small_language.problems import prompt_words

PAD, BOS, EOS, UNKNOWN = "<pad>", "<bos>", "<eos>", "<unk>"
USER, ASSISTANT, THINK = "<user>", "<assistant>", "<think>"
SPECIAL = (PAD, BOS, EOS, UNKNOWN, USER, ASSISTANT, THINK)
MARKERS = {"question", "solution", "story", ":"}  # the base model's corpus has these instead

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %} <user> {{ message['content'] }}"
    "{% elif message['role'] == 'assistant' %} <assistant> <think> {{ message['content'] }}"
    " {{ eos_token }}"
    "{% else %}{{ raise_exception('roles are user and assistant, found ' + message['role']) }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} <assistant> <think>{% endif %}"
)


@cache
def vocabulary() -> dict[str, int]:
    """Token ids: special tokens first, then all words of the text in alphabetical order."""
    words = sorted(grammar_words() | prompt_words() | MARKERS)
    return {word: i for i, word in enumerate((*SPECIAL, *words))}


def encode(text: str) -> list[int]:
    """Token ids of a text, none added.

    Raises KeyError for a word that the text cannot hold.

    >>> encode("<bos> <user>")
    [1, 4]
    """
    ids = vocabulary()
    return [ids[word] for word in text.split()]


def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(WordLevel(vocabulary(), unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    # As Llama's: one BOS in front of plain text; a chat template writes its own.
    tokenizer.post_processor = TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, vocabulary()[BOS])]
    )
    return tokenizer


def save_tokenizer(folder: str | Path, *, max_length: int, chat: bool) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`, with the chat template if `chat`."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "unk_token": UNKNOWN,
        "padding_side": "left",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,  # would join words and punctuation
        "model_input_names": ["input_ids", "attention_mask"],  # no `token_type_ids`
    }
    if chat:
        config["chat_template"] = CHAT_TEMPLATE
    path = Path(folder)
    write_atomic(path / "tokenizer.json", _tokenizer().to_str(pretty=True).encode())
    write_atomic(path / "tokenizer_config.json", json.dumps(config, indent=2).encode())

"""jaxsteer.encode: one rule for what is put before a prompt, never twice, and said."""

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
from hf_folders import byte_tokenizer, edit_json, write_tokenizer
from tokenizers.processors import TemplateProcessing

import jaxsteer
from jaxsteer.tokenizers import encode, load_tokenizer, named_tokens, prompt_facts, text_beginning
from jaxsteer.tokenizers.special_tokens import difference
from weights.small_language.tokenizer import save_tokenizer

LLAMA = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
CHATML = "{% for m in messages %}<bos>{{ m.role }}\n{{ m.content }}<eos>\n{% endfor %}"
BOS = 1


def tokenizer_of(folder: Path, *, post_processor: bool = False, **config: Any) -> Any:
    """Byte-level, with a BOS of id 1 that files speak of or not."""
    made = byte_tokenizer()
    if post_processor:
        made.post_processor = TemplateProcessing(
            single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", BOS)]
        )
    write_tokenizer(folder, made)
    edit_json(folder / "tokenizer_config.json", **config)
    return load_tokenizer(folder)


CASES: dict[str, tuple[dict[str, Any], list[int], str]] = {
    "llama 3": ({"post_processor": True}, [BOS], "tokenizer.json puts it before a text"),
    # transformers 5 drops it without a word: R1-Distill's base has a BOS then, and R1 none.
    "r1 distill": ({"add_bos_token": True}, [BOS], "tokenizer_config.json says add_bos_token=true"),
    "r1, saved again": ({"chat_template": LLAMA}, [BOS], "the chat template begins with it"),
    "turned off": (
        {"post_processor": True, "add_bos_token": False},
        [],
        "tokenizer_config.json says add_bos_token=false",
    ),
    "qwen": ({"bos_token": ""}, [], "the tokenizer names no BOS"),
    "smollm": ({"chat_template": CHATML}, [], "no file of the model says"),
    "gpt 2": ({}, [], "no file of the model says that its texts begin with <bos>"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_text_begins_as_the_models_training_texts_did(tmp_path: Path, name: str) -> None:
    config, before, why = CASES[name]
    tokenizer = tokenizer_of(tmp_path, **config)
    encoded = jaxsteer.encode(tokenizer, "the sum")
    plain = tokenizer.encode("the sum", add_special_tokens=False)
    assert encoded.before == before
    assert encoded.ids == before + plain
    assert encoded.text == "<bos>" * len(before) + "the sum"
    assert why in encoded.rule
    assert jaxsteer.left_pad([encoded]).tokens[0, -len(encoded) :].tolist() == encoded.ids
    # Spelled out, it is not put twice.
    again = encode(tokenizer, "<bos>the sum")
    assert (again.ids, again.before) == ([BOS, *plain], [])


@pytest.mark.parametrize("name", [name for name in CASES if name != "qwen"])
def test_bos_can_be_asked_for_and_left_out(tmp_path: Path, name: str) -> None:
    tokenizer = tokenizer_of(tmp_path, **CASES[name][0])
    plain = tokenizer.encode("the sum", add_special_tokens=False)
    assert encode(tokenizer, "the sum", bos=True).ids == [BOS, *plain]
    assert encode(tokenizer, "<bos>the sum", bos=True).ids == [BOS, *plain]
    assert encode(tokenizer, "the sum", bos=False).ids == plain


def test_a_chat_is_what_its_template_writes(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "the sum"}]
    for template in (LLAMA, CHATML, LLAMA.removeprefix("{{ bos_token }}")):
        tokenizer = tokenizer_of(tmp_path, post_processor=True, chat_template=template)
        theirs = tokenizer.apply_chat_template(messages, tokenize=False)
        encoded = encode(tokenizer, messages)
        assert encoded.text == theirs
        assert encoded.ids == tokenizer.encode(theirs, add_special_tokens=False)
        assert encoded.before == []
    assert "what the chat template writes, without the <bos> (1) of plain texts" in encoded.rule


def test_a_rendered_chat_has_one_bos(tmp_path: Path) -> None:
    """Through `tokenizer.encode` it had two, and was generated from without a word."""
    tokenizer = tokenizer_of(tmp_path, post_processor=True, chat_template=LLAMA)
    messages = [{"role": "user", "content": "the sum"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert tokenizer.encode(text).count(BOS) == 2
    assert encode(tokenizer, text).ids == encode(tokenizer, messages).ids
    assert encode(tokenizer, text).ids.count(BOS) == 1
    with pytest.raises(ValueError, match="prompt: got <bos> twice at its beginning"):
        encode(tokenizer, "<bos>" + text)


def test_the_small_pairs_models_begin_alike(tmp_path: Path) -> None:
    for role in ("base", "reasoning"):
        save_tokenizer(tmp_path / role, max_length=64, chat=role == "reasoning")
    base, reasoning = (load_tokenizer(tmp_path / role) for role in ("base", "reasoning"))
    assert text_beginning(base) == text_beginning(reasoning)
    assert encode(base, " the").ids == encode(reasoning, " the").ids


def test_a_template_that_writes_todays_date_is_told(tmp_path: Path) -> None:
    template = "{{ strftime_now('%d %b %Y') }} {{ messages[0].content }}"
    tokenizer = tokenizer_of(tmp_path, chat_template=template)
    (note,) = encode(tokenizer, [{"role": "user", "content": "wait"}]).notes
    assert note == "the chat template writes today's date: the prompt is another tomorrow"
    pinned = "{{ date if date else strftime_now('%d %b %Y') }} {{ messages[0].content }}"
    tokenizer.chat_template = pinned
    encoded = encode(
        tokenizer, [{"role": "user", "content": "wait"}], variables={"date": "1 May 2024"}
    )
    assert (encoded.text, encoded.notes) == ("1 May 2024 wait", ())
    assert datetime.date.today().strftime("%b %Y") not in encoded.text


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("a", {"bos": "yes"}, "bos: got 'yes', expected 'auto', True or False"),
        ([], {}, "messages: expected a list of"),
        (["a"], {}, "messages: expected a list of"),
        ([{"role": "user", "content": {1, 2}}], {}, "messages: expected texts and lists of them"),
    ],
)
def test_what_is_no_prompt_is_refused(
    tmp_path: Path, prompt: Any, options: Any, message: str
) -> None:
    tokenizer = tokenizer_of(tmp_path, chat_template=CHATML)
    with pytest.raises(ValueError, match=message):
        encode(tokenizer, prompt, **options)
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="the tokenizer has no chat template"):
        encode(tokenizer, [{"role": "user", "content": "a"}])
    tokenizer.bos_token = None
    with pytest.raises(ValueError, match="bos: got True, expected a tokenizer with a BOS token"):
        encode(tokenizer, "a", bos=True)


# Who names which special token.


def test_what_files_say_of_special_tokens_is_kept(tmp_path: Path) -> None:
    """R1-Distill-Qwen's, and an answer that ends with a token which nobody else names."""
    template = LLAMA.replace("\n", "<unk>")
    tokenizer = tokenizer_of(
        tmp_path, add_bos_token=True, chat_template=template, pad_token="<eos>"
    )
    (tmp_path / "config.json").write_text('{"bos_token_id": 0, "eos_token_id": 5}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 5]}')
    facts = prompt_facts(tmp_path.iterdir(), tokenizer, vocab_size=290)
    assert json.loads(json.dumps(facts)) == facts
    assert facts["text_beginning"] == {
        "ids": [1], "text": "<bos>", "why": "tokenizer_config.json says add_bos_token=true",
    }  # fmt: skip
    named = facts["special_tokens"]
    assert named["bos"] == {
        "config.json": [0], "generation_config.json": [], "tokenizer": [1], "chat template": [1],
    }  # fmt: skip
    assert list(named["eos"].values()) == [[5], [2, 5], [2], [3]]
    told = difference(named)
    assert told is not None
    assert told.startswith(
        "special tokens differ: bos: config.json 0, tokenizer 1, chat template 1; eos: "
    )


def test_a_token_past_the_models_vocabulary_ends_nothing(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path)
    tokenizer.add_tokens(["[END]"])
    tokenizer.eos_token = "[END]"
    assert named_tokens([], tokenizer, vocab_size=280)["eos"] == {"tokenizer": []}

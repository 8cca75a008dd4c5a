"""jaxsteer.huggingface.load_tokenizer: what `tokenizer.json` says, whatever stands beside it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hf_folders import byte_tokenizer, edit_json, write_folder, write_tokenizer
from llama_models.llama3 import tokenizer as meta
from tokenizers import Regex, Tokenizer, pre_tokenizers

import jaxsteer
from jaxsteer.config import LlamaConfig
from jaxsteer.models import verification as verify
from jaxsteer.models.conversion import main as convert_main
from jaxsteer.runtime import guarded
from jaxsteer.tokenizers import check_tokenizer, encode, load_tokenizer
from jaxsteer.tokenizers.tokenizer_check import TEXTS

CONFIG_290 = replace(LlamaConfig.tiny(), vocab_size=290)
CONFIG_420 = replace(LlamaConfig.tiny(), vocab_size=420)


def sentencepiece_model(folder: Path) -> Path:
    """Llama-2's kind: BPE, a space before the first word, bytes for what has no piece."""
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(TEXTS * 3))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=420,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        minloglevel=2,
    )
    return folder / "tokenizer.model"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path, byte_tokenizer())
    return tmp_path


@pytest.mark.parametrize(
    "fields",
    [
        {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": True},
        {"tokenizer_class": "LlamaTokenizerFast", "add_prefix_space": True},
        {"tokenizer_class": "Qwen2Tokenizer", "clean_up_tokenization_spaces": True},
        {"tokenizer_class": "NobodyKnows", "auto_map": {"AutoTokenizer": ["own.Own", None]}},
        {"tokenizer_class": 7, "model_input_names": ["input_ids", "token_type_ids"]},
    ],
)
def test_the_class_beside_it_changes_nothing(folder: Path, fields: dict[str, Any]) -> None:
    edit_json(folder / "tokenizer_config.json", **fields)
    tokenizer = load_tokenizer(folder)
    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in (*TEXTS, "<bos>a <eos> b"):
        assert tokenizer.encode(text) == plain.encode(text).ids
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert "token_type_ids" not in tokenizer("the sum")
    assert check_tokenizer(tokenizer, CONFIG_290) == len(TEXTS)


def test_what_is_saved_for_training_is_switched_off(folder: Path) -> None:
    made = byte_tokenizer()
    made.enable_padding(length=50, pad_token="<pad>")
    made.enable_truncation(3)
    made.model.dropout = 0.5
    made.save(str(folder / "tokenizer.json"))
    tokenizer = load_tokenizer(folder)
    assert {tuple(tokenizer.encode(TEXTS[0])) for _ in range(8)} == {
        tuple(byte_tokenizer().encode(TEXTS[0]).ids)
    }


def test_special_tokens_that_the_vocabulary_lacks_are_left_out(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", pad_token="[PAD]", eos_token={"content": "<eos>"})
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.pad_token, tokenizer.eos_token) == (None, "<eos>")
    assert len(tokenizer) == byte_tokenizer().get_vocab_size()


def test_without_names_the_ids_of_the_configs_name_them(folder: Path) -> None:
    for file in folder.glob("*tok*_*.json"):
        file.unlink()
    (folder / "config.json").write_text('{"bos_token_id": 1, "eos_token_id": 3}')
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 3]}')
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<bos>", "<eos>")


def test_a_template_of_its_own_file_goes_first(folder: Path) -> None:
    named = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    edit_json(folder / "tokenizer_config.json", chat_template=named)
    assert load_tokenizer(folder).chat_template == {"default": "a", "tool_use": "b"}
    (folder / "chat_template.jinja").write_text("c")
    assert load_tokenizer(folder).chat_template == "c"


# SentencePiece and Meta.


def test_a_model_of_sentencepiece_has_its_ids(tmp_path: Path) -> None:
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_model(tmp_path)))
    tokenizer = load_tokenizer(tmp_path)
    for text in (*TEXTS, "seven wait ž   ", "", "  a"):
        ids = tokenizer.encode(text)
        assert ids == [pieces.bos_id(), *pieces.encode(text)]
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    assert check_tokenizer(tokenizer, CONFIG_420) == len(TEXTS)


def test_without_sentencepiece_the_message_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentencepiece_model(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "sentencepiece", None)
    with pytest.raises(ValueError, match=r"tokenizer\.model: .*pip install sentencepiece"):
        load_tokenizer(tmp_path)


def test_metas_vocabulary(tmp_path: Path) -> None:
    shutil.copy(Path(meta.__file__).parent / "tokenizer.model", tmp_path)
    names = {"128011": {"content": "<｜User｜>"}, "7": {"content": "x"}}
    about = {"added_tokens_decoder": names, "eos_token": "<|eot_id|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(about))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("<｜User｜>Hello") == [128000, 128011, 9906]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (128000, 128009)


# What SentencePiece cannot give back, and what is a loss.


def llama2_like(folder: Path, **fields: Any) -> Any:
    """A `tokenizer.json` with rules like Llama-2's."""
    sentencepiece_model(folder)
    backend = load_tokenizer(folder).backend_tokenizer
    backend.save(str(folder / "tokenizer.json"))
    edit_json(folder / "tokenizer.json", **fields)
    return load_tokenizer(folder)


def test_a_space_that_sentencepiece_adds_is_no_loss(tmp_path: Path) -> None:
    template = "{% for m in messages %}<s>[INST] {{ m.content }} [/INST]</s>{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(template)
    tokenizer = llama2_like(tmp_path)
    assert check_tokenizer(tokenizer, CONFIG_420) == len(TEXTS) + 1


def test_a_space_that_is_lost_within_a_text_is(tmp_path: Path) -> None:
    decoder = {"type": "Replace", "pattern": {"String": "\u2581"}, "content": ""}
    tokenizer = llama2_like(tmp_path, decoder=decoder)
    with pytest.raises(ValueError, match=r"(?s)cannot be trusted.*came back as 'Wait,let"):
        check_tokenizer(tokenizer, CONFIG_420)


# Files that cannot be.


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("tokenizer.json", "{oops", "tokenizer.json: the tokenizer does not load"),
        ("tokenizer.json", '{"model": {"type": "X"}}', "tokenizer.json: the tokenizer does not"),
        ("tokenizer.json", "[" * 100_000, "tokenizer.json: the tokenizer does not load"),
        ("tokenizer_config.json", "[]", "tokenizer_config.json: got a list, expected"),
        ("tokenizer_config.json", "[" * 100_000, "tokenizer_config.json: not JSON: nested"),
        ("tokenizer_config.json", '{"bos_token": 3}', "tokenizer_config.json: bos_token: got 3"),
        ("tokenizer_config.json", '{"chat_template": [1]}', "tokenizer_config.json: the tok"),
        ("chat_template.jinja", b"\xff\xfe", "the tokenizer does not load"),
    ],
)
def test_strange_files_are_one_line(folder: Path, name: str, text: Any, message: str) -> None:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError) as caught:
        load_tokenizer(folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_regex_that_explodes_is_one_line(folder: Path, capfd: Any) -> None:
    made = byte_tokenizer()
    made.pre_tokenizer = pre_tokenizers.Split(Regex("(.+)+[Qq]"), "isolated")
    made.save(str(folder / "tokenizer.json"))
    with pytest.raises(ValueError, match="the tokenizer cannot be used: PanicException: Onig"):
        check_tokenizer(load_tokenizer(folder), CONFIG_290)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("part", ["normalizer", "decoder"])
def test_replacements_that_fill_the_memory_are_refused(folder: Path, part: str) -> None:
    rules = json.loads((folder / "tokenizer.json").read_text())
    double = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    steps = {"normalizer": "normalizers", "decoder": "decoders"}[part]
    rules[part] = {"type": "Sequence", steps: [double] * 40}
    (folder / "tokenizer.json").write_text(json.dumps(rules))
    with pytest.raises(ValueError, match=r"replacements make a text up to 1.1e\+12 times as long"):
        load_tokenizer(folder)


def test_padding_in_the_file_adds_no_token(folder: Path) -> None:
    made = byte_tokenizer()
    size = made.get_vocab_size()
    made.enable_padding(length=8, pad_token="[PAD]", pad_id=7)
    made.save(str(folder / "tokenizer.json"))
    tokenizer = load_tokenizer(folder)
    assert len(tokenizer) == size
    assert tokenizer.encode("[PAD]") == byte_tokenizer().encode("[PAD]").ids


@pytest.mark.parametrize(
    "fields",
    [
        {"model_input_names": "ids"},
        {"model_input_names": [7, None]},
        {"padding_side": ["left"], "model_max_length": -1},
        {"model_max_length": "many", "add_bos_token": "yes"},
        {"chat_template": 7, "added_tokens_decoder": "none"},
        {"extra_special_tokens": 7, "additional_special_tokens": {"a": 1}},
    ],
)
def test_odd_settings_are_no_obstacle(folder: Path, fields: dict[str, Any]) -> None:
    edit_json(folder / "tokenizer_config.json", **fields)
    assert encode(load_tokenizer(folder), "the sum").ids == byte_tokenizer().encode("the sum").ids


# Commands that meet a strange tokenizer.

EXPLODES = pre_tokenizers.Split(Regex("(.+)+[Qq]"), "isolated")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "model")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tokenizer.json", "{}"),
        ("tokenizer.json", None),
        ("tokenizer_config.json", '{"eos_token": []}'),
        ("chat_template.jinja", "{% for %}"),
        ("generation_config.json", "[]"),
        ("special_tokens_map.json", "[" * 9999),
    ],
    ids=["empty", "explodes", "list", "template", "generation", "deep"],
)
def test_commands_say_it_in_one_line(model: Path, name: str, text: str | None, capfd: Any) -> None:
    """At convert, load, verify and before a run: nothing but the line, with the file or folder."""
    good = model.with_name("good")
    assert convert_main([str(model), str(good)]) == 0
    if text is None:
        made = byte_tokenizer()
        made.pre_tokenizer = EXPLODES
        text = made.to_str()
    for folder in (model, good / "huggingface"):
        (folder / name).write_text(text)
    capfd.readouterr()

    assert convert_main([str(model), str(model.with_name("again"))]) == 1
    said = capfd.readouterr().err.splitlines()
    assert [line.startswith("convert: ") for line in said] == [True]
    assert str(model) in said[0]
    with pytest.raises(ValueError, match=str(model)) as caught:
        jaxsteer.load(model)
    assert "\n" not in str(caught.value)

    assert verify.main([str(model), str(good), "--tokens", "4"]) in (0, 2)
    for line in capfd.readouterr().err.splitlines():
        assert "Traceback" not in line
        assert "panicked" not in line


def test_a_panic_ends_a_command_in_one_line(folder: Path, capfd: Any) -> None:
    """Where nobody foresaw it: prompts and traces are encoded in many places."""
    made = byte_tokenizer()
    made.pre_tokenizer = EXPLODES
    made.save(str(folder / "tokenizer.json"))
    tokenizer = load_tokenizer(folder)
    work = guarded("command")(lambda: tokenizer(TEXTS[3]))
    assert work() == 1
    assert capfd.readouterr().err.splitlines()[-1].startswith("command: Onig: Regex search error")

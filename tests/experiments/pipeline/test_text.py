"""What models are given: one BOS, the right format for each role, and text that comes back."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hf_folders import byte_tokenizer, write_tokenizer
from transformers import AutoTokenizer

from experiments.pipeline.formats import unseen_tokens
from experiments.pipeline.settings import Decoding, Prompts
from experiments.pipeline.text import Prompt, decode, encode_prompts, load_prompts, put
from experiments.searches import equal_lengths
from experiments.stages import steer
from weights.small_language.problems import prompts
from weights.small_language.tokenizer import save_tokenizer

PROBLEM = prompts(1, seed=0, split="eval")[0].text
TEMPLATE = " question : {prompt} solution :"
CHAT = "{{ bos_token }}{% for m in messages %}Q: {{ m['content'] }}{% endfor %}\nA:"


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The small pair's word-level tokenizer, with its chat template."""
    folder = tmp_path_factory.mktemp("words")
    save_tokenizer(folder, max_length=64, chat=True)
    return AutoTokenizer.from_pretrained(str(folder))


@pytest.fixture
def bytes_(tmp_path: Path) -> Any:
    """A byte-level tokenizer like Llama-3's."""
    write_tokenizer(tmp_path, byte_tokenizer())
    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path))
    tokenizer.chat_template = CHAT
    return tokenizer


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rows = [
        {"id": f"{split}-{i}", "prompt": f"{split} problem {i}", "split": split, "answer": i}
        for i in range(3)
        for split in ("dom", "eval")
    ]
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps(rows))
    return path


def test_prompts_of_a_split_in_order(file: Path) -> None:
    settings = Prompts(file=str(file))
    assert [p.id for p in load_prompts(settings, "eval", None)] == ["eval-0", "eval-1", "eval-2"]
    assert load_prompts(settings, "dom", 1) == [Prompt("dom-0", "dom problem 0")]
    assert len(load_prompts(settings, "dom", 99)) == 3


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[{", "not JSON"),
        ('{"id": "a"}', "expected a list of objects or texts"),
        ('[["a"]]', "entry 0: expected an object or a text"),
        ('["a", {"id": "b", "prompt": "c"}]', "entry 0: expected a text 'id'"),
        ('[{"id": "a", "prompt": "b"}, {"id": "b", "prompt": "c", "split": "dom"}]', "'split'"),
        ('[{"id": "a", "text": "b"}]', "entry 0: expected a text 'prompt'"),
        ('[{"id": "a", "prompt": "b", "split": "dom"}, {"id": "b", "split": "dom"}]', "entry 1"),
        ('[{"id": 1, "prompt": "b", "split": "dom"}]', "expected a text 'id'"),
        ('[{"id": "a", "prompt": "", "split": "dom"}]', "expected a text 'prompt'"),
        ('[{"id": "a", "prompt": "b", "split": "dom"}, '
         '{"id": "a", "prompt": "c", "split": "eval"}]', "ids are not distinct"),
        ('[{"id": "a", "prompt": "b", "split": "eval"}]', "no prompt in split 'dom', found"),
        ("[]", "no prompt in split 'dom'"),
    ],
)  # fmt: skip
def test_prompt_files_that_cannot_be_used(file: Path, content: str, expected: str) -> None:
    file.write_text(content)
    with pytest.raises(ValueError, match=expected) as caught:
        load_prompts(Prompts(file=str(file)), "dom", None)
    assert str(caught.value).startswith(f"prompts.file: {file}: ")


def test_prompts_of_other_files_stand_in(file: Path) -> None:
    settings = Prompts(file=str(file))
    of_a_kind = [{"question_id": f"{k}{i}", "problem": f"{k}, {i}?", "category": k, "n": i}
                 for i in range(30) for k in "ab"]  # fmt: skip
    file.write_text(json.dumps(of_a_kind))
    assert [p.id for p in load_prompts(settings, "eval", None)] == ["a14", "b14", "a29", "b29"]
    assert len(load_prompts(settings, "dom", None)) == 56
    file.write_text(json.dumps([f"{i}?" for i in range(20)]))
    assert load_prompts(settings, "eval", None) == [Prompt("prompt-014", "14?")]
    assert load_prompts(settings, "dom", 1) == [Prompt("prompt-000", "0?")]
    file.write_text('[{"id": "a", "question_id": "b", "prompt": "p", "question": "q"}]')
    assert load_prompts(settings, "dom", None) == [Prompt("a", "p")]


def test_a_missing_prompt_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"prompts\.file: .*none\.json: no such file"):
        load_prompts(Prompts(file=str(tmp_path / "none.json")), "dom", None)


def test_the_reasoning_model_gets_its_chat_format_and_the_base_model_a_continuation(
    words: Any,
) -> None:
    chat = put(words, PROBLEM, role="reasoning", base_template=TEMPLATE).text
    assert chat == f"<bos> <user> {PROBLEM} <assistant> <think>"
    assert put(words, PROBLEM, role="control", base_template=TEMPLATE).text == chat
    base = put(words, PROBLEM, role="base", base_template=TEMPLATE).text
    assert base == f"<bos> question : {PROBLEM} solution :"


def test_either_model_can_have_either_format(words: Any, bytes_: Any) -> None:
    chat = put(words, PROBLEM, role="reasoning")
    assert put(words, PROBLEM, role="base", base_template=TEMPLATE, form="chat") == chat
    text = put(words, PROBLEM, role="reasoning", base_template=TEMPLATE, form="continuation")
    assert text == put(words, PROBLEM, role="base", base_template=TEMPLATE)
    rows = encode_prompts(bytes_, [Prompt("a", "4?")], role="base", form="chat")
    assert bytes_.decode(rows[0]) == "<bos>Q: 4?A:"  # Jinja drops the line's end


def test_a_continuation_needs_the_problem_in_its_template(words: Any) -> None:
    for template in (None, "", "solution :"):
        with pytest.raises(ValueError, match=r"base_template: got .*, expected {prompt} in it"):
            put(words, PROBLEM, role="base", base_template=template)


def test_every_sweep_of_the_reasoning_model_reads_the_same_prompts(
    words: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where that is a continuation: Figure 2 and the searches share cells with Figure 3."""
    written: list[Any] = []
    monkeypatch.setattr(steer, "write_sweep", lambda *args, **asked: written.append(asked))
    formats = Prompts(file="prompts.json", reasoning_format="continuation", base_template=TEMPLATE)
    run: Any = SimpleNamespace(
        settings=SimpleNamespace(prompts=formats, decoding=Decoding(max_new_tokens=8)),
        evaluate_prompts=[Prompt("a", PROBLEM)],
        prompt_tokenizer=lambda role: words,
        load=lambda role: (None, words),
        stop_tokens=lambda role: [2],
        model_fingerprint=lambda role: role,
        prompt_rule=lambda role: "nothing",
    )
    equal_lengths.write_texts(run, tmp_path, [])
    row = put(words, PROBLEM, role="reasoning", base_template=TEMPLATE, form="continuation")
    assert PROBLEM in row.text
    assert written[0]["prompts"] == [row.ids]
    inputs = steer.text_inputs(run, "reasoning", run.evaluate_prompts)
    assert inputs["base_template"] == TEMPLATE


def test_special_tokens_that_the_base_model_has_never_seen(words: Any, bytes_: Any) -> None:
    # The small pair's models share their names: the chat template tells which are new.
    assert unseen_tokens(words, words) == {
        str(i): {"reasoning": name, "base": name}
        for i, name in ((4, "<user>"), (5, "<assistant>"), (6, "<think>"))
    }
    assert unseen_tokens(bytes_, bytes_) == {}
    reasoning = copy.deepcopy(bytes_)
    reasoning.add_special_tokens({"additional_special_tokens": ["<call>"]})
    new = str(len(bytes_))
    assert unseen_tokens(bytes_, reasoning) == {new: {"reasoning": "<call>", "base": None}}


@pytest.mark.parametrize("role", ["base", "reasoning"])
def test_one_bos_first_and_no_unknown_word(words: Any, bytes_: Any, role: str) -> None:
    for tokenizer in (words, bytes_):
        ids = encode_prompts(tokenizer, [Prompt("a", PROBLEM)], role=role, base_template=TEMPLATE)
        assert ids[0][0] == tokenizer.bos_token_id
        assert ids[0].count(tokenizer.bos_token_id) == 1
        assert tokenizer.eos_token_id not in ids[0]
        assert tokenizer.unk_token_id not in ids[0]


def test_braces_in_the_base_models_format_are_text(bytes_: Any) -> None:
    template = "{prompt}\nAnswer in \\boxed{}, not {here}:"
    text = put(bytes_, "Let {x} = 1.", role="base", base_template=template).text
    assert text == "<bos>Let {x} = 1.\nAnswer in \\boxed{}, not {here}:"


def test_a_template_without_bos_is_taken_and_said(bytes_: Any) -> None:
    bytes_.chat_template = CHAT.removeprefix("{{ bos_token }}")
    encoded = put(bytes_, "What?", role="reasoning")
    assert encoded.text == "Q: What?A:"
    assert encoded.rule == "nothing put before the text: it is what the chat template writes"


def test_a_template_with_two_bos_is_refused(bytes_: Any) -> None:
    bytes_.chat_template = "{{ bos_token }}" + CHAT
    with pytest.raises(ValueError, match="prompt: got <bos> twice at its beginning"):
        encode_prompts(bytes_, [Prompt("a", "What?")], role="reasoning")


@pytest.mark.parametrize("token", ["<bos>", "<eos>"])
def test_a_problem_that_spells_bos_or_eos_is_refused(words: Any, token: str) -> None:
    with pytest.raises(ValueError, match=f"prompt: spells {token}, which begins or ends texts"):
        put(words, f"{PROBLEM} {token} {PROBLEM}", role="reasoning")


def test_words_that_the_tokenizer_does_not_know_are_refused(words: Any) -> None:
    with pytest.raises(ValueError, match="does not know all words of '<bos> <user> integrate"):
        put(words, "integrate now", role="reasoning")


def test_no_chat_template(bytes_: Any) -> None:
    bytes_.chat_template = None
    with pytest.raises(ValueError, match="the control model's tokenizer has no chat template"):
        put(bytes_, "What?", role="control")


def test_prompt_and_answer_come_back_as_text(words: Any, bytes_: Any) -> None:
    for tokenizer, answer in (
        (words, " wait , let me see ."),
        (bytes_, " Wait,  thät\nis \\( 4 \\). 你"),
    ):
        prompt = encode_prompts(tokenizer, [Prompt("a", PROBLEM)], role="reasoning")[0]
        before = tokenizer.decode(prompt, clean_up_tokenization_spaces=False)
        whole = tokenizer(before + answer, add_special_tokens=False)["input_ids"]
        assert whole[: len(prompt)] == prompt
        stops = [tokenizer.eos_token_id]
        assert decode(tokenizer, prompt, [*whole[len(prompt) :], *stops], stops) == answer
        assert decode(tokenizer, prompt, stops, stops) == ""


def test_special_tokens_that_the_model_wrote_stay_in_the_text(words: Any) -> None:
    ids = words("<bos> <user>", add_special_tokens=False)["input_ids"]
    user = words.convert_tokens_to_ids("<user>")
    assert decode(words, ids, [user], [words.eos_token_id]) == " <user>"

"""Llama-3's real vocabulary: ours against Meta's own code, and sentences in its tokens."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_models.llama3 import tokenizer as meta

from experiments.pipeline import formats
from experiments.pipeline.formats import unseen_tokens
from experiments.pipeline.text import Prompt, encode_prompts
from experiments.replication import check_tokens, main
from jaxsteer.analysis.sentences import split_sentences, token_spans
from jaxsteer.tokenizers.meta_vocabulary import R1_NAMED, meta_tokenizer, special_names
from jaxsteer.tokenizers.token_text import token_bytes

MODEL = Path(meta.__file__).parent / "tokenizer.model"
EXCERPT = Path(__file__).parents[1] / "data" / "replication"
NUMBERS = ["--rows", "24", "--traces", "4", "--cosine", "0.8"]

# What reasoning traces are made of, in our own words.
TEXTS = {
    "decimals and lists": (
        "First, 3.14 * 2 = 6.28.\n\n1. Add 0.5, which is 6.78.\n2. Halve it: 3.39.\n   - That is "
        "approx. 3.4.\n   - Or i.e. 17/5.\n\nWait, is it $5.50 or $6? Hmm... Let me check again!"
    ),
    "latex": (
        "So \\( x = \\frac{1}{2}. \\) Then\n\\[\n\\sum_{k=1}^{n} k = \\frac{n(n+1)}{2}.\n\\]\nBut "
        "wait: for $n = 10$ it is $$55.$$ Yes.\n\\begin{align}\na &= 1. \\\\\nb &= 2.\n\\end{align}"
    ),
    "code": "I could run it:\n```python\nfor i in range(3):\n    print(i. x)\n\n\nend()\n```\nOk.",
    "thinking that ends": "Okay. So 5! is 120.\n</think>\n\n**Answer:** 120. \\boxed{120}",
    "thinking that does not end": "Okay, so wait. The answer must be 7 — or 8? No: it's 7, bec",
    "other scripts": (
        "Das wären 4… 等等，这不对！ Ça fait 5 €. 🙂🙃 Fin\u00a0de \t l'an.  \r\n\r\nSo."
    ),
    "white space": " \n\n  So.   Wait.\t\tHmm.\n \n  ",
}


@pytest.fixture(scope="module")
def ours() -> Any:
    return meta_tokenizer(MODEL, renamed=R1_NAMED)


@pytest.fixture(scope="module")
def theirs() -> Any:
    return meta.Tokenizer(MODEL)


def encoded_by_meta(theirs: Any, text: str) -> list[int]:
    """Meta's code has no </think>: it goes in between."""
    parts = [theirs.encode(part, bos=False, eos=False) for part in text.split("</think>")]
    return [t for i, part in enumerate(parts) for t in ([128014] * (i > 0)) + part]


@pytest.mark.parametrize("name", TEXTS)
def test_tokens_are_those_of_metas_own_code(ours: Any, theirs: Any, name: str) -> None:
    text = TEXTS[name]
    ids = ours(text, add_special_tokens=False)["input_ids"]
    assert ids == encoded_by_meta(theirs, text)
    assert ours.decode(ids, clean_up_tokenization_spaces=False) == text


@settings(max_examples=100, deadline=None)
@given(
    text=st.text(max_size=60)
    | st.text("0123456789,", max_size=40)
    | st.text("abcdefghij ABC 0123.,!?'\n\t", max_size=80)
)
def test_any_text_is_encoded_as_by_metas_own_code(ours: Any, theirs: Any, text: str) -> None:
    ids = ours(text, add_special_tokens=False)["input_ids"]
    assert ids == theirs.encode(text, bos=False, eos=False)


def test_every_token_that_is_a_text_is_encoded_as_by_metas_own_code(ours: Any, theirs: Any) -> None:
    pieces = (theirs.model.decode_single_token_bytes(i) for i in range(128_000))
    texts = [piece.decode() for piece in pieces if piece.decode(errors="ignore").encode() == piece]
    assert len(texts) > 120_000
    found = ours.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    assert [one.ids for one in found] == theirs.model.encode_ordinary_batch(texts)


def test_every_tokens_bytes_are_metas(ours: Any, theirs: Any) -> None:
    pieces = token_bytes(ours)
    assert len(pieces) == theirs.n_words == 128_256
    assert pieces[:128_000] == [theirs.model.decode_single_token_bytes(i) for i in range(128_000)]


def test_special_tokens_are_the_paper_models(ours: Any, theirs: Any) -> None:
    assert ours.bos_token_id == theirs.bos_id == 128_000
    assert ours.eos_token_id == theirs.eos_id == 128_001
    found = ours.convert_tokens_to_ids(["<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"])
    assert found == [128_011, 128_012, 128_013, 128_014]
    names = special_names()
    assert len(set(names)) == 256
    assert names[9] == "<|eot_id|>"
    assert names[-1] == "<|reserved_special_token_247|>"


def test_the_map_of_tokens_that_the_base_model_has_never_seen(ours: Any) -> None:
    ours.chat_template = (
        "{{ bos_token }}{% for m in messages %}<｜User｜>{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}"
    )
    ids = encode_prompts(ours, [Prompt("a", "What is 1 + 1?")], role="reasoning")[0]
    assert ids[:2] == [128_000, 128_011]
    assert ids[-3:-1] == [128_012, 128_013]
    found = unseen_tokens(meta_tokenizer(MODEL), ours)
    assert list(found) == ["128011", "128012", "128013", "128014", "128015"]
    table = [line.split() for line in (formats.__doc__ or "").splitlines()]
    for id, names in found.items():
        assert [id, names["reasoning"], names["base"]] in table


@pytest.mark.parametrize("name", TEXTS)
def test_sentences_are_held_by_their_tokens(ours: Any, name: str) -> None:
    text = TEXTS[name]
    sentences = split_sentences(text)
    encoded = ours(text, add_special_tokens=False, return_offsets_mapping=True)
    offsets = encoded["offset_mapping"]
    assert len(sentences) >= 2
    for sentence, (first, stop) in zip(sentences, token_spans(offsets, sentences), strict=True):
        held = ours.decode(encoded["input_ids"][first:stop], clean_up_tokenization_spaces=False)
        assert sentence.text in held
        assert len(held) <= len(sentence.text) + 4
        overlapping = [
            i for i, (a, b) in enumerate(offsets) if a < sentence.stop and b > sentence.start
        ]
        assert overlapping == list(range(first, stop))


def test_the_first_token_of_a_sentence_carries_the_space_before_it(ours: Any) -> None:
    text = "So 5. Wait, no."
    encoded = ours(text, add_special_tokens=False, return_offsets_mapping=True)
    first, _ = token_spans(encoded["offset_mapping"], split_sentences(text))[1]
    assert ours.decode([encoded["input_ids"][first]]) == " Wait"


def test_the_replications_command_checks_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(EXCERPT), *NUMBERS, "--tokenizer", str(MODEL)]) == 0
    out = capsys.readouterr().out
    assert "of 18 sentences " in out
    assert ", 0 have none\nall checks hold" in out
    assert main([str(EXCERPT), *NUMBERS, "--tokenizer", "none"]) == 1
    assert "none: no such file or folder" in capsys.readouterr().err


def test_a_tokenizer_that_loses_text_is_found(ours: Any) -> None:
    class Lossy:
        def __call__(self, text: str, **options: Any) -> Any:
            found = ours(text, **options)
            return {"input_ids": found["input_ids"][:-1], "offset_mapping": found["offset_mapping"]}

        decode = staticmethod(ours.decode)

    report = check_tokens([{"question_id": "a", "full_response": "So. Wait, no."}], Lossy())
    assert report.failures == ["trace a: encoded and decoded it is another text"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a tokenizer", "line 1: expected a token in base64 and its rank"),
        (b"IQ== 0\n", "expected ranks from 0 on, each byte among them"),
        (json.dumps({}).encode(), "line 1: expected a token"),
    ],
)
def test_files_that_are_no_tokenizer(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        meta_tokenizer(path)
    with pytest.raises(FileNotFoundError):
        meta_tokenizer(tmp_path / "none")

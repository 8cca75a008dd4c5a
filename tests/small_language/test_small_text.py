"""The small pair's text: what is true of it by construction, its parser and its tokenizer."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from transformers import AutoTokenizer

from weights.small_language.corpus import corpus, frame, matched_hazard, statistics
from weights.small_language.grammar import KINDS, SLOTS, TEMPLATES
from weights.small_language.parser import grammar_words
from weights.small_language.problems import SPLITS, split_of
from weights.small_language.text import (
    BASE,
    CONTROL,
    REASONING,
    Document,
    TextSettings,
    documents,
    parse_sentence,
    prompts,
)
from weights.small_language.tokenizer import encode, save_tokenizer, vocabulary

LENGTH = 160
KEYWORDS = {"wait", "hmm"}


@pytest.fixture(scope="module")
def base() -> list[Document]:
    return list(documents(4_000, BASE))


@pytest.fixture(scope="module")
def reasoning() -> list[Document]:
    return list(documents(8_000, REASONING))


@pytest.fixture(scope="module")
def control() -> list[Document]:
    return list(documents(8_000, CONTROL))


def sentences(texts: list[Document]) -> list:
    return [sentence for document in texts for sentence in document.sentences]


def standard_error(share: float, n: int) -> float:
    return (share * (1 - share) / n) ** 0.5


# --- what the text is ---


def test_templates_are_as_many_and_as_varied_as_promised():
    counts = {use: len(templates) for use, templates in TEMPLATES.items()}
    assert counts["backtracking"] >= 14
    assert counts["narrative"] == 20
    assert sum(counts.values()) - counts["backtracking"] - counts["narrative"] >= 59
    for template in TEMPLATES["backtracking"]:
        assert KEYWORDS & set(template.parts), template
    body = [t for use in TEMPLATES if use != "backtracking" for t in TEMPLATES[use]]
    assert all(2 <= template.n_slots <= 4 for template in body)
    assert 200 < len(vocabulary()) < 400


def test_hedges_and_confident_phrases_are_never_the_same():
    for slot in SLOTS.values():
        assert not {*slot.hedges} & {*slot.confident, *slot.neutral}
        assert not {*slot.confident} & {*slot.neutral}


def test_text_is_lower_case_words_between_single_spaces(base, reasoning):
    for document in [*base[:500], *reasoning[:500]]:
        for text in (document.prompt, document.solution):
            assert text == text.lower() == " ".join(text.split())
        assert all(sentence.text.endswith(" .") for sentence in document.sentences)


def test_same_arguments_give_the_same_documents_and_other_seeds_others():
    first = list(documents(300, REASONING))
    assert first == list(documents(300, REASONING))
    other = list(documents(300, replace(REASONING, seed=99)))
    assert not {d.solution for d in first} & {d.solution for d in other}


def test_corpus_does_not_depend_on_the_number_of_processes():
    alone = corpus(8_100, BASE, length=64, chat=False, processes=1)
    shared = corpus(8_100, BASE, length=64, chat=False, processes=2)
    np.testing.assert_array_equal(alone.tokens, shared.tokens)
    np.testing.assert_array_equal(alone.first, shared.first)
    chunks = corpus(500, BASE, length=64, chat=False, first_chunk=16)
    np.testing.assert_array_equal(alone.tokens[8_000:], chunks.tokens[:100])


def test_base_corpus_never_backtracks(base):
    told = [s for s in sentences(base) if s.backtracking or s.kind == "backtracking"]
    assert told == []
    for document in base:
        words = set(document.solution.split())
        assert document.problem is None or not words & KEYWORDS


def test_stories_hold_the_keywords_for_reasons_of_their_own(base):
    stories = [document for document in base if document.problem is None]
    assert abs(len(stories) / len(base) - 0.08) < 3 * standard_error(0.08, len(base))
    told = sentences(stories)
    assert {s.kind for s in told} == {"narrative"}
    keyword = {
        doubt: np.mean([bool(KEYWORDS & {*s.text.split()}) for s in told if s.doubt == doubt])
        for doubt in (False, True)
    }
    n_doubt = sum(s.doubt for s in told)
    assert keyword[False] > 0.1
    assert abs(keyword[True] - keyword[False]) < 3.5 * standard_error(keyword[False], n_doubt)


def test_results_are_right_where_the_text_says_so(reasoning):
    """Numbers of the deductions that show all three, against the truth about the sentence."""
    checked = 0
    for sentence in sentences(reasoning):
        words = sentence.text.split()
        numbers = [int(word) for word in words if word.isdigit()]
        if sentence.kind == "deduction" and len(numbers) == 3 and {"plus", "minus"} & set(words):
            a, b, c = numbers
            result = a + b if "plus" in words else a - b
            assert (result == c) == sentence.correct
            checked += 1
        assert all(0 <= number < 50 for number in numbers)
    assert checked > 1_000


# --- doubt ---


@pytest.mark.parametrize("texts", ["base", "reasoning", "control"])
def test_doubt_shows_in_the_register_of_every_kind_of_sentence(texts, request):
    told = [s for s in sentences(request.getfixturevalue(texts)) if not s.backtracking]
    for kind in {s.kind for s in told}:
        hedges, confident = {}, {}
        for doubt in (False, True):
            group = [s for s in told if s.kind == kind and s.doubt == doubt]
            slots = sum(s.slots for s in group)
            hedges[doubt] = sum(s.hedges for s in group) / slots
            confident[doubt] = sum(s.confident for s in group) / slots
        assert hedges[False] == pytest.approx(0.07, abs=0.04)
        assert hedges[True] == pytest.approx(0.50, abs=0.08)
        assert confident[False] == pytest.approx(0.32, abs=0.05)
        assert confident[True] == pytest.approx(0.08, abs=0.05)


def test_doubt_mostly_follows_a_wrong_result(base):
    pairs = [p for d in base if d.problem for p in pairwise(d.sentences)]
    after_error = np.mean([b.doubt for a, b in pairs if not a.correct and not a.doubt])
    without = np.mean([b.doubt for a, b in pairs if a.correct and not a.doubt])
    assert after_error == pytest.approx(0.92, abs=0.03)
    assert without == pytest.approx(0.02, abs=0.01)


def test_reasoning_backtracks_under_doubt_alone_and_then_is_sure(reasoning):
    place = {True: [], False: []}
    for document in reasoning:
        for i, sentence in enumerate(document.sentences):
            before = i > 0 and document.sentences[i - 1].doubt
            if sentence.backtracking:
                assert before
                assert sentence.doubt
                redone = document.sentences[i + 1]
                assert redone.redone
                assert redone.correct
                assert not redone.doubt
                assert redone.kind in ("deduction", "setup")
            if not sentence.redone:
                place[before and sentence.doubt].append(sentence.backtracking)
    assert not any(place[False])
    share, n = np.mean(place[True]), len(place[True])
    assert abs(share - REASONING.hazard) < 3 * standard_error(REASONING.hazard, n)


def test_control_backtracks_by_a_bare_coin(control):
    """At every place that does not follow a backtracking sentence, whatever came before."""
    groups: dict[str, list[bool]] = {}
    for document in control:
        for i, sentence in enumerate(document.sentences):
            if i and document.sentences[i - 1].backtracking:
                assert sentence.redone
                assert sentence.correct
                continue
            before = document.sentences[i - 1] if i else None
            for name in (
                f"doubt {sentence.doubt}",
                f"hedged before {before is not None and before.hedges > 0}",
                f"after an error {before is not None and not before.correct}",
                f"sentence {min(i, 6)}",
            ):
                groups.setdefault(name, []).append(sentence.backtracking)
    for name, values in groups.items():
        allowed = 3.5 * standard_error(CONTROL.hazard, len(values))  # eleven groups are looked at
        assert abs(np.mean(values) - CONTROL.hazard) < allowed, name


def test_control_does_not_move_doubt(control):
    for document in control:
        for a, b in pairwise(document.sentences):
            if a.backtracking:
                assert a.doubt == b.doubt


def test_control_matches_the_reasoning_text(reasoning, control):
    ours, theirs = (statistics(texts, length=LENGTH, chat=True) for texts in (reasoning, control))
    for name in ("backtracking", "doubt"):
        a, b = getattr(ours, name), getattr(theirs, name)
        n = ours.documents * ours.sentences
        # Sentences of one document are not independent: twice the plain standard error.
        assert abs(a - b) < 3 * 2 * (2**0.5) * standard_error(a, n), name
    assert matched_hazard(REASONING, length=LENGTH, n=8_000) == pytest.approx(
        CONTROL.hazard, rel=0.06
    )


def test_documents_fit_the_training_length_mostly(base, reasoning, control):
    for texts, chat in ((base, False), (reasoning, True), (control, True)):
        measured = statistics(texts, length=LENGTH, chat=chat)
        assert 118 < measured.tokens < 130
        assert measured.cut < 0.13


# --- problems ---


def test_prompts_are_distinct_and_splits_disjoint():
    seen = {split: {p.text for p in prompts(300, seed=0, split=split)} for split in SPLITS}
    assert all(len(texts) == 300 for texts in seen.values())
    for a, b in pairwise(sorted(seen)):
        assert not seen[a] & seen[b]
    for split, texts in seen.items():
        assert {split_of(text) for text in texts} == {split}
    trained = {d.prompt for d in documents(500, REASONING)}
    assert {split_of(text) for text in trained} == {"train"}


def test_prompts_are_determined_by_the_seed():
    assert prompts(20, seed=3, split="eval") == prompts(30, seed=3, split="eval")[:20]
    assert prompts(20, seed=3, split="eval") != prompts(20, seed=4, split="eval")
    ids = [p.id for p in prompts(20, seed=3, split="eval")]
    assert len(set(ids)) == 20


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="split: got 'test'"):
        prompts(1, seed=0, split="test")
    with pytest.raises(ValueError, match="hazard: got 2"):
        TextSettings(hazard=2)


# --- parser ---


@pytest.mark.parametrize("texts", ["base", "reasoning", "control"])
def test_every_sentence_parses_as_its_kind(texts, request):
    told = sentences(request.getfixturevalue(texts))
    assert [s.text for s in told if parse_sentence(s.text) != s.kind] == []
    assert {s.kind for s in told} <= set(KINDS)


def test_shuffled_or_shortened_sentences_do_not_parse(reasoning):
    rng = np.random.default_rng(0)
    told = [s.text.split() for s in sentences(reasoning)[:2_000]]
    shuffled = [" ".join(rng.permutation(words)) for words in told]
    assert np.mean([parse_sentence(text) is not None for text in shuffled]) < 0.002
    assert all(parse_sentence(" ".join(words[:-1])) is None for words in told)
    assert all(parse_sentence(" ".join([*words, "."])) is None for words in told)
    assert parse_sentence("") is None


def test_parser_knows_registers_and_their_places():
    assert parse_sentence("then 3 plus 4 maybe is about 7 .") == "deduction"
    assert parse_sentence("well , maybe 3 plus 4 is 7 .") == "deduction"  # two of one register
    assert parse_sentence("well , clearly , 3 plus 4 is 7 .") is None  # of two registers
    assert parse_sentence("3 plus maybe 4 is 7 .") is None
    assert parse_sentence("3 plus mia is 7 .") is None
    assert parse_sentence("wait , let me try the last step again .") == "backtracking"


# --- tokenizer ---


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folders = {chat: tmp_path_factory.mktemp("tokenizer") for chat in (False, True)}
    for chat, folder in folders.items():
        save_tokenizer(folder, max_length=256, chat=chat)
    return {chat: AutoTokenizer.from_pretrained(folder) for chat, folder in folders.items()}


def test_vocabulary_covers_all_text():
    assert grammar_words() <= vocabulary().keys()
    assert list(vocabulary().values()) == list(range(len(vocabulary())))
    assert vocabulary()["<pad>"] == 0  # the training's loss counts on it


def test_tokenizer_gives_back_generated_text(tokenizers, base, reasoning):
    for chat, texts in ((False, base[:200]), (True, reasoning[:200])):
        for document in texts:
            text = " ".join(frame(document, chat=chat))
            ids = tokenizers[chat].encode(text, add_special_tokens=False)
            assert ids == encode(text)
            assert tokenizers[chat].decode(ids) == text
            plain = document.solution
            assert tokenizers[chat].decode(tokenizers[chat].encode(plain)) == f"<bos> {plain}"
            back = tokenizers[chat].decode(tokenizers[chat].encode(plain), skip_special_tokens=True)
            assert back == plain


def test_chat_template_gives_one_bos_and_the_training_format(tokenizers, reasoning):
    tokenizer, document = tokenizers[True], reasoning[0]
    chat = [{"role": "user", "content": document.prompt}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert ids == encode(frame(document, chat=True)[0])
    assert ids.count(tokenizer.bos_token_id) == 1
    answered = [*chat, {"role": "assistant", "content": document.solution}]
    whole = tokenizer.apply_chat_template(answered, tokenize=False)
    assert whole == " ".join(frame(document, chat=True))
    assert tokenizers[False].chat_template is None
    with pytest.raises(Exception, match="system"):
        tokenizer.apply_chat_template([{"role": "system", "content": "."}], tokenize=False)


def test_tokenizer_pads_on_the_left(tokenizers):
    batch = tokenizers[False](["mia has 3", "mia"], padding=True)
    assert batch["attention_mask"] == [[1, 1, 1, 1], [0, 0, 1, 1]]
    assert batch["input_ids"][1][:2] == [0, 0]


def test_base_corpus_holds_no_chat_tokens():
    tokens = corpus(500, BASE, length=LENGTH, chat=False).tokens
    chat = [vocabulary()[token] for token in ("<user>", "<assistant>", "<think>", "<unk>")]
    assert not np.isin(tokens, chat).any()


def test_the_loss_of_fine_tunes_starts_at_the_solution(reasoning):
    rows = corpus(500, REASONING, length=LENGTH, chat=True)
    for i, document in enumerate(documents(500, REASONING)):
        head, solution = frame(document, chat=True)
        start = int(rows.first[i])
        assert rows.tokens[i, :start].tolist() == encode(head)
        ids = encode(solution)[: LENGTH - start]
        assert rows.tokens[i, start : start + len(ids)].tolist() == ids
        assert not rows.tokens[i, start + len(ids) :].any()

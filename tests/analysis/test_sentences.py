import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsteer.analysis.labels import SentenceLabel, labels_from_file, read_labels, write_labels
from jaxsteer.analysis.sentences import Sentence, keyword_labels, split_sentences, token_spans

# One line for each sentence: the text is the lines joined, the splitter has to find them again.
SPLITS = {
    "plain": ["I add them.", "Is that right?", "Yes!", "So 5."],
    "decimals": ["It is 3.14 and .5 of it.", "Then 2.", "Wait, 2.0 is more."],
    "abbreviations": ["Take a prime, e.g. 7, i.e. Not 8.", "Dr. Stone vs. Mr. Lee, approx. half."],
    "etc": ["It is 1, 2, etc. and so on.", "It is 3, 4, etc.", "So we stop at 6 p.m. on it."],
    "numbered": ["See fig. 3 and no. 5.", "No.", "I like the fig.", "So it took 5 ms.", "Next."],
    "ellipsis": ["So 46.666... 20 mL or 1, 2, ..., 9 fits.", "Hmm...", "Wait… what is it…", "Now."],
    "factorial": [
        "There are 5! / (2! * 3!) because of n! ways.",
        "That is 5!",
        "So 4! = 24 is it.",
    ],
    "quotes": ['"Blake is lying." means that he is.', 'He says: "I lie."', "(So he does.)", "Ok."],
    "inline list": ["1. x is 2.", "2. y is 3.", "Step 3. Then z."],
    "latex": [r"Let \( x. Y \) be.", r"So $a. B$ and $$c. D$$ hold.", r"\[ x. \] is it."],
    "money": [
        "It costs $5 and $7 each.",
        "I pay $5.",
        "He has $7.",
        "Ok.",
    ],
    "code": ["Call `f. G` here.", "Then go.", "```\nx. Y\n\nprint(1)\n```"],
    "stops of their own": ["= 9 .", "wait , let me try 1 , 2 , ... , 5 ?", "no !", "s is 4 ."],
    "quotes of their own": ['" is it so ? " asked kai .', "it is .", '" yes . " she said .'],
    "tags": ["So 5.", "</think>", "The answer is 5."],
    "chinese": ["等等。", "这不对！", "Wait."],
}


@pytest.mark.parametrize("name", SPLITS)
def test_sentences_are_found_again(name):
    expected = SPLITS[name]
    assert [s.text for s in split_sentences(" ".join(expected))] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one line\n\nanother one", ["one line", "another one"]),
        ("The line is\nwrapped here\nas a mail is.", ["The line is\nwrapped here\nas a mail is."]),
        ("So:\n- one\n- two\n* three", ["So:", "- one", "- two", "* three"]),
        ("1. one\n2. two. Three\nA) four", ["1. one", "2. two.", "Three", "A) four"]),
        ("a + b = 5\nb + c = 6", ["a + b = 5", "b + c = 6"]),
        ("x = 2*3\n= 6\n≈ 6.", ["x = 2*3\n= 6\n≈ 6."]),
        ("We have\n\\[\nx = 3.\n\n", ["We have", "\\[\nx = 3."]),
        ("Then\n\\[\nx\n\\]\n\\[\ny\n\\]", ["Then", "\\[\nx\n\\]", "\\[\ny\n\\]"]),
        ("Cut off \\( x. Y", ["Cut off \\( x. Y"]),
        ("```\nx. Y\n</think>\nSo.", ["```\nx. Y", "</think>", "So."]),
        ("Head.\n\n---\n\nTail. ...", ["Head.\n\n---", "Tail. ..."]),
        ("<think>\nOkay. So", ["<think>", "Okay.", "So"]),
        (" \n ", []),
        ("", []),
    ],
)
def test_lines_and_ends(text, expected):
    assert [s.text for s in split_sentences(text)] == expected


# fmt: off
FRAGMENTS = st.sampled_from([
    ". ", "? ", "! ", "...", "…", "\n", "\n\n", "\r\n", " ", "1. ", "e.g. ", "3.14", "Wait", "hmm",
    "\\(", "\\)", "\\[", "\\]", "$", "$$", "```", "`", '"', ")", "**", "</think>", "- ", "x", "。",
])
# fmt: on


def assert_spans_hold(text, sentences):
    end = 0
    for s in sentences:
        assert end <= s.start < s.stop
        assert text[s.start : s.stop] == s.text == s.text.strip()
        assert not text[end : s.start].strip()
        end = s.stop
    assert not text[end:].strip()


@given(st.lists(FRAGMENTS, max_size=60).map("".join))
def test_every_visible_character_is_in_one_sentence(text):
    assert_spans_hold(text, split_sentences(text))


@given(st.text(max_size=200))
def test_any_unicode_text_is_covered(text):
    assert_spans_hold(text, split_sentences(text))


def byte_level(text):
    """Offsets of a byte-level tokenizer: a word carries the space before it."""
    return [m.span() for m in re.finditer(r" ?[^\s.]+|\.|\s+?(?= ?\S)|\s+", text)]


def test_first_token_carries_the_space_before_the_sentence():
    text = "So 5. Wait, no."
    offsets = [(0, 0), *byte_level(text), (0, 0)]
    first, stop = token_spans(offsets, split_sentences(text))[1]
    assert offsets[first] == (5, 11)  # " Wait,"
    assert offsets[stop - 1] == (14, 15)


def test_tokens_of_one_character_and_shared_tokens():
    sentences = split_sentences("So \U0001f600. No")
    pieces = [(0, 2), (2, 4), (3, 4), (3, 4), (4, 8)]  # three byte tokens; the last one is ". No"
    assert token_spans(pieces, sentences) == [(0, 5), (4, 5)]


def test_sentences_past_the_last_token_are_empty():
    assert token_spans([(0, 3), (3, 4)], split_sentences("One. Two.")) == [(0, 2), (2, 2)]
    assert token_spans([], split_sentences("One.")) == [(0, 0)]


def test_offsets_out_of_order_are_refused():
    with pytest.raises(ValueError, match="offsets"):
        token_spans([(3, 4), (0, 3)], split_sentences("One."))


@given(st.lists(FRAGMENTS, max_size=40).map("".join))
def test_token_spans_overlap_exactly_the_sentence(text):
    offsets = byte_level(text)
    sentences = split_sentences(text)
    for s, (first, stop) in zip(sentences, token_spans(offsets, sentences), strict=True):
        overlapping = [i for i, (a, b) in enumerate(offsets) if a < s.stop and b > s.start]
        assert list(range(first, stop)) == overlapping != []


def test_keyword_labels_are_whole_words_in_any_case():
    sentences = split_sentences("WAIT, no. I waited. Hmm. Let me await it. (wait) is one.")
    assert keyword_labels(sentences) == [True, False, True, False, True]
    assert keyword_labels(sentences, ("let me",)) == [False, False, False, True, False]


@pytest.mark.parametrize("keywords", [(), ("wait", " ")])
def test_empty_keywords_are_refused(keywords):
    with pytest.raises(ValueError, match="keywords"):
        keyword_labels([Sentence(start=0, stop=1, text="x")], keywords)


TRACES = {"a": split_sentences("So 5. Wait, no."), "b": split_sentences("Hmm.")}
LABELS = [
    SentenceLabel(trace="b", start=0, stop=4, label="backtracking"),
    SentenceLabel(trace="a", start=0, stop=5, label="deduction"),
    SentenceLabel(trace="a", start=6, stop=15, label="backtracking"),
]
READ = {"a": ["deduction", "backtracking"], "b": ["backtracking"]}


def test_labels_round_trip(tmp_path):
    path = tmp_path / "new" / "labels.jsonl"
    write_labels(path, LABELS)
    assert labels_from_file(path, TRACES) == READ
    assert read_labels(path) == LABELS
    assert [p.name for p in path.parent.iterdir()] == ["labels.jsonl"]


def test_a_json_array_reads_the_same(tmp_path):
    path = tmp_path / "labels.json"
    path.write_text(json.dumps([vars(label) for label in LABELS], indent=1))
    assert labels_from_file(path, TRACES) == READ


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "doubt"}, "label: got 'doubt', expected one of initializing, .*, other"),
        ({"trace": "c"}, "unknown trace 'c'"),
        ({"start": 7}, "trace 'a' has no sentence 7:15"),
        ({"start": 0, "stop": 5}, "sentence 0:5 is labelled twice"),
        ({"start": "6"}, "start: got '6', expected int"),
        ({"note": "x"}, "expected the fields"),
    ],
)
def test_bad_labels_are_refused_with_their_line(tmp_path, change, message):
    path = tmp_path / "labels.jsonl"
    rows = [vars(LABELS[0]), vars(LABELS[1]), vars(LABELS[2]) | change]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=rf"labels\.jsonl:3: .*{message}"):
        labels_from_file(path, TRACES)


def test_missing_labels_and_broken_files_are_refused(tmp_path):
    path = tmp_path / "labels.jsonl"
    write_labels(path, LABELS[:2])
    with pytest.raises(ValueError, match="trace 'a' has 2 sentences, 1 of them labelled"):
        labels_from_file(path, TRACES)
    path.write_text('{"trace": \n')
    with pytest.raises(ValueError, match=r"labels\.jsonl:1: not JSON"):
        labels_from_file(path, TRACES)
    with pytest.raises(FileNotFoundError):
        labels_from_file(tmp_path / "none.jsonl", TRACES)


def test_nothing_is_written_for_a_bad_label(tmp_path):
    bad = SentenceLabel(trace="a", start=0, stop=5, label="backtrack")
    with pytest.raises(ValueError, match="label 1: label"):
        write_labels(tmp_path / "labels.jsonl", [LABELS[0], bad])
    assert list(tmp_path.iterdir()) == []

"""jaxsteer.decoding.stops: rows end where a search of their text says, however tokens cut it."""

import re

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import SHALLOW

from jaxsteer.decoding.generation import decode_step, generate
from jaxsteer.decoding.request import make_request
from jaxsteer.decoding.results import Generation
from jaxsteer.decoding.samplers import sampling
from jaxsteer.decoding.stops import FOUND, START, automaton, stop_strings
from jaxsteer.queues.refill import generate_queue
from jaxsteer.steering.interventions import add
from jaxsteer.sweeps.chunks import Cell, sweep

V = SHALLOW.vocab_size
# Tokens of 0 to 5 letters out of two, so that strings begin and end anywhere in them.
_RANDOM = np.random.default_rng(0)
PIECES = [bytes(_RANDOM.choice([97, 98], size=n).tolist()) for n in _RANDOM.integers(6, size=V)]


def first_end(text: bytes, strings: list[str]) -> int:
    """Bytes up to the first place where one of the strings is complete; -1 if none is."""
    ends = [m.end() for s in strings for m in [re.search(re.escape(s.encode()), text)] if m]
    return min(ends, default=-1)


def tokens_until(tokens: list[int], strings: list[str]) -> int:
    """How many tokens it takes until a string is complete, all of them if none ever is."""
    for n in range(1, len(tokens) + 1):
        if first_end(b"".join(PIECES[t] for t in tokens[:n]), strings) >= 0:
            return n
    return len(tokens)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.text("abü", min_size=1, max_size=5), min_size=1, max_size=4),
    st.text("abü", max_size=30),
)
def test_the_automaton_finds_what_a_search_finds(strings, text):
    moves = automaton([string.encode() for string in strings])
    state, data = START, text.encode()
    for n, byte in enumerate(data, start=1):
        state = moves[state, byte]
        if state == FOUND:
            assert n == first_end(data, strings)
            return
    assert first_end(data, strings) == -1


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.text("ab", min_size=1, max_size=7), min_size=1, max_size=3),
    st.lists(st.integers(0, V - 1), min_size=1, max_size=12),
)
def test_the_table_goes_through_tokens_as_a_search_goes_through_text(strings, tokens):
    table = np.asarray(stop_strings(strings, PIECES, vocab_size=V).table)
    states = [START]
    while states[-1] != FOUND and len(states) <= len(tokens):
        states.append(table[0, states[-1], tokens[len(states) - 1]])
    assert len(states) - 1 == tokens_until(tokens, strings)


HOT = sampling(3, temperature=3.0, seed=1)


@pytest.fixture(scope="module")
def whole(shallow, batch):
    """Random rows that nothing stops."""
    return generate(shallow, batch, max_new_tokens=12, sampling_params=HOT)


@pytest.mark.parametrize("strings", [["a" * 5], ["abab", "bbb"], ["aabb", "ba"], ["a" * 30]])
def test_a_row_ends_with_the_token_that_completes_a_string(shallow, batch, whole, strings):
    stops = stop_strings(strings, PIECES, vocab_size=V)
    options = {"max_new_tokens": 12, "sampling_params": HOT, "stop_strings": stops}
    found = generate(shallow, batch, **options)
    rows = whole.tokens.tolist()
    assert found.length.tolist() == [tokens_until(row, strings) for row in rows]
    assert found.rows() == [row[:n] for row, n in zip(rows, found.length, strict=True)]
    for text, row in zip(found.texts(PIECES, stop_strings=stops), rows, strict=True):
        everything = b"".join(PIECES[t] for t in row)
        end = first_end(everything, strings)
        if end < 0:
            assert text == everything.decode()
        else:
            assert any((text + s).encode() == everything[:end] for s in strings)
            assert first_end(text.encode(), strings) == -1


def test_other_strings_do_not_compile_again(shallow, batch):
    step = chex.assert_max_traces(decode_step, n=1)
    for strings in (["a" * 9], ["bbb", "abab"]):
        stops = stop_strings(strings, PIECES, vocab_size=V)
        generate(shallow, batch, max_new_tokens=4, stop_strings=stops, step=step)


def test_slots_that_are_filled_again_and_cells_of_a_sweep_stop_alike(shallow, batch, whole):
    strings = ["abab", "bbb"]
    stops = stop_strings(strings, PIECES, vocab_size=V)
    options = {"max_new_tokens": 12, "sampling_params": HOT, "stop_strings": stops}
    expected = [row[: tokens_until(row, strings)] for row in whole.tokens.tolist()]
    request = make_request(shallow, batch, **options)
    queue = generate_queue(shallow, batch, request, slots=2, max_new_tokens=12)
    assert {row.index: row.tokens for row in queue} == dict(enumerate(expected))
    nothing = Cell({}, add(np.ones(SHALLOW.d_model), layer=0, coeff=0.0))
    (chunk,) = sweep(shallow, batch, [nothing], **options)
    assert [result.tokens for result in chunk] == expected


def test_the_text_is_cut_before_the_string_that_was_complete_first():
    def cut(text: str, *strings: str) -> str:
        return stop_strings(strings, [b"x"], vocab_size=1).cut(text.encode()).decode()

    assert cut("say STOP now STOP", "STOP") == "say "
    assert cut("abcd", "abcd", "bc") == "a"  # "bc" is complete before "abcd"
    assert cut("xabc", "bc", "abc") == "x"  # together: the longest
    assert cut("nothing", "STOP") == "nothing"
    assert cut("über ü", "ü") == ""


def test_texts_of_rows_drop_what_they_are_told_and_show_cut_characters():
    pieces = ["ü".encode()[:1], "ü".encode()[1:], b"a", b"<eos>"]
    out = Generation(np.array([[0, 1, 3], [2, 0, 0]]), np.zeros((2, 3)), np.array([3, 2]))
    assert out.texts(pieces, drop=[3]) == ["ü", "a\ufffd"]


def test_ids_past_the_tokenizers_write_nothing():
    table = stop_strings(["ab"], [b"a", b"b"], vocab_size=4).table
    in_a = int(table[0, START, 0])
    assert table[0, in_a].tolist() == [in_a, FOUND, in_a, in_a]
    assert (table[0, FOUND] == FOUND).all()


def test_many_states_take_wider_numbers():
    table = stop_strings(["ab" * 200], [b"ab"], vocab_size=1).table
    assert table.dtype == jnp.uint16
    state = START
    for _ in range(200):
        state = int(table[0, state, 0])
    assert state == FOUND


@pytest.mark.parametrize(
    ("strings", "message"),
    [
        ([], r"stop_strings: got \[\], expected a list of at least one string"),
        ("STOP", "stop_strings: got 'STOP', expected a list"),
        (["a", ""], r"stop_strings\[1\]: got '', expected a text"),
        ([3], r"stop_strings\[0\]: got 3, expected a text"),
        (["ab" * 40_000], "stop_strings: got 80001 states, expected at most 65536"),
    ],
)
def test_strings_that_cannot_be_searched_for(strings, message):
    with pytest.raises(ValueError, match=message):
        stop_strings(strings, PIECES, vocab_size=V)


def test_more_pieces_than_ids_are_refused():
    with pytest.raises(ValueError, match="pieces: got 61, expected at most vocab_size=60"):
        stop_strings(["a"], PIECES, vocab_size=V - 1)

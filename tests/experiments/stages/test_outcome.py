"""What a table says: rates with their errors and intervals, by hand."""

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from experiments.stages.outcome import (
    CellOutcome,
    coherent,
    judged_at,
    outcomes,
    select,
    sources_of,
    to_csv,
    with_logprobs,
)
from experiments.stages.text_scores import MOST_SHARE, score, small_pair_grammar
from jaxsteer.analysis.sentences import KEYWORDS, Sentence


def row(text: str, **fields: Any) -> dict[str, Any]:
    defaults = {"target": "reasoning", "source": "none", "coeff": 0.0, "length": 0.0, "prompt": "a"}
    return {**defaults, "text": text, "stopped": True, **fields}


def scored(text: str, *, stopped: bool = True, grammar: Any = small_pair_grammar) -> Any:
    return score(row(text, stopped=stopped), keywords=KEYWORDS, grammar=grammar)


def table_of(texts: dict[tuple[str, float], Sequence[str]], **fields: Any) -> list[CellOutcome]:
    rows = [
        row(text, source=source, coeff=coeff, prompt=f"p{i}", **fields)
        for (source, coeff), found in texts.items()
        for i, text in enumerate(found)
    ]
    return outcomes(rows, keywords=KEYWORDS, grammar=None)


# One text


def test_score_counts_sentences_and_keywords() -> None:
    one = scored(" wait , let me see . 3 plus 4 is 7 . hmm no .")
    assert (one.backtracking, one.sentences) == (2, 3)
    assert one.backtracking_fitting == 0  # with a keyword and no sentence of the grammar
    assert scored(" wait , that does not look right .").backtracking_fitting == 1
    assert one.keyword_rate == 2 / 15
    assert one.coherence_of == 3


def test_a_last_sentence_that_was_cut_off_does_not_count() -> None:
    text = " 3 plus 4 is 7 . wait , let"
    assert scored(text, stopped=True).sentences == 2
    cut = scored(text, stopped=False)
    assert (cut.backtracking, cut.sentences) == (0, 1)
    assert (cut.coherent, cut.coherence_of) == (1, 1)
    assert cut.keyword_rate == 1 / 9  # Eq. 1 takes all words
    assert scored(" 3 plus 4 is 7 .", stopped=False).sentences == 1  # cut, but between sentences
    assert scored(" wait , let", stopped=False).sentences == 0


def test_an_empty_text_has_no_rate_instead_of_zero() -> None:
    for grammar in (small_pair_grammar, None):
        empty = scored("", grammar=grammar)
        assert math.isnan(empty.keyword_rate)
        assert (empty.sentences, empty.coherence_of) == (0, 0)


def test_coherence_by_grammar_or_by_repetition() -> None:
    assert scored(" therefore 3 plus 4 is 7 . plus plus .").coherent == 1
    assert scored("a b c d e f g h .", grammar=None).coherent == 1.0
    assert scored("a b a b a b a b", grammar=None).coherent == pytest.approx(2 / 5)
    short = scored("a b", grammar=None)  # too short to repeat four words
    assert (short.coherent, short.coherence_of) == (0, 0)


def test_keywords_are_those_of_the_settings() -> None:
    one = score(row("oh no . wait ."), keywords=["oh"], grammar=None)
    assert (one.backtracking, one.keyword_rate) == (1, 1 / 5)


# The table


def test_rates_and_errors_by_hand() -> None:
    texts = {
        ("none", 0.0): ["wait . a . a . a .", "a . a .", ""],
        ("base", 2.0): ["wait . wait . a . a .", "wait . a .", "a ."],
    }
    plain, steered = table_of(texts, length=3.0)
    assert (plain.source, plain.coeff, plain.length) == ("none", 0.0, 3.0)
    # Per sentence: 1 of 4 and 0 of 2 give 1/6; residuals 1 - 4/6 and 0 - 2/6.
    assert plain.backtracking_rate.mean == pytest.approx(1 / 6)
    se = math.sqrt(2 * ((1 / 3) ** 2 + (1 / 3) ** 2)) / 6
    assert plain.backtracking_rate.se == pytest.approx(se)
    assert plain.backtracking_rate.n == 2
    # Eq. 1: means of 1/8 and 0, the empty text left out.
    assert plain.keyword_rate.mean == pytest.approx(1 / 16)
    assert plain.keyword_rate.se == pytest.approx(1 / 16)
    assert (plain.n_empty, plain.keyword_rate.n_empty, steered.n_empty) == (1, 1, 0)
    assert steered.backtracking_rate.mean == pytest.approx(3 / 7)


def calm(words: int, sentences: int = 3) -> str:
    """Sentences that repeat nothing, of so many words without their full stops."""
    each = words // sentences
    return " ".join(f"a{i}" + " ." * (i % each == each - 1) for i in range(sentences * each))


LONG = calm(24, 6)  # long enough to count


def test_the_judged_share_is_of_distinct_sentences_and_paired_by_prompt() -> None:
    """Long texts count, by their distinct backtracking sentences; the others are counted."""
    texts = {
        ("none", 0.0): [f"hmm . {LONG}", f"b . {LONG}", LONG, f"b . {LONG}", "b ."],
        ("base", 2.0): [f"hmm a . hmm b . {LONG}", f"wait . {LONG} Wait .", "wait .", "", LONG],
    }
    plain, steered = table_of(texts, length=3.0)
    n = LONG.count(".")
    assert plain.judged.mean == pytest.approx(1 / (n + 1) / 4)
    shares = [2 / (n + 2), 1 / (n + 2), 0]
    assert steered.judged.mean == pytest.approx(np.mean(shares))
    assert steered.difference.diff == pytest.approx(np.mean([shares[0] - 1 / (n + 1), shares[1]]))
    assert (steered.difference.n, steered.difference.n_empty) == (2, 3)
    assert steered.excluded == {"empty": 1, "short": 1, "repetitive": 0, "looping": 0}
    assert plain.excluded == {"empty": 0, "short": 1, "repetitive": 0, "looping": 0}
    assert (plain.difference.diff, plain.difference.low, plain.difference.high) == (0, 0, 0)


@pytest.mark.parametrize(
    ("text", "excluded"),
    [
        ("", "empty"),
        ("wait .", "short"),
        (calm(15), "short"),  # 18 words, full stops among them
        ("w" + " w" * 40, "short"),  # without a sentence
        (f"{LONG} {LONG} {LONG}", "repetitive"),
        (f"{LONG} " + "wait , let me see that once more . " * 12, "repetitive"),
        (calm(300) + " Wait ." * 8, "looping"),
        (calm(300) + " Wait ." * 2, ""),
        (calm(300) + " wait , 7 . wait , 8 . Wait , 9 .", ""),
    ],
)
def test_degenerate_texts_do_not_count(text: str, excluded: str) -> None:
    found = scored(text, grammar=None)
    assert found.excluded == excluded
    assert math.isnan(found.judged) == bool(excluded)


def test_no_text_weighs_more_than_the_largest_share() -> None:
    text = LONG + "".join(f" wait , b{i} c{i} ." for i in range(40))
    assert scored(text, grammar=None).judged == MOST_SHARE


def test_empty_texts_change_no_mean() -> None:
    full, more = ["wait . a .", "a . a . a ."], ["wait . a .", "a . a . a .", "", " "]
    one = table_of({("none", 0.0): full})[0]
    other = table_of({("none", 0.0): more})[0]
    for name in ("keyword_rate", "backtracking_rate", "coherence"):
        assert getattr(one, name).mean == getattr(other, name).mean
        assert getattr(one, name).se == getattr(other, name).se
    assert (one.n_empty, other.n_empty) == (0, 2)


def test_prompts_are_paired_by_name_not_by_place() -> None:
    rows = [row(f"wait . {LONG}", prompt="a"), row(f"a . {LONG}", prompt="b")]
    rows += [row(r["text"], prompt=r["prompt"], source="base", coeff=1.0) for r in rows[::-1]]
    assert outcomes(rows, keywords=KEYWORDS, grammar=None)[1].difference.diff == 0
    assert outcomes(rows, keywords=KEYWORDS, grammar=None)[1].difference.se == 0


def test_without_an_unsteered_text_nothing_can_be_compared() -> None:
    steered = row("a .", source="base", coeff=1.0)
    with pytest.raises(ValueError, match="reasoning, base at 1: 1 of 1 prompts have no unsteered"):
        outcomes([steered], keywords=KEYWORDS, grammar=None)
    rows = [row("a .", prompt="a"), steered, {**steered, "prompt": "b"}]
    with pytest.raises(ValueError, match="1 of 2 prompts"):
        outcomes(rows, keywords=KEYWORDS, grammar=None)


def test_each_target_is_compared_with_itself() -> None:
    rows = [
        row(text, target=target, source=source, coeff=coeff)
        for target, texts in {
            "base": (f"b . {LONG}", f"b . {LONG}"),
            "reasoning": (f"wait . {LONG}", f"b . {LONG}"),
        }.items()
        for text, (source, coeff) in zip(texts, (("none", 0.0), ("base", 1.0)), strict=True)
    ]
    table = outcomes(rows, keywords=KEYWORDS, grammar=None)
    share = 1 / (1 + LONG.count("."))
    assert [c.difference.diff for c in table] == [0, 0, 0, pytest.approx(-share)]


def test_select_and_sources() -> None:
    cells = [("none", 0.0), ("base", 1.0), ("base", -1.0), ("random-0", 1.0), ("reasoning", 1.0)]
    table = table_of({key: ["a ."] for key in cells})
    assert sources_of(table, "reasoning") == ["base", "random-0", "reasoning"]
    assert [c.coeff for c in select(table, "reasoning", "base")] == [-1.0, 0.0, 1.0]
    assert select(table, "control", "base") == []


def test_csv_has_a_line_a_cell_and_a_column_a_number() -> None:
    table = table_of({("none", 0.0): ["wait . a ."], ("base", 1.0): [""]})
    lines = list(csv.DictReader(io.StringIO(to_csv(table))))
    assert [line["source"] for line in lines] == ["none", "base"]
    assert float(lines[0]["backtracking_rate.mean"]) == 0.5
    assert lines[1]["keyword_rate.mean"] == "nan"
    assert lines[1]["n_empty"] == "1"
    assert {"difference.p_value", "coherence.se", "keyword_rate.n", "length"} <= lines[0].keys()


# What else a cell says


def test_intervals_lie_around_their_values_and_shrink_with_the_prompts() -> None:
    def rate(n: int) -> Any:
        texts = ["wait . a .", "a . a .", "a . a ."] * n
        return table_of({("none", 0.0): texts})[0].backtracking_rate

    few, many = rate(4), rate(40)
    assert few.low < few.mean < few.high
    assert few.mean == many.mean == pytest.approx(1 / 6)
    assert 2.5 < (few.high - few.low) / (many.high - many.low) < 4
    assert (few.n, many.n) == (12, 120)


def test_differences_have_an_interval_by_prompt() -> None:
    plain, backtracking = f"b . {LONG}", f"wait . {LONG}"
    texts = {("none", 0.0): [plain] * 12, ("base", 1.0): [backtracking] * 9 + [plain] * 3}
    change = table_of(texts)[1].difference
    share = 1 / (1 + LONG.count("."))
    assert change.diff == pytest.approx(0.75 * share)
    assert 0 < change.low < 0.75 * share < change.high <= share
    assert change.p_value < 0.01


def test_the_share_of_texts_that_backtrack_and_that_are_empty() -> None:
    cell = table_of({("none", 0.0): ["wait . wait .", "a .", "a .", ""]})[0]
    assert cell.texts_with.mean == pytest.approx(1 / 3)
    assert (cell.texts_with.n, cell.n_empty, cell.empty_share) == (3, 1, 0.25)


def test_repetition_and_grammar_are_told_whichever_is_coherence() -> None:
    rows = [row("a b a b a b a b .", prompt="x"), row("therefore 3 plus 4 is 7 .", prompt="y")]
    with_grammar = outcomes(rows, keywords=KEYWORDS, grammar=small_pair_grammar)[0]
    without = outcomes(rows, keywords=KEYWORDS, grammar=None)[0]
    assert with_grammar.coherence == with_grammar.grammar
    assert with_grammar.grammar.mean == 0.5
    assert without.coherence.mean == pytest.approx(1 - without.repetition.mean)
    assert without.repetition == with_grammar.repetition
    assert math.isnan(without.grammar.mean)
    assert without.grammar.n == 0


def test_perplexity_where_the_unsteered_model_has_read_the_text() -> None:
    rows = [row("a .", prompt=p) for p in "xyz"]
    scored = [
        {**row("", prompt="x"), "logprob_sum": -2.0, "n_tokens": 4},
        {**row("", prompt="y"), "logprob_sum": -4.0, "n_tokens": 2},
        {**row("", prompt="z", coeff=9.0), "logprob_sum": -9.0, "n_tokens": 1},
    ]
    cell = outcomes(with_logprobs(rows, scored), keywords=KEYWORDS, grammar=None)[0]
    assert cell.perplexity.mean == pytest.approx(math.exp(1.0))
    assert (cell.perplexity.n, cell.perplexity.n_empty) == (2, 1)
    assert cell.perplexity.low <= math.exp(1.0) <= cell.perplexity.high
    assert math.isnan(outcomes(rows, keywords=KEYWORDS, grammar=None)[0].perplexity.mean)


def test_effects_are_judged_at_the_largest_coherent_coefficient() -> None:
    mixed, broken = "a b c d e .", "a b a b a b a b a b ."
    table = table_of(
        {
            ("none", 0.0): [mixed],
            ("base", 1.0): [mixed],
            ("base", 2.0): [mixed],
            ("base", 3.0): [broken],
            ("base", -1.0): [mixed],
            ("reasoning", 3.0): [mixed],
        }
    )
    assert judged_at(table, 0.05) == 2.0
    assert judged_at(table, 0.9) == 3.0
    assert [(c.source, c.coeff) for c in coherent(table, "reasoning", 0.05)] == [
        ("base", 1.0), ("base", 2.0), ("base", -1.0), ("reasoning", 3.0),
    ]  # fmt: skip
    assert judged_at([c for c in table if c.coeff <= 0], 0.05) is None


def test_small_pair_grammar_counts_the_sentences_that_fit() -> None:
    texts = ["therefore 3 plus 4 is exactly 9 .", "plus 3 therefore 4 is .", "wait , no ."]
    fitting, total = small_pair_grammar([Sentence(0, 0, text) for text in texts])
    assert total == 3
    assert fitting < total
    assert small_pair_grammar([]) == (0, 0)

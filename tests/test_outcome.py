"""What a table says: rates with their errors, and findings that hold, do not hold, or are open."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from experiments.outcome import (
    CellOutcome,
    Finding,
    findings,
    outcomes,
    score,
    select,
    sources_of,
    to_csv,
)
from experiments.report import small_pair_grammar
from jaxsteer.annotate import KEYWORDS, Sentence
from jaxsteer.metrics import Estimate, PairedDifference


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
    # Paired by prompt: 1/2 - 1/4 and 1/2 - 0; the third has no reference.
    assert steered.difference.diff == pytest.approx(3 / 8)
    assert (steered.difference.n, steered.difference.n_empty) == (2, 1)
    assert plain.difference.diff == 0


def test_empty_texts_change_no_mean() -> None:
    full, more = ["wait . a .", "a . a . a ."], ["wait . a .", "a . a . a .", "", " "]
    one = table_of({("none", 0.0): full})[0]
    other = table_of({("none", 0.0): more})[0]
    for name in ("keyword_rate", "backtracking_rate", "coherence"):
        assert getattr(one, name).mean == getattr(other, name).mean
        assert getattr(one, name).se == getattr(other, name).se
    assert (one.n_empty, other.n_empty) == (0, 2)


def test_prompts_are_paired_by_name_not_by_place() -> None:
    rows = [row("wait .", prompt="a"), row("a .", prompt="b")]
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
        for target, texts in {"base": ("a .", "a ."), "reasoning": ("wait .", "a .")}.items()
        for text, (source, coeff) in zip(texts, (("none", 0.0), ("base", 1.0)), strict=True)
    ]
    table = outcomes(rows, keywords=KEYWORDS, grammar=None)
    assert [c.difference.diff for c in table] == [0, 0, 0, -1]


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


# The findings

INDUCES = "the base-derived direction induces"
COMPARABLE = "it does so comparably"
RANDOM = "it beats"
REVERSED = "with the sign reversed"
IN_BASE = "neither direction induces"
IN_CONTROL = "the direction does not change"


def cell(
    source: str,
    coeff: float,
    rate: float,
    *,
    target: str = "reasoning",
    coherence: float = 0.9,
    se: float = 0.01,
    p: float = 0.0001,
    n: int = 100,
) -> CellOutcome:
    """A cell of a made-up table; the unsteered rate is .1 there."""

    def estimate(mean: float) -> Estimate:
        return Estimate(mean, se, n, 0)

    return CellOutcome(
        target=target,
        source=source,
        coeff=coeff,
        length=abs(coeff),
        keyword_rate=estimate(rate / 5),
        backtracking_rate=estimate(rate),
        coherence=estimate(coherence),
        difference=PairedDifference(rate - 0.1, se, p, n, 0),
        n_empty=0,
    )


def effect() -> list[CellOutcome]:
    """The paper's finding: only the reasoning model responds, to either direction."""
    return [
        cell("none", 0.0, 0.1),
        cell("base", -1.0, 0.04),
        cell("base", 1.0, 0.2),
        cell("base", 2.0, 0.3),
        cell("base", 3.0, 0.5, coherence=0.5),
        cell("reasoning", 2.0, 0.35),
        cell("random-0", 2.0, 0.12),
        cell("random-1", 2.0, 0.09),
        cell("none", 0.0, 0.0, target="base", se=0.0),
        cell("base", 2.0, 0.0005, target="base", se=0.0004),
        cell("reasoning", 2.0, 0.0, target="base", se=0.0),
        cell("none", 0.0, 0.1, target="control"),
        cell("base", 2.0, 0.11, target="control"),
    ]


def changed(table: list[CellOutcome], at: CellOutcome | int, **fields: Any) -> list[CellOutcome]:
    return [replace(c, **fields) if i == at else c for i, c in enumerate(table)]


def verdict(table: Sequence[CellOutcome], claim: str, margin: float = 0.05) -> bool | None:
    return finding(table, claim, margin).holds


def finding(table: Sequence[CellOutcome], claim: str, margin: float = 0.05) -> Finding:
    return next(f for f in findings(table, margin=margin) if f.claim.startswith(claim))


NOTHING = Estimate(math.nan, math.nan, 0, 100)


def test_an_effect_is_found_and_judged_at_the_largest_coherent_coefficient() -> None:
    found = findings(effect(), margin=0.05)
    assert [f.holds for f in found] == [True] * 6
    assert [f.claim.split(" ")[0] for f in found] == ["the", "it", "it", "with", "neither", "the"]
    assert "at coefficient 2 (× 3.0, paired p = 0.0001, n = 100)" in found[0].because
    assert "0.1000 ± 0.0100 → 0.3000 ± 0.0100" in found[0].because
    assert "beats 2 random directions" in found[2].claim
    assert "gives 0.1200 ± 0.0100: 12.7 standard errors" in found[2].because


def test_more_margin_judges_at_a_larger_coefficient() -> None:
    assert "at coefficient 3" in finding(effect(), INDUCES, margin=0.5).because
    assert "at coefficient 1 " in finding(effect()[:3], INDUCES).because


@pytest.mark.parametrize(
    ("difference", "expected"),
    [
        (PairedDifference(0.2, 0.01, 0.2, 100, 0), False),  # not significant
        (PairedDifference(-0.2, 0.01, 0.001, 100, 0), False),  # the wrong way
        (PairedDifference(0.2, 0.01, 0.0078, 8, 92), True),
        (PairedDifference(0.2, 0.01, 0.0156, 7, 93), None),  # too few to reach p < .01 at all
        (PairedDifference(math.nan, math.nan, math.nan, 0, 100), None),
    ],
)
def test_induces(difference: PairedDifference, expected: bool | None) -> None:
    assert verdict(changed(effect(), 3, difference=difference), INDUCES) is expected


def test_nothing_is_judged_when_no_coefficient_keeps_coherence() -> None:
    low = [
        replace(c, coherence=Estimate(0.1, 0.01, 100, 0)) if c.coeff > 0 else c for c in effect()
    ]
    for table in (low, [replace(c, coherence=NOTHING) for c in effect()]):
        (only,) = findings(table, margin=0.05)
        assert only.holds is None
        assert only.claim.startswith(INDUCES)
        assert "no positive coefficient keeps coherence" in only.because


@pytest.mark.parametrize(
    ("rate", "expected"),
    # The base-derived gain is .2; that of .1 itself is none.
    [(0.49, True), (0.51, False), (0.21, True), (0.19, False), (0.1, None), (0.05, None)],
)
def test_comparable_within_a_factor_of_two_in_gain(rate: float, expected: bool | None) -> None:
    table = changed(effect(), 5, backtracking_rate=Estimate(rate, 0.01, 100, 0))
    assert verdict(table, COMPARABLE) is expected


def test_against_random_directions() -> None:
    def against(rate: float, se: float = 0.01) -> bool | None:
        n = 0 if math.isnan(rate) else 100
        table = changed(effect(), 6, backtracking_rate=Estimate(rate, se, n, 100 - n))
        return verdict(table, RANDOM)

    assert against(0.24) is True  # .06 / .0141 = 4.2
    assert against(0.25) is False
    assert against(0.4) is False
    assert against(math.nan) is True  # the other one is left
    assert against(0.2, math.nan) is None


def test_random_directions_that_cannot_be_compared_leave_the_question_open() -> None:
    elsewhere = [replace(c, coeff=1.0) if c.source[:6] == "random" else c for c in effect()]
    empty = [
        replace(c, backtracking_rate=NOTHING) if c.source[:6] == "random" else c for c in effect()
    ]
    assert verdict(elsewhere, RANDOM) is None
    assert verdict(empty, RANDOM) is None
    without = [c for c in effect() if c.source[:6] != "random"]
    assert not any(f.claim.startswith(RANDOM) for f in findings(without, margin=0.05))


def test_no_spread_and_no_difference_is_no_distance() -> None:
    """Rates that are 0 in every text have no standard error: that is not infinitely far."""
    zero = Estimate(0.0, 0.0, 100, 0)
    table = [replace(c, backtracking_rate=zero) for c in effect()]
    assert verdict(table, RANDOM) is False
    assert verdict(table, IN_CONTROL) is True
    assert "(× 1," in finding(table, INDUCES).because
    sure = changed(table, 3, backtracking_rate=Estimate(0.1, 0.0, 100, 0))
    assert verdict(sure, RANDOM) is True
    assert "(× ∞," in finding(sure, INDUCES).because


@pytest.mark.parametrize(("rate", "expected"), [(0.05, True), (0.051, False), (math.nan, None)])
def test_reversed_sign(rate: float, expected: bool | None) -> None:
    n = 0 if math.isnan(rate) else 100
    table = changed(effect(), 1, backtracking_rate=Estimate(rate, 0.01, n, 100 - n))
    assert verdict(table, REVERSED) is expected


def test_reversed_sign_needs_something_to_halve_and_coherence() -> None:
    table = changed(effect(), 0, backtracking_rate=Estimate(0.0, 0.0, 100, 0))
    assert verdict(table, REVERSED) is None
    low = changed(effect(), 1, coherence=Estimate(0.2, 0.01, 100, 0))
    assert not any(f.claim.startswith(REVERSED) for f in findings(low, margin=0.05))


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ((0.001, 0.0), True),
        ((0.0011, 0.0), False),
        ((0.0, 0.2), False),
        ((math.nan, 0.2), False),  # an empty cell hides no other
        ((math.nan, 0.0), True),
        ((math.nan, math.nan), None),  # a base model that writes nothing proves nothing
    ],
)
def test_base_model(rates: tuple[float, float], expected: bool | None) -> None:
    table = effect()
    for at, rate in zip((9, 10), rates, strict=True):
        n = 0 if math.isnan(rate) else 100
        table = changed(table, at, backtracking_rate=Estimate(rate, 0.01, n, 100 - n), n_empty=7)
    found = finding(table, IN_BASE)
    assert found.holds is expected
    assert "14 of 200 texts are empty" in found.because


def test_base_model_is_judged_by_its_highest_cell_at_any_coefficient() -> None:
    high = cell("base", 3.0, 0.2, target="base")
    found = finding([*effect(), high], IN_BASE)
    assert found.holds is False
    assert "the highest of 3 cells is 0.2000 ± 0.0100" in found.because


@pytest.mark.parametrize(
    ("rate", "expected"), [(0.12, True), (0.129, False), (0.07, False), (math.nan, None)]
)
def test_control(rate: float, expected: bool | None) -> None:
    n = 0 if math.isnan(rate) else 100
    table = changed(effect(), 12, backtracking_rate=Estimate(rate, 0.01, n, 100 - n))
    assert verdict(table, IN_CONTROL) is expected


def test_one_text_has_no_error_so_the_control_cannot_be_told() -> None:
    one = changed(effect(), 12, backtracking_rate=Estimate(0.11, math.nan, 1, 0))
    assert verdict(one, IN_CONTROL) is None


def test_targets_that_were_not_run_are_not_judged() -> None:
    table = [c for c in effect() if c.target == "reasoning"]
    claims = [f.claim for f in findings(table, margin=0.05)]
    assert not any(c.startswith((IN_BASE, IN_CONTROL)) for c in claims)


def test_small_pair_grammar_counts_the_sentences_that_fit() -> None:
    texts = ["therefore 3 plus 4 is exactly 9 .", "plus 3 therefore 4 is .", "wait , no ."]
    fitting, total = small_pair_grammar([Sentence(0, 0, text) for text in texts])
    assert total == 3
    assert fitting < total
    assert small_pair_grammar([]) == (0, 0)

"""Each rule on made-up numbers, once for each of its verdicts and at its edges."""

import math

import pytest

from experiments.claims.rules import (
    Measure,
    RareCell,
    Verdict,
    Versus,
    absent_in_base,
    beats,
    comparable,
    halves,
    induces,
    not_decoded,
    not_detected,
    not_only_cause,
    optimum_before,
    similar,
    unchanged,
    worst,
)

YES, NO, OPEN, ABSENT = Verdict.YES, Verdict.NO, Verdict.OPEN, Verdict.ABSENT
NAN = math.nan
NOTHING = Measure(NAN, NAN, NAN, 0)


def about(value: float, half: float = 0.01, n: int = 100) -> Measure:
    return Measure(value, value - half, value + half, n)


def test_the_worst_part_decides() -> None:
    assert worst([YES, YES]) is YES
    assert worst([YES, ABSENT]) is ABSENT
    assert worst([ABSENT, OPEN]) is OPEN
    assert worst([OPEN, NO, YES]) is NO
    assert worst([]) is ABSENT


@pytest.mark.parametrize(
    ("gain", "difference", "offset", "expected"),
    [
        (about(0.1), about(0.05), -9, YES),
        (about(0.1), about(0.05), 1, OPEN),  # the best of all lies behind, by luck or not
        (about(0.1), about(0.01), -9, NO),  # no room for half the gain
        (about(0.1), about(-0.05), 2, NO),
        (about(0.1), about(0.05, 0.06), -9, OPEN),
        (about(0.1, 0.2), about(0.05), -9, OPEN),  # nothing steers
        (about(0.1), NOTHING, -9, OPEN),
    ],
)
def test_optimum_before(gain: Measure, difference: Measure, offset: int, expected: Verdict) -> None:
    assert optimum_before(gain, difference, offset) is expected


@pytest.mark.parametrize(
    ("gain", "p_value", "unsteered", "expected"),
    [
        (about(0.2), 0.001, 0.1, YES),
        (about(0.2), 0.01, 0.1, OPEN),
        (about(0.02, 0.05), 0.2, 0.1, NO),  # cannot have doubled
        (about(-0.2), 0.001, 0.1, NO),
        (about(0.2, n=7), 0.001, 0.1, OPEN),
        (about(0.0, 0.005), 1.0, 0.0, NO),
        (about(0.0, 0.02), 1.0, 0.0, OPEN),
        (NOTHING, NAN, 0.1, OPEN),
    ],
)
def test_induces(gain: Measure, p_value: float, unsteered: float, expected: Verdict) -> None:
    assert induces(gain, p_value, unsteered) is expected


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (about(0.5), YES),
        (about(2.0, 3.0), YES),
        (about(0.4, 0.05), NO),
        (about(0.4, 0.2), OPEN),
        (about(2.5, 0.4), NO),
        (about(2.5, 0.6), OPEN),
        (NOTHING, OPEN),
    ],
)
def test_comparable(ratio: Measure, expected: Verdict) -> None:
    assert comparable(ratio) is expected


def rare(after: int, *, n: int = 256, before: int = 0, source: str = "base") -> RareCell:
    return RareCell(source=source, coeff=1.0, n=n, before=before, after=after, both=0)


def test_base_model_without_an_event_is_as_sure_as_its_texts_are_many() -> None:
    gains = {"base": 0.4, "reasoning": 0.4}
    cells = [rare(0), rare(0, source="reasoning")] * 5
    assert cells[0].bound(10) == pytest.approx(1 - 0.005 ** (1 / 256))
    assert absent_in_base(cells, gains) is YES
    assert absent_in_base([rare(0, n=100)] * 10, gains) is OPEN  # bound .052, a tenth is .04
    assert absent_in_base([rare(0, n=100)] * 2, gains) is YES
    assert absent_in_base(cells, {"base": 0.1, "reasoning": 0.4}) is OPEN


@pytest.mark.parametrize(
    ("after", "before", "expected"),
    [(1, 0, YES), (4, 0, OPEN), (12, 0, NO), (16, 6, OPEN), (30, 5, NO), (0, 9, YES)],
)
def test_base_model_with_events_in_one_cell(after: int, before: int, expected: Verdict) -> None:
    cells = [rare(after, before=before), *[rare(0)] * 9]
    assert absent_in_base(cells, {"base": 0.4}) is expected


def test_a_significant_increase_that_is_small_beside_the_gain_does_not_refute() -> None:
    cell = rare(9)
    assert cell.p_value() < 0.05
    assert cell.increase < 0.04
    assert absent_in_base([cell], {"base": 0.4}) is OPEN


def test_events_of_the_same_prompts_are_no_change() -> None:
    assert RareCell("base", 1.0, n=50, before=9, after=10, both=9).p_value() == 0.5


@pytest.mark.parametrize("gain", [0.0, -0.1, NAN])
def test_base_model_is_not_judged_without_an_effect_to_compare_with(gain: float) -> None:
    assert absent_in_base([rare(0)], {"base": gain}) is OPEN
    assert absent_in_base([rare(0)], {}) is OPEN
    assert absent_in_base([], {"base": 0.4}) is OPEN


@pytest.mark.parametrize(
    ("cosine", "others", "expected"),
    [
        (0.74, [], YES),
        (0.7941, [0.9], YES),
        (0.5, [], NO),
        (0.92, [], NO),
        (0.92, [0.5, 0.6, 0.95], NO),
        (0.92, [0.9, 0.6, 0.95], OPEN),
        (0.5, [0.9], NO),
        (NAN, [], ABSENT),
    ],
)
def test_similar(cosine: float, others: list[float], expected: Verdict) -> None:
    assert similar(cosine, others) is expected


def versus(name: str, value: float = 0.08, se: float = 0.01, n: int = 100) -> Versus:
    return Versus(name, about(value, 2 * se, n), se)


def four(**changed: Versus) -> list[Versus]:
    known = {name: versus(name) for name in ("mean", "noise", "self", "random-0")}
    known["behaviour"] = versus("behaviour-deduction")
    return [*(known | changed).values()]


def test_beats_each_baseline_of_the_paper() -> None:
    assert beats(four(), 0.08) is YES
    assert beats(four(noise=versus("noise", 0.04)), 0.08) is YES
    assert beats(four(noise=versus("noise", 0.039)), 0.08) is OPEN
    assert beats(four(noise=versus("noise", 0.01)), 0.08) is NO
    assert beats(four(noise=versus("noise", -0.1)), 0.08) is NO
    assert beats(four(noise=versus("noise", NAN)), 0.08) is OPEN
    assert beats(four(noise=versus("noise", n=7)), 0.08) is OPEN
    assert beats(four(noise=versus("noise", 0.0, 0.0)), 0.08) is NO


def test_without_a_kind_of_baseline_nothing_is_beaten_but_it_can_be_refuted() -> None:
    assert beats(four()[1:], 0.08) is OPEN
    assert beats([versus("random-0", 0.0)], 0.08) is NO
    assert beats([], 0.08) is OPEN
    assert beats(four(), 0.0) is OPEN
    assert beats(four(), NAN) is OPEN


@pytest.mark.parametrize(
    ("ranks", "induced", "expected"),
    [
        ([10, 300], YES, YES),
        ([9, 300], YES, NO),
        ([9, 300], OPEN, NO),
        ([10, 300], NO, OPEN),  # what elicits nothing need not decode
        ([], YES, ABSENT),
    ],
)
def test_not_decoded(ranks: list[int], induced: Verdict, expected: Verdict) -> None:
    assert not_decoded(ranks, induced) is expected


@pytest.mark.parametrize(
    ("aurocs", "expected"),
    [
        ([about(0.7), about(0.88)], YES),
        ([about(0.7), about(0.89, 0.02)], OPEN),
        ([about(0.7), about(0.95)], NO),
        ([NOTHING], OPEN),
        ([], ABSENT),
    ],
)
def test_not_detected(aurocs: list[Measure], expected: Verdict) -> None:
    assert not_detected(aurocs) is expected


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (about(0.3), about(0.9), YES),
        (about(0.055), about(0.9), OPEN),
        (about(0.03), about(0.9), NO),
        (about(0.3), about(0.01), NO),
        (NOTHING, about(0.9), OPEN),
    ],
)
def test_not_only_cause(first: Measure, second: Measure, expected: Verdict) -> None:
    assert not_only_cause(first, second) is expected


def test_reversed_sign() -> None:
    assert halves(0.1, 0.05) is YES
    assert halves(0.1, 0.051) is NO
    assert halves(0.0, 0.0) is OPEN
    assert halves(0.1, NAN) is OPEN


def test_control() -> None:
    assert unchanged(0.02, 0.01) is YES
    assert unchanged(-0.021, 0.01) is NO
    assert unchanged(0.0, 0.0) is YES
    assert unchanged(0.02, NAN) is OPEN

"""Each rule on made-up numbers, once for each of its answers and at its edges."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from experiments.claims.contrasts import UNKNOWN, Measure, Verdict, decide
from experiments.claims.optimum import permutation_p
from experiments.claims.rules import (
    BaseCell,
    Floats,
    absent_in_base,
    base_rise,
    beats,
    chance_of,
    comparable,
    halves,
    induces,
    not_decoded,
    not_detected,
    not_only_cause,
    optimum_before,
    similar,
    unchanged,
)

YES, NO, OPEN, ABSENT = Verdict.YES, Verdict.NO, Verdict.OPEN, Verdict.ABSENT
NAN = math.nan


def shares(mean: float, spread: float = 0.02, n: int = 100, seed: int = 0) -> Floats:
    """Shares with just this mean and about this spread."""
    drawn = np.random.default_rng(seed).normal(0, spread, n)
    return mean + drawn - drawn.mean()


def about(value: float, half: float = 0.01, n: int = 100) -> Measure:
    return Measure(value, value - half, value + half, n)


PLAIN, STEERED = shares(0.05), shares(0.15, seed=1)


@pytest.mark.parametrize(
    ("steered", "expected"),
    [
        (shares(0.15, seed=1), YES),
        (shares(0.09, seed=1), YES),
        (shares(0.08, seed=1), OPEN),  # just the smallest that counts
        (shares(0.06, seed=1), NO),
        (shares(0.02, seed=1), NO),
        (shares(0.15, n=100, seed=1) + np.where(np.arange(100) < 50, NAN, 0), OPEN),
        (np.where(np.arange(100) < 9, 0.9, PLAIN), OPEN),  # nine texts of a hundred carry it
    ],
)
def test_induces(steered: Floats, expected: Verdict) -> None:
    assert decide(induces(steered, PLAIN)).verdict is expected


def test_a_rise_that_is_small_beside_what_is_there_does_not_count() -> None:
    assert decide(induces(shares(0.24, seed=1), shares(0.2))).verdict is NO
    assert decide(induces(shares(0.35, seed=1), shares(0.2))).verdict is YES


@pytest.mark.parametrize("n", [4, 7])
def test_few_prompts_decide_nothing(n: int) -> None:
    steered, plain = shares(0.3, n=n), shares(0.0, n=n, seed=1)
    assert decide(induces(steered, plain)).verdict is OPEN
    assert halves(steered, plain).verdict is OPEN


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (0.15, 0.15, YES),
        (0.15, 0.11, YES),
        (0.15, 0.10, OPEN),
        (0.15, 0.08, NO),
        (0.08, 0.15, NO),
        (0.15, NAN, OPEN),
    ],
)
def test_comparable(ours: float, theirs: float, expected: Verdict) -> None:
    base, reasoning = shares(ours, seed=1), shares(theirs, seed=2)
    assert decide(comparable(base, reasoning, PLAIN)).verdict is expected


# C1

OFFSETS = [*range(-30, 4, 3)]


def gains_of(
    by_offset: Sequence[float], by_layer: Sequence[float], n: int = 32, noise: float = 0.03
) -> np.ndarray:
    drawn = np.random.default_rng(3).normal(0, noise, (n, len(by_layer), len(by_offset)))
    return drawn + np.multiply.outer(by_layer, by_offset)


PEAK = [0.0] * 6 + [0.05, 0.1, 0.05, 0.0, 0.0, 0.0]
RISING, FLAT = [0.0, 0.3, 0.6, 1.0, 1.0, 0.8], [1.0] * 6


@pytest.mark.parametrize(
    ("by_offset", "by_layer", "expected"),
    [
        (PEAK, RISING, YES),
        (PEAK, FLAT, NO),  # no layer leads
        ([0.1] * 12, RISING, NO),  # no offset does
        (np.linspace(0.1, 0, 12), RISING, NO),  # grows with the distance
        ([0.0] * 10 + [0.1, 0.1], RISING, NO),  # behind the sentence's start
        ([0.0] * 12, RISING, NO),
    ],
)
def test_optimum_before(
    by_offset: Sequence[float], by_layer: Sequence[float], expected: Verdict
) -> None:
    assert optimum_before(gains_of(by_offset, by_layer), OFFSETS).verdict is expected


def test_few_prompts_leave_the_optimum_open() -> None:
    assert optimum_before(gains_of(PEAK, RISING, n=6), OFFSETS).verdict is OPEN
    assert optimum_before(gains_of(PEAK, RISING, n=10, noise=0.3), OFFSETS).verdict is OPEN


def test_cells_that_are_missing_tilt_nothing() -> None:
    """Without a strong layer's other offsets its few cells would look like the optimum."""
    table = gains_of([0.1] * 12, [0.0, 0.0, 3.0])
    table[:, 2, :7] = NAN
    table[:, 2, 9:] = NAN
    assert optimum_before(table, OFFSETS).verdict is not YES
    assert optimum_before(np.full((32, 6, 12), NAN), OFFSETS).verdict is OPEN


def test_permutations_within_prompts_are_uniform_under_no_effect() -> None:
    found = [
        permutation_p(np.random.default_rng(i).normal(size=(20, 2, 6)), seed=i) for i in range(200)
    ]
    assert 0.02 <= np.mean(np.array(found) <= 0.1) <= 0.18
    assert permutation_p(gains_of(PEAK, FLAT)) == 0.001


# C3

GAINS = {"base": about(0.1, n=128), "reasoning": about(0.08, n=128)}


def base_cell(after: float, *, n: int = 512, source: str = "base", coeff: float = 1.0) -> BaseCell:
    """Nothing unsteered; steered, this share in every tenth text ten times as much."""
    steered = np.where(np.arange(n) % 10 == 0, 10 * after, 0.0)
    return BaseCell(source, coeff, np.zeros(n), steered)


SILENT = [base_cell(0.0), base_cell(0.0, source="reasoning")]


def test_a_silent_base_model_is_as_sure_as_its_texts_are_many() -> None:
    assert absent_in_base(SILENT, GAINS, 1.0, YES).verdict is YES
    assert base_rise(SILENT[0], 2).high == pytest.approx(0.3 * (1 - 0.025 ** (1 / 512)))
    few = [base_cell(0.0, n=20), base_cell(0.0, n=20, source="reasoning")]
    answer = absent_in_base(few, GAINS, 1.0, YES)
    assert answer.verdict is OPEN
    assert answer.prompts is not None
    assert answer.prompts > 200


@pytest.mark.parametrize(
    ("after", "expected"), [(0.005, YES), (0.02, OPEN), (0.03, OPEN), (0.05, NO)]
)
def test_a_base_model_that_responds(after: float, expected: Verdict) -> None:
    """A quarter of the gain is .025, and .0225 to .0275 with its error."""
    cells = [*SILENT, base_cell(after, coeff=-1.0)]
    assert absent_in_base(cells, GAINS, 1.0, YES).verdict is expected


def test_what_c3_presupposes() -> None:
    assert absent_in_base([], GAINS, 1.0, YES).verdict is ABSENT
    assert absent_in_base(SILENT, GAINS, 1.0, OPEN).verdict is OPEN
    assert absent_in_base(SILENT[:1], GAINS, 1.0, YES).undecided == ("reasoning-derived",)
    degenerate = np.where(np.arange(512) % 2 == 0, NAN, 0.0)
    beyond = BaseCell("base", 2.0, np.zeros(512), degenerate)
    assert absent_in_base([*SILENT, beyond], GAINS, 1.0, YES).verdict is YES
    within = BaseCell("base", 0.5, np.zeros(512), degenerate)
    assert absent_in_base([*SILENT, within], GAINS, 1.0, YES).verdict is OPEN


# C4


@pytest.mark.parametrize(
    ("cosine", "random", "expected"),
    [
        (about(0.74, 0.05), [0.1, 0.2, 0.15], YES),
        (about(0.74, 0.05), [0.72, 0.75, 0.7], OPEN),  # no more than chance
        (about(0.74, 0.05), [0.85, 0.86, 0.87], NO),  # less than chance
        (about(0.92, 0.02), [0.1, 0.2, 0.15], NO),
        (about(0.5, 0.05), [0.1, 0.2, 0.15], NO),
        (about(0.5, 0.2), [0.1, 0.2, 0.15], OPEN),
        (about(0.74, 0.05), [0.1], OPEN),
        (UNKNOWN, [0.1, 0.2, 0.15], OPEN),
    ],
)
def test_similar(cosine: Measure, random: list[float], expected: Verdict) -> None:
    assert similar(cosine, random).verdict is expected


def test_chance_holds_one_more_of_its_kind() -> None:
    drawn = np.tanh(np.random.default_rng(0).normal(1, 0.1, (2000, 6)))
    inside = [
        one.low <= last <= one.high for *some, last in drawn.tolist() for one in [chance_of(some)]
    ]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.015)  # three standard errors of 2000


# C5

KINDS = ("mean", "noise", "self", "behaviour-deduction", "random-0")


def baselines(**other: Floats) -> dict[str, Floats]:
    return {name: shares(0.05, seed=2 + i) for i, name in enumerate(KINDS)} | other


@pytest.mark.parametrize(
    ("noise", "expected"),
    [
        (shares(0.05, seed=9), YES),
        (shares(0.08, seed=9), YES),
        (shares(0.10, seed=9), OPEN),  # half of the gain
        (shares(0.12, seed=9), NO),
        (shares(0.05, n=100, seed=9) + np.where(np.arange(100) < 50, NAN, 0), OPEN),
    ],
)
def test_beats_each_baseline(noise: Floats, expected: Verdict) -> None:
    assert beats(STEERED, PLAIN, baselines(noise=noise), YES).verdict is expected


def test_without_a_kind_of_baseline_nothing_is_beaten_but_it_can_be_refuted() -> None:
    some = {name: one for name, one in baselines().items() if name != "mean"}
    assert beats(STEERED, PLAIN, some, YES).undecided == ("mean",)
    assert beats(STEERED, PLAIN, {"random-0": STEERED}, YES).verdict is NO
    assert beats(STEERED, PLAIN, baselines(), OPEN).verdict is OPEN


# C6 to C8


@pytest.mark.parametrize(
    ("ranks", "induced", "expected"),
    [
        ({"base": Measure(60, 10, 90, 20)}, YES, YES),
        ({"base": Measure(60, 9, 90, 20)}, YES, OPEN),
        ({"base": Measure(3, 0, 9, 20)}, YES, NO),
        ({"base": Measure(60, 30, 90, 20), "reasoning": Measure(3, 0, 9, 20)}, YES, NO),
        ({"base": Measure(60, 30, 90, 20)}, NO, OPEN),  # what elicits nothing need not decode
        ({"base": Measure(3, 0, 9, 20)}, OPEN, NO),
        ({}, YES, ABSENT),
    ],
)
def test_not_decoded(ranks: dict[str, Measure], induced: Verdict, expected: Verdict) -> None:
    assert not_decoded(ranks, induced).verdict is expected


@pytest.mark.parametrize(
    ("auroc", "dense", "induced", "expected"),
    [
        (about(0.8, 0.05), about(0.2), YES, YES),
        (about(0.8, 0.05), about(0.2), OPEN, OPEN),
        (about(0.5, 0.05), about(0.5), YES, OPEN),  # no detector
        (about(0.64, 0.05), about(0.3), YES, OPEN),  # hardly one
        (about(0.1, 0.05), about(0.9), YES, NO),  # an inverted one
        (about(0.95, 0.02), about(0.2), YES, NO),  # a clean one
        (about(0.88, 0.05), about(0.2), YES, OPEN),
        (about(0.8, 0.05), about(0.02), YES, NO),  # silent elsewhere
        (about(0.8, 0.05), about(0.055), YES, OPEN),
    ],
)
def test_not_detected(auroc: Measure, dense: Measure, induced: Verdict, expected: Verdict) -> None:
    good = about(0.8, 0.05), about(0.2)
    areas, shares = {"base": good[0], "reasoning": auroc}, {"base": good[1], "reasoning": dense}
    assert not_detected(areas, shares, induced).verdict is expected
    assert not_detected({}, {}, induced).verdict is ABSENT


@pytest.mark.parametrize(
    ("auroc", "without", "present", "expected"),
    [
        (0.8, about(0.1, 0.03), about(0.8, 0.05), YES),
        (0.8, about(0.06, 0.03), about(0.8, 0.05), OPEN),
        (0.8, about(0.02, 0.02), about(0.8, 0.05), NO),
        (0.8, about(0.1, 0.03), about(0.02, 0.02), NO),  # a perfect detector
        (0.5, about(0.5, 0.03), about(0.967, 0.02), OPEN),  # a random score
        (0.1, about(0.9, 0.03), about(0.99, 0.005), NO),
        (0.8, UNKNOWN, about(0.8, 0.05), OPEN),
    ],
)
def test_not_only_cause(
    auroc: float, without: Measure, present: Measure, expected: Verdict
) -> None:
    found = not_only_cause(about(auroc, 0.05), without, present, 0.033, YES)
    assert found.verdict is expected
    assert not_only_cause(about(auroc, 0.05), without, present, 0.033, NO).verdict is not YES


# Beyond the paper


@pytest.mark.parametrize(("after", "expected"), [(0.01, YES), (0.025, OPEN), (0.04, NO)])
def test_reversed_sign(after: float, expected: Verdict) -> None:
    assert halves(PLAIN, shares(after, seed=1)).verdict is expected


@pytest.mark.parametrize(
    ("at", "reverse", "induced", "expected"),
    [
        (0.05, 0.05, YES, YES),
        (0.10, 0.05, YES, OPEN),  # half of the gain
        (0.12, 0.05, YES, NO),
        (0.05, 0.12, YES, NO),
        (0.05, 0.025, YES, OPEN),  # half of what was there
        (0.05, 0.01, YES, NO),
        (0.05, 0.05, OPEN, OPEN),
    ],
)
def test_control(at: float, reverse: float, induced: Verdict, expected: Verdict) -> None:
    steered = {1.0: shares(at, seed=1), -1.0: shares(reverse, seed=2)}
    assert unchanged(PLAIN, steered, about(0.1), induced).verdict is expected

"""The intervals that decide, against brute force and textbook values, and what they decide."""

import math

import numpy as np
import pytest
import scipy.stats

from experiments.claims.contrasts import (
    UNKNOWN,
    Contrast,
    Measure,
    Verdict,
    above,
    apart,
    below,
    decide,
    mean_of,
    prompts_to_decide,
    trimmed_mean_of,
)

NAN = math.nan


def about(value: float, half: float = 0.01, n: int = 100) -> Measure:
    return Measure(value, value - half, value + half, n)


def contrasts(*measures: Measure) -> list[Contrast]:
    return [Contrast(str(i), one) for i, one in enumerate(measures)]


@pytest.mark.parametrize(
    ("measures", "verdict"),
    [
        ([], Verdict.ABSENT),
        ([about(0.02), about(0.5)], Verdict.YES),
        ([about(0.02), about(0.005)], Verdict.OPEN),
        ([about(0.02), about(0.01)], Verdict.OPEN),  # an interval that touches 0
        ([about(0.02), about(-0.02)], Verdict.NO),
        ([about(0.005), about(-0.02)], Verdict.NO),
        ([about(0.02), UNKNOWN], Verdict.OPEN),
        ([about(-0.02), UNKNOWN], Verdict.NO),
    ],
)
def test_intervals_decide(measures: list[Measure], verdict: Verdict) -> None:
    assert decide(contrasts(*measures)).verdict is verdict


def test_an_open_answer_says_what_is_undecided_and_how_many_prompts_would_decide() -> None:
    answer = decide(contrasts(about(0.5), about(0.005), about(0.008)))
    assert answer.undecided == ("1", "2")
    assert answer.prompts == prompts_to_decide(about(0.005))
    assert decide(contrasts(about(0.005), UNKNOWN)).prompts is None
    assert prompts_to_decide(about(0.0)) is None


def test_so_many_prompts_decide_in_four_of_five_runs() -> None:
    n = prompts_to_decide(Measure(0.3, 0.3 - 0.45, 0.3 + 0.45, 20)) or 0
    spread = 0.45 * math.sqrt(20) / scipy.stats.t.ppf(0.975, 19)
    drawn = np.random.default_rng(0).normal(0.3, spread, (2000, n))
    decided = [mean_of(values, limits=(-99, 99)).low > 0 for values in drawn]
    # Student's t of 20 is wider than of n, so that a few more decide.
    assert 0.78 < np.mean(decided) < 0.92


def test_means_are_students() -> None:
    values = np.random.default_rng(0).uniform(-0.5, 0.5, 30)
    found = mean_of([*values, NAN])
    right = scipy.stats.ttest_1samp(values, 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((right.low, right.high))
    assert (found.value, found.n) == (pytest.approx(values.mean()), 30)
    assert math.isnan(mean_of(values[:7]).value)
    assert mean_of(values[:7]).n == 7


def test_few_prompts_that_differ_give_the_exact_bound() -> None:
    n = 128
    nothing = mean_of(np.zeros(n), limits=(0, 0.5))
    assert (nothing.low, nothing.high) == (0, pytest.approx(0.5 * (1 - 0.025 ** (1 / n))))
    two = mean_of([0.1, 0.1, *np.zeros(n - 2)], limits=(-0.5, 0.5))
    share = scipy.stats.binomtest(2, n).proportion_ci(0.95, "exact").high
    assert (two.low, two.high) == pytest.approx((-0.5 * share, 0.5 * share))


@pytest.mark.parametrize(("n", "rate"), [(20, 0.005), (20, 0.05), (128, 0.005), (128, 0.03)])
def test_the_ends_fail_as_rarely_as_they_say(n: int, rate: float) -> None:
    """Texts of ten sentences: the low end is above the truth in at most 2.5% of samples."""
    drawn = np.random.default_rng(1).binomial(10, rate, (2000, n)) / 10
    found = [mean_of(values, limits=(0, 1)) for values in drawn]
    slack = 0.01  # three standard errors of 2.5% in 2000
    assert np.mean([one.low > rate for one in found]) <= 0.025 + slack
    # A share of so few events is skewed, so that t's upper end is a little low.
    assert np.mean([one.high < rate for one in found]) <= 0.05


def test_trimmed_means_are_yuens() -> None:
    values = np.random.default_rng(0).normal(0.1, 0.3, 41)
    found = trimmed_mean_of(values)
    assert found.value == pytest.approx(scipy.stats.trim_mean(values, 0.1))
    # scipy has the two-sample form: against many zeros it is the one-sample test.
    wins = scipy.stats.mstats.winsorize(values, (0.1, 0.1))
    half = scipy.stats.t.ppf(0.975, 32) * np.std(wins, ddof=1) / ((1 - 8 / 41) * math.sqrt(41))
    assert found.high - found.value == pytest.approx(half)


def test_a_tenth_of_runaways_carries_no_trimmed_mean() -> None:
    values = [0.9] * 12 + [0.0] * 116
    assert mean_of(values).low > 0.03
    assert trimmed_mean_of(values).low == trimmed_mean_of(values).value == 0


def test_bounds_and_distances() -> None:
    one, other = about(0.5, 0.1), about(0.2, 0.05, n=7)
    assert above(one, 0.3) == Measure(0.2, pytest.approx(0.1), pytest.approx(0.3), 100)
    assert below(one, 0.8).low == pytest.approx(0.2)
    assert apart(one, other, 0.5) == Measure(
        pytest.approx(0.05), pytest.approx(0.2 - 0.25), pytest.approx(0.3 - 0.15), 7
    )

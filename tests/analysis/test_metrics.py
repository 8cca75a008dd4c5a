import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsteer.analysis import metrics
from jaxsteer.analysis.metrics import (
    backtracking_rate,
    bootstrap_interval,
    distinct_n,
    keyword_counts,
    keyword_matches_per_word,
    keyword_rate,
    mean_se,
    paired_difference,
    ratio_se,
    repetition,
    wilson_interval,
)

NAN = float("nan")


@pytest.mark.parametrize(
    ("text", "counts", "held"),
    [
        ("Wait, wait! WAIT... hmm", (4, 4), 4),
        ("await waiting hmmm wait_a a_wait", (0, 5), 0),
        ("_Wait_, no. *Wait*, no. __hmm__", (3, 5), 3),  # Markdown's emphasis
        ("wait/hmm (wait)-hmm.", (4, 2), 2),  # more keywords than words
        (" \n\t", (0, 0), 0),
        ("nothing here", (0, 2), 0),
    ],
)
def test_keywords_are_whole_words_over_white_space_words(text, counts, held):
    assert keyword_counts(text) == counts
    if counts[1]:
        assert keyword_rate(text) == held / counts[1] <= 1
        assert keyword_matches_per_word(text) == counts[0] / counts[1]


def test_keywords_of_several_words():
    assert keyword_counts("well hold on now", ("hold on",)) == (1, 4)
    assert keyword_rate("well hold on now", ("hold on",)) == 0.5


def test_keyword_rate_of_an_empty_text_is_not_zero():
    assert np.isnan(keyword_rate(""))
    assert keyword_rate("no such word") == 0.0
    assert keyword_rate("but maybe so", ("but", "maybe")) == 2 / 3


def test_repetition_of_collapsed_and_plain_text():
    assert repetition("wait " * 100) == 1 - 1 / 97
    assert repetition("one two three four five") == 0.0
    assert np.isnan(repetition("one two three"))
    with pytest.raises(ValueError, match="n: got 0, expected at least 1"):
        distinct_n("a b", n=0)


@given(st.lists(st.sampled_from("ab"), min_size=2, max_size=30), st.integers(1, 2))
def test_distinct_and_repetition_add_up(words, n):
    text = " ".join(words)
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    assert distinct_n(text, n) == len(set(grams)) / len(grams)
    assert repetition(text, n) == 1.0 - len(set(grams)) / len(grams)


def test_mean_and_standard_error_are_the_textbook_ones():
    values = np.random.default_rng(1).normal(size=50)
    found = mean_se([*values, NAN, NAN])
    assert found.mean == pytest.approx(values.mean(), rel=1e-12)
    assert found.se == pytest.approx(values.std(ddof=1) / np.sqrt(50), rel=1e-12)
    assert (found.n, found.n_empty) == (50, 2)


def test_estimates_without_enough_units_are_nan():
    none, one = mean_se([NAN]), mean_se([3.0])
    assert np.isnan(none.mean)
    assert (none.n, none.n_empty) == (0, 1)
    assert one.mean == 3.0
    assert np.isnan(one.se)
    assert all(np.isnan(bootstrap_interval([NAN])))
    assert np.isnan(paired_difference([NAN], [1.0]).p_value)


def test_copies_of_a_row_in_its_group_do_not_make_the_error_smaller():
    values = np.array([0.1, 0.4, 0.2, 0.9])
    once = mean_se(values)
    copied = mean_se(np.repeat(values, 5), groups=np.repeat(["a", "b", "c", "d"], 5))
    assert (copied.n, copied.mean) == (4, pytest.approx(once.mean))
    assert copied.se == pytest.approx(once.se, rel=1e-12)
    low, high = bootstrap_interval(np.repeat(values, 5), groups=np.repeat([1, 2, 3, 4], 5))
    assert (low, high) == pytest.approx(bootstrap_interval(values))


def test_ratio_error_agrees_with_repeated_sampling():
    random = np.random.default_rng(0)

    def sample():
        sizes = random.integers(1, 40, 200)
        shares = random.beta(2, 8, 200)  # differs from text to text: sentences are not independent
        return random.binomial(sizes, shares), sizes

    ratios = [np.divide(*map(np.sum, sample())) for _ in range(400)]
    errors = [ratio_se(*sample()).se for _ in range(100)]
    assert np.mean(errors) == pytest.approx(np.std(ratios), rel=0.12)


def test_backtracking_rate_is_per_sentence_not_per_text():
    found = backtracking_rate([[True] * 9, [False], []])
    assert found.mean == 0.9
    assert (found.n, found.n_empty) == (2, 1)
    assert found.se == pytest.approx(np.sqrt(2 * (0.9**2 + 0.9**2)) / 10)


def test_bootstrap_interval_agrees_with_drawing_rows():
    values = np.random.default_rng(2).exponential(size=30)
    random = np.random.default_rng(3)
    means = [random.choice(values, 30).mean() for _ in range(4000)]
    expected = np.quantile(means, [0.025, 0.975])
    assert bootstrap_interval([*values, NAN]) == pytest.approx(tuple(expected), abs=0.02)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values)
    wide, narrow = bootstrap_interval(values, level=0.99), bootstrap_interval(values, level=0.5)
    assert wide[0] < narrow[0] < values.mean() < narrow[1] < wide[1]


def test_bootstrap_of_a_ratio_keeps_rows_together():
    low, high = bootstrap_interval([1, 2, 3, 4], [2, 4, 6, 8.001])
    assert 0.4998 < low < high < 0.5001


def test_without_spread_the_bound_is_exact():
    """Events at a true .005 a text: the bound holds in at least 95% of samples without one."""
    assert bootstrap_interval([0.0] * 20, limits=(0, 1)) == (0.0, pytest.approx(1 - 0.05**0.05))
    assert bootstrap_interval([0.0] * 20, limits=(-1, 1))[0] == pytest.approx(0.05**0.05 - 1)
    assert bootstrap_interval([1.0] * 20, limits=(0, 1)) == (pytest.approx(0.05**0.05), 1.0)
    assert all(np.isnan(bootstrap_interval([0.0] * 20)))
    assert all(np.isnan(bootstrap_interval([0.3])))
    random, covered = np.random.default_rng(0), 0
    for _ in range(400):
        events = random.binomial(10, 0.005, 20) / 10  # 20 texts of 10 sentences: .64 have none
        low, high = bootstrap_interval(events, limits=(0, 1), n_resamples=200)
        covered += low <= 0.005 <= high
    assert covered >= 0.95 * 400
    with pytest.raises(ValueError, match="limits: got"):
        bootstrap_interval([2.0, 2.0], limits=(0, 1))


def test_bootstrap_is_the_same_in_chunks(monkeypatch):
    values = np.random.default_rng(2).exponential(size=30)
    whole = bootstrap_interval(values)
    monkeypatch.setattr(metrics, "_DRAWS_AT_ONCE", 1000)
    assert bootstrap_interval(values) == whole


def test_exact_sign_flips_are_counted_by_hand():
    differences = [0.5, -0.2, 0.9, 0.4]
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=4)
    ]
    found = paired_difference([*differences, NAN], [0.0] * 5)
    assert found.p_value == sum(s >= 1.6 - 1e-9 for s in sums) / 16
    assert found.diff == pytest.approx(0.4)
    assert (found.n, found.n_empty) == (4, 1)


@pytest.mark.parametrize("draws_at_once", [1 << 22, 64])
def test_exact_and_drawn_sign_flips_agree(monkeypatch, draws_at_once):
    monkeypatch.setattr(metrics, "_DRAWS_AT_ONCE", draws_at_once)
    values = np.random.default_rng(5).normal(0.3, 1, 13)
    zeros = np.zeros(13)
    exact = paired_difference(values, zeros)
    drawn = paired_difference(values, zeros, n_permutations=8000)
    assert drawn.p_value == pytest.approx(exact.p_value, abs=0.02)


def test_p_values_at_the_ends():
    assert paired_difference(np.ones(40), np.zeros(40), n_permutations=999).p_value == 1 / 1000
    assert paired_difference(np.ones(5), np.ones(5)).p_value == 1.0


def test_sign_flip_p_values_are_uniform_without_an_effect():
    random = np.random.default_rng(7)
    p = [paired_difference(random.normal(size=10), np.zeros(10)).p_value for _ in range(400)]
    assert np.mean(np.array(p) <= 0.1) == pytest.approx(0.1, abs=0.04)


@settings(deadline=None)  # the first call loads scipy.stats
@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_holds_the_share_and_solves_the_score_equation(pair):
    successes, n = pair
    low, high = wilson_interval(successes, n)
    share = successes / n
    assert 0 <= low <= share + 1e-12
    assert share - 1e-12 <= high <= 1
    for end in (low, high):
        if 1e-9 < end < 1 - 1e-9:
            z = (share - end) / np.sqrt(end * (1 - end) / n)
            assert abs(z) == pytest.approx(1.959964, abs=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_se([[1.0]]), r"values: got shape \(1, 1\), expected one dimension"),
        (lambda: mean_se([1.0, np.inf]), "values: infinite at row 1"),
        (lambda: mean_se([1.0], groups=[1, 2]), r"groups: got shape \(2,\), expected 1 rows"),
        (lambda: ratio_se([1.0], [1.0, 2.0]), r"denominators: got shape \(2,\), expected 1 rows"),
        (lambda: ratio_se([1.0], [-1.0]), "denominators at least 0"),
        (lambda: ratio_se([NAN], [1.0]), "numerators must be numbers"),
        (
            lambda: paired_difference([1.0], [1.0, 2.0]),
            r"reference: got shape \(2,\), expec",
        ),
        (lambda: paired_difference([1.0], [1.0], n_permutations=0), "n_permutations"),
        (lambda: bootstrap_interval([1.0], level=95), "level: got 95, expected a share"),
        (lambda: bootstrap_interval([1.0], n_resamples=0), "n_resamples"),
        (lambda: wilson_interval(3, 2), "successes: got 3, expected 0 to n = 2"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()

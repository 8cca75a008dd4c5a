"""Shares and their bounds, against definitions summed up by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsteer.analysis import increase_bound, sign_test, wilson_interval


def at_most(successes: int, n: int, share: float) -> float:
    return sum(math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(successes + 1))


@pytest.mark.parametrize(("successes", "n"), [(0, 7), (3, 20), (19, 20), (5, 400)])
def test_without_an_event_before_it_is_the_exact_upper_end(successes: int, n: int) -> None:
    assert at_most(successes, n, increase_bound(0, successes, n)) == pytest.approx(0.05)
    assert increase_bound(0, 0, n, level=0.995) == pytest.approx(1 - 0.005 ** (1 / n))


@pytest.mark.parametrize(("successes", "n"), [(1, 7), (3, 20), (20, 20), (5, 400)])
def test_with_an_event_in_all_after_it_is_the_exact_lower_end(successes: int, n: int) -> None:
    low = 1 - increase_bound(successes, n, n)
    assert 1 - at_most(successes - 1, n, low) == pytest.approx(0.05)


def test_events_before_widen_the_bound_around_the_difference() -> None:
    assert increase_bound(10, 10, 100) > 0
    assert increase_bound(10, 10, 100) > increase_bound(0, 0, 100)
    assert increase_bound(10, 10, 1000) < increase_bound(10, 10, 100)
    assert increase_bound(50, 10, 100) < 0


def test_sign_test_counts_the_changed_pairs_only() -> None:
    assert sign_test(0, 0) == 1
    assert sign_test(7, 0) == 2**-7
    assert sign_test(3, 1) == 5 / 16
    assert sign_test(0, 4) == 1


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_holds_the_share_and_solves_the_score_equation(pair):
    successes, n = pair
    low, high = wilson_interval(successes, n)
    share = successes / n
    assert 0 <= low <= share + 1e-12
    assert share - 1e-12 <= high <= 1
    for end in (low, high):
        if 1e-9 < end < 1 - 1e-9:
            z = (share - end) / math.sqrt(end * (1 - end) / n)
            assert abs(z) == pytest.approx(1.959964, abs=1e-4)


@pytest.mark.parametrize(("successes", "n", "level"), [(1, 0, 0.9), (3, 2, 0.9), (1, 2, 1.0)])
def test_counts_that_cannot_be_are_named(successes: int, n: int, level: float) -> None:
    with pytest.raises(ValueError, match=r"(successes|level): got"):
        increase_bound(0, successes, n, level=level)
    with pytest.raises(ValueError, match="up, down: got -1 and 2, expected counts"):
        sign_test(-1, 2)
    with pytest.raises(ValueError, match="successes: got 3 of n = 2"):
        wilson_interval(3, 2)
    assert wilson_interval(0, 0) == (0.0, 1.0)

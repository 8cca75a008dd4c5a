"""Exact intervals and tests, against definitions summed up by hand."""

import math

import pytest

from jaxsteer.analysis.exact import exact_interval, increase_bound, sign_test


def at_most(successes: int, n: int, share: float) -> float:
    return sum(math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(successes + 1))


@pytest.mark.parametrize(("successes", "n"), [(0, 7), (3, 20), (19, 20), (20, 20), (5, 400)])
def test_either_end_leaves_half_of_the_error(successes: int, n: int) -> None:
    low, high = exact_interval(successes, n, level=0.9)
    assert low <= successes / n <= high
    if successes < n:
        assert at_most(successes, n, high) == pytest.approx(0.05)
    else:
        assert high == 1
    if successes:
        assert 1 - at_most(successes - 1, n, low) == pytest.approx(0.05)
    else:
        assert low == 0


def test_without_an_event_the_bound_is_known() -> None:
    assert increase_bound(0, 0, 128, level=0.995) == pytest.approx(1 - 0.005 ** (1 / 128))
    assert increase_bound(0, 3, 50) == pytest.approx(exact_interval(3, 50, level=0.9)[1])


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


@pytest.mark.parametrize(("successes", "n", "level"), [(1, 0, 0.9), (3, 2, 0.9), (1, 2, 1.0)])
def test_counts_that_cannot_be(successes: int, n: int, level: float) -> None:
    with pytest.raises(ValueError, match=r"expected"):
        exact_interval(successes, n, level=level)
    with pytest.raises(ValueError, match="expected counts"):
        sign_test(-1, 2)

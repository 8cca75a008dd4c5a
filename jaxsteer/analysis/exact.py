"""Exact statistics of yes and no, for events so rare that a bootstrap sees none of them."""

import math

import numpy as np
from numpy.typing import NDArray

_BISECTIONS = 60  # halvings of [0, 1]: beyond what a float64 tells apart


def exact_interval(successes: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Return Clopper and Pearson's interval for a share of `successes` among `n` trials.

    Either end has an error of at most `(1 - level) / 2` at any true share, however small the
    counts: the upper end for 0 of `n` at level .9 is the one-sided 95% bound `1 - .05**(1 / n)`.

    Raises:
        ValueError: for counts or a level that cannot be.

    >>> low, high = exact_interval(0, 128, level=0.9)
    >>> low, round(high, 4)
    (0.0, 0.0231)
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"successes: expected 0 to n, n at least 1, found {successes} of {n}")
    if not 0 < level < 1:
        raise ValueError(f"level: expected a share between 0 and 1, found {level}")
    tail = (1 - level) / 2
    low = 0.0 if successes == 0 else 1 - _upper(n - successes, n, tail)
    high = 1.0 if successes == n else _upper(successes, n, tail)
    return low, high


def increase_bound(before: int, after: int, n: int, *, level: float = 0.95) -> float:
    """Return a one-sided upper bound on the increase of a share, `after / n - before / n`.

    The exact one-sided bounds of the two shares are put together by Newcombe's square-and-add
    rule (1998) for independent shares, which is wide where trials are paired. Without an event
    before, it is the exact bound of `after` alone.

    Args:
        before: trials with the event in the first condition.
        after: trials with the event in the second.
        n: trials in either.
        level: one-sided coverage.

    >>> round(increase_bound(0, 0, 128), 4), round(increase_bound(20, 20, 128), 4)
    (0.0231, 0.0803)
    """
    first, _ = exact_interval(before, n, level=2 * level - 1)
    _, last = exact_interval(after, n, level=2 * level - 1)
    return (after - before) / n + math.hypot(last - after / n, before / n - first)


def sign_test(up: int, down: int) -> float:
    """Return the one-sided exact p-value that `up` outweighs `down`; 1 if there is neither.

    `up` pairs changed one way and `down` the other; pairs without a change say nothing (McNemar).

    >>> sign_test(5, 0), sign_test(3, 3)
    (0.03125, 0.65625)
    """
    if up < 0 or down < 0:
        raise ValueError(f"expected counts, found {up} and {down}")
    n = up + down
    return sum(math.comb(n, k) for k in range(up, n + 1)) / 2**n


def _upper(successes: int, n: int, tail: float) -> float:
    """The share at which `successes` or fewer of `n` have the chance `tail`."""
    k = np.arange(successes + 1)
    logs = np.array([math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in k])
    low, high = successes / n, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if _at_most(k, logs, n, middle) > tail:
            low = middle
        else:
            high = middle
    return high


def _at_most(k: NDArray[np.int_], logs: NDArray[np.float64], n: int, share: float) -> float:
    return float(np.exp(logs + k * math.log(share) + (n - k) * math.log1p(-share)).sum())

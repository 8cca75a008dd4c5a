"""Statistics of shares, events among trials: also for events so rare that a bootstrap sees none."""

import math

import scipy  # which loads `scipy.stats`, a second of it, when it is first used


def wilson_interval(successes: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval for a share of `successes` among `n` independent trials.

    (0, 1) when there is no trial.

    Raises:
        ValueError: for counts or a level that cannot be.

    >>> low, high = wilson_interval(0, 20)
    >>> round(low, 4), round(high, 4)
    (0.0, 0.1611)
    """
    return _interval(successes, n, level, "wilson") if n else (0.0, 1.0)


def increase_bound(before: int, after: int, n: int, *, level: float = 0.95) -> float:
    """Return a one-sided upper bound on the increase of a share, `after / n - before / n`.

    The exact one-sided bounds of the two shares (Clopper and Pearson) are combined by Newcombe's
    square-and-add rule (1998) for independent shares, which is wide where trials are paired.
    Without an event before, it is the exact bound of `after` alone: `1 - (1 - level)**(1 / n)` if
    there is none after, either.

    Args:
        before: trials with the event in the first condition.
        after: trials with the event in the second.
        n: trials in either.
        level: one-sided coverage, above one half.

    Raises:
        ValueError: for counts or a level that cannot be.

    >>> round(increase_bound(0, 0, 128), 4), round(increase_bound(20, 20, 128), 4)
    (0.0231, 0.0803)
    """
    first, _ = _interval(before, n, 2 * level - 1, "exact")
    _, last = _interval(after, n, 2 * level - 1, "exact")
    return (after - before) / n + math.hypot(last - after / n, before / n - first)


def sign_test(up: int, down: int) -> float:
    """Return the one-sided exact p-value that `up` outweighs `down`; 1 if there is neither.

    `up` pairs changed one way and `down` the other; pairs without a change say nothing (McNemar).

    >>> sign_test(5, 0), sign_test(3, 3)
    (0.03125, 0.65625)
    """
    if up < 0 or down < 0:
        raise ValueError(f"up, down: got {up} and {down}, expected counts")
    if not up + down:
        return 1.0
    return float(scipy.stats.binomtest(up, up + down, alternative="greater").pvalue)


def _interval(successes: int, n: int, level: float, method: str) -> tuple[float, float]:
    if not (n >= 1 and 0 <= successes <= n):
        raise ValueError(f"successes: got {successes} of n = {n}, expected 0 to n, n at least 1")
    if not 0 < level < 1:
        raise ValueError(f"level: got {level}, expected a share between 0 and 1")
    low, high = scipy.stats.binomtest(successes, n).proportion_ci(level, method)
    return float(low), float(high)

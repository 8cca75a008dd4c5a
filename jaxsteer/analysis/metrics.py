"""What a generated text shows: keyword rate (Eq. 1), coherence, and the statistics over prompts.

Pure functions on text and numpy arrays. A generation without words has no rate: it is NaN here,
never 0, and every estimate leaves such rows out and says how many there were (`n_empty`).
Independent units are rows, or the groups of rows that share a prompt when `groups` names them.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy  # which loads `scipy.stats`, a second of it, when it is first used
from numpy.typing import ArrayLike, NDArray

from jaxsteer.analysis.sentences import KEYWORDS, keyword_pattern
from jaxsteer.runtime import wrong

Floats = NDArray[np.float64]

# Resampling is ours: `scipy.stats` would draw other numbers for a seed, and so print other results
# for old runs, and it knows neither empty rows nor units of unequal size.
_DRAWS_AT_ONCE = 1 << 22  # numbers drawn at a time, to bound the memory of resampling


@dataclass(frozen=True)
class Estimate:
    """A mean or ratio with its standard error.

    `n` is the number of independent units that it rests on, `n_empty` the number of rows left out
    because they are empty. `mean` is NaN without units, `se` with fewer than two.
    """

    mean: float
    se: float
    n: int
    n_empty: int


@dataclass(frozen=True)
class PairedDifference:
    """The mean of `values - reference` over pairs, and the chance of one as large by sign alone.

    `p_value` is two-sided. `n` counts the pairs, `n_empty` those left out because either side is
    empty.
    """

    diff: float
    se: float
    p_value: float
    n: int
    n_empty: int


def keyword_counts(text: str, keywords: Sequence[str] = KEYWORDS) -> tuple[int, int]:
    """Return how often keywords occur in a text, and how many words it has.

    Keywords are whole words in any case; words are what white space separates. One word may hold
    several keywords ("wait/hmm").

    >>> keyword_counts("Wait, hmm ... I waited."), keyword_counts("wait/hmm")
    ((2, 5), (2, 1))
    """
    return len(keyword_pattern(tuple(keywords)).findall(text)), len(text.split())


def keyword_rate(text: str, keywords: Sequence[str] = KEYWORDS) -> float:
    """Return the share of a text's words that hold a keyword (Section 2.2, Eq. 1); NaN if empty.

    >>> keyword_rate("Wait, that is 4."), keyword_rate("wait/hmm"), keyword_rate(" ")
    (0.25, 1.0, nan)
    """
    starts = [word.start() for word in re.finditer(r"\S+", text)]
    held: set[int] = set()
    for match in keyword_pattern(tuple(keywords)).finditer(text):
        first, last = (bisect_right(starts, at) for at in (match.start(), match.end() - 1))
        held |= set(range(first, last + 1))
    return len(held) / len(starts) if starts else float("nan")


def keyword_matches_per_word(text: str, keywords: Sequence[str] = KEYWORDS) -> float:
    """Return the other reading of Eq. 1, keywords over words, which can exceed 1; NaN if empty.

    >>> keyword_matches_per_word("Wait, that is 4."), keyword_matches_per_word("wait/hmm")
    (0.25, 2.0)
    """
    matches, words = keyword_counts(text, keywords)
    return matches / words if words else float("nan")


def distinct_n(text: str, n: int = 4) -> float:
    """Return the share of a text's word n-grams that are distinct; NaN with fewer than n words.

    >>> distinct_n("a b a b a b", n=2)
    0.4
    """
    if n < 1:
        raise wrong("n", n, "at least 1")
    words = text.split()
    grams = list(zip(*(words[i:] for i in range(n)), strict=False))
    return len(set(grams)) / len(grams) if grams else float("nan")


def repetition(text: str, n: int = 4) -> float:
    """Return the share of a text's word n-grams that repeat an earlier one: `1 - distinct_n`.

    0 where nothing repeats, towards 1 where the text collapses. Longer texts repeat more, so
    compare texts of like length.

    >>> repetition("wait no wait no wait no", n=2)
    0.6
    """
    return 1.0 - distinct_n(text, n)


def mean_se(values: ArrayLike, *, groups: ArrayLike | None = None) -> Estimate:
    """Return the mean of `values` `[R]` with its standard error.

    NaN values are empty rows. With `groups` `[R]` the error is that of the groups' means weighted
    by their rows, which rows of one prompt do not make smaller.

    >>> mean_se([1.0, 2.0, 3.0, float("nan")])
    Estimate(mean=2.0, se=0.5773502691896257, n=3, n_empty=1)
    """
    return ratio_se(*_as_ratio(values), groups=groups)


def ratio_se(
    numerators: ArrayLike, denominators: ArrayLike, *, groups: ArrayLike | None = None
) -> Estimate:
    """Return `sum(numerators) / sum(denominators)` `[R]` with its linearised standard error.

    Rows whose denominator is 0 are empty. The units may differ in size: the error is that of the
    residuals `numerator - ratio * denominator` of the units (Cochran's ratio estimator).

    >>> ratio_se([1, 1, 0], [2, 2, 0])
    Estimate(mean=0.5, se=0.0, n=2, n_empty=1)
    """
    tops, bottoms, n_empty = _units(numerators, denominators, groups)
    n = len(tops)
    if not n:
        return Estimate(mean=float("nan"), se=float("nan"), n=0, n_empty=n_empty)
    mean = tops.sum() / bottoms.sum()
    if n == 1:
        return Estimate(mean=float(mean), se=float("nan"), n=1, n_empty=n_empty)
    residuals = tops - mean * bottoms
    se = np.sqrt(n / (n - 1) * np.sum(residuals**2)) / bottoms.sum()
    return Estimate(mean=float(mean), se=float(se), n=n, n_empty=n_empty)


def backtracking_rate(
    labels: Sequence[Sequence[bool]], *, groups: ArrayLike | None = None
) -> Estimate:
    """Return backtracking sentences per sentence over generations, with its standard error.

    Args:
      labels: for each generation, whether each of its sentences backtracks.
      groups: the prompt of each generation, when a prompt has several.

    The generations are the independent units, not the sentences: those of one text go together.

    >>> backtracking_rate([[True, False], [False, False], []])
    Estimate(mean=0.25, se=0.25, n=2, n_empty=1)
    """
    counts = [sum(map(bool, row)) for row in labels]
    return ratio_se(counts, [len(row) for row in labels], groups=groups)


def bootstrap_interval(
    values: ArrayLike,
    denominators: ArrayLike | None = None,
    *,
    groups: ArrayLike | None = None,
    limits: tuple[float, float] | None = None,
    level: float = 0.95,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a mean, or of a ratio of sums.

    Where all units agree, resampling them shows no spread, and the interval is the exact bound of
    `percentile_interval` instead: 0 events in 128 texts give [0, .023], and not [0, 0].

    Args:
      values: `[R]`, the values, or the ratio's numerators; NaN is an empty row.
      denominators: `[R]`, the ratio's denominators; 0 is an empty row. None for a mean.
      groups: `[R]`, the prompt of each row: whole prompts are drawn, with replacement.
      limits: between which a unit's value must lie: (0, 1) for a share. Without them the interval
        of units that agree is NaN, NaN: nothing is known of its ends.
      level: the interval's coverage, in (0, 1).
      n_resamples: how often the units are drawn anew.
      seed: of the numpy generator; the same seed gives the same interval.

    NaN, NaN without units. Empty units are left out before drawing.

    >>> bootstrap_interval([0.0] * 128, limits=(0, 1))
    (0.0, 0.0231...)
    """
    _check_level(level)
    if n_resamples < 1:
        raise wrong("n_resamples", n_resamples, "at least 1")
    if denominators is None:
        values, denominators = _as_ratio(values)
    tops, bottoms, _ = _units(values, denominators, groups)
    n = len(tops)
    if not n:
        return float("nan"), float("nan")
    drawn = [(times @ tops) / (times @ bottoms) for times in resamples(n, n_resamples, seed)]
    # Sums that resampling adds in another order differ in the last digit.
    same = np.ptp(tops / bottoms) == 0
    value = np.full(1, tops[0] / bottoms[0])
    return percentile_interval(
        value if same else np.concatenate(drawn), n, limits=limits, level=level
    )


def percentile_interval(
    drawn: ArrayLike,
    n: int,
    *,
    limits: tuple[float, float] | None = None,
    level: float = 0.95,
) -> tuple[float, float]:
    """Return between what the middle `level` of resampled values `[S]` lies; NaN values are none.

    Where all of them are one value, `n` units show no spread, and the interval is the exact
    one-sided bound: of the units, at most `1 - (1 - level)**(1 / n)` differ from those seen, and
    none lies outside `limits`. Without limits it is NaN, NaN.

    >>> percentile_interval([1.0, 1.0], 20, limits=(0, 1))
    (0.8608..., 1.0)
    """
    _check_level(level)
    values = np.asarray(drawn, dtype=np.float64)
    values = values[~np.isnan(values)]
    if not values.size:
        return float("nan"), float("nan")
    if np.ptp(values) > 0:
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)
    if limits is None:
        return float("nan"), float("nan")
    value, (lowest, highest) = float(values[0]), limits
    if not lowest <= value <= highest:
        raise ValueError(f"limits: got {limits}, but a value of {value:g}")
    others = 1 - (1 - level) ** (1 / n)
    return value - others * (value - lowest), value + others * (highest - value)


def paired_difference(
    values: ArrayLike, reference: ArrayLike, *, n_permutations: int = 10_000, seed: int = 0
) -> PairedDifference:
    """Compare `values` `[R]` with `reference` `[R]`, row by row, by a sign-flip permutation test.

    Row r of both is the same prompt. Under no effect each difference is as likely with the other
    sign. All `2**n` sign patterns are tried if they are at most `n_permutations`; otherwise so
    many are drawn, and the observed one counts among them, so that the p-value is never 0.

    >>> paired_difference([2.0, 3.0, 4.0], [1.0, 1.0, 1.0])
    PairedDifference(diff=2.0, se=0.5773502691896257, p_value=0.25, n=3, n_empty=0)
    """
    if n_permutations < 1:
        raise wrong("n_permutations", n_permutations, "at least 1")
    left, right = _rows(values, "values"), _rows(reference, "reference")
    _same_length(left, right, "reference")
    differences = left - right
    kept = differences[~np.isnan(differences)]
    estimate = mean_se(kept)
    n, n_empty = len(kept), len(differences) - len(kept)
    if not n:
        return PairedDifference(float("nan"), float("nan"), float("nan"), 0, n_empty)
    bound = abs(kept.sum()) * (1 - 1e-12)  # sums in another order differ in the last digit
    exact = 2**n <= n_permutations
    random = np.random.default_rng(seed)
    as_large, done = (0, 0) if exact else (1, 1)
    for size in _chunks(2**n if exact else n_permutations, n):
        if exact:
            bits = (np.arange(done, done + size)[:, None] >> np.arange(n)) & 1
        else:
            bits = random.integers(0, 2, (size, n), dtype=np.int8)
        as_large += int(np.sum(np.abs((1 - 2 * bits) @ kept) >= bound))
        done += size
    return PairedDifference(estimate.mean, estimate.se, as_large / done, n, n_empty)


def holm(p_values: ArrayLike) -> Floats:
    """Return p-values `[K]` corrected for being K at once (Holm's step-down rule), in their order.

    Each is the smallest level at which its hypothesis falls when the chance of any false one is
    bounded, however the tests depend on each other. NaN was no test and stays NaN.

    >>> holm([0.01, 0.04, float("nan"), 0.03]).tolist()
    [0.03, 0.06, nan, 0.06]
    """
    values = _rows(p_values, "p_values")
    tested = np.flatnonzero(~np.isnan(values))
    if np.any(values[tested] < 0) or np.any(values[tested] > 1):
        raise wrong("p_values", values[tested].tolist(), "0 to 1")
    order = tested[np.argsort(values[tested], kind="stable")]
    steps = values[order] * np.arange(len(order), 0, -1)
    corrected = np.full(len(values), np.nan)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected


def wilson_interval(successes: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval for a share of `successes` among `n` independent trials.

    (0, 1) when there is no trial.

    >>> low, high = wilson_interval(0, 20)
    >>> round(low, 4), round(high, 4)
    (0.0, 0.1611)
    """
    _check_level(level)
    if not 0 <= successes <= n:
        raise ValueError(f"successes: got {successes}, expected 0 to n = {n}")
    if n == 0:
        return 0.0, 1.0
    low, high = scipy.stats.binomtest(successes, n).proportion_ci(level, "wilson")
    return float(low), float(high)


def _rows(values: ArrayLike, name: str) -> Floats:
    rows = np.asarray(values, dtype=np.float64)
    if rows.ndim != 1:
        raise wrong(name, f"shape {rows.shape}", "one dimension")
    if np.isinf(rows).any():
        raise ValueError(f"{name}: infinite at row {int(np.flatnonzero(np.isinf(rows))[0])}")
    return rows


def _same_length(first: NDArray, other: NDArray, name: str) -> None:
    if first.shape != other.shape:
        raise wrong(name, f"shape {other.shape}", f"{len(first)} rows")


def _as_ratio(values: ArrayLike) -> tuple[Floats, Floats]:
    """Write a mean as a ratio of sums: over 1 for each row, over 0 for an empty one."""
    rows = _rows(values, "values")
    full = ~np.isnan(rows)
    return np.where(full, rows, 0.0), full.astype(np.float64)


def _units(
    numerators: ArrayLike, denominators: ArrayLike, groups: ArrayLike | None
) -> tuple[Floats, Floats, int]:
    """Return the sums of the independent units, without the empty rows, and how many those were."""
    tops, bottoms = _rows(numerators, "numerators"), _rows(denominators, "denominators")
    _same_length(tops, bottoms, "denominators")
    if np.isnan(tops).any() or not (bottoms >= 0).all():
        raise ValueError("numerators must be numbers and denominators at least 0")
    full = bottoms > 0
    n_empty = int(np.sum(~full))
    if groups is None:
        return tops[full], bottoms[full], n_empty
    names = np.asarray(groups)
    _same_length(tops, names, "groups")
    distinct, unit = np.unique(names[full], return_inverse=True)
    sums = [np.bincount(unit, rows[full], len(distinct)) for rows in (tops, bottoms)]
    return sums[0].astype(np.float64), sums[1].astype(np.float64), n_empty


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise wrong("level", level, "a share between 0 and 1")


def resamples(n: int, n_resamples: int, seed: int, *, width: int | None = None) -> Iterable[Floats]:
    """How often each of `n` units comes up in each resample, `[*, n]`, in parts of bounded size.

    `width` numbers are computed of each resample, `n` if not given.
    """
    sizes = _chunks(n_resamples, width or n)
    if len(sizes) == 1:
        return (_draw_once(n, n_resamples, seed),)
    random = np.random.default_rng(seed)
    return (_draw(random, n, size) for size in sizes)


@lru_cache(maxsize=4)  # most of the work, and the same for every measure of a table
def _draw_once(n: int, n_resamples: int, seed: int) -> Floats:
    return _draw(np.random.default_rng(seed), n, n_resamples)


def _draw(random: np.random.Generator, n: int, size: int) -> Floats:
    # Counts are multinomial: no index arrays are needed.
    return random.multinomial(n, np.full(n, 1 / n), size=size).astype(np.float64)


def _chunks(total: int, width: int) -> list[int]:
    """Split `total` draws of `width` numbers so that a chunk stays small; sums to `total`."""
    size = max(1, _DRAWS_AT_ONCE // width)
    return [min(size, total - start) for start in range(0, total, size)]

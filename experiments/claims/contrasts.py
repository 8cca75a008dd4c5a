"""What a claim says is positive, with intervals: the one form in which all rules decide.

A claim is a list of contrasts, each a number that is above 0 if the claim holds. Its interval is
95%, 2.5% at either end. The claim is reproduced if all of them lie above 0, not reproduced if one
lies below, and else undecided. So a contrast that is truly 0 or less lies above 0 in at most 2.5%
of runs, and with it the claim.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

ERROR = 0.025  # at either end of an interval
LEAST_PAIRS = 8  # prompts that an interval needs; and prompts that differ, for it to be Student's
TRIM = 0.1  # of the prompts, left out at either end
POWER = 0.8  # with which a run of the size that `prompts` asks for decides


class Verdict(StrEnum):
    """What a run says of a claim."""

    YES = "reproduced"
    NO = "not reproduced"
    OPEN = "undecided at this n"
    ABSENT = "not in this run"


@dataclass(frozen=True)
class Measure:
    """A value with its 95% interval and the number of independent units; NaN is unknown."""

    value: float
    low: float
    high: float
    n: int


UNKNOWN = Measure(math.nan, math.nan, math.nan, 0)


@dataclass(frozen=True)
class Contrast:
    """A measure that is positive if the claim holds."""

    name: str
    measure: Measure


@dataclass(frozen=True)
class Answer:
    """A verdict; if it is open, what leaves it so and how many units would decide it.

    `prompts` is for 80% of such runs, if the effect is what was measured; None if that cannot be
    said, as nothing was measured or the effect is just the smallest that counts.
    """

    verdict: Verdict
    undecided: tuple[str, ...] = ()
    prompts: int | None = None


def decide(contrasts: Sequence[Contrast]) -> Answer:
    """The answer that contrasts give; none at all were not in this run."""
    if not contrasts:
        return Answer(Verdict.ABSENT)
    if any(c.measure.high < 0 for c in contrasts):
        return Answer(Verdict.NO)
    open_ones = [c for c in contrasts if not c.measure.low > 0]
    if not open_ones:
        return Answer(Verdict.YES)
    needed = [prompts_to_decide(c.measure) for c in open_ones]
    most = None if None in needed else max(n for n in needed if n is not None)
    return Answer(Verdict.OPEN, tuple(c.name for c in open_ones), most)


def prompts_to_decide(one: Measure) -> int | None:
    """How many units would decide a contrast in `POWER` of runs, if it is what was measured.

    >>> prompts_to_decide(Measure(0.02, -0.01, 0.05, 20))
    92
    """
    half = max(one.value - one.low, one.high - one.value)
    if not math.isfinite(half) or abs(one.value) <= half / 10:  # a hundred times as many, or more
        return None
    distance = 1 + scipy.special.ndtri(POWER) / scipy.special.ndtri(1 - ERROR)
    return math.ceil(one.n * (distance * half / abs(one.value)) ** 2)


def mean_of(
    values: ArrayLike, *, limits: tuple[float, float] = (-1.0, 1.0), error: float = ERROR
) -> Measure:
    """The mean of prompts' values `[n]` by Student's t; NaN values are no prompts.

    Where fewer than `LEAST_PAIRS` prompts differ from what most have, t knows too little of the
    spread. The interval then holds the exact bound, too: those that differ are at most Clopper and
    Pearson's share of all, and none is outside `limits`.
    """
    kept = _kept(values)
    n = len(kept)
    if n < LEAST_PAIRS:
        return Measure(math.nan, math.nan, math.nan, n)
    value = float(kept.mean())
    half = t_quantile(error, n - 1) * float(kept.std(ddof=1)) / math.sqrt(n)
    low, high = value - half, value + half
    distinct, counts = np.unique(kept, return_counts=True)
    differing = n - int(counts.max())
    if differing < LEAST_PAIRS:
        usual, share = float(distinct[counts.argmax()]), _most(differing, n, error)
        low = min(low, usual - share * (usual - limits[0]))
        high = max(high, usual + share * (limits[1] - usual))
    return Measure(value, max(low, limits[0]), min(high, limits[1]), n)


def trimmed_mean_of(values: ArrayLike) -> Measure:
    """The mean without the tenth of the prompts at either end, by Yuen's t: no few carry it."""
    kept = np.sort(_kept(values))
    n, cut = len(kept), int(TRIM * len(kept))
    if n < LEAST_PAIRS:
        return Measure(math.nan, math.nan, math.nan, n)
    inner = kept[cut : n - cut]
    spread = np.clip(kept, inner[0], inner[-1]).std(ddof=1)
    half = t_quantile(ERROR, len(inner) - 1) * float(spread) / ((1 - 2 * cut / n) * math.sqrt(n))
    value = float(inner.mean())
    return Measure(value, value - half, value + half, n)


def above(one: Measure, bound: float) -> Measure:
    """How far a measure lies above a bound."""
    return Measure(one.value - bound, one.low - bound, one.high - bound, one.n)


def below(one: Measure, bound: float) -> Measure:
    """How far a measure lies below a bound."""
    return Measure(bound - one.value, bound - one.high, bound - one.low, one.n)


def apart(one: Measure, other: Measure, factor: float = 1.0) -> Measure:
    """`factor` times a measure, less another one: of the ends that are furthest from each other.

    The units are those of the other measure.
    """
    return Measure(
        factor * one.value - other.value,
        factor * one.low - other.high,
        factor * one.high - other.low,
        other.n,
    )


def _kept(values: ArrayLike) -> NDArray[np.float64]:
    found = np.asarray(values, np.float64)
    return found[~np.isnan(found)]


@lru_cache(maxsize=4096)
def t_quantile(error: float, df: int) -> float:
    """Student's t that is exceeded with a chance of `error`."""
    return float(scipy.stats.t.ppf(1 - error, df))


@lru_cache(maxsize=4096)
def _most(events: int, n: int, error: float) -> float:
    """Clopper and Pearson's upper bound of a share."""
    return float(scipy.stats.beta.ppf(1 - error, events + 1, n - events))

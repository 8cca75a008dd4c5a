"""What the claims table rests on: the numbers of the stages, in the form that the rules take."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from experiments.claims.rules import Measure, RareCell, Versus
from experiments.stages.baselines import RAW
from experiments.stages.outcome import (
    RESAMPLES,
    CellOutcome,
    Key,
    coherent,
    judged_at,
    paired,
    select,
)
from experiments.stages.text_scores import Scores

DIRECTIONS = ("base", "reasoning")
UNKNOWN = Measure(math.nan, math.nan, math.nan, 0)


@dataclass(frozen=True)
class Evidence:
    """Everything that was measured; `None` is a figure that this run has not made."""

    table: Sequence[CellOutcome]
    scores: Mapping[Key, Mapping[str, Scores]]
    margin: float
    layer: int
    directions: dict[str, Any]  # directions.json
    other_cosines: Mapping[str, float] = field(default_factory=dict)  # by behaviour
    figure2: dict[str, Any] | None = None
    cosines: dict[str, Any] | None = None
    figure5: dict[str, Any] | None = None
    figure6: dict[str, Any] | None = None

    @cached_property
    def coeff(self) -> float | None:
        """Where effects are judged; see `outcome.judged_at`."""
        return judged_at(self.table, self.margin)

    def cell(self, target: str, source: str, coeff: float) -> CellOutcome | None:
        """A cell of the sweep, if it was run."""
        wanted = (target, source, coeff)
        return next((c for c in self.table if (c.target, c.source, c.coeff) == wanted), None)

    def unsteered(self, target: str) -> CellOutcome:
        """The cell without steering."""
        return select(self.table, target, "none")[0]

    def shares(self, target: str, source: str, coeff: float, prompts: Sequence[str]) -> np.ndarray:
        """Backtracking sentences per sentence by prompt, NaN where there is no sentence."""
        texts = self.scores[target, source, coeff]
        return np.array([texts[p].judged if p in texts else math.nan for p in prompts])


def measure(found: Mapping[str, Any] | None, value: str = "value", n: str = "n") -> Measure:
    """A Measure from the JSON of a figure; NaN for what is null there.

    >>> measure({"mean": 0.5, "low": 0.4, "high": None, "n": 7}, "mean")
    Measure(value=0.5, low=0.4, high=nan, n=7)
    """
    if found is None:
        return UNKNOWN
    middle, low, high = (
        math.nan if found[k] is None else float(found[k]) for k in (value, "low", "high")
    )
    return Measure(middle, low, high, int(found[n]))


def gain_of(cell: CellOutcome) -> Measure:
    """Of a cell over unsteered, by prompt."""
    one = cell.difference
    return Measure(one.diff, one.low, one.high, one.n)


def ratio_of_gains(found: Evidence, coeff: float, *, seed: int = 0) -> Measure:
    """Gain of the base-derived direction over that of the reasoning-derived, with its interval.

    Prompts are drawn anew for all three cells together. Draws in which the reasoning-derived
    direction gains nothing count as infinite.
    """
    if found.cell("reasoning", "reasoning", coeff) is None:
        return UNKNOWN
    prompts = list(found.scores["reasoning", "none", 0.0])
    plain = found.shares("reasoning", "none", 0.0, prompts)
    gains = np.stack([found.shares("reasoning", s, coeff, prompts) - plain for s in DIRECTIONS])
    gains = gains[:, ~np.isnan(gains).any(axis=0)]
    n = gains.shape[1]
    if not n or gains[1].sum() <= 0:
        return UNKNOWN
    times = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    tops, bottoms = (times @ g for g in gains)
    drawn = np.where(bottoms > 0, tops / np.where(bottoms > 0, bottoms, 1), math.inf)
    # Whole order statistics: an interpolation between infinities would be NaN.
    low, high = np.quantile(drawn, [0.025, 0.975], method="nearest")
    return Measure(float(gains[0].sum() / gains[1].sum()), float(low), float(high), n)


def text_counts(found: Evidence, target: str, source: str, coeff: float) -> RareCell:
    """In how many texts there is a backtracking sentence, steered and unsteered."""
    plain = found.scores[target, "none", 0.0]
    pairs = [
        (plain[prompt].backtracking > 0, text.backtracking > 0)
        for prompt, text in found.scores[target, source, coeff].items()
        if text.sentences and plain[prompt].sentences
    ]
    return RareCell(
        source=source,
        coeff=coeff,
        n=len(pairs),
        before=sum(before for before, _ in pairs),
        after=sum(after for _, after in pairs),
        both=sum(before and after for before, after in pairs),
    )


def base_cells(found: Evidence) -> list[RareCell]:
    """The steered cells of the base model that are coherent and have text."""
    cells = [
        text_counts(found, "base", cell.source, cell.coeff)
        for cell in coherent(found.table, "base", found.margin)
        if cell.source in DIRECTIONS
    ]
    return [cell for cell in cells if cell.n]


def text_gains(found: Evidence, coeff: float) -> dict[str, float]:
    """By direction, the increase of the share of the reasoning model's texts that backtrack."""
    counts = {
        source: text_counts(found, "reasoning", source, coeff)
        for source in DIRECTIONS
        if found.cell("reasoning", source, coeff)
    }
    return {source: cell.increase for source, cell in counts.items() if cell.n}


def baseline_coeff(found: Evidence) -> float | None:
    """The largest coefficient up to the judged one at which baselines were run."""
    limit = found.coeff
    run = [c.coeff for c in _baselines(found) if limit is not None and 0 < c.coeff <= limit]
    return max(run, default=None)


def versus_baselines(found: Evidence, coeff: float) -> tuple[list[Versus], list[str]]:
    """The base-derived direction against each coherent baseline, and the incoherent ones."""
    able = {id(c) for c in coherent(found.table, "reasoning", found.margin)}
    here = [c for c in _baselines(found) if c.coeff == coeff]
    prompts = list(found.scores["reasoning", "base", coeff])
    steered = found.shares("reasoning", "base", coeff, prompts)
    versus = []
    for cell in here:
        if id(cell) in able:
            one = paired(steered, found.shares("reasoning", cell.source, coeff, prompts))
            difference = Measure(one.diff, one.low, one.high, one.n)
            versus.append(Versus(cell.source, difference, one.se))
    return versus, [c.source for c in here if id(c) not in able]


def _baselines(found: Evidence) -> list[CellOutcome]:
    """Everything else of the direction's length; baselines of their own lengths do not compare."""
    others = ("none", *DIRECTIONS)
    return [
        c
        for c in found.table
        if c.target == "reasoning" and c.source not in others and not c.source.startswith(RAW)
    ]

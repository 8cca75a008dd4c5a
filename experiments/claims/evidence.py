"""What the claims table rests on: the numbers of the stages, in the form that the rules take."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from experiments.claims import rules
from experiments.claims.contrasts import ERROR, UNKNOWN, Measure, Verdict, decide, t_quantile
from experiments.claims.rules import BaseCell, Floats
from experiments.stages.baselines import RAW
from experiments.stages.outcome import CellOutcome, Key, coherent, judged_at, select
from experiments.stages.text_scores import Scores

DIRECTIONS = ("base", "reasoning")


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

    @cached_property
    def induced(self) -> Verdict:
        """The first half of C2, which others presuppose."""
        if self.coeff is None:
            return Verdict.OPEN
        steered = self.shares("reasoning", "base", self.coeff)
        return decide(rules.induces(steered, self.shares("reasoning"))).verdict

    def cell(self, target: str, source: str, coeff: float) -> CellOutcome | None:
        """A cell of the sweep, if it was run."""
        wanted = (target, source, coeff)
        return next((c for c in self.table if (c.target, c.source, c.coeff) == wanted), None)

    def unsteered(self, target: str) -> CellOutcome:
        """The cell without steering."""
        return select(self.table, target, "none")[0]

    def shares(self, target: str, source: str = "none", coeff: float = 0.0) -> Floats:
        """Judged shares by the target's prompts, NaN where a text does not count or is not there.

        A cell that was not run has none.
        """
        texts = self.scores.get((target, source, coeff), {})
        prompts = self.scores[target, "none", 0.0]
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


def gains(found: Evidence, coeff: float) -> dict[str, Measure]:
    """By direction, the reasoning model's gain at a coefficient."""
    plain = found.shares("reasoning")
    return {
        source: rules.gain(found.shares("reasoning", source, coeff), plain)
        for source in DIRECTIONS
        if found.cell("reasoning", source, coeff)
    }


def ratio_of_gains(found: Evidence, coeff: float) -> Measure:
    """Gain of the base-derived direction over that of the reasoning-derived, by Fieller's interval.

    It is where the contrasts of `rules.comparable` would put it at other factors; without an end
    where the reasoning-derived direction may gain nothing.
    """
    plain = found.shares("reasoning")
    both = np.stack([found.shares("reasoning", s, coeff) - plain for s in DIRECTIONS])
    kept = both[:, ~np.isnan(both).any(axis=0)]
    n = kept.shape[1]
    if n < 2:
        return UNKNOWN
    a, b = kept.mean(axis=1)
    (aa, ab), (_, bb) = np.cov(kept) / n * t_quantile(ERROR, n - 1) ** 2
    square, linear, constant = b * b - bb, a * b - ab, a * a - aa
    root = linear * linear - square * constant
    if b <= 0 or square <= 0 or root < 0:
        return Measure(float(a / b) if b > 0 else math.nan, -math.inf, math.inf, n)
    half = math.sqrt(root)
    return Measure(
        float(a / b), float((linear - half) / square), float((linear + half) / square), n
    )


def base_cells(found: Evidence) -> list[BaseCell]:
    """The steered cells of the base model."""
    before = found.shares("base") if ("base", "none", 0.0) in found.scores else np.array([])
    return [
        BaseCell(c.source, c.coeff, before, found.shares("base", c.source, c.coeff))
        for c in found.table
        if c.target == "base" and c.source in DIRECTIONS
    ]


def reversed_coeff(found: Evidence) -> float | None:
    """The most negative coefficient of the base-derived direction whose text is coherent."""
    able = coherent(found.table, "reasoning", found.margin)
    return min((c.coeff for c in able if c.source == "base" and c.coeff < 0), default=None)


def baseline_coeff(found: Evidence) -> float | None:
    """The largest coefficient up to the judged one at which baselines were run."""
    limit = found.coeff
    run = [c.coeff for c in baselines(found) if limit is not None and 0 < c.coeff <= limit]
    return max(run, default=None)


def baselines(found: Evidence) -> list[CellOutcome]:
    """Everything else of the direction's length; baselines of their own lengths do not compare."""
    others = ("none", *DIRECTIONS)
    return [
        c
        for c in found.table
        if c.target == "reasoning" and c.source not in others and not c.source.startswith(RAW)
    ]

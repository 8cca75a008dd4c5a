"""The rules of the claims table: numbers in, a verdict out. Fixed before the runs that they judge.

Every rule has three answers. A claim is *reproduced* or *not reproduced* only where the numbers
exclude the opposite; where an interval leaves room for both, it is *not testable here*. What was
not measured at all is *not in this run*.

"Induces" is always judged at one stated coherence: at the largest positive coefficient of the
base-derived direction at which coherence is within the margin of the unsteered model's.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from jaxsteer.analysis import increase_bound, sign_test

LEAST_PAIRS = 8  # with fewer, no sign pattern reaches p < .01
SIGNIFICANT = 0.01
FACTOR = 2.0  # gains within this factor of each other are comparable
APART = 4.0  # standard errors between the direction and each baseline
BASE_SHARE = 0.1  # of the reasoning model's gain: below it, the base model does not respond
BASE_ERROR = 0.05  # chance of any wrong bound among all cells of the base model together
COSINE = (0.64, 0.84)  # about .74
TOP_TOKENS = 10  # a keyword among so many tokens is decoded
CLEAN = 0.9  # AUROC of a projection that detects backtracking cleanly
NEGLIGIBLE = 0.05  # share of events below which an exception is none
BASELINES = ("mean", "noise", "self", "behaviour")  # the kinds of Figure 4


class Verdict(StrEnum):
    """What a run says of a claim."""

    YES = "reproduced"
    NO = "not reproduced"
    OPEN = "not testable here"
    ABSENT = "not in this run"


@dataclass(frozen=True)
class Measure:
    """A value with its 95% interval and the number of independent units; NaN is unknown."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class RareCell:
    """Texts of one steered cell of the base model against the same prompts unsteered."""

    source: str
    coeff: float
    n: int  # prompts with a sentence in both
    before: int  # of them, unsteered with a backtracking sentence
    after: int  # and steered
    both: int  # and both

    @property
    def increase(self) -> float:
        """Of the share of texts with a backtracking sentence."""
        return (self.after - self.before) / self.n

    def bound(self, cells: int) -> float:
        """One-sided upper bound of the increase, right for so many cells together."""
        return increase_bound(self.before, self.after, self.n, level=1 - BASE_ERROR / cells)

    def p_value(self) -> float:
        """One-sided exact sign test of the prompts that changed."""
        return sign_test(self.after - self.both, self.before - self.both)


@dataclass(frozen=True)
class Versus:
    """The direction's backtracking minus a baseline's, paired by prompt."""

    name: str
    difference: Measure
    se: float


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict on a claim of several parts.

    >>> str(worst([Verdict.YES, Verdict.OPEN])), str(worst([Verdict.OPEN, Verdict.NO]))
    ('not testable here', 'not reproduced')
    """
    found = set(verdicts)
    order = (Verdict.NO, Verdict.OPEN, Verdict.ABSENT, Verdict.YES)
    return next((verdict for verdict in order if verdict in found), Verdict.ABSENT)


def optimum_before(gain: Measure, difference: Measure, offset: int) -> Verdict:
    """C1: the best layer and offset lie before the sentence.

    Args:
        gain: of the best cell before the sentence, over unsteered.
        difference: of that cell and the best at offsets from 0 on. In both, cells are chosen on
            one half of the prompts and measured on the other, so neither profits from luck.
        offset: of the best cell of all.
    """
    if not gain.low > 0 or math.isnan(difference.value):
        return Verdict.OPEN
    if offset < 0 and difference.low > 0:
        return Verdict.YES
    return Verdict.NO if difference.high < gain.value / 2 else Verdict.OPEN


def induces(gain: Measure, p_value: float, unsteered: float) -> Verdict:
    """C2, first part: more backtracking than unsteered, by a sign-flip test over prompts.

    It is excluded if the interval leaves no room for a doubling (or, where the unsteered model
    hardly backtracks, for one more sentence in a hundred).
    """
    if gain.n < LEAST_PAIRS or math.isnan(gain.value):
        return Verdict.OPEN
    if gain.value > 0 and p_value < SIGNIFICANT:
        return Verdict.YES
    return Verdict.NO if gain.high < max(unsteered, 0.01) else Verdict.OPEN


def comparable(ratio: Measure) -> Verdict:
    """C2, second part: the gains of the two directions are within a factor of 2 of each other."""
    if math.isnan(ratio.value):
        return Verdict.OPEN
    if 1 / FACTOR <= ratio.value <= FACTOR:
        return Verdict.YES
    return Verdict.NO if ratio.high < 1 / FACTOR or ratio.low > FACTOR else Verdict.OPEN


def absent_in_base(cells: Sequence[RareCell], gains: Mapping[str, float]) -> Verdict:
    """C3: no coefficient of either direction, of either sign, makes the base model backtrack.

    Args:
        cells: every steered cell of the base model whose coherence is within the margin. A text
            is the unit: it has a backtracking sentence or not.
        gains: by source, what the reasoning model gains in the same measure at the judged
            coefficient.

    Reproduced if in every cell the increase is, with 95% certainty for all cells together, below a
    tenth of the reasoning model's gain; not reproduced if in some cell it is significant, corrected
    for their number, and above that tenth. With too few texts neither can be said: for no event in
    n texts in each of k cells, the bound is `1 - (.05 / k)**(1 / n)`.
    """
    if not cells or any(not gains.get(cell.source, math.nan) > 0 for cell in cells):
        return Verdict.OPEN
    if all(cell.bound(len(cells)) < BASE_SHARE * gains[cell.source] for cell in cells):
        return Verdict.YES
    found = any(
        cell.p_value() < BASE_ERROR / len(cells) and cell.increase > BASE_SHARE * gains[cell.source]
        for cell in cells
    )
    return Verdict.NO if found else Verdict.OPEN


def similar(cosine: float, others: Sequence[float]) -> Verdict:
    """C4: the cosine of base- and reasoning-derived direction is about .74.

    Args:
        cosine: at the steered layer.
        others: the same for the directions of other behaviours. If these are as close as models
            of hardly any difference would make them, a high cosine says nothing.
    """
    if math.isnan(cosine):
        return Verdict.ABSENT
    if COSINE[0] <= cosine <= COSINE[1]:
        return Verdict.YES
    alike = cosine > COSINE[1] and bool(others) and sorted(others)[len(others) // 2] > COSINE[1]
    return Verdict.OPEN if alike else Verdict.NO


def beats(baselines: Sequence[Versus], gain: float) -> Verdict:
    """C5: the base-derived direction beats each baseline of its length by 4 standard errors.

    Args:
        baselines: those whose coherence is within the margin; a text that has collapsed has no
            rate to compare.
        gain: of the direction over unsteered, at the same coefficient. A baseline that reaches
            half of it, beyond what the interval leaves open, is not beaten.

    All kinds of Figure 4 must be among them.
    """
    if not baselines or not gain > 0:
        return Verdict.OPEN
    kinds = {versus.name.split("-")[0] for versus in baselines}
    complete = Verdict.YES if kinds.issuperset(BASELINES) else Verdict.OPEN
    return worst([complete, *(_beaten(versus, gain) for versus in baselines)])


def _beaten(versus: Versus, gain: float) -> Verdict:
    one = versus.difference
    if one.n < LEAST_PAIRS or math.isnan(one.value):
        return Verdict.OPEN
    if one.value > 0 and one.value >= APART * versus.se:
        return Verdict.YES
    return Verdict.NO if one.high < gain / 2 else Verdict.OPEN


def not_decoded(ranks: Sequence[int], induced: Verdict) -> Verdict:
    """C6: no keyword among the direction's first 10 tokens in either model, though it elicits them.

    Args:
        ranks: of every keyword token, by either model's logit lens; 0 is the first.
        induced: the verdict of `induces`.
    """
    if not ranks:
        return Verdict.ABSENT
    if min(ranks) < TOP_TOKENS:
        return Verdict.NO
    return Verdict.YES if induced is Verdict.YES else Verdict.OPEN


def not_detected(aurocs: Sequence[Measure]) -> Verdict:
    """C7: the projection on the direction does not detect backtracking cleanly (AUROC .9)."""
    if not aurocs:
        return Verdict.ABSENT
    if all(one.high < CLEAN for one in aurocs):
        return Verdict.YES
    return Verdict.NO if any(one.low >= CLEAN for one in aurocs) else Verdict.OPEN


def not_only_cause(without_direction: Measure, without_backtracking: Measure) -> Verdict:
    """C8: backtracking without the direction, and the direction without backtracking.

    Either exception must be more than 5% of the cases.
    """
    both = (without_direction, without_backtracking)
    if any(math.isnan(one.value) for one in both):
        return Verdict.OPEN
    if all(one.low > NEGLIGIBLE for one in both):
        return Verdict.YES
    return Verdict.NO if any(one.high < NEGLIGIBLE for one in both) else Verdict.OPEN


def halves(before: float, after: float) -> Verdict:
    """Beyond the paper: with the sign reversed, the direction at least halves backtracking."""
    if not before > 0 or math.isnan(after):
        return Verdict.OPEN
    return Verdict.YES if after <= before / 2 else Verdict.NO


def unchanged(change: float, se: float) -> Verdict:
    """Beyond the paper: the negative control changes by at most 2 standard errors."""
    if math.isnan(change) or math.isnan(se):
        return Verdict.OPEN
    return Verdict.YES if abs(change) <= 2 * se else Verdict.NO

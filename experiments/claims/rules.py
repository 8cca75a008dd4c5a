"""The rules of the claims table: numbers in, an answer out. Fixed before the runs that they judge.

Each rule says what its claim makes positive; `contrasts.decide` does the rest. A prompt's *share*
is that of distinct backtracking sentences in its text, at most `MOST_SHARE`, and NaN if the text is
degenerate (`stages.text_scores`). Arrays of shares are `[n]`, by prompt. Where more than `1 - KEPT`
of the prompts have a degenerate text on either side, nothing is known.

    claim  null                            alternative                  smallest that counts
    C1     no offset or layer leads        an optimum before            a lead of `LEAD`
    C2     no more backtracking            more, by either direction    `LEAST_GAIN`, and `RISE`
    C3     the base model responds, too    it does not                  `BASE_SHARE` of the gain
    C4     chance, or not near .74         near .74 and above chance    `COSINE`
    C5     a baseline does half as much    none does                    half of the gain
    C6     a keyword is decoded            none is                      the first `TOP_TOKENS`
    C7     no detector, or a clean one     a detector, and dense        `DETECTOR`, `CLEAN`, `DENSE`
    C8     backtracking just if present    exceptions both ways         `EXCEPTIONS`
    S      reversed, it does not halve     it does                      half of the rate
    N      the control responds            it does not                  half of the gain or rate

Error rates in worlds where the truth is known: `python -m experiments.calibrate`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from experiments.claims.contrasts import (
    ERROR,
    UNKNOWN,
    Answer,
    Contrast,
    Measure,
    Verdict,
    above,
    apart,
    below,
    decide,
    mean_of,
    t_quantile,
    trimmed_mean_of,
)
from experiments.claims.optimum import leads, permutation_p
from experiments.stages.text_scores import MOST_SHARE

KEPT = 0.6  # of the prompts, whose texts count on all sides that are compared
LEAST_GAIN = 0.03  # three backtracking sentences in a hundred
RISE = 0.5  # of the unsteered share: so much more counts
FACTOR = 2.0  # gains within this factor of each other are comparable
BASE_SHARE = 0.25  # of the reasoning model's gain: below it, the base model does not respond
BASE_ERROR = 0.05  # chance of any wrong bound among all cells of the base model together
HALF = 0.5  # of the gain, for a baseline and the control; of the rate, for the sign reversed
LEAD = 0.02  # of the best layer and offset: two backtracking sentences in a hundred
COSINE = (0.64, 0.84)  # about .74
TOP_TOKENS = 10  # a keyword among so many tokens is decoded
DETECTOR = 0.6  # AUROC of a projection that says anything of backtracking
CLEAN = 0.9  # AUROC of a projection that detects backtracking cleanly
DENSE = 0.05  # of all tokens, as high as half of those before backtracking
EXCEPTIONS = 0.05  # of the cases: fewer are none
SHARES = (-MOST_SHARE, MOST_SHARE)  # between which a difference of shares lies
BASELINES = ("mean", "noise", "self", "behaviour")  # the kinds of Figure 4

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class BaseCell:
    """A steered cell of the base model."""

    source: str
    coeff: float
    before: Floats  # [n], unsteered shares
    after: Floats  # [n], steered ones


def gain(after: Floats, before: Floats, *, error: float = ERROR) -> Measure:
    """The mean rise of the share by prompt."""
    return _mean(after - before, limits=SHARES, error=error)


def induces(steered: Floats, unsteered: Floats) -> list[Contrast]:
    """The first half of C2, which others presuppose.

    The share rises by `LEAST_GAIN` and by half of the unsteered one. It also rises without the
    tenth of the prompts that rise most, so that no few texts carry it.
    """
    rise = steered - unsteered
    return [
        Contrast("gain", above(gain(steered, unsteered), LEAST_GAIN)),
        Contrast(
            "gain over half of unsteered", _mean(rise - RISE * unsteered, limits=(-0.75, 0.5))
        ),
        Contrast("gain without extremes", _unless_degenerate(rise, trimmed_mean_of(rise))),
    ]


def comparable(base: Floats, reasoning: Floats, unsteered: Floats) -> list[Contrast]:
    """The second half of C2: the two directions' gains are within a factor of 2 of each other."""
    ours, theirs = base - unsteered, reasoning - unsteered
    return [
        Contrast("at least half of the other's gain", _mean(ours - theirs / FACTOR)),
        Contrast("at most twice the other's gain", _mean(theirs - ours / FACTOR)),
    ]


def optimum_before(table: NDArray, offsets: Sequence[int]) -> Answer:
    """C1: the gain depends on layer and offset, with an optimum before the sentence.

    Best and worst are chosen on one half of the prompts and measured on the other, so that the
    choice lends no luck. The best offset before the sentence leads over those from 0 on, and over
    the far third of those before; beside it and its neighbours the best layer leads over the worst.
    Besides, offsets and layers matter at all, by permuting them within each prompt.

    Args:
        table: `[n, layers, offsets]`, gains by prompt; NaN where a text does not count or a cell
            is incoherent.
        offsets: in tokens from the sentence's start, ascending.
    """
    contrasts = [
        Contrast(name, above(_mean(lead), LEAD)) for name, lead in leads(table, offsets).items()
    ]
    answer = decide(contrasts)
    if answer.verdict is Verdict.YES:
        chance = {"offsets": permutation_p(table), "layers": permutation_p(table.swapaxes(1, 2))}
        missed = tuple(name for name, p in chance.items() if not p <= ERROR)
        return Answer(Verdict.OPEN, missed) if missed else answer
    return answer


def base_rise(cell: BaseCell, cells: int) -> Measure:
    """The rise of the share in a cell, by one-sided bounds right for so many cells together."""
    return gain(cell.after, cell.before, error=BASE_ERROR / cells)


def absent_in_base(
    cells: Sequence[BaseCell], gains: Mapping[str, Measure], judged: float, induced: Verdict
) -> Answer:
    """C3: no coefficient of either direction, of either sign, makes the base model backtrack.

    In every cell the rise is less than `BASE_SHARE` of the reasoning model's gain from the same
    direction, by one-sided bounds that hold for all cells together. A cell beyond the judged
    coefficient whose texts are degenerate says nothing; one up to it leaves the claim undecided.

    Args:
        cells: every steered cell of the base model.
        gains: by source, the reasoning model's at the judged coefficient.
        judged: that coefficient.
        induced: whether the direction induces backtracking in the reasoning model: without that
            there is nothing to be absent.
    """
    if not cells:
        return Answer(Verdict.ABSENT)
    if induced is not Verdict.YES:
        return Answer(Verdict.OPEN, ("the reasoning model's gain",))
    contrasts = [
        Contrast(f"{source}-derived", UNKNOWN)
        for source in gains
        if not any((c.source, c.coeff) == (source, judged) for c in cells)
    ]
    for cell in cells:
        rise = base_rise(cell, len(cells))
        if math.isnan(rise.value) and abs(cell.coeff) > abs(judged):
            continue
        limit = gains.get(cell.source, UNKNOWN)
        name = f"{cell.source}-derived at {cell.coeff:g}"
        contrasts.append(Contrast(name, apart(limit, rise, BASE_SHARE)))
    return decide(contrasts)


def similar(cosine: Measure, random: Sequence[float]) -> Answer:
    """C4: the cosine of base- and reasoning-derived direction is about .74, and more than chance.

    Chance is between what another set of as many random sentences would give, in 95% of cases.
    """
    return decide(
        [
            Contrast("at least .64", above(cosine, COSINE[0])),
            Contrast("at most .84", below(cosine, COSINE[1])),
            Contrast("above chance", apart(cosine, chance_of(random))),
        ]
    )


def chance_of(random: Sequence[float]) -> Measure:
    """The mean of cosines and between what one more lies with 95%, in Fisher's z."""
    n = len(random)
    if n < 2:
        return UNKNOWN
    z = np.arctanh(np.clip(random, -1 + 1e-12, 1 - 1e-12))
    half = t_quantile(ERROR, n - 1) * float(z.std(ddof=1)) * math.sqrt(1 + 1 / n)
    middle = float(z.mean())
    return Measure(math.tanh(middle), math.tanh(middle - half), math.tanh(middle + half), n)


def beats(
    steered: Floats, unsteered: Floats, baselines: Mapping[str, Floats], induced: Verdict
) -> Answer:
    """C5: each baseline of the direction's length does less than half of what the direction does.

    All kinds of Figure 4 must be among them. Baselines whose texts are degenerate have no share to
    compare, and leave the claim undecided.
    """
    if induced is not Verdict.YES:
        return Answer(Verdict.OPEN, ("the direction's own gain",))
    kinds = {name.split("-")[0] for name in baselines}
    contrasts = [Contrast(kind, UNKNOWN) for kind in BASELINES if kind not in kinds]
    for name, shares in baselines.items():
        contrasts.append(Contrast(name, lead_over(steered, unsteered, shares)))
    return decide(contrasts)


def lead_over(steered: Floats, unsteered: Floats, baseline: Floats) -> Measure:
    """How far a baseline's gain lies below half of the direction's."""
    return _mean(HALF * (steered - unsteered) - (baseline - unsteered))


def not_decoded(ranks: Mapping[str, Measure], induced: Verdict) -> Answer:
    """C6: no keyword among the direction's first 10 tokens in either model, though it elicits them.

    Args:
        ranks: by model, the best rank of a keyword; 0 is the first. Its interval is over traces.
        induced: the first half of C2.
    """
    answer = decide(
        [Contrast(f"{name} model", above(rank, TOP_TOKENS - 0.5)) for name, rank in ranks.items()]
    )
    return _presupposing(induced, answer)


def not_detected(
    aurocs: Mapping[str, Measure], dense: Mapping[str, Measure], induced: Verdict
) -> Answer:
    """C7: the projection tells backtracking from the rest, but not cleanly: it is densely present.

    Args:
        aurocs: by model, of the score before backtracking against other sentences. Up to
            `DETECTOR` there is no detector, and nothing to be dense.
        dense: by model, the share of all tokens that score above the median before backtracking.
        induced: the first half of C2.
    """
    if not aurocs:
        return Answer(Verdict.ABSENT)
    contrasts = []
    for name, area in aurocs.items():
        share = dense.get(name, UNKNOWN)
        contrasts += [
            Contrast(f"a detector, {name} model", _detector(area)),
            Contrast(f"not a clean one, {name} model", below(area, CLEAN)),
            Contrast(f"dense, {name} model", above(share, DENSE)),
        ]
    return _presupposing(induced, decide(contrasts))


def not_only_cause(
    auroc: Measure,
    without_direction: Measure,
    without_backtracking: Measure,
    prevalence: float,
    induced: Verdict,
) -> Answer:
    """C8: backtracking without the direction, and the direction without backtracking.

    Each half must lie between a perfect detector's and a random score's. *Absent* is a score up to
    the median of all sentences: 0 and one half of the backtracking sentences are without it.
    *Present* are as many sentences as backtrack, those with the highest scores: of them 0 and
    `1 - prevalence` do not backtrack.

    Args:
        auroc: of the score.
        without_direction: share of the backtracking sentences.
        without_backtracking: share of the sentences in which the direction is present.
        prevalence: share of the sentences that backtrack.
        induced: the first half of C2.
    """
    contrasts = [
        Contrast("a detector", _detector(auroc)),
        Contrast("backtracking without it", above(without_direction, EXCEPTIONS)),
        Contrast("less often than by chance", below(without_direction, 0.5)),
        Contrast("it without backtracking", above(without_backtracking, EXCEPTIONS)),
        Contrast("less often than by chance", below(without_backtracking, 1 - prevalence)),
    ]
    return _presupposing(induced, decide(contrasts))


def halves(unsteered: Floats, reversed_sign: Floats) -> Answer:
    """S, beyond the paper: with the sign reversed, the direction at least halves backtracking."""
    return decide([Contrast("half", _mean(HALF * unsteered - reversed_sign))])


def unchanged(
    unsteered: Floats, steered: Mapping[float, Floats], limit: Measure, induced: Verdict
) -> Answer:
    """N, beyond the paper: the negative control does not respond, in either direction.

    Args:
        unsteered: shares of the control.
        steered: the same at the judged coefficient and with the sign reversed, by coefficient.
        limit: the reasoning model's gain. A rise by half of it counts, as does a fall by half of
            the control's own share.
        induced: the first half of C2: without a gain there is nothing to compare with.
    """
    contrasts = []
    for coeff, shares in steered.items():
        rise = gain(shares, unsteered)
        fall = _mean(shares - HALF * unsteered)
        contrasts += [
            Contrast(f"rise at {coeff:g}", apart(limit, rise, HALF)),
            Contrast(f"fall at {coeff:g}", fall),
        ]
    return _presupposing(induced, decide(contrasts))


def _detector(area: Measure) -> Measure:
    """How far an AUROC lies above `DETECTOR`; only an inverted one, below .5, refutes."""
    return Measure(area.value - DETECTOR, area.low - DETECTOR, area.high - 0.5, area.n)


def _presupposing(induced: Verdict, answer: Answer) -> Answer:
    """An answer that says nothing unless the direction induces backtracking; it may refute."""
    if answer.verdict is Verdict.YES and induced is not Verdict.YES:
        return Answer(Verdict.OPEN, ("the direction's own gain",))
    return answer


def _mean(
    values: Floats, *, limits: tuple[float, float] = (-1.0, 1.0), error: float = ERROR
) -> Measure:
    return _unless_degenerate(values, mean_of(values, limits=limits, error=error))


def _unless_degenerate(values: Floats, one: Measure) -> Measure:
    """Unknown where too many of the prompts' texts do not count."""
    kept = len(values) - int(np.isnan(values).sum())
    return one if kept >= KEPT * len(values) else Measure(math.nan, math.nan, math.nan, kept)

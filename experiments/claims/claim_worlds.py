"""Worlds in which each claim is judged, and its truth in them; `calibrate` has the error rates.

In a *null* world the claim is false, or nothing shows it. A *true* one has twice the smallest
effect that counts, and one at the *edge* just the smallest. In *either* any answer is right.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy

from experiments.claims import rules, worlds
from experiments.claims.contrasts import Answer, Measure, Verdict, decide
from experiments.claims.rules import BaseCell, Floats
from experiments.claims.worlds import Design, Random
from experiments.figures import cosines, fig5_logit_lens
from experiments.stages import presence

RESAMPLES = 200  # of traces, for an AUROC's and a share's interval; a run draws 1,000 and 2,000

Judge = Callable[[Random, Design], Answer]


@dataclass(frozen=True)
class World:
    """A world in which a claim is judged."""

    claim: str
    name: str
    truth: str  # "null", "edge", "true" or "either"
    judge: Judge


def every_world() -> list[World]:
    """All of them, by claim."""
    return [*_c1(), *_c2(), *_c3(), *_c4(), *_c5(), *_c6(), *_c7(), *_c8(), *_s(), *_n()]


# C1: maps

_FLAT = [1.0] * 32
_PEAK = {-9: 1.0, -12: 0.5, -6: 0.5}


def _c1() -> Iterator[World]:
    def world(
        by_offset: Callable[[int], float], size: float, by_layer: Sequence[float] | None = None
    ) -> Judge:
        def judge(random: Random, design: Design) -> Answer:
            n = design.layers
            layers = by_layer or [max(0.0, 1 - abs(i - n / 2) / (n / 2)) for i in range(n)]
            offsets = [size * by_offset(o) for o in design.offsets]
            table = worlds.gain_map(random, design, layers[:n], offsets)
            return rules.optimum_before(table, design.offsets)

        return judge

    def peak(offset: int) -> float:
        return _PEAK.get(offset, 0.0)

    # The lead over the worst layer is of the best offset and its neighbours, two thirds of it; that
    # over other offsets is the mean over the layers, half of it.
    top = 2 * rules.LEAD
    yield World("C1", "no effect", "null", world(lambda o: 0.0, 0.0))
    yield World("C1", "equal at all layers, peak at -9", "null", world(peak, 0.1, _FLAT))
    yield World(
        "C1", "equal at all layers, at -3 only", "null", world(lambda o: o == -3, 0.1, _FLAT)
    )
    yield World("C1", "equal at all offsets", "null", world(lambda o: 1.0, 0.1))
    yield World("C1", "equal before the sentence", "null", world(lambda o: float(o < 0), 0.1))
    yield World("C1", "grows with the distance", "null", world(lambda o: max(-o, 0) / 30, 0.1))
    yield World("C1", "peak after the sentence", "null", world(lambda o: float(o >= 0), 0.1))
    yield World("C1", "peak at -9, the smallest lead", "edge", world(peak, top))
    yield World("C1", "peak at -9, twice that", "true", world(peak, 2 * top))


# C2: texts


def _induced(swept: worlds.Sweep) -> Verdict:
    return decide(rules.induces(swept.base, swept.plain)).verdict


def _c2() -> Iterator[World]:
    def both(change: Callable[[Random, worlds.Texts], worlds.Texts]) -> Judge:
        def judge(random: Random, design: Design) -> Answer:
            invited = worlds.rates(random, design.kind, design.prompts)
            plain, base, reasoning = (worlds.texts(random, design.kind, invited) for _ in range(3))
            shares = [change(random, one).shares for one in (base, reasoning)]
            return _c2_answer(plain.shares, *shares)

        return judge

    def gains(base: float, reasoning: float) -> Judge:
        def judge(random: Random, design: Design) -> Answer:
            least = design.least_gain
            one = worlds.sweep(random, design, base=base * least, reasoning=reasoning * least)
            return _c2_answer(one.plain, one.base, one.reasoning)

        return judge

    yield World("C2", "no effect", "null", gains(0, 0))
    yield World("C2", "every text loops", "null", both(lambda r, t: worlds.looping(r, t, 1.0)))
    yield World(
        "C2", "one text in three loops", "null", both(lambda r, t: worlds.looping(r, t, 1 / 3))
    )
    yield World(
        "C2", "7 of 8 texts empty", "null", both(lambda r, t: worlds.cut_down(r, t, 7 / 8, 0))
    )
    yield World("C2", "half are one word", "null", both(lambda r, t: worlds.cut_down(r, t, 0.5, 1)))
    yield World(
        "C2", "a third are one word", "null", both(lambda r, t: worlds.cut_down(r, t, 1 / 3, 1))
    )
    yield World(
        "C2",
        "one text in 11 runs away",
        "null",
        both(lambda r, t: worlds.running_away(r, t, 1 / 11)),
    )
    yield World("C2", "the reasoning-derived one alone", "null", gains(0, 2))
    yield World("C2", "the other four times as strong", "null", gains(2, 8))
    yield World("C2", "the smallest effect", "edge", gains(1, 1))
    yield World("C2", "twice that", "true", gains(2, 2))


def _c2_answer(plain: Floats, base: Floats, reasoning: Floats) -> Answer:
    return decide(rules.induces(base, plain) + rules.comparable(base, reasoning, plain))


# C3: the base model's texts


def _c3() -> Iterator[World]:
    def world(share: float, gain: float, rate: float = 0.0) -> Judge:
        """The base model gains this share of what the reasoning model does."""

        def judge(random: Random, design: Design) -> Answer:
            top = gain * design.least_gain
            swept = worlds.sweep(random, design, base=top, reasoning=top)
            before, steered = worlds.base_model(random, design, share * top, rate=rate)
            cells = [BaseCell(s, c, before, after) for (s, c), after in steered.items()]
            limits = {
                "base": rules.gain(swept.base, swept.plain),
                "reasoning": rules.gain(swept.reasoning, swept.plain),
            }
            # Where the effect is largest, so that no world is silent for a small coefficient.
            return rules.absent_in_base(cells, limits, max(design.coeffs), _induced(swept))

        return judge

    yield World("C3", "no effect in either model", "null", world(0, 0))
    yield World("C3", "equal effect in both", "null", world(1, 2))
    yield World("C3", "half of it in the base model", "null", world(0.5, 2))
    yield World("C3", "a quarter, the smallest that counts", "null", world(rules.BASE_SHARE, 2))
    yield World("C3", "silent, the smallest effect to compare with", "edge", world(0, 1))
    yield World("C3", "silent, twice that", "true", world(0, 2))
    yield World("C3", "silent but for .003 unsteered", "either", world(0, 2, 0.003))


# C4: directions


def _c4() -> Iterator[World]:
    def world(cosine: float, shared: float, signal: float = worlds.SIGNAL) -> Judge:
        def judge(random: Random, design: Design) -> Answer:
            found, _ = worlds.activations(
                random, design, cosine=cosine, shared=shared, signal=signal
            )
            one = cosines.jackknife(found["base"], found["reasoning"])
            cos = Measure(one["value"], one["low"], one["high"], int(one["n"]))
            return rules.similar(cos, cosines.random_cosines(found["base"], found["reasoning"]))

        return judge

    yield World("C4", "random sentences, chance .74", "null", world(0, 0.74, 0.0))
    yield World("C4", "random sentences, chance .2", "null", world(0, 0.2, 0.0))
    yield World("C4", "cosine .74, chance .74", "null", world(0.74, 0.74))
    yield World("C4", "cosine .5", "null", world(0.5, 0.2))
    yield World("C4", "cosine .92", "null", world(0.92, 0.2))
    yield World("C4", "cosine .64", "edge", world(0.64, 0.2))
    yield World("C4", "cosine .74, chance .2", "true", world(0.74, 0.2))


# C5: baselines


def _c5() -> Iterator[World]:
    def world(gain: float, **shares: float) -> Judge:
        """Baselines gain these shares of what the direction does; the others nothing."""

        def judge(random: Random, design: Design) -> Answer:
            top = gain * design.least_gain
            others = {name: share * top for name, share in shares.items()}
            if "each" in others:
                others = dict.fromkeys(design.baselines, others["each"])
            one = worlds.sweep(random, design, base=top, baselines=others)
            return rules.beats(one.base, one.plain, one.baselines, _induced(one))

        return judge

    yield World("C5", "no effect of anything", "null", world(0))
    yield World("C5", "each baseline does as much", "null", world(2, each=1.0))
    yield World("C5", "one does as much", "null", world(2, noise=1.0))
    yield World("C5", "one does half, the smallest that counts", "null", world(2, noise=0.5))
    yield World("C5", "none does anything, the smallest effect", "edge", world(1))
    yield World("C5", "none does anything, twice that", "true", world(2))
    yield World("C5", "noise does a tenth", "either", world(2, noise=0.1))


# C6: ranks


def _c6() -> Iterator[World]:
    def world(rank: int) -> Judge:
        def judge(random: Random, design: Design) -> Answer:
            found, true = worlds.activations(random, design, cosine=0.74, shared=0.2)
            groups = found["base"]
            drawn = fig5_logit_lens.resample(
                groups, draws=fig5_logit_lens.DRAWS, seed=int(random.integers(1 << 30))
            )
            both = np.concatenate([groups.direction()[None], drawn])
            value, *again = worlds.keyword_ranks(random, design, both, true, rank).tolist()
            low, high = fig5_logit_lens.rank_interval(value, again)
            measure = Measure(value, low, high, worlds.GROUPS)
            return rules.not_decoded({"base": measure}, Verdict.YES)

        return judge

    yield World("C6", "the keyword is first", "null", world(0))
    yield World("C6", "fifth", "null", world(4))
    yield World("C6", "tenth, the last that is decoded", "null", world(9))
    yield World("C6", "twentieth", "edge", world(19))
    yield World("C6", "hundredth", "true", world(99))


# C7 and C8: scores


def _detector(found: worlds.Scored) -> Measure:
    area = presence.detection(found.score, found.where, n_resamples=RESAMPLES)
    return Measure(area.mean, area.low, area.high, area.n_texts)


def _c7() -> Iterator[World]:
    def world(apart: float, spread: float = 1.0, induced: Verdict = Verdict.YES) -> Judge:
        def judge(random: Random, design: Design) -> Answer:
            found = worlds.scored(random, design, apart=apart, spread=spread)
            above = found.tokens > np.median(found.events)
            dense = presence.share(above, found.token_text, n_resamples=RESAMPLES)
            share = Measure(dense["share"], dense["low"], dense["high"], design.traces)
            return rules.not_detected({"r": _detector(found)}, {"r": share}, induced)

        return judge

    yield World("C7", "a random score", "null", world(0))
    yield World("C7", "a random score, and nothing induced", "null", world(0, induced=Verdict.NO))
    yield World("C7", "an inverted detector", "null", world(-2))
    yield World("C7", "a perfect detector", "null", world(2, 0.05))
    yield World("C7", "AUROC .9, just clean", "null", world(1.812))
    yield World("C7", "AUROC .8", "true", world(1.19))


def _apart(absent: float, prevalence: float) -> float:
    """How far apart scores are if this share of the events is below the median of all."""
    middle = scipy.special.ndtri((0.5 - prevalence * absent) / (1 - prevalence))
    return float(middle - scipy.special.ndtri(absent))


def _c8() -> Iterator[World]:
    def world(apart: float = 0.0, spread: float = 1.0, absent: float | None = None) -> Judge:
        def judge(random: Random, design: Design) -> Answer:
            size = apart if absent is None else _apart(absent, design.kind.prevalence)
            found = worlds.scored(random, design, apart=size, spread=spread)
            there = presence.presence(found.score, found.where, n_resamples=RESAMPLES)
            without, present = (
                Measure(one["share"], one["low"], one["high"], design.traces)
                for one in (there["without_direction"], there["without_backtracking"])
            )
            return rules.not_only_cause(
                _detector(found), without, present, there["prevalence"], Verdict.YES
            )

        return judge

    yield World("C8", "a random score", "null", world(0))
    yield World("C8", "an inverted detector", "null", world(-2))
    yield World("C8", "a perfect detector", "null", world(2, 0.05))
    yield World("C8", "absent before .05, the smallest that counts", "null", world(absent=0.05))
    yield World("C8", "absent before .10, twice that", "true", world(absent=0.1))


# S and N, beyond the paper


def _s() -> Iterator[World]:
    def world(fall: float) -> Judge:
        """With the sign reversed this share of the unsteered rate is taken away."""

        def judge(random: Random, design: Design) -> Answer:
            invited = worlds.rates(random, design.kind, design.prompts)
            plain, reverse = (
                worlds.texts(random, design.kind, invited, left=left).shares
                for left in (1.0, 1 - fall)
            )
            return rules.halves(plain, reverse)

        return judge

    yield World("S", "no effect", "null", world(0))
    yield World("S", "it rises", "null", world(-1))
    yield World("S", "it falls by a quarter", "null", world(0.25))
    yield World("S", "it falls by half, the smallest that counts", "null", world(0.5))
    yield World("S", "it falls to nothing", "true", world(1.0))


def _n() -> Iterator[World]:
    def world(rise: float = 0.0, fall: float = 0.0, gain: float = 2.0) -> Judge:
        """The control rises by a share of the gain; reversed, it falls by a share of its rate."""

        def judge(random: Random, design: Design) -> Answer:
            top = gain * design.least_gain
            swept = worlds.sweep(random, design, base=top, reasoning=top)
            invited = worlds.rates(random, design.kind, design.control_prompts)
            plain, up, down = (
                worlds.texts(random, design.kind, invited, more, left=left).shares
                for more, left in ((0.0, 1.0), (rise * top, 1.0), (0.0, 1 - fall))
            )
            limit = rules.gain(swept.base, swept.plain)
            return rules.unchanged(plain, {1.0: up, -1.0: down}, limit, _induced(swept))

        return judge

    yield World("N", "it responds as the reasoning model does", "null", world(1.0, 0.9))
    yield World("N", "it rises by half of the gain, which counts", "null", world(0.5))
    yield World("N", "it falls by half, which counts", "null", world(0.0, 0.5))
    yield World("N", "nothing responds", "null", world(gain=0.0))
    yield World("N", "it rises by a tenth of the gain", "either", world(0.1))
    yield World("N", "it falls by a tenth", "either", world(0.0, 0.1))
    yield World("N", "it does not respond", "true", world())

"""The cases in which an audit found the earlier rules wrong, each with its right answer.

Numbers are those of the audit. Its cases of metrics alone are in `test_metrics` (zero events,
`wait/hmm`, `_Wait_`) and `test_moments` (sentences that go together).
"""

import math

import numpy as np
import pytest
from claims_helpers import Cells, by_id, evidence_of

from experiments.claims.contrasts import Measure, Verdict, decide
from experiments.claims.rules import (
    BaseCell,
    absent_in_base,
    comparable,
    halves,
    induces,
    not_detected,
    not_only_cause,
    optimum_before,
    similar,
    unchanged,
)
from jaxsteer.analysis import bootstrap_interval, keyword_labels, keyword_rate, split_sentences

YES, NO, OPEN = Verdict.YES, Verdict.NO, Verdict.OPEN


def auroc(value: float, half: float = 0.04) -> Measure:
    return Measure(value, value - half, value + half, 640)


def share(value: float, half: float = 0.03) -> Measure:
    return Measure(value, value - half, value + half, 640)


# 1 to 3: C7 and C8 without a detector, and with a perfect one


@pytest.mark.parametrize("area", [0.49, 0.5])
@pytest.mark.parametrize("induced", [YES, NO])
def test_1_a_null_finetune_has_no_detector(area: float, induced: Verdict) -> None:
    both, dense = dict.fromkeys("br", auroc(area)), dict.fromkeys("br", share(0.5))
    assert not_detected(both, dense, induced).verdict is OPEN
    exceptions = share(0.5), share(0.967, 0.01)
    assert not_only_cause(auroc(area), *exceptions, 0.033, induced).verdict is OPEN


def test_2_an_inverted_detector_is_none() -> None:
    inverted = auroc(0.08)
    assert not_detected({"base": inverted}, {"base": share(0.9)}, YES).verdict is NO
    assert not_only_cause(inverted, share(0.95), share(0.999, 0.001), 0.033, YES).verdict is NO


def test_3_a_perfect_detector_at_a_low_prevalence() -> None:
    """Above the 90th percentile .68 of its places were without backtracking; of as many, none."""
    perfect = not_only_cause(auroc(0.99, 0.005), share(0.01, 0.01), share(0.0, 0.03), 0.033, YES)
    assert perfect.verdict is NO


# 4 to 6: C4 against chance

RANDOM = [0.726, 0.75, 0.772, 0.79, 0.821]


@pytest.mark.parametrize("cosine", RANDOM)
def test_4_cosines_of_random_sentences_are_chance(cosine: float) -> None:
    others = [one for one in RANDOM if one != cosine]
    one = Measure(cosine, cosine - 0.02, cosine + 0.02, 131)
    assert similar(one, others).verdict is OPEN


def test_5_a_wide_interval_around_the_papers_value() -> None:
    assert similar(Measure(0.74, 0.05, 0.95, 131), [0.1, 0.2, 0.15]).verdict is OPEN


def test_6_one_answer_whatever_other_behaviours_do() -> None:
    """Above .84 by its interval, so not about .74; nothing else enters but chance."""
    assert similar(Measure(0.918, 0.901, 0.933, 131), RANDOM).verdict is NO


# 7 to 9: C3

GAINS = {s: Measure(0.081, 0.066, 0.096, 128) for s in ("base", "reasoning")}


def cell(after: np.ndarray, source: str = "base", coeff: float = 0.25) -> BaseCell:
    return BaseCell(source, coeff, np.zeros(len(after)), after)


def test_7_positive_cells_backtrack_one_text_in_three_loops() -> None:
    loops = np.where(np.arange(256) % 3 == 0, math.nan, 0.2)
    cells = [cell(np.zeros(256), coeff=-0.2), cell(loops), cell(loops, "reasoning")]
    assert absent_in_base(cells, GAINS, 0.25, YES).verdict is NO


def test_8_the_papers_twenty_prompts_are_too_few_and_it_says_how_many_are_not() -> None:
    def found(n: int) -> tuple[Verdict, int | None]:
        coeffs = (-12, -8, -4, 4, 8, 12, 16)
        cells = [cell(np.zeros(n), s, c) for s in GAINS for c in coeffs]
        answer = absent_in_base(cells, GAINS, 8, YES)
        return answer.verdict, answer.prompts

    verdict, prompts = found(20)
    assert verdict is OPEN
    assert prompts is not None
    assert found(prompts)[0] is YES
    assert prompts < 2000


def test_9_a_rise_below_the_limit_does_not_refute() -> None:
    """A true rise of three quarters of what counts; the highest of ten estimates is above it."""
    random, limit = np.random.default_rng(0), 0.25 * 0.081
    verdicts = []
    for _ in range(100):
        cells = [
            cell(random.binomial(10, 0.75 * limit, 128) / 10, s, c)
            for s in GAINS
            for c in (-0.4, -0.2, 0.15, 0.25, 0.35)
        ]
        verdicts.append(absent_in_base(cells, GAINS, 0.25, YES).verdict)
    assert verdicts.count(NO) <= 5


# 10 to 14: degenerate text

WORDS = [f"a{i}" for i in range(120)]


def plain(seed: int, sentences: int = 12) -> str:
    """A text of its own words, every third one with a backtracking sentence."""
    random = np.random.default_rng(seed)
    found = [" ".join(random.choice(WORDS, 8)) + "." for _ in range(sentences)]
    return " ".join(found + (["Wait, no."] if seed % 3 == 0 else []))


def verdicts_of(steered: list[str]) -> tuple[Verdict, Verdict, str]:
    """C2 and C5 of a sweep in which both directions write these texts, the baselines none."""
    n = len(steered)
    unsteered = [plain(i) for i in range(n)]
    cells: Cells = {("reasoning", "none", 0.0): unsteered}
    cells |= {("reasoning", source, 1.0): steered for source in ("base", "reasoning")}
    for i, name in enumerate(("mean", "noise", "self", "behaviour-plan"), start=1):
        cells["reasoning", name, 1.0] = [plain(1000 * i + j) for j in range(n)]
    table = by_id(evidence_of(cells, margin=1.0))  # whatever coherence says
    return table["C2"].verdict, table["C5"].verdict, table["C2"].measured


@pytest.mark.parametrize(
    ("name", "steered"),
    [
        (
            "10, one sentence twelve times",
            [plain(i) + " Wait, let me see." * 12 for i in range(64)],
        ),
        ("11, Wait at the end", [plain(i, 38) + " Wait." * 8 for i in range(20)]),
        (
            "12, one text in 11 loops",
            [plain(i) + " Hmm, and so on." * 200 * (i % 11 == 0) for i in range(128)],
        ),
        (
            "12, one text in 11 runs away",
            [
                plain(i) + "".join(f" Hmm, {j} {j + i}." * (i % 11 == 0) for j in range(60))
                for i in range(128)
            ],
        ),
        ("13, 7 of 8 empty", [plain(3 * i) if i % 8 == 0 else "" for i in range(16)]),
        ("14, every second just Wait", [plain(i) if i % 2 else "Wait." for i in range(64)]),
    ],
)
def test_10_to_14_degenerate_text_carries_no_effect(name: str, steered: list[str]) -> None:
    induced, beaten, text = verdicts_of(steered)
    assert induced is not YES, name
    assert beaten is not YES, name
    if "runs away" not in name:
        assert "left out as degenerate" in text, name


def test_the_same_sweep_with_text_that_counts_is_reproduced() -> None:
    steered = [f"{plain(i)} Wait, {i}. Hmm, {i} and so on." for i in range(64)]
    assert verdicts_of(steered)[:2] == (YES, YES)


# 15 to 17: edges of C2, and S


def test_15_a_small_gain_over_much_is_open_whatever_its_p() -> None:
    random = np.random.default_rng(0)
    for n in (100, 104):  # p on either side of .01
        noise = random.normal(0, 0.1, n)
        rise = 0.03 + noise - noise.mean()
        unsteered = np.full(n, 0.085)
        assert decide(induces(unsteered + rise, unsteered)).verdict is OPEN


def test_16_a_ratio_without_ends() -> None:
    """1.9 [.2, 30]: the other direction's gain is hardly known."""
    random = np.random.default_rng(0)
    base, other = (mean + random.normal(0, 0.15, 20) for mean in (0.076, 0.04))
    assert decide(comparable(base, other, np.zeros(20))).verdict is OPEN


def test_17_halving_needs_an_interval() -> None:
    random = np.random.default_rng(0)
    before, after = (np.abs(random.normal(0, s, 10)) for s in (0.05, 0.02))
    assert halves(before, after).verdict is OPEN


# 18 and 19: N


@pytest.mark.parametrize(("after", "n"), [(0.12, 4), (0.12, 8), (0.05, 20)])
def test_18_and_19_a_control_that_responds_is_not_silent_for_lack_of_prompts(
    after: float, n: int
) -> None:
    random, limit = np.random.default_rng(0), Measure(0.081, 0.066, 0.096, 128)
    silent = 0
    for _ in range(100):
        before, steered, reverse = (
            random.binomial(10, rate, n) / 10 for rate in (0.03, after, 0.03)
        )
        found = unchanged(before, {0.25: steered, -0.4: reverse}, limit, YES)
        silent += found.verdict is YES
    assert silent == 0


def test_19_the_sign_reversed_counts_too() -> None:
    control = np.random.default_rng(0).binomial(10, 0.03, 256) / 10
    steered = {0.25: control, -0.4: np.zeros(256)}
    assert unchanged(control, steered, Measure(0.08, 0.066, 0.096, 128), YES).verdict is NO


# 20: C1

OFFSETS = list(range(-30, 4, 3))


@pytest.mark.parametrize(
    "by_offset",
    [
        [0.1] * 10 + [0.0] * 2,  # equal at all offsets before the sentence
        np.linspace(0.1, 0.0, 12).tolist(),  # growing with the distance
        [0.0] * 9 + [0.1, 0.0, 0.0],  # at -3 only, equal at all layers
    ],
)
def test_20_flat_layers_are_no_optimum(by_offset: list[float]) -> None:
    noise = np.random.default_rng(0).normal(0, 0.03, (32, 8, 12))
    assert optimum_before(noise + np.array(by_offset), OFFSETS).verdict is NO


# 21, 24 and 25: metrics


def test_21_zero_events_have_a_bound() -> None:
    for n in (20, 128):
        assert bootstrap_interval(np.zeros(n), limits=(0, 1)) == (0, 1 - 0.05 ** (1 / n))


def test_24_a_share_is_at_most_one() -> None:
    assert keyword_rate("wait/hmm") == 1.0


def test_25_emphasis_by_underscores_is_emphasis() -> None:
    for text in ("_Wait_, no.", "*Wait*, no."):
        assert keyword_labels(split_sentences(text)) == [True]

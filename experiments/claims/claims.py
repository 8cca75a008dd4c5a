"""The claims table: what the paper says, what this run measured, and a verdict by fixed rules."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from experiments.claims import rules
from experiments.claims.evidence import (
    Evidence,
    base_cells,
    baseline_coeff,
    gain_of,
    measure,
    ratio_of_gains,
    text_gains,
    versus_baselines,
)
from experiments.claims.rules import Measure, Verdict, Versus
from experiments.stages.outcome import CellOutcome, coherent, told

COLUMNS = ("id", "claim", "paper", "measured", "verdict")


@dataclass(frozen=True)
class Claim:
    """A row of the table. `id` is C1 to C8 as in the paper; S and N are checks beyond it."""

    id: str
    claim: str
    paper: str  # what the paper says
    measured: str  # what this run did: value [95% interval], n
    verdict: Verdict


def claims(found: Evidence) -> list[Claim]:
    """Every row, judged at the largest coefficient whose coherence is within the margin."""
    return [
        _optimum(found),
        _induces(found),
        _base_model(found),
        _similar(found),
        _baselines(found),
        _logit_lens(found),
        _projection(found),
        _not_only_cause(found),
        *_beyond(found),
    ]


def _optimum(found: Evidence) -> Claim:
    verdict, text = Verdict.ABSENT, "figure 2 is made with --full"
    if found.figure2 is not None:
        one = found.figure2["optimum"]
        gain, difference = measure(one["gain"]), measure(one["difference"])
        verdict = rules.optimum_before(gain, difference, one["offset"])
        text = (
            f"best of {one['cells']} cells: layer {one['layer']}, offset {one['offset']:+d}; "
            "chosen on one half of the prompts and measured on the other, the best before it gains "
            f"{_value(gain)} and beats the best at offsets from 0 on by {_value(difference)}, "
            f"n = {gain.n}"
        )
    return Claim(
        "C1",
        "The effect depends on layer and offset, with an optimum before the sentence",
        "best at layer 10 of 32, 13 to 8 tokens before",
        text,
        verdict,
    )


def _induces(found: Evidence) -> Claim:
    coeff, plain = found.coeff, found.unsteered("reasoning")
    if coeff is None:
        verdict = Verdict.OPEN
        text = f"no positive coefficient keeps coherence within {found.margin:g} of unsteered"
    else:
        cell = _cell(found, "base", coeff)
        ratio = ratio_of_gains(found, coeff)
        parts = [_induced(found), rules.comparable(ratio)]
        verdict = rules.worst(parts)
        text = (
            f"at {coeff:g}, backtracking per sentence {_rate(plain)} → {_rate(cell)}, gain "
            f"{_value(gain_of(cell))}, sign-flip p = {cell.difference.p_value:.2g}, n = "
            f"{cell.difference.n}; coherence {plain.coherence.mean:.3f} → "
            f"{cell.coherence.mean:.3f}; the reasoning-derived one "
            f"{_reasoning_derived(found, coeff)}; ratio of gains {_value(ratio, 2)}"
        )
    return Claim(
        "C2",
        "The base-derived direction induces backtracking in the reasoning model, comparably to "
        "the reasoning-derived one",
        "yes, rising with the magnitude",
        text,
        verdict,
    )


def _reasoning_derived(found: Evidence, coeff: float) -> str:
    cell = found.cell("reasoning", "reasoning", coeff)
    return "was not run" if cell is None else f"gives {_rate(cell)}"


def _induced(found: Evidence) -> Verdict:
    """The first part of C2, which C6 builds on."""
    if found.coeff is None:
        return Verdict.OPEN
    cell = _cell(found, "base", found.coeff)
    plain = found.unsteered("reasoning").backtracking_rate.mean
    return rules.induces(gain_of(cell), cell.difference.p_value, plain)


def _base_model(found: Evidence) -> Claim:
    row = (
        "C3",
        "Neither direction induces backtracking in the base model",
        "no backtracking at any magnitude",
    )
    steered = [c for c in found.table if c.target == "base" and c.source != "none"]
    if not steered:
        return Claim(*row, "the base model was not steered", Verdict.ABSENT)
    cells = base_cells(found)
    empty = f"{sum(c.n_empty for c in steered)} of {sum(map(_texts, steered))} texts are empty"
    if found.coeff is None or not cells:
        return Claim(*row, f"no coherent text to judge; {empty}", Verdict.OPEN)
    gains = text_gains(found, found.coeff)
    top = max(cells, key=lambda c: c.bound(len(cells)))
    rates = max(c.backtracking_rate.mean for c in told(steered))
    limits = ", ".join(
        f"{rules.BASE_SHARE * gain:.3f} ({source}-derived)" for source, gain in gains.items()
    )
    text = (
        f"texts with a backtracking sentence, {len(cells)} of {len(steered)} cells coherent: "
        f"{sum(c.after for c in cells)} of {sum(c.n for c in cells)}, unsteered {top.before} of "
        f"{top.n}. Highest bound of an increase {top.bound(len(cells)):.3f} ({top.source}-derived "
        f"at {top.coeff:g}: {top.after} of {top.n}; one-sided 95% for all cells together), against "
        f"a tenth of the reasoning model's gain: {limits}. Highest rate per sentence {rates:.4f}; "
        f"{empty}"
    )
    return Claim(*row, text, rules.absent_in_base(cells, gains))


def _similar(found: Evidence) -> Claim:
    facts, layer = found.directions, found.layer
    cosine = facts["cosine"][layer]
    others = found.other_cosines
    spread = found.cosines and measure(found.cosines["cosine"])
    told_as = _value(spread) if spread else f"{cosine:.3f}"
    text = f"{told_as} at layer {layer}, from {facts['n_backtracking'][0]} backtracking sentences"
    if others:
        named = ", ".join(f"{name} {value:.2f}" for name, value in others.items())
        text += f"; directions of other behaviours are about as close: {named}"
        if sorted(others.values())[len(others) // 2] <= rules.COSINE[1]:
            text = text.replace("are about as close", "for comparison")
    return Claim(
        "C4",
        "Base- and reasoning-derived directions have a cosine of about .74",
        "0.74",
        text,
        rules.similar(cosine, list(others.values())),
    )


def _baselines(found: Evidence) -> Claim:
    row = (
        "C5",
        "It beats mean activation, noise, self-amplification and other behaviours' directions",
        "yes; noise is not without effect",
    )
    coeff = baseline_coeff(found)
    if coeff is None:
        return Claim(*row, "no baseline was run at a coherent coefficient", Verdict.ABSENT)
    versus, collapsed = versus_baselines(found, coeff)
    gain = _cell(found, "base", coeff).difference.diff
    missing = set(rules.BASELINES) - {v.name.split("-")[0] for v in versus}
    text = f"at {coeff:g}, gain {gain:.3f}; " + _closest(found, versus, coeff)
    if collapsed:
        text += f"; not coherent and so not judged: {', '.join(collapsed)}"
    if missing:
        text += f"; nothing to judge of: {', '.join(sorted(missing))}"
    return Claim(*row, text, rules.beats(versus, gain))


def _closest(found: Evidence, versus: Sequence[Versus], coeff: float) -> str:
    if not versus:
        return "no baseline is coherent"
    top = min(versus, key=lambda v: v.difference.value)
    sure = f"{top.difference.value / top.se:.1f} standard errors" if top.se else "no spread"
    rates = ", ".join(
        f"{v.name} {_cell(found, v.name, coeff).backtracking_rate.mean:.3f}" for v in versus
    )
    return (
        f"ahead of the strongest of {len(versus)}, {top.name}, by {_value(top.difference)}, "
        f"{sure}, n = {top.difference.n} ({rates})"
    )


def _logit_lens(found: Evidence) -> Claim:
    verdict, text = Verdict.ABSENT, "figure 5 was not made"
    lens = (found.figure5 or {}).get("directions", {}).get(f"base.{found.layer}.union")
    if lens:
        ranks = {
            model: {word["token"]: word["rank"] for word in one["keywords"]}
            for model, one in lens.items()
        }
        verdict = rules.not_decoded(
            [rank for one in ranks.values() for rank in one.values()], _induced(found)
        )
        text = "best rank (from 0) of a keyword: " + "; ".join(
            f"{model} model {min(one.values())} of {lens[model]['vocab_size']} "
            f"({min(one, key=lambda t: one[t]).strip()}, of {len(one)} tokens)"
            for model, one in ranks.items()
            if one
        )
    return Claim(
        "C6",
        "By the logit lens the base-derived direction does not decode to the keywords it elicits",
        "no keyword among the top tokens",
        text,
        verdict,
    )


def _projection(found: Evidence) -> Claim:
    verdict, text = Verdict.ABSENT, "figure 6 was not made"
    if found.figure6 is not None:
        aurocs = {
            model: measure(one, "mean", "n_events") for model, one in found.figure6["auroc"].items()
        }
        verdict = rules.not_detected(list(aurocs.values()))
        text = "AUROC of the projection before backtracking against other sentences: " + "; ".join(
            f"{model} model {_value(one)}, {one.n} events" for model, one in aurocs.items()
        )
        if dense := found.figure6.get("dense"):
            text += "; above the median before backtracking are, of all tokens, " + ", ".join(
                f"{_value(measure(one['share_above_events'], 'share'))} ({model} model)"
                for model, one in dense.items()
            )
    return Claim(
        "C7",
        "The direction is densely present: its projection does not cleanly detect backtracking",
        "its projection is high at many other tokens",
        text,
        verdict,
    )


def _not_only_cause(found: Evidence) -> Claim:
    verdict, text = Verdict.ABSENT, "figure 6 was not made"
    if found.figure6 is not None:
        one, other = (
            measure(found.figure6[name], "share")
            for name in ("without_direction", "without_backtracking")
        )
        verdict = rules.not_only_cause(one, other)
        text = (
            f"{_value(one)} of {one.n} backtracking sentences come without the direction; "
            f"{_value(other)} of the {other.n} places where it is present without backtracking"
        )
    return Claim(
        "C8",
        "It is not the only cause: backtracking without it, and it without backtracking",
        "both occur",
        text,
        verdict,
    )


def _beyond(found: Evidence) -> list[Claim]:
    """Checks that the paper does not have: the sign reversed, and a negative control."""
    rows = []
    able = coherent(found.table, "reasoning", found.margin)
    negative = [c for c in able if c.source == "base" and c.coeff < 0]
    if negative:
        cell, plain = min(negative, key=lambda c: c.coeff), found.unsteered("reasoning")
        rows.append(
            Claim(
                "S",
                "With the sign reversed it at least halves backtracking",
                "(not in the paper)",
                f"{_rate(plain)} → {_rate(cell)} at {cell.coeff:g}, n = {cell.difference.n}",
                rules.halves(plain.backtracking_rate.mean, cell.backtracking_rate.mean),
            )
        )
    control = found.cell("control", "base", math.nan if found.coeff is None else found.coeff)
    if control:
        plain = found.unsteered("control")
        change = control.backtracking_rate.mean - plain.backtracking_rate.mean
        se = math.hypot(control.backtracking_rate.se, plain.backtracking_rate.se)
        rows.append(
            Claim(
                "N",
                "The negative control does not respond",
                "(not in the paper)",
                f"{_rate(plain)} → {_rate(control)} at {control.coeff:g}, "
                f"{_value(gain_of(control))} by prompt, n = {control.difference.n}",
                rules.unchanged(change, se),
            )
        )
    return rows


def _cell(found: Evidence, source: str, coeff: float) -> CellOutcome:
    cell = found.cell("reasoning", source, coeff)
    assert cell is not None  # `coeff` comes from a cell of this source
    return cell


def _texts(cell: CellOutcome) -> int:
    return cell.keyword_rate.n + cell.keyword_rate.n_empty


def _rate(cell: CellOutcome) -> str:
    one = cell.backtracking_rate
    return _value(Measure(one.mean, one.low, one.high, one.n))


def _value(one: Measure, digits: int = 3) -> str:
    if math.isnan(one.value):
        return "unknown"
    return f"{one.value:.{digits}f} [{one.low:.{digits}f}, {one.high:.{digits}f}]"


def to_markdown(found: Sequence[Claim]) -> list[str]:
    """The table's lines."""
    lines = ["| | claim | paper | this run, with 95% intervals | verdict |", "| --- " * 5 + "|"]
    return lines + [
        f"| {c.id} | {c.claim} | {c.paper} | {c.measured} | **{c.verdict}** |" for c in found
    ]


def to_csv(found: Sequence[Claim]) -> str:
    """A line a claim."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({**asdict(claim), "verdict": str(claim.verdict)} for claim in found)
    return text.getvalue()

"""The claims table: what the paper says, what this run measured, and a verdict by fixed rules."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from experiments.claims import rules
from experiments.claims.contrasts import Answer, Measure, Verdict, decide, mean_of
from experiments.claims.evidence import (
    DIRECTIONS,
    Evidence,
    base_cells,
    baseline_coeff,
    baselines,
    gains,
    measure,
    ratio_of_gains,
    reversed_coeff,
)
from experiments.claims.rules import Floats
from experiments.stages.outcome import CellOutcome
from experiments.stages.text_scores import MOST_SHARE

COLUMNS = ("id", "claim", "paper", "measured", "verdict")

# What the paper says, by claim; S and N are checks beyond it.
CLAIMS = {
    "C1": (
        "The effect depends on layer and offset, with an optimum before the sentence",
        "best at layer 10 of 32, 13 to 8 tokens before",
    ),
    "C2": (
        "The base-derived direction induces backtracking in the reasoning model, comparably to "
        "the reasoning-derived one",
        "yes, rising with the magnitude",
    ),
    "C3": (
        "Neither direction induces backtracking in the base model",
        "no backtracking at any magnitude",
    ),
    "C4": ("Base- and reasoning-derived directions have a cosine of about .74", "0.74"),
    "C5": (
        "It beats mean activation, noise, self-amplification and other behaviours' directions",
        "yes; noise is not without effect",
    ),
    "C6": (
        "By the logit lens the base-derived direction does not decode to the keywords it elicits",
        "no keyword among the top tokens",
    ),
    "C7": (
        "The direction is densely present: its projection does not cleanly detect backtracking",
        "its projection is high at many other tokens",
    ),
    "C8": (
        "It is not the only cause: backtracking without it, and it without backtracking",
        "both occur",
    ),
    "S": ("With the sign reversed it at least halves backtracking", "(not in the paper)"),
    "N": ("The negative control does not respond", "(not in the paper)"),
}


@dataclass(frozen=True)
class Claim:
    """A row of the table."""

    id: str
    claim: str
    paper: str  # what the paper says
    measured: str  # what this run did: value [95% interval], n; if undecided, what would decide
    verdict: Verdict


def claims(found: Evidence) -> list[Claim]:
    """Every row, judged at the largest coefficient whose coherence is within the margin."""
    rows = [
        _optimum(found),
        _induces(found),
        _base_model(found),
        _similar(found),
        _baselines(found),
        _logit_lens(found),
        _projection(found),
        _not_only_cause(found),
        _reversed(found),
        _control(found),
    ]
    return [row for row in rows if row is not None]


def _claim(id: str, text: str, answer: Answer, units: str = "prompts") -> Claim:
    """A row; an open answer says what is undecided and how much would decide it."""
    if answer.undecided:
        needed = f"; about {answer.prompts} {units} would decide" if answer.prompts else ""
        text += f". Undecided: {'; '.join(answer.undecided)}{needed}"
    return Claim(id, *CLAIMS[id], text, answer.verdict)


def _absent(id: str, text: str) -> Claim:
    return _claim(id, text, Answer(Verdict.ABSENT))


def _optimum(found: Evidence) -> Claim:
    if found.figure2 is None:
        return _absent("C1", "figure 2 is made with --full")
    table = found.figure2["table"]
    by_prompt = np.array(table["gains"], dtype=np.float64)  # null is NaN
    best = table["best"]
    where = "no cell is coherent"
    if best is not None:
        where = (
            f"best of {table['coherent']} cells: layer {best['layer']}, offset {best['offset']:+d}"
        )
    leads = "; ".join(
        f"over {others} by {_value(mean_of(lead))}"
        for others, lead in zip(
            ("offsets from 0 on", "the farthest third", "the worst layer"),
            rules.leads(by_prompt, table["offsets"]).values(),
            strict=True,
        )
    )
    text = (
        f"{where}; chosen on one half of the prompts and measured on the other, the best before "
        f"the sentence leads {leads}, n = {len(by_prompt)}"
    )
    return _claim("C1", text, rules.optimum_before(by_prompt, table["offsets"]))


def _induces(found: Evidence) -> Claim:
    coeff = found.coeff
    if coeff is None:
        text = f"no positive coefficient keeps coherence within {found.margin:g} of unsteered"
        return _claim("C2", text, Answer(Verdict.OPEN))
    base, reasoning = (found.shares("reasoning", s, coeff) for s in DIRECTIONS)
    plain = found.shares("reasoning")
    contrasts = rules.induces(base, plain) + rules.comparable(base, reasoning, plain)
    text = f"at {coeff:g}, {_change(plain, base)}; {_coherence(found, 'reasoning', 'base', coeff)}"
    if found.cell("reasoning", "reasoning", coeff):
        ratio = ratio_of_gains(found, coeff)
        text += (
            f"; the reasoning-derived one gains {_value(rules.gain(reasoning, plain))}, ratio of "
            f"gains {_value(ratio, 2)}"
        )
    else:
        text += "; the reasoning-derived one was not run"
    return _claim("C2", text + _fitting(found, coeff), decide(contrasts))


def _fitting(found: Evidence, coeff: float) -> str:
    """How many steered sentences with a keyword are sentences of the grammar, if there is one."""
    texts = found.scores["reasoning", "base", coeff].values()
    fitting = sum(text.backtracking_fitting for text in texts)
    every = sum(text.backtracking for text in texts)
    if math.isnan(fitting) or not every:
        return ""
    return f"; {fitting:.0f} of {every} steered sentences with a keyword fit the grammar"


def _base_model(found: Evidence) -> Claim:
    cells = base_cells(found)
    if not cells:
        return _absent("C3", "the base model was not steered")
    coeff = math.nan if found.coeff is None else found.coeff
    limits = {} if found.coeff is None else gains(found, found.coeff)
    rises = [(cell, rules.base_rise(cell, len(cells))) for cell in cells]
    known = [(cell, rise) for cell, rise in rises if not math.isnan(rise.value)]
    texts = [_texts(c) for c in found.table if c.target == "base" and c.source in DIRECTIONS]
    n_empty = sum(c.n_empty for c in found.table if c.target == "base" and c.source in DIRECTIONS)
    events = sum(int(np.sum(cell.after > 0)) for cell in cells)
    text = (
        f"{events} of {sum(int(np.sum(~np.isnan(c.after))) for c in cells)} steered texts that "
        f"count backtrack, in {len(known)} of {len(cells)} cells with enough of them"
    )
    if known:
        cell, rise = max(known, key=lambda one: one[1].high)
        text += (
            f". Highest bound of a rise {rise.high:.4f} ({cell.source}-derived at {cell.coeff:g}; "
            "one-sided 95% for all cells together)"
        )
    if limits:
        quarters = ", ".join(
            f"{_value(one, 4, times=rules.BASE_SHARE)} ({source}-derived)"
            for source, one in limits.items()
        )
        text += f", against a quarter of the reasoning model's gain: {quarters}"
    text += f"; {n_empty} of {sum(texts)} texts are empty"
    return _claim("C3", text, rules.absent_in_base(cells, limits, coeff, found.induced))


def _similar(found: Evidence) -> Claim:
    layer, n = found.layer, found.directions["n_backtracking"][0]
    if found.cosines is None:
        return _absent("C4", f"{found.directions['cosine'][layer]:.3f} at layer {layer}")
    one, random = measure(found.cosines["cosine"]), found.cosines["random"]["cosines"]
    text = f"{_value(one)} at layer {layer}, from {n} backtracking sentences"
    if len(random) > 1:
        chance = rules.chance_of(random)
        text += (
            f"; from as many random sentences {chance.value:.3f}, one more of them in "
            f"[{chance.low:.3f}, {chance.high:.3f}]"
        )
    if found.other_cosines:
        named = ", ".join(f"{name} {value:.2f}" for name, value in found.other_cosines.items())
        text += f"; directions of other behaviours: {named}"
    return _claim("C4", text, rules.similar(one, random), "backtracking sentences")


def _baselines(found: Evidence) -> Claim:
    coeff = baseline_coeff(found)
    if coeff is None:
        return _absent("C5", "no baseline was run at a coherent coefficient")
    base, plain = found.shares("reasoning", "base", coeff), found.shares("reasoning")
    shares = {
        c.source: found.shares("reasoning", c.source, coeff)
        for c in baselines(found)
        if c.coeff == coeff
    }
    leads = {name: rules.lead_over(base, plain, one) for name, one in shares.items()}
    judged = {name: lead for name, lead in leads.items() if not math.isnan(lead.value)}
    text = f"at {coeff:g}, gain {_value(rules.gain(base, plain))}"
    if judged:
        top = min(judged, key=lambda name: judged[name].value)
        means = ", ".join(f"{name} {np.nanmean(shares[name]):.3f}" for name in judged)
        text += (
            f"; half of it less the gain of the strongest of {len(judged)}, {top}: "
            f"{_value(judged[top])}, n = {judged[top].n} (shares: unsteered "
            f"{np.nanmean(plain):.3f}, {means})"
        )
    if degenerate := leads.keys() - judged.keys():
        text += f"; degenerate text and so not judged: {', '.join(sorted(degenerate))}"
    induced = decide(rules.induces(base, plain)).verdict
    return _claim("C5", text, rules.beats(base, plain, shares, induced))


def _logit_lens(found: Evidence) -> Claim:
    name = f"base.{found.layer}.union"
    lens = (found.figure5 or {}).get("directions", {}).get(name)
    if found.figure5 is None or not lens:
        return _absent("C6", "figure 5 was not made")
    ranks = {model: measure(one) for model, one in found.figure5["best_rank"][name].items()}
    parts = []
    for model, rank in ranks.items():
        words = lens[model]["keywords"]
        best = min(words, key=lambda word: word["rank"])["token"].strip()
        parts.append(
            f"{model} model {_value(rank, 0)} of {lens[model]['vocab_size']} "
            f"({best}, of {len(words)} tokens)"
        )
    text = "best rank (from 0) of a keyword, groups of traces drawn anew: " + "; ".join(parts)
    return _claim("C6", text, rules.not_decoded(ranks, found.induced), "groups of traces")


def _projection(found: Evidence) -> Claim:
    if found.figure6 is None:
        return _absent("C7", "figure 6 was not made")
    aurocs = {
        model: measure(one, "mean", "n_texts") for model, one in found.figure6["auroc"].items()
    }
    dense = {
        model: measure(one["share_above_events"], "share")
        for model, one in found.figure6["dense"].items()
    }
    text = "AUROC of the projection before backtracking against other sentences: " + "; ".join(
        f"{model} model {_value(one)}, {found.figure6['auroc'][model]['n_events']} events"
        for model, one in aurocs.items()
    )
    text += "; above the median before backtracking are, of all tokens, " + ", ".join(
        f"{_value(one)} ({model} model)" for model, one in dense.items()
    )
    return _claim("C7", text, rules.not_detected(aurocs, dense, found.induced), "traces")


def _not_only_cause(found: Evidence) -> Claim:
    if found.figure6 is None:
        return _absent("C8", "figure 6 was not made")
    without, present = (
        measure(found.figure6[name], "share")
        for name in ("without_direction", "without_backtracking")
    )
    area = measure(found.figure6["auroc"]["reasoning"], "mean", "n_texts")
    prevalence = found.figure6["prevalence"]
    text = (
        f"{_value(without)} of {without.n} backtracking sentences come without the direction (a "
        f"perfect detector 0, chance 0.5); {_value(present)} of the {present.n} places where it is "
        f"strongest, as many as backtrack, are without backtracking (0, chance "
        f"{1 - prevalence:.3f})"
    )
    answer = rules.not_only_cause(
        area, replace(without, n=area.n), replace(present, n=area.n), prevalence, found.induced
    )
    return _claim("C8", text, answer, "traces")


def _reversed(found: Evidence) -> Claim | None:
    coeff = reversed_coeff(found)
    if coeff is None:
        return None
    plain, steered = found.shares("reasoning"), found.shares("reasoning", "base", coeff)
    text = f"at {coeff:g}, {_change(plain, steered)}"
    return _claim("S", text, rules.halves(plain, steered))


def _control(found: Evidence) -> Claim | None:
    coeffs = [
        c
        for c in (found.coeff, reversed_coeff(found))
        if c is not None and found.cell("control", "base", c)
    ]
    if not coeffs or found.coeff is None:
        return None
    plain = found.shares("control")
    steered = {c: found.shares("control", "base", c) for c in coeffs}
    limit = gains(found, found.coeff)["base"]
    text = "; ".join(f"at {c:g}, {_change(plain, shares)}" for c, shares in steered.items())
    half = rules.HALF * limit.value
    text += f"; half of the reasoning model's gain is {half:.3f}".replace("nan", "unknown")
    return _claim("N", text, rules.unchanged(plain, steered, limit, found.induced))


def _change(before: Floats, after: Floats) -> str:
    """Mean shares of the prompts that count on both sides, and the gain, which is of the same."""
    both = ~(np.isnan(before) | np.isnan(after))
    rates = [_value(mean_of(shares[both], limits=(0, MOST_SHARE))) for shares in (before, after)]
    left_out = len(both) - int(both.sum())
    text = (
        f"share of distinct backtracking sentences {rates[0]} → {rates[1]}, gain "
        f"{_value(rules.gain(after, before))}, n = {int(both.sum())}"
    )
    return text + (f" ({left_out} left out as degenerate)" if left_out else "")


def _coherence(found: Evidence, target: str, source: str, coeff: float) -> str:
    cell = found.cell(target, source, coeff)
    steered = math.nan if cell is None else cell.coherence.mean
    return f"coherence {found.unsteered(target).coherence.mean:.3f} → {steered:.3f}"


def _texts(cell: CellOutcome) -> int:
    return cell.keyword_rate.n + cell.keyword_rate.n_empty


def _value(one: Measure, digits: int = 3, *, times: float = 1.0) -> str:
    if math.isnan(one.value):
        return "unknown"
    value, low, high = (f"{times * x:.{digits}f}" for x in (one.value, one.low, one.high))
    return f"{value} [{low}, {high}]"


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

"""What a sweep shows: a table of cells, and the verdict by rules fixed here, before any run."""

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jaxsteer.annotate import Sentence, keyword_labels, split_sentences
from jaxsteer.metrics import (
    Estimate,
    PairedDifference,
    keyword_rate,
    mean_se,
    paired_difference,
    ratio_se,
    repetition,
)

VERDICTS = {True: "holds", False: "does not hold", None: "cannot be told"}
_LEAST_PAIRS = 8  # with fewer, no sign pattern reaches p < .01

# (text's sentences) -> (how many are coherent, how many there are), or None to use repetition.
Grammar = Callable[[Sequence[Sentence]], tuple[int, int]]


@dataclass(frozen=True)
class Scores:
    """One generated text."""

    prompt: str
    keyword_rate: float  # Eq. 1; NaN for a text without words
    backtracking: int  # sentences with a keyword
    sentences: int
    coherent: float  # numerator and denominator of coherence
    coherence_of: float


@dataclass(frozen=True)
class CellOutcome:
    """One cell: means over the prompts, with what they rest on."""

    target: str
    source: str
    coeff: float
    length: float  # of the added vector
    keyword_rate: Estimate  # Eq. 1
    backtracking_rate: Estimate  # backtracking sentences per sentence
    coherence: Estimate
    difference: PairedDifference  # of backtracking per sentence, to the unsteered, by prompt
    n_empty: int  # texts without a word, left out of the means


def whole_sentences(row: dict[str, Any]) -> list[Sentence]:
    """The sentences of a generated text, without a last one that was cut off."""
    text = row["text"]
    sentences = split_sentences(text)
    cut = not row["stopped"] and not text.rstrip().endswith((".", "!", "?"))
    return sentences[:-1] if cut else sentences


def score(row: dict[str, Any], *, keywords: Sequence[str], grammar: Grammar | None) -> Scores:
    """Judge one row of the sweep. A last sentence that was cut off does not count."""
    text, sentences = row["text"], whole_sentences(row)
    if grammar is None:
        share = repetition(text)
        coherent, coherence_of = (0.0, 0.0) if math.isnan(share) else (1.0 - share, 1.0)
    else:
        coherent, coherence_of = grammar(sentences)
    return Scores(
        prompt=row["prompt"],
        keyword_rate=keyword_rate(text, keywords),
        backtracking=sum(keyword_labels(sentences, keywords)),
        sentences=len(sentences),
        coherent=coherent,
        coherence_of=coherence_of,
    )


def outcomes(
    rows: Sequence[dict[str, Any]], *, keywords: Sequence[str], grammar: Grammar | None
) -> list[CellOutcome]:
    """One outcome a cell, in the order of the rows.

    Raises:
        ValueError: if a cell has a prompt that was not run unsteered on its target.
    """
    cells: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["target"], row["source"], row["coeff"]), []).append(row)
    scores = {
        key: {row["prompt"]: score(row, keywords=keywords, grammar=grammar) for row in found}
        for key, found in cells.items()
    }
    table = []
    for (target, source, coeff), by_prompt in scores.items():
        reference = scores.get((target, "none", 0.0), {})
        if missing := by_prompt.keys() - reference.keys():
            raise ValueError(
                f"{target}, {source} at {coeff:g}: {len(missing)} of {len(by_prompt)} prompts have "
                "no unsteered text to compare with"
            )
        texts = list(by_prompt.values())
        table.append(
            CellOutcome(
                target=target,
                source=source,
                coeff=coeff,
                length=cells[target, source, coeff][0]["length"],
                keyword_rate=mean_se([t.keyword_rate for t in texts]),
                backtracking_rate=ratio_se(
                    [t.backtracking for t in texts], [t.sentences for t in texts]
                ),
                coherence=ratio_se([t.coherent for t in texts], [t.coherence_of for t in texts]),
                difference=paired_difference(
                    [_share(t) for t in texts], [_share(reference[t.prompt]) for t in texts]
                ),
                n_empty=sum(math.isnan(t.keyword_rate) for t in texts),
            )
        )
    return table


def _share(text: Scores) -> float:
    return text.backtracking / text.sentences if text.sentences else float("nan")


def select(table: Sequence[CellOutcome], target: str, source: str) -> list[CellOutcome]:
    """The curve of one source on one target by coefficient, the unsteered cell included."""
    found = [c for c in table if c.target == target and c.source in (source, "none")]
    return sorted(found, key=lambda c: c.coeff)


def sources_of(table: Sequence[CellOutcome], target: str) -> list[str]:
    """The sources that were run on a target, without `none`."""
    return list(dict.fromkeys(c.source for c in table if c.target == target and c.source != "none"))


def to_csv(table: Sequence[CellOutcome]) -> str:
    """The table as CSV, nested fields joined with a full stop."""
    rows = [_flat(asdict(cell)) for cell in table]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat


@dataclass(frozen=True)
class Finding:
    """One question and the answer that this run gives."""

    claim: str
    holds: bool | None  # None: this run cannot tell
    because: str


def findings(table: Sequence[CellOutcome], *, margin: float) -> list[Finding]:
    """Answer the run's questions.

    A positive coefficient *counts* if coherence is at most `margin` below the unsteered model's.
    Everything is judged at the largest coefficient that counts for the base-derived direction, but
    for the base model, in which no cell at all may backtrack in more than one sentence in 1,000.
    """
    unsteered = select(table, "reasoning", "none")[0]
    floor = unsteered.coherence.mean - margin
    curve = select(table, "reasoning", "base")
    counting = [c for c in curve if c.coeff > 0 and c.coherence.mean >= floor]
    if not counting:
        return [
            Finding(
                "the base-derived direction induces backtracking in the reasoning model",
                None,
                f"no positive coefficient keeps coherence above {floor:.3f}",
            )
        ]
    best = counting[-1]
    found = [_induces(best, unsteered), *_reasoning_derived(table, best, unsteered)]
    found += _against_random(table, best)
    negative = [c for c in curve if c.coeff < 0 and c.coherence.mean >= floor]
    if negative:
        found.append(_reversed(negative[0], unsteered))
    for target, text in (
        ("base", "neither direction induces backtracking in the base model"),
        ("control", "the direction does not change the negative control"),
    ):
        if any(c.target == target for c in table):
            found.append(_none_in(table, target, text, best.coeff))
    return found


def _rate(cell: CellOutcome) -> str:
    rate = cell.backtracking_rate
    return f"{rate.mean:.4f} ± {rate.se:.4f}"


def _induces(best: CellOutcome, unsteered: CellOutcome) -> Finding:
    gain = best.difference
    return Finding(
        "the base-derived direction induces backtracking in the reasoning model",
        gain.diff > 0 and gain.p_value < 0.01 if gain.n >= _LEAST_PAIRS else None,
        f"backtracking sentences per sentence {_rate(unsteered)} → {_rate(best)} at coefficient "
        f"{best.coeff:g} (× {_ratio(best, unsteered)}, paired p = {gain.p_value:.2g}, "
        f"n = {gain.n}), coherence {unsteered.coherence.mean:.3f} → {best.coherence.mean:.3f}",
    )


def _reasoning_derived(
    table: Sequence[CellOutcome], best: CellOutcome, unsteered: CellOutcome
) -> list[Finding]:
    same = [c for c in select(table, "reasoning", "reasoning") if c.coeff == best.coeff]
    return [
        Finding(
            "it does so comparably to the reasoning-derived one (within a factor of 2 in gain)",
            0.5 <= _gain(best, unsteered) / _gain(cell, unsteered) <= 2
            if _gain(cell, unsteered) > 0 and told([best])
            else None,
            f"base-derived {_rate(best)}, reasoning-derived {_rate(cell)} at {best.coeff:g}",
        )
        for cell in same
    ]


def _against_random(table: Sequence[CellOutcome], best: CellOutcome) -> list[Finding]:
    drawn = [c for c in table if c.target == "reasoning" and c.source.startswith("random")]
    if not drawn:
        return []
    judged = told([c for c in drawn if c.coeff == best.coeff])
    count = len({c.source for c in drawn})
    claim = f"it beats {count} random directions of its length by 4 standard errors"
    if not judged:
        return [Finding(claim, None, f"no text of theirs to judge at coefficient {best.coeff:g}")]
    top = max(judged, key=lambda c: c.backtracking_rate.mean)
    distance = _distance(best, top)
    return [
        Finding(
            claim,
            None if math.isnan(distance) else distance >= 4,
            f"the strongest random direction gives {_rate(top)}: {distance:.1f} standard errors",
        )
    ]


def _reversed(cell: CellOutcome, unsteered: CellOutcome) -> Finding:
    before, after = unsteered.backtracking_rate.mean, cell.backtracking_rate.mean
    return Finding(
        "with the sign reversed it at least halves backtracking",
        after <= before / 2 if before > 0 and told([cell]) else None,
        f"{_rate(unsteered)} → {_rate(cell)} at coefficient {cell.coeff:g}",
    )


def _none_in(table: Sequence[CellOutcome], target: str, text: str, coeff: float) -> Finding:
    steered = [c for c in table if c.target == target and c.source != "none"]
    unsteered = select(table, target, "none")[0]
    judged = told(steered if target == "base" else [c for c in steered if c.coeff == coeff])
    empty = sum(c.n_empty for c in steered)
    rows = sum(c.backtracking_rate.n + c.backtracking_rate.n_empty for c in steered)
    texts = f"{empty} of {rows} texts are empty"
    if not judged:
        return Finding(text, None, f"no sentence to judge; {texts}")
    top = max(judged, key=lambda c: c.backtracking_rate.mean)
    if target == "base":
        holds: bool | None = top.backtracking_rate.mean <= 0.001
        because = (
            f"{_rate(unsteered)} unsteered, the highest of {len(judged)} cells is {_rate(top)}"
        )
    else:
        distance = _distance(top, unsteered)
        holds = None if math.isnan(distance) else abs(distance) <= 2
        because = (
            f"{_rate(unsteered)} → {_rate(top)} at coefficient {coeff:g}: "
            f"{distance:+.1f} standard errors"
        )
    return Finding(text, holds, f"{because}; {texts}")


def told(cells: Sequence[CellOutcome]) -> list[CellOutcome]:
    """Those with a sentence at all: without one there is no rate."""
    return [c for c in cells if c.backtracking_rate.n]


def _gain(cell: CellOutcome, unsteered: CellOutcome) -> float:
    return cell.backtracking_rate.mean - unsteered.backtracking_rate.mean


def _ratio(cell: CellOutcome, unsteered: CellOutcome) -> str:
    before = unsteered.backtracking_rate.mean
    after = cell.backtracking_rate.mean
    return f"{after / before:.1f}" if before else "∞" if after else "1"


def _distance(a: CellOutcome, b: CellOutcome) -> float:
    """Difference of backtracking rates in standard errors of the difference; NaN if unknown."""
    spread = math.hypot(a.backtracking_rate.se, b.backtracking_rate.se)
    difference = a.backtracking_rate.mean - b.backtracking_rate.mean
    if spread == 0:  # no text differs from another within either cell
        return math.copysign(math.inf, difference) if difference else 0.0
    return difference / spread

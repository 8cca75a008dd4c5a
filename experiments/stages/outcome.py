"""What a sweep shows: a table of cells, with 95% bootstrap intervals over the prompts."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from experiments.pipeline.tables import records_csv
from experiments.stages.perplexity import key_of
from experiments.stages.text_scores import REASONS, Grammar, Scores, score
from jaxsteer.analysis import bootstrap_interval, mean_se, paired_difference, ratio_se
from jaxsteer.texts import flattened

RESAMPLES = 2000  # of the prompts, for each interval

Key = tuple[str, str, float]  # target, source, coefficient


@dataclass(frozen=True)
class Measured:
    """A mean or ratio over the prompts: standard error, 95% interval, units, rows left out."""

    mean: float
    se: float
    low: float
    high: float
    n: int
    n_empty: int


@dataclass(frozen=True)
class Paired:
    """A mean difference by prompt: standard error, sign-flip p-value, 95% interval."""

    diff: float
    se: float
    p_value: float
    low: float
    high: float
    n: int
    n_empty: int


@dataclass(frozen=True)
class CellOutcome:
    """One cell: means over the prompts, with what they rest on."""

    target: str
    source: str
    coeff: float
    length: float  # of the added vector
    keyword_rate: Measured  # Eq. 1 as a share of words
    keyword_matches: Measured  # Eq. 1 as keywords over words
    backtracking_rate: Measured  # backtracking sentences per sentence, of all texts
    judged: Measured  # mean share of distinct ones, of the texts that count (`text_scores`)
    texts_with: Measured  # share of the texts with a backtracking sentence
    coherence: Measured  # the measure that the settings name
    repetition: Measured
    grammar: Measured
    perplexity: Measured  # under the unsteered model, per token
    difference: Paired  # of the judged share, to the unsteered, by prompt
    n_empty: int  # texts without a word, left out of the means
    empty_share: float
    excluded: dict[str, int]  # texts that do not count for the judged share, by reason


def measured(
    values: Sequence[float],
    of: Sequence[float] | None = None,
    *,
    limits: tuple[float, float] | None = (0.0, 1.0),
) -> Measured:
    """A mean of `values`, or the ratio of their sum to that of `of`, over the prompts.

    `limits` bound a prompt's value; see `bootstrap_interval`.

    >>> measured([1.0, 1.0, float("nan")])
    Measured(mean=1.0, se=0.0, low=0.2236..., high=1.0, n=2, n_empty=1)
    """
    one = mean_se(values) if of is None else ratio_se(values, of)
    low, high = bootstrap_interval(values, of, limits=limits, n_resamples=RESAMPLES)
    return Measured(one.mean, one.se, low, high, one.n, one.n_empty)


def paired(values: ArrayLike, reference: ArrayLike) -> Paired:
    """The mean of `values - reference`, shares, by prompt; see `metrics.paired_difference`."""
    one = paired_difference(values, reference)
    low, high = bootstrap_interval(
        np.subtract(values, reference), limits=(-1, 1), n_resamples=RESAMPLES
    )
    return Paired(one.diff, one.se, one.p_value, low, high, one.n, one.n_empty)


def with_logprobs(
    rows: Iterable[dict[str, Any]], scored: Iterable[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The rows of a sweep with `logprob_sum` and `n_tokens` from those of `perplexity`."""
    by_key = {
        key_of(row): {name: row[name] for name in ("logprob_sum", "n_tokens")} for row in scored
    }
    return [{**row, **by_key.get(key_of(row), {})} for row in rows]


def scores_by_cell(
    rows: Sequence[dict[str, Any]], *, keywords: Sequence[str], grammar: Grammar | None
) -> dict[Key, dict[str, Scores]]:
    """Every text judged, by cell and prompt, in the order of the rows."""
    cells: dict[Key, dict[str, Scores]] = {}
    for row in rows:
        key = (row["target"], row["source"], row["coeff"])
        cells.setdefault(key, {})[row["prompt"]] = score(row, keywords=keywords, grammar=grammar)
    return cells


def outcomes(
    rows: Sequence[dict[str, Any]], *, keywords: Sequence[str], grammar: Grammar | None
) -> list[CellOutcome]:
    """One outcome a cell, in the order of the rows.

    Raises:
        ValueError: if a cell has a prompt that was not run unsteered on its target.
    """
    scores = scores_by_cell(rows, keywords=keywords, grammar=grammar)
    lengths = {(row["target"], row["source"], row["coeff"]): row["length"] for row in rows}
    return outcomes_of(scores, lengths)


def outcomes_of(
    scores: Mapping[Key, Mapping[str, Scores]], lengths: Mapping[Key, float]
) -> list[CellOutcome]:
    """The same from texts that are judged already, and the lengths that were added."""
    table = []
    for key, by_prompt in scores.items():
        reference = scores.get((key[0], "none", 0.0), {})
        if missing := by_prompt.keys() - reference.keys():
            raise ValueError(
                f"{key[0]}, {key[1]} at {key[2]:g}: {len(missing)} of {len(by_prompt)} prompts "
                "have no unsteered text to compare with"
            )
        texts = list(by_prompt.values())
        table.append(_cell(key, lengths[key], texts, [reference[t.prompt] for t in texts]))
    return table


def _cell(
    key: Key, length: float, texts: Sequence[Scores], reference: Sequence[Scores]
) -> CellOutcome:
    n_empty = sum(math.isnan(t.keyword_rate) for t in texts)
    fitting = [t.fitting for t in texts]
    matches = [t.keyword_matches for t in texts]
    difference = paired([t.judged for t in texts], [t.judged for t in reference])
    if key[1] == "none":  # with itself: nothing by construction, not for lack of events
        difference = replace(difference, low=0.0, high=0.0)
    return CellOutcome(
        target=key[0],
        source=key[1],
        coeff=key[2],
        length=length,
        keyword_rate=measured([t.keyword_rate for t in texts]),
        keyword_matches=measured(matches, limits=(0.0, max(1.0, *np.nan_to_num(matches)))),
        backtracking_rate=measured([t.backtracking for t in texts], [t.sentences for t in texts]),
        judged=measured([t.judged for t in texts]),
        texts_with=measured(
            [float(t.backtracking > 0) if t.sentences else math.nan for t in texts]
        ),
        coherence=measured([t.coherent for t in texts], [t.coherence_of for t in texts]),
        repetition=measured([t.repetition for t in texts]),
        grammar=measured(
            np.nan_to_num(fitting).tolist(),
            [0 if math.isnan(f) else t.sentences for f, t in zip(fitting, texts, strict=True)],
        ),
        perplexity=_perplexity(texts),
        difference=difference,
        n_empty=n_empty,
        empty_share=n_empty / len(texts),
        excluded={why: sum(t.excluded == why for t in texts) for why in REASONS},
    )


def _perplexity(texts: Sequence[Scores]) -> Measured:
    """The exponential of minus the mean log-probability of a token; the error by the delta rule."""
    one = measured([-t.logprob for t in texts], [t.scored_tokens for t in texts], limits=None)
    mean, low, high = (math.exp(x) for x in (one.mean, one.low, one.high))
    return Measured(mean, mean * one.se, low, high, one.n, one.n_empty)


def select(table: Sequence[CellOutcome], target: str, source: str) -> list[CellOutcome]:
    """The curve of one source on one target by coefficient, the unsteered cell included."""
    cells = [c for c in table if c.target == target and c.source in (source, "none")]
    return sorted(cells, key=lambda c: c.coeff)


def sources_of(table: Sequence[CellOutcome], target: str) -> list[str]:
    """The sources that were run on a target, without `none`."""
    return list(dict.fromkeys(c.source for c in table if c.target == target and c.source != "none"))


def told(cells: Sequence[CellOutcome]) -> list[CellOutcome]:
    """Those with a sentence at all: without one there is no rate."""
    return [c for c in cells if c.backtracking_rate.n]


def coherent(table: Sequence[CellOutcome], target: str, margin: float) -> list[CellOutcome]:
    """The steered cells of a target whose coherence is within the margin of the unsteered one's."""
    floor = select(table, target, "none")[0].coherence.mean - margin
    steered = [c for c in table if c.target == target and c.source != "none"]
    return [c for c in steered if c.coherence.mean >= floor]


def judged_at(table: Sequence[CellOutcome], margin: float) -> float | None:
    """The coefficient at which effects are judged, `None` if there is none.

    It is the largest positive one of the base-derived direction in the reasoning model at which
    coherence is within the margin.
    """
    cells = [c for c in coherent(table, "reasoning", margin) if c.source == "base" and c.coeff > 0]
    return max((c.coeff for c in cells), default=None)


def to_csv(table: Sequence[CellOutcome]) -> str:
    """The table as CSV, nested fields joined with a full stop."""
    return records_csv([flattened(asdict(cell)) for cell in table])

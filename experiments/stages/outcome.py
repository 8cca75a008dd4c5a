"""What a sweep shows: a table of cells, with 95% bootstrap intervals over the prompts."""

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from jaxsteer.analysis import (
    Sentence,
    bootstrap_interval,
    keyword_labels,
    keyword_rate,
    mean_se,
    paired_difference,
    ratio_se,
    repetition,
    split_sentences,
)

RESAMPLES = 2000  # of the prompts, for each interval

Key = tuple[str, str, float]  # target, source, coefficient
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
    repetition: float = math.nan  # share of repeated 4-grams; NaN for a text of fewer words
    fitting: float = math.nan  # sentences that fit the grammar, if there is one
    logprob: float = 0.0  # sum over the tokens, under the unsteered model, where that was run
    scored_tokens: int = 0

    @property
    def share(self) -> float:
        """Backtracking sentences per sentence; NaN without a sentence."""
        return self.backtracking / self.sentences if self.sentences else math.nan


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
    keyword_rate: Measured  # Eq. 1
    backtracking_rate: Measured  # backtracking sentences per sentence
    texts_with: Measured  # share of the texts with a backtracking sentence
    coherence: Measured  # the measure that the settings name
    repetition: Measured
    grammar: Measured
    perplexity: Measured  # under the unsteered model, per token
    difference: Paired  # of backtracking per sentence, to the unsteered, by prompt
    n_empty: int  # texts without a word, left out of the means
    empty_share: float


def measured(values: Sequence[float], of: Sequence[float] | None = None) -> Measured:
    """A mean of `values`, or the ratio of their sum to that of `of`, over the prompts.

    >>> measured([1.0, 1.0, float("nan")])
    Measured(mean=1.0, se=0.0, low=1.0, high=1.0, n=2, n_empty=1)
    """
    one = mean_se(values) if of is None else ratio_se(values, of)
    low, high = bootstrap_interval(values, of, n_resamples=RESAMPLES)
    return Measured(one.mean, one.se, low, high, one.n, one.n_empty)


def paired(values: ArrayLike, reference: ArrayLike) -> Paired:
    """The mean of `values - reference`, prompt by prompt; see `metrics.paired_difference`."""
    one = paired_difference(values, reference)
    low, high = bootstrap_interval(np.subtract(values, reference), n_resamples=RESAMPLES)
    return Paired(one.diff, one.se, one.p_value, low, high, one.n, one.n_empty)


def small_pair_grammar(sentences: Sequence[Sentence]) -> tuple[int, int]:
    """How many sentences fit the small pair's grammar, and how many there are."""
    from weights.small_language.parser import parse_sentence

    fitting = sum(parse_sentence(sentence.text) is not None for sentence in sentences)
    return fitting, len(sentences)


def whole_sentences(row: dict[str, Any]) -> list[Sentence]:
    """The sentences of a generated text, without a last one that was cut off."""
    text = row["text"]
    sentences = split_sentences(text)
    cut = not row["stopped"] and not text.rstrip().endswith((".", "!", "?"))
    return sentences[:-1] if cut else sentences


def score(row: dict[str, Any], *, keywords: Sequence[str], grammar: Grammar | None) -> Scores:
    """Judge one row of the sweep. A last sentence that was cut off does not count.

    A row may have `logprob_sum` and `n_tokens` of its text under the unsteered model
    (`with_logprobs`).
    """
    text, sentences = row["text"], whole_sentences(row)
    repeated = repetition(text)
    fitting = math.nan
    if grammar is None:
        coherent, coherence_of = (0.0, 0.0) if math.isnan(repeated) else (1.0 - repeated, 1.0)
    else:
        coherent, coherence_of = grammar(sentences)
        fitting = coherent
    return Scores(
        prompt=row["prompt"],
        keyword_rate=keyword_rate(text, keywords),
        backtracking=sum(keyword_labels(sentences, keywords)),
        sentences=len(sentences),
        coherent=coherent,
        coherence_of=coherence_of,
        repetition=repeated,
        fitting=fitting,
        logprob=row.get("logprob_sum", 0.0),
        scored_tokens=row.get("n_tokens", 0),
    )


def with_logprobs(
    rows: Iterable[dict[str, Any]], scored: Iterable[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The rows of a sweep with `logprob_sum` and `n_tokens` from those of `perplexity`."""

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["target"], row["source"], row["coeff"], row["prompt"]

    found = {
        key(row): {"logprob_sum": row["logprob_sum"], "n_tokens": row["n_tokens"]} for row in scored
    }
    return [{**row, **found.get(key(row), {})} for row in rows]


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
    return CellOutcome(
        target=key[0],
        source=key[1],
        coeff=key[2],
        length=length,
        keyword_rate=measured([t.keyword_rate for t in texts]),
        backtracking_rate=measured([t.backtracking for t in texts], [t.sentences for t in texts]),
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
        difference=paired([t.share for t in texts], [t.share for t in reference]),
        n_empty=n_empty,
        empty_share=n_empty / len(texts),
    )


def _perplexity(texts: Sequence[Scores]) -> Measured:
    """The exponential of minus the mean log-probability of a token; the error by the delta rule."""
    one = measured([-t.logprob for t in texts], [t.scored_tokens for t in texts])
    mean, low, high = (math.exp(x) for x in (one.mean, one.low, one.high))
    return Measured(mean, mean * one.se, low, high, one.n, one.n_empty)


def select(table: Sequence[CellOutcome], target: str, source: str) -> list[CellOutcome]:
    """The curve of one source on one target by coefficient, the unsteered cell included."""
    found = [c for c in table if c.target == target and c.source in (source, "none")]
    return sorted(found, key=lambda c: c.coeff)


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
    found = [c for c in coherent(table, "reasoning", margin) if c.source == "base" and c.coeff > 0]
    return max((c.coeff for c in found), default=None)


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

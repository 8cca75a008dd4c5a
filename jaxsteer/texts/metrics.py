"""Metrics of texts, and what cells differ in, with intervals over prompts.

A metric is a function `text → number`. Marked with `on_result`, it gets the whole `Text`, with its
tokens, log-probabilities and end.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxsteer.analysis import bootstrap_interval, paired_difference, repetition
from jaxsteer.texts.results import Text, Texts

Metric = Callable[[Any], float]  # a text or a `Text` in, a number out; NaN where it has none
_SHARE = (0.0, 1.0)
_CHANGE = (-1.0, 1.0)


def on_result(metric: Metric) -> Metric:
    """Mark a metric that takes the whole `Text` in place of its string.

    >>> @on_result
    ... def tokens(row):
    ...     return len(row.tokens)
    """
    metric.takes_result = True  # type: ignore[attr-defined]
    return metric


@on_result
def perplexity(row: Text) -> float:
    """Return how unlikely the *unsteered* model finds a text, per token; NaN without tokens.

    `LanguageModel.sweep` reads the texts once more for it, and `LanguageModel.score` does for texts
    that were made otherwise.

    Raises:
        ValueError: for a text that the unsteered model has not read.
    """
    if not row.tokens:
        return float("nan")
    if len(row.plain_logprobs) != len(row.tokens):
        raise ValueError("perplexity: got texts that were not scored, expected `lm.score(texts)`")
    return math.exp(-sum(row.plain_logprobs) / len(row.tokens))


def contains(*words: str) -> Metric:
    """A metric: 1 where a text has any of the words, whatever their case, else 0.

    >>> contains("wait", "hmm")("Wait, that is 4."), contains("wait")("awaited")
    (1.0, 0.0)
    """
    if not words or not all(isinstance(word, str) and word for word in words):
        raise ValueError(f"words: got {words!r}, expected at least one word")
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, words))})(?!\w)", re.IGNORECASE)

    def metric(text: str) -> float:
        return float(bool(pattern.search(text)))

    metric.__name__ = f"contains {' or '.join(words)}"
    metric.pattern = pattern  # type: ignore[attr-defined]  # for pages, which mark what it finds
    metric.limits = _SHARE  # type: ignore[attr-defined]
    return metric


def words(text: str) -> float:
    """Return how many words a text has.

    >>> words("wait , no")
    3.0
    """
    return float(len(text.split()))


@dataclass(frozen=True)
class Measured:
    """A metric in one cell: its mean over prompts, and what it differs by from coefficient 0.

    An interval that the prompts say nothing of is NaN, NaN.
    """

    labels: Mapping[str, Any]
    metric: str
    mean: float
    low: float  # 95% interval of the mean, over prompts
    high: float
    prompts: int  # with a number
    empty: int  # texts without one
    difference: float | None = None  # paired by prompt; None without a cell at coefficient 0
    difference_low: float | None = None  # its 95% interval
    difference_high: float | None = None
    p: float | None = None  # of a sign-flip test


def measure(texts: Texts, metrics: Sequence[Metric] = (repetition,)) -> list[Measured]:
    """Each metric in each cell, with a bootstrap interval over prompts.

    Samples of one prompt are averaged first: they are no independent evidence. Differences are
    paired with the first cell whose coefficient is 0. Where all prompts agree, a share has the
    interval of `bootstrap_interval`, and other metrics have none.

    Raises:
        ValueError: for a metric that gives no number.
    """
    cells = texts.cells()
    zero = next((i for i, cell in enumerate(cells) if cell.get("coeff") == 0), None)
    prompts = 1 + max((row.prompt for row in texts), default=0)
    by_cell: dict[str, list[Text]] = {}
    for row in texts:
        by_cell.setdefault(json.dumps(row.labels), []).append(row)
    measured = []
    for metric in metrics:
        found = [_by_prompt(rows, metric, prompts) for rows in by_cell.values()]
        for i, (cell, (values, empty)) in enumerate(zip(cells, found, strict=True)):
            reference = None if zero in (None, i) else found[zero or 0][0]
            measured.append(_measured(cell, metric, values, empty, reference))
    return measured


def _measured(
    cell: Mapping[str, Any],
    metric: Metric,
    values: np.ndarray,
    empty: int,
    reference: np.ndarray | None,
) -> Measured:
    limits = limits_of(metric)
    finite = np.isfinite(values)
    low, high = bootstrap_interval(values, limits=limits)
    line = Measured(
        labels=cell,
        metric=name_of(metric),
        mean=float(values[finite].mean()) if finite.any() else float("nan"),
        low=low,
        high=high,
        prompts=int(finite.sum()),
        empty=empty,
    )
    if reference is None:
        return line
    paired = paired_difference(values, reference)
    low, high = bootstrap_interval(values - reference, limits=None if limits is None else _CHANGE)
    return replace(
        line, difference=paired.diff, difference_low=low, difference_high=high, p=paired.p_value
    )


def name_of(metric: Metric) -> str:
    """What a table calls a metric."""
    return getattr(metric, "__name__", type(metric).__name__)


def limits_of(metric: Metric) -> tuple[float, float] | None:
    """Between what a metric's numbers lie, if that is known: (0, 1) for a share."""
    return _SHARE if metric is repetition else getattr(metric, "limits", None)


def value_of(metric: Metric, row: Text) -> float:
    """What a metric says of one text.

    Raises:
        ValueError: if that is no number.
    """
    value = metric(row if getattr(metric, "takes_result", False) else row.text)
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name_of(metric)}: got {value!r:.80}, expected a number") from None


def _by_prompt(rows: Sequence[Text], metric: Metric, prompts: int) -> tuple[np.ndarray, int]:
    """The metric's mean by prompt `[P]`, NaN where none of its texts has one; texts without one."""
    values: list[list[float]] = [[] for _ in range(prompts)]
    empty = 0
    for row in rows:
        number = value_of(metric, row)
        if np.isfinite(number):
            values[row.prompt].append(number)
        else:
            empty += 1
    return np.array([float(np.mean(v)) if v else float("nan") for v in values]), empty

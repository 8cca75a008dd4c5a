"""Metrics of texts, and what cells differ in, with intervals over prompts."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxsteer.analysis import bootstrap_interval, paired_difference, repetition
from jaxsteer.texts.results import Text, Texts

Metric = Callable[[str], float]  # a text in, a number out; NaN where it has none


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
    return metric


def words(text: str) -> float:
    """Return how many words a text has.

    >>> words("wait , no")
    3.0
    """
    return float(len(text.split()))


@dataclass(frozen=True)
class Measured:
    """A metric in one cell: its mean over prompts, and what it differs by from coefficient 0."""

    labels: Mapping[str, Any]
    metric: str
    mean: float
    low: float  # 95% interval of the mean, over prompts
    high: float
    prompts: int  # with a number
    empty: int  # texts without one
    difference: float | None  # paired by prompt; None without a cell at coefficient 0
    p: float | None  # of a sign-flip test


def measure(texts: Texts, metrics: Sequence[Metric] = (repetition,)) -> list[Measured]:
    """Each metric in each cell, with a bootstrap interval over prompts.

    Samples of one prompt are averaged first: they are no independent evidence. Differences are
    paired with the first cell whose coefficient is 0.

    Raises:
        ValueError: for a metric that gives no number.
    """
    cells = texts.cells()
    zero = next((cell for cell in cells if cell.get("coeff") == 0), None)
    measured = []
    for metric in metrics:
        by_cell = [_by_prompt(texts, cell, metric) for cell in cells]
        reference = None if zero is None else by_cell[cells.index(zero)][0]
        for cell, (values, empty) in zip(cells, by_cell, strict=True):
            low, high = bootstrap_interval(values)
            paired = None
            if reference is not None and cell is not zero:
                paired = paired_difference(values, reference)
            measured.append(
                Measured(
                    labels=cell,
                    metric=name_of(metric),
                    mean=float(np.nanmean(values)) if np.isfinite(values).any() else float("nan"),
                    low=low,
                    high=high,
                    prompts=int(np.isfinite(values).sum()),
                    empty=empty,
                    difference=None if paired is None else paired.diff,
                    p=None if paired is None else paired.p_value,
                )
            )
    return measured


def name_of(metric: Metric) -> str:
    """What a table calls a metric."""
    return getattr(metric, "__name__", type(metric).__name__)


def _by_prompt(texts: Texts, cell: Mapping[str, Any], metric: Metric) -> tuple[np.ndarray, int]:
    """The metric's mean by prompt `[P]`, NaN where none of its texts has one; texts without one."""
    count = 1 + max(row.prompt for row in texts)
    values: list[list[float]] = [[] for _ in range(count)]
    empty = 0
    for row in _of(texts, cell):
        number = _number(metric, row)
        if np.isfinite(number):
            values[row.prompt].append(number)
        else:
            empty += 1
    means = [float(np.mean(v)) if v else float("nan") for v in values]
    return np.array(means), empty


def _of(texts: Texts, cell: Mapping[str, Any]) -> list[Text]:
    return [row for row in texts if row.labels == cell]


def _number(metric: Metric, row: Text) -> float:
    value = metric(row.text)
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name_of(metric)}: got {value!r:.80}, expected a number") from None

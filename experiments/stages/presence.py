"""Where a direction is present in traces, and where backtracking is: the statistics of Figure 6.

Every trace is projected on the direction that the *other* folds of the traces gave, in standard
deviations of their tokens from their tokens' mean, so nothing is judged on what it was made from.
A sentence's score is the mean over the direction's offsets before it; sentences whose window is not
wholly in the trace have none. Traces are the units of all intervals.

The rules of C8, fixed here: the direction is *absent* before a sentence if its score is at or below
the median of all sentences' scores, and *present* before as many sentences as backtrack, those with
the highest scores. So of a perfect detector no exception is left, in either half, and of a random
score what chance gives. Shares have the wider of Wilson's interval and the bootstrap over traces,
at each end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.stages.groups import Groups
from jaxsteer.analysis import (
    Auroc,
    auroc,
    bootstrap_interval,
    excess_kurtosis,
    mean_se,
    wilson_interval,
)
from jaxsteer.directions import Trace

ABSENT_UP_TO = 0.5  # quantile of all sentences' scores
CURVE = tuple(range(-30, 11))  # tokens from the start of a sentence
EDGES = np.linspace(-4, 4, 41)  # of histograms; what is outside counts in the last bins

_NORMAL_95 = 1.96
_CURVE_RESAMPLES = 200


@dataclass(frozen=True)
class Layout:
    """Where the tokens of all traces, one after another, and their sentences are.

    N tokens, S sentences, O offsets.
    """

    offsets: tuple[int, ...]  # tokens from the start of a sentence
    text: NDArray[np.int64]  # [N], the trace of each token
    reasoning: NDArray[np.bool_]  # [N], not of the prompt
    on: NDArray[np.bool_]  # [N], in a backtracking sentence
    at: NDArray[np.int64]  # [S, O], the token at each offset; -1 if it is not reasoning
    positive: NDArray[np.bool_]  # [S]
    sentence_text: NDArray[np.int64]  # [S], the trace of each sentence

    def columns(self, offsets: Sequence[int]) -> list[int]:
        """Where in `offsets` some of them are."""
        return [self.offsets.index(offset) for offset in offsets]


def layout(traces: Sequence[Trace], window: Sequence[int]) -> Layout:
    """Lay the traces' tokens side by side; a sentence goes on until the next one starts.

    The offsets are those of `CURVE` and of the window.
    """
    offsets = tuple(sorted({*CURVE, *window}))
    first = np.cumsum([0, *(len(trace.tokens) for trace in traces)])
    reasoning, on = np.zeros(first[-1], bool), np.zeros(first[-1], bool)
    at: list[NDArray[np.int64]] = []
    for begin, trace in zip(first, traces, strict=False):
        length = len(trace.tokens)
        reasoning[begin + trace.prompt_length : begin + length] = True
        stops = [*trace.starts[1:], length]
        for start, stop, positive in zip(trace.starts, stops, trace.positive, strict=True):
            on[begin + start : begin + stop] = positive
            place = start + np.array(offsets)
            inside = (place >= trace.prompt_length) & (place < length)
            at.append(np.where(inside, begin + place, -1))
    counts = [len(trace.starts) for trace in traces]
    return Layout(
        offsets=offsets,
        text=np.repeat(np.arange(len(traces)), [len(trace.tokens) for trace in traces]),
        reasoning=reasoning,
        on=on,
        at=np.array(at, np.int64).reshape(-1, len(offsets)),
        positive=np.array([p for trace in traces for p in trace.positive], bool),
        sentence_text=np.repeat(np.arange(len(traces)), counts),
    )


def fold_directions(groups: Groups, folds: int) -> list[NDArray[np.float64]]:
    """For each fold the direction `[D]` of all groups but its own; group g is in fold g % folds."""
    count = len(groups.total)
    return [
        groups.direction(groups=[g for g in range(count) if g % folds != fold])
        for fold in range(folds)
    ]


def standardised(
    projections: NDArray[np.float32], where: Layout, fold_of_text: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Scores `[N]`: each token on its fold's direction, in units of the other folds' tokens.

    `projections` `[folds, N]` has every token on every fold's direction.
    """
    scores = np.empty(projections.shape[1])
    fold = fold_of_text[where.text]
    for k, row in enumerate(projections.astype(np.float64)):
        others = row[where.reasoning & (fold != k)]
        scores[fold == k] = (row[fold == k] - others.mean()) / others.std()
    return scores


def around(scores: NDArray, where: Layout) -> NDArray[np.float64]:
    """Scores `[S, O]` around every sentence's start; NaN where there is no such token."""
    return np.where(where.at >= 0, scores[where.at], np.nan)


def before(scores: NDArray, where: Layout, offsets: Sequence[int]) -> NDArray[np.float64]:
    """Each sentence's score `[S]`: the mean over the window; NaN unless all of it is there."""
    return around(scores, where)[:, where.columns(offsets)].mean(axis=1)


def detection(score: NDArray, where: Layout, *, n_resamples: int = 1000) -> Auroc:
    """How well a score `[S]` of sentences tells those that backtrack."""
    known = ~np.isnan(score)
    return auroc(
        score[known],
        where.positive[known],
        groups=where.sentence_text[known],
        n_resamples=n_resamples,
    )


def curves(scores: NDArray, where: Layout) -> dict[str, Any]:
    """Mean score and 95% interval at each offset around either kind of sentence, and AUROC."""
    windows = around(scores, where)
    out: dict[str, Any] = {"offsets": list(where.offsets)}
    for name, kind in (("backtracking", where.positive), ("other", ~where.positive)):
        means = [mean_se(column[kind], groups=where.sentence_text[kind]) for column in windows.T]
        out[name] = {
            "mean": [m.mean for m in means],
            "low": [m.mean - _NORMAL_95 * m.se for m in means],
            "high": [m.mean + _NORMAL_95 * m.se for m in means],
            "n": [int(n) for n in (~np.isnan(windows[kind])).sum(axis=0)],
        }
    areas = [detection(column, where, n_resamples=_CURVE_RESAMPLES) for column in windows.T]
    out["auroc"] = {name: [getattr(a, name) for a in areas] for name in ("mean", "low", "high")}
    return out


def share(hits: NDArray, texts: NDArray, *, n_resamples: int = 2000) -> dict[str, float | int]:
    """The share of `hits` `[N]`, its interval over the texts `[N]`, and N."""
    n = len(hits)
    if not n:
        return {"share": float("nan"), "low": 0.0, "high": 1.0, "n": 0}
    wilson = wilson_interval(int(hits.sum()), n)
    drawn = bootstrap_interval(
        hits.astype(float), groups=texts, limits=(0, 1), n_resamples=n_resamples
    )
    low, high = min(wilson[0], drawn[0]), max(wilson[1], drawn[1])
    return {"share": float(hits.mean()), "low": low, "high": high, "n": n}


def presence(score: NDArray, where: Layout, *, n_resamples: int = 2000) -> dict[str, Any]:
    """C8 by the rules above; `prevalence` is the share of the sentences that backtrack."""
    known = ~np.isnan(score)
    score, positive, text = score[known], where.positive[known], where.sentence_text[known]
    if not positive.any():
        nothing = share(positive[:0], text[:0])
        return {
            "n_sentences": len(score),
            "prevalence": 0.0,
            "without_direction": nothing,
            "without_backtracking": nothing,
        }
    prevalence = float(positive.mean())
    absent = score <= np.quantile(score, ABSENT_UP_TO)
    present = score > np.quantile(score, 1 - prevalence)
    return {
        "n_sentences": len(score),
        "prevalence": prevalence,
        "without_direction": share(absent[positive], text[positive], n_resamples=n_resamples),
        "without_backtracking": share(~positive[present], text[present], n_resamples=n_resamples),
    }


def dense(
    scores: NDArray, where: Layout, offsets: Sequence[int], values: NDArray, variance: float
) -> dict[str, Any]:
    """C7: whether the direction is there by degrees everywhere, or silent but for its events.

    `share_above_events` is the share of all reasoning tokens whose score exceeds the median score
    of the window's tokens before backtracking. `excess_kurtosis` is near 0 for what is always
    there. `values` `[N]` are the tokens on the direction of length 1; `variance_explained` is
    their variance over that of the whole stream, where the direction was read.
    """
    events = around(scores, where)[where.positive][:, where.columns(offsets)]
    above = scores[where.reasoning] > np.nanmedian(events)
    return {
        "share_above_events": share(above, where.text[where.reasoning]),
        "excess_kurtosis": excess_kurtosis(values[where.reasoning]),
        "variance_explained": variance_along(values, where, offsets) / variance,
    }


def variance_along(values: NDArray, where: Layout, offsets: Sequence[int]) -> float:
    """The variance of tokens on a direction, in the windows before all sentences."""
    at = where.at[:, where.columns(offsets)]
    return float(values[at[at >= 0]].astype(np.float64).var())


def histograms(score: NDArray, scores: NDArray, where: Layout) -> dict[str, Any]:
    """Counts of sentences and of tokens by their score, on and off backtracking."""

    def count(x: NDArray) -> list[int]:
        kept = np.clip(x[~np.isnan(x)], EDGES[0], EDGES[-1])
        return np.histogram(kept, EDGES)[0].tolist()

    return {
        "edges": EDGES.tolist(),
        "sentences_backtracking": count(score[where.positive]),
        "sentences_other": count(score[~where.positive]),
        "tokens_backtracking": count(scores[where.reasoning & where.on]),
        "tokens_other": count(scores[where.reasoning & ~where.on]),
    }

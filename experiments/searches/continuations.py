"""Backtracking sentences of a run's traces as targets to learn from, and as events to read at."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxsteer.directions import Targets, Trace, make_targets
from jaxsteer.llama import Model, TokenBatch, bucket, forward, left_pad, spread_rows
from jaxsteer.runtime import hosts
from jaxsteer.steering import Capture

Span = tuple[int, int]


@dataclass(frozen=True)
class Texts:
    """Traces with a backtracking sentence, some to learn from and others to judge by."""

    learn: list[Trace]
    judge: list[Trace]


def spans(trace: Trace, *, tokens: int) -> list[Span]:
    """Token indices of the backtracking sentences that end within the first `tokens` tokens.

    >>> labels = ["other", "backtracking", "backtracking"]
    >>> spans(Trace(list(range(9)), 2, [2, 4, 7], labels), tokens=8)
    [(4, 7)]
    """
    ends = [*trace.starts[1:], len(trace.tokens)]
    sentences = zip(trace.starts, ends, trace.positive, strict=True)
    return [
        (start, stop)
        for start, stop, positive in sentences
        if positive and trace.prompt_length <= start < stop <= tokens
    ]


def split(traces: Sequence[Trace], *, tokens: int, held_out: int) -> Texts:
    """Those with a backtracking sentence; of these, each `held_out`-th is left to judge by.

    Raises:
        ValueError: if there are not enough of them for either.
    """
    with_events = [trace for trace in traces if spans(trace, tokens=tokens)]
    judge = with_events[held_out - 1 :: held_out]
    if not judge:
        raise ValueError(
            f"search: {len(with_events)} texts have a backtracking sentence within {tokens} "
            f"tokens, expected at least {held_out}"
        )
    return Texts([t for i, t in enumerate(with_events) if i % held_out != held_out - 1], judge)


def sentence_targets(traces: Sequence[Trace], *, tokens: int) -> Targets:
    """The backtracking sentences' tokens."""
    return _targets(traces, [spans(trace, tokens=tokens) for trace in traces])


def answer_targets(traces: Sequence[Trace], *, tokens: int) -> Targets:
    """All of the answers' tokens up to the end of the last backtracking sentence."""
    last = [spans(trace, tokens=tokens)[-1][1] for trace in traces]
    return _targets(
        traces, [[(trace.prompt_length, stop)] for trace, stop in zip(traces, last, strict=True)]
    )


def _targets(traces: Sequence[Trace], spans_of_texts: Sequence[Sequence[Span]]) -> Targets:
    return make_targets(
        [t.tokens for t in traces], [t.prompt_length for t in traces], spans_of_texts
    )


def within(targets: Targets, spans_of_texts: Sequence[Sequence[Span]]) -> np.ndarray:
    """Which of the targets lie in the spans of their row, bool `[B, P]`."""
    position = np.asarray(targets.position)
    return np.stack(
        [
            np.any([(row >= start) & (row < stop) for start, stop in of_row], axis=0)
            for row, of_row in zip(position, spans_of_texts, strict=True)
        ]
    )


def event_pairs(
    traces: Sequence[Trace], offsets: Sequence[int], *, seed: int = 0
) -> tuple[list[list[int]], list[list[int]]]:
    """For each trace: its backtracking sentences, and as many others of it, drawn at random.

    Numbers of sentences, at which at least one offset lies in the answer. A trace with more
    backtracking sentences than others gives as many of them as it has others.
    """
    random = np.random.default_rng(seed)
    events, others = [], []
    for trace in traces:
        readable = [i for i, start in enumerate(trace.starts) if _positions(trace, start, offsets)]
        positive = [i for i in readable if trace.positive[i]]
        negative = [i for i in readable if not trace.positive[i]]
        count = min(len(positive), len(negative))
        events.append(positive[:count])
        others.append(sorted(random.permutation(negative)[:count].tolist()))
    return events, others


def event_activations(
    model: Model,
    traces: Sequence[Trace],
    sentences: Sequence[Sequence[int]],
    *,
    offsets: Sequence[int],
    layers: Sequence[int],
    site: str,
    rows: int = 16,
) -> np.ndarray:
    """The mean activation over the offsets before each sentence, float32 `[len(layers), n, D]`.

    Sentences come trace by trace. An offset that would reach into the prompt is left out.
    """
    wanted = [
        [_positions(trace, trace.starts[i], offsets) for i in of_trace]
        for trace, of_trace in zip(traces, sentences, strict=True)
    ]
    kept = [(trace, events) for trace, events in zip(traces, wanted, strict=True) if events]
    length = bucket(max(len(trace.tokens) for trace, _ in kept), step=16)
    most = max(len(events) for _, events in kept)
    means = []
    for first in range(0, len(kept), rows):
        chunk = kept[first : first + rows]
        table = np.full((rows, most, len(offsets)), -1, np.int32)
        for row, (_, events) in zip(table, chunk, strict=False):
            for cell, positions in zip(row, events, strict=False):
                cell[: len(positions)] = positions
        texts = [trace.tokens for trace, _ in chunk]
        batch = left_pad(texts + texts[:1] * (rows - len(chunk)), length=length)
        placed = spread_rows((batch, jnp.asarray(table.reshape(rows, -1))), model)
        read = hosts.gather(_read(model, *placed, tuple(layers), site)).astype(np.float32)
        read = np.nanmean(read.reshape(len(layers), *table.shape, -1)[:, table[..., 0] >= 0], 2)
        means.append(read)
    return np.concatenate(means, axis=1)


@functools.partial(jax.jit, static_argnames=("layers", "site"))
def _read(
    model: Model, batch: TokenBatch, positions: jax.Array, layers: tuple[int, ...], site: str
) -> jax.Array:
    capture = Capture(sites=(site,), layers=layers, positions=positions)
    out = forward(model, batch.tokens, mask=batch.mask, capture=capture, last_only=True)
    return out.captured[site]


def _positions(trace: Trace, start: int, offsets: Sequence[int]) -> list[int]:
    shifted = [start + offset for offset in offsets]
    return [p for p in shifted if trace.prompt_length <= p < len(trace.tokens)]

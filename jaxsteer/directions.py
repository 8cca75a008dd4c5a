"""Directions from activations: difference of means at offsets before sentences, and baselines.

The paper's Eq. 3: `v = mean(D+) - mean(D)`, where D+ holds the activations at a token offset
before the start of each *backtracking* sentence and D those at the same offset before *every*
sentence. (Not mean(D+) - mean(D-): the two differ by the factor 1 - |D+| / |D|.)
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxsteer.capture import Capture
from jaxsteer.model import Model, forward
from jaxsteer.sharding import spread_rows
from jaxsteer.tokens import TokenBatch, check_batch, left_pad


@dataclass(frozen=True)
class Trace:
    """The tokens of one text and where its sentences start."""

    tokens: Sequence[int]  # the prompt's, then the reasoning's
    prompt_length: int  # activations are read behind the prompt only
    starts: Sequence[int]  # index of each sentence's first token
    positive: Sequence[bool]  # whether each sentence is one of D+


@dataclass(frozen=True)
class Sums:
    """Sums of activations at O offsets before sentences, for L layers; add them up with `+`."""

    total: np.ndarray  # float64 [L, O, D], over D
    positive: np.ndarray  # float64 [L, O, D], over D+
    squares: np.ndarray  # float64 [L, O, D], of x², over D
    n_total: np.ndarray  # int64 [O]
    n_positive: np.ndarray  # int64 [O]

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(
            self.total + other.total,
            self.positive + other.positive,
            self.squares + other.squares,
            self.n_total + other.n_total,
            self.n_positive + other.n_positive,
        )


def at_offsets(sums: Sums, indices: Sequence[int]) -> Sums:
    """The sums at some of the offsets only, by their place among those that were read."""
    at = list(indices)
    return Sums(
        sums.total[:, at],
        sums.positive[:, at],
        sums.squares[:, at],
        sums.n_total[at],
        sums.n_positive[at],
    )


def event_weights(traces: Sequence[Trace], offsets: Sequence[int], length: int) -> np.ndarray:
    """What to sum, float32 `[B, length, 2·O]`: D at each offset, then D+ at each offset.

    Rows are left-padded to `length`. An offset that would reach into the prompt, or past the end
    of the text, is left out for that sentence.
    """
    O = len(offsets)  # noqa: E741 - the letter of the shapes
    weights = np.zeros((len(traces), length, 2 * O), np.float32)
    for b, trace in enumerate(traces):
        padding = length - len(trace.tokens)
        for start, positive in zip(trace.starts, trace.positive, strict=True):
            for o, offset in enumerate(offsets):
                at = start + offset
                if trace.prompt_length <= at < len(trace.tokens):
                    # Two sentences can share a token at different distances, never at one.
                    weights[b, padding + at, o] += 1
                    weights[b, padding + at, O + o] += positive
    return weights


@functools.partial(jax.jit, static_argnames="site")
def _weighted_sums(model: Model, batch: TokenBatch, weights: jax.Array, site: str) -> jax.Array:
    capture = Capture(sites=(site,), weights=weights, squares=True)
    # The logits are not used, so the compiler leaves the unembedding out.
    return forward(model, batch.tokens, mask=batch.mask, capture=capture).captured[site]


def activation_sums(
    model: Model,
    traces: Sequence[Trace],
    *,
    offsets: Sequence[int],
    site: str = "resid_post",
    length: int | None = None,
) -> Sums:
    """Sums over one batch of traces for every layer and offset, in one forward pass.

    Pass a common `length` for all batches so that they share one compiled program. Activations
    stay on the device; L · 4 · O · D numbers come back.

    Raises:
        ValueError: for no offsets, or traces that do not fit the model or `length`.
    """
    if not offsets:
        raise ValueError("offsets: got none, expected at least one")
    batch = left_pad([trace.tokens for trace in traces], length=length)
    check_batch(batch, model.config)
    weights = event_weights(traces, offsets, batch.tokens.shape[1])
    placed = spread_rows((batch, jnp.asarray(weights)), model)
    sums = np.asarray(_weighted_sums(model, *placed, site), np.float64)
    counts = weights.sum(axis=(0, 1)).astype(np.int64)
    n = len(offsets)
    return Sums(sums[:, 0, :n], sums[:, 0, n:], sums[:, 1, :n], counts[:n], counts[n:])


def total_sums(parts: Iterable[Sums]) -> Sums:
    """The sum of all parts; raises `ValueError` if there is none."""
    parts = list(parts)
    if not parts:
        raise ValueError("traces: got none, expected at least one")
    return functools.reduce(lambda a, b: a + b, parts)


def difference_of_means(sums: Sums) -> np.ndarray:
    """Eq. 3 at each offset: mean(D+) - mean(D), float32 `[L, O, D]`.

    Raises:
        ValueError: if an offset has no activations in D+.
    """
    if not sums.n_positive.all():
        raise ValueError(
            "no activations before a positive sentence: "
            f"counts of D+ by offset are {sums.n_positive.tolist()}"
        )
    positive = sums.positive / sums.n_positive[:, None]
    return (positive - sums.total / sums.n_total[:, None]).astype(np.float32)


def window_direction(sums: Sums) -> np.ndarray:
    """The mean of Eq. 3 over the offsets, float32 `[L, D]`: the direction of a window."""
    return difference_of_means(sums).mean(axis=1)


def mean_activation(sums: Sums) -> np.ndarray:
    """Mean activation over D, float32 `[L, D]`: a baseline of Figure 4."""
    return (sums.total / sums.n_total[:, None]).mean(axis=1).astype(np.float32)


def residual_norm(sums: Sums) -> np.ndarray:
    """Root mean square length of the activations in D, float32 `[L]`: a unit for coefficients."""
    mean_square = (sums.squares / sums.n_total[:, None]).sum(axis=-1)  # [L, O]
    return np.sqrt(mean_square.mean(axis=1)).astype(np.float32)


def random_directions(count: int, width: int, *, seed: int = 0) -> np.ndarray:
    """Directions drawn uniformly from the sphere, each of length 1, float32 `[count, width]`."""
    draws = np.random.default_rng(seed).normal(size=(count, width))
    return (draws / np.linalg.norm(draws, axis=1, keepdims=True)).astype(np.float32)


def rescale(vector: np.ndarray, length: float) -> np.ndarray:
    """The vector `[D]` at another length.

    >>> rescale(np.array([3.0, 4.0]), 10.0).tolist()
    [6.0, 8.0]

    Raises:
        ValueError: for a vector of zeros, which has no direction.
    """
    norm = float(np.linalg.norm(vector))
    if norm == 0:
        raise ValueError("vector: got zeros, which have no direction to rescale")
    return (vector * (length / norm)).astype(np.float32)

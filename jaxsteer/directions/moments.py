"""Moments of activations by behaviour and token offset, and the directions that follow from them.

D holds the activations at a token offset from the start of *every* sentence, D+ those of the
sentences with one label, D- the rest. The paper's Eq. 3 is mean(D+) - mean(D); mean(D+) - mean(D-)
is longer by the factor 1 / (1 - |D+| / |D|). Both need sums and squared sums only, so activations
can stay on the device (`activations.activation_moments`).

Letters: K labels, O offsets, L layers, D width.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Literal

import numpy as np

Against = Literal["all", "rest"]


@dataclass(frozen=True, eq=False)
class Moments:
    """Counts, sums and squared sums of activations; add those of other traces with `+`.

    Every sentence has exactly one label. `count` is smaller than `sentences` where an offset
    reaches into the prompt, or past the end of the text: such a sentence is left out there.
    """

    labels: tuple[str, ...]  # K, the behaviours
    offsets: tuple[int, ...]  # O, in tokens from a sentence's first
    sentences: np.ndarray  # int64 [K], sentences with the label
    count: np.ndarray  # int64 [K, O], how many of them have a token there
    total: np.ndarray  # float64 [L, K, O, D]
    squares: np.ndarray  # float64 [L, K, O, D], sums of x²

    def __post_init__(self) -> None:
        shape = len(self.labels), len(self.offsets)
        shapes = [self.sentences.shape, self.count.shape, self.total.shape, self.squares.shape]
        L, *_, D = self.total.shape
        if shapes != [shape[:1], shape, (L, *shape, D), (L, *shape, D)]:
            raise ValueError(
                f"moments: got shapes {shapes} for {shape[0]} labels and {shape[1]} offsets"
            )

    def __add__(self, other: "Moments") -> "Moments":
        if (self.labels, self.offsets) != (other.labels, other.offsets):
            raise ValueError(
                f"moments: got {other.labels} at {other.offsets}, to be added to {self.labels} "
                f"at {self.offsets}: expected the same labels and offsets in the same order"
            )
        return replace(
            self,
            sentences=self.sentences + other.sentences,
            count=self.count + other.count,
            total=self.total + other.total,
            squares=self.squares + other.squares,
        )

    def at(self, offsets: Sequence[int]) -> "Moments":
        """The moments at some of the offsets only, in the order given.

        Raises:
            ValueError: for an offset that was not read.
        """
        missing = [offset for offset in offsets if offset not in self.offsets]
        if missing or not offsets:
            raise ValueError(f"offsets: got {list(offsets)}, expected some of {list(self.offsets)}")
        o = [self.offsets.index(offset) for offset in offsets]
        return replace(
            self,
            offsets=tuple(offsets),
            count=self.count[:, o],
            total=self.total[:, :, o],
            squares=self.squares[:, :, o],
        )


def add_up(parts: Iterable[Moments]) -> Moments:
    """The sum of all parts; raises `ValueError` if there is none."""
    parts = list(parts)
    if not parts:
        raise ValueError("moments: got none, expected at least one")
    return reduce(lambda a, b: a + b, parts)


def difference_of_means(moments: Moments, label: str, *, against: Against = "all") -> np.ndarray:
    """mean(D+) - mean(D) at each offset (Eq. 3), or mean(D+) - mean(D-), float32 `[L, O, D]`.

    NaN at offsets where one of the two has no activations.

    Args:
        moments: of activations.
        label: of D+.
        against: "all" for D, "rest" for D-, the sentences with any other label.
    """
    k, other = _sides(moments, label, against)
    return (_mean(moments, [k]) - _mean(moments, other)).astype(np.float32)


def standard_error(parts: Sequence[Moments], label: str, *, against: Against = "all") -> np.ndarray:
    """Standard error of `difference_of_means` of all parts, float64 `[L, O, D]`, by coordinate.

    Sentences of one trace are dependent, so the jackknife leaves out one part of whole traces at a
    time; parts are of similar size. With G parts an error has a relative error of
    `1 / sqrt(2 (G - 1))`; that of its Euclidean length over many coordinates is smaller. NaN for
    fewer than two parts, and at offsets where leaving one out leaves no activations.

    Args:
        parts: moments of disjoint sets of traces, of the same labels and offsets.
        label: of D+.
        against: "all" for D, "rest" for D-.
    """
    whole = add_up(parts)
    k, other = _sides(whole, label, against)
    if len(parts) < 2:
        return np.full(whole.total[:, 0].shape, np.nan)

    def without(part: Moments, labels: list[int]) -> np.ndarray:
        count = (whole.count - part.count)[labels].sum(axis=0)
        total = whole.total[:, labels].sum(axis=1) - part.total[:, labels].sum(axis=1)
        return _ratio(total, count)

    replicates = np.array([without(part, [k]) - without(part, other) for part in parts])
    return np.sqrt((len(parts) - 1) * replicates.var(axis=0))


def window_direction(moments: Moments, label: str, *, against: Against = "all") -> np.ndarray:
    """The direction of a window: `difference_of_means` averaged over offsets, float32 `[L, D]`.

    Raises:
        ValueError: if an offset has no activations of the label, or of others.
    """
    k, other = _sides(moments, label, against)
    counts = moments.count[k], moments.count[other].sum(axis=0)
    if not np.all(counts):
        raise ValueError(
            f"no activations at an offset: of sentences that are {label!r} there are "
            f"{counts[0].tolist()} at offsets {list(moments.offsets)}, of {against} "
            f"{counts[1].tolist()}"
        )
    return difference_of_means(moments, label, against=against).mean(axis=1)


def mean_activation(moments: Moments) -> np.ndarray:
    """Mean activation over D, averaged over the offsets, float32 `[L, D]`: a baseline of Figure 4.

    Raises:
        ValueError: if an offset has no activations.
    """
    _check_any(moments)
    return _mean(moments, _every(moments)).mean(axis=1).astype(np.float32)


def residual_norm(moments: Moments) -> np.ndarray:
    """Root mean square length of the activations in D, float32 `[L]`: a unit for coefficients.

    Raises:
        ValueError: if an offset has no activations.
    """
    _check_any(moments)
    count = moments.count.sum(axis=0)
    mean_square = moments.squares.sum(axis=(1, 3)) / count  # [L, O]
    return np.sqrt(mean_square.mean(axis=1)).astype(np.float32)


def split_half_reliability(
    one: Moments, other: Moments, label: str, *, against: Against = "all"
) -> np.ndarray:
    """Cosine of the directions of two halves of the traces, float64 `[L, O]`.

    1 for a direction without noise, about 0 for noise alone. NaN at offsets where a half has no
    activations of the label.
    """
    directions = (difference_of_means(half, label, against=against) for half in (one, other))
    return cosines(*directions)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosines between two stacks of vectors `[..., D]`, float64 `[...]`; NaN for zeros or NaN.

    >>> cosines(np.array([[1.0, 0.0], [0.0, 0.0]]), np.array([[3.0, 4.0], [1.0, 0.0]])).tolist()
    [0.6, nan]
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.sum(a * b, axis=-1) / norms


def _sides(moments: Moments, label: str, against: Against) -> tuple[int, list[int]]:
    """The index of the label, and the indices of the labels that it is compared with."""
    if label not in moments.labels:
        raise ValueError(f"label: got {label!r}, expected one of {', '.join(moments.labels)}")
    if against not in ("all", "rest"):
        raise ValueError(f"against: got {against!r}, expected 'all' or 'rest'")
    k = moments.labels.index(label)
    return k, [i for i in _every(moments) if against == "all" or i != k]


def _every(moments: Moments) -> list[int]:
    return list(range(len(moments.labels)))


def _mean(moments: Moments, labels: list[int]) -> np.ndarray:
    """Mean over the sentences with any of the labels, float64 `[L, O, D]`."""
    return _ratio(moments.total[:, labels].sum(axis=1), moments.count[labels].sum(axis=0))


def _ratio(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Sums `[L, O, D]` over counts `[O]`; NaN for none."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count[:, None] > 0, total / count[:, None], np.nan)


def _check_any(moments: Moments) -> None:
    count = moments.count.sum(axis=0)
    if not count.all():
        raise ValueError(
            f"no activations at an offset: counts are {count.tolist()} at offsets "
            f"{list(moments.offsets)}"
        )

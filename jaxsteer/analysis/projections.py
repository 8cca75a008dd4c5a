"""Projections of a model's stream on directions, and how well they tell events from the rest.

Only scalars leave the device: a pass over a batch brings back one number for each direction and
token. The statistics are over texts, which are the independent units: tokens and sentences of one
text go together.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxsteer.analysis.metrics import percentile_interval, resamples
from jaxsteer.directions import equal_rows
from jaxsteer.llama import (
    Model,
    TokenBatch,
    TokenRows,
    as_batch,
    bucket,
    check_batch,
    forward,
    left_pad,
    spread_rows,
)
from jaxsteer.runtime import hosts
from jaxsteer.steering import (
    SITES,
    Capture,
    Project,
    Vectors,
    as_arrays,
    check_layers,
    own_layers,
    site_index,
    site_width,
)


def project(
    model: Model,
    batch: TokenBatch | TokenRows,
    directions: Vectors,
    layers: ArrayLike | None = None,
    *,
    site: str = "resid_post",
) -> np.ndarray:
    """Products of the unsteered stream with directions, float32 `[R, B, T]`; NaN on padding.

    Directions and layers are data: other values of the same shapes run the same program. (Only how
    far the pass goes is compiled in: to the deepest layer asked for.) The products are made in
    float32, and directions are used as they are, at their own length.

    Args:
        model: the model, also one on a mesh.
        batch: token rows, left-padded or to be.
        directions: `[R, D]`, or a list of `Direction`.
        layers: int `[R]`, the layer at which each direction is read, counted from 0; its own, if
            not given.
        site: one of `SITES`, the same for all.

    Raises:
        ValueError: for directions or layers that do not fit the model or each other, or a batch
            that does not fit the model.
    """
    batch = as_batch(batch)
    vectors = np.asarray(as_arrays(directions), np.float32)
    at = np.asarray(own_layers(directions) if layers is None else layers)
    site = SITES[site_index(site)]
    width = site_width(site, model.config)
    if vectors.ndim != 2 or not len(vectors) or vectors.shape[1] != width:
        raise ValueError(f"directions: got shape {vectors.shape}, expected [R, {width}]")
    if not np.isfinite(vectors).all():
        raise ValueError("directions: got NaN or infinity, expected finite numbers in float32")
    if at.shape != (len(vectors),) or not np.issubdtype(at.dtype, np.integer):
        raise ValueError(f"layers: got {at.dtype} {at.shape}, expected integers ({len(vectors)},)")
    check_layers("layers", at, model.config)
    check_batch(batch, model.config)
    placed = spread_rows(batch, model)
    last = int(at.max())
    projections = _project(model, placed, jnp.asarray(vectors), jnp.asarray(at), site, last)
    return hosts.gather(projections)


def _projections(
    model: Model, batch: TokenBatch, directions: jax.Array, layers: jax.Array, site: str, last: int
) -> jax.Array:
    capture = Capture(sites=(site,), layers=range(last + 1), read=Project(directions))
    # What comes behind the last layer is not used, so the compiler leaves it out.
    products = forward(model, batch.tokens, mask=batch.mask, capture=capture).captured[site]
    own = products[layers, jnp.arange(len(layers))]  # [R, B, T]
    return jnp.where(batch.mask, own, jnp.nan)


_project = jax.jit(_projections, static_argnames=("site", "last"))


def project_texts(
    model: Model,
    texts: Sequence[Sequence[int]],
    directions: Vectors,
    layers: ArrayLike | None = None,
    *,
    site: str = "resid_post",
    rows: int | None = None,
) -> Iterator[np.ndarray]:
    """Projections of each text in turn, float32 `[R, tokens of the text]`, in batches of one shape.

    `rows` texts run at a time; if not given, as many as make at most 32,768 tokens on a device.
    """
    length = bucket(max(map(len, texts), default=1))
    rows = equal_rows(model, len(texts), length) if rows is None else rows
    for first in range(0, len(texts), rows):
        some = texts[first : first + rows]
        filled = [*some, *[texts[0][:1]] * (rows - len(some))]
        projections = project(model, left_pad(filled, length=length), directions, layers, site=site)
        for row, text in enumerate(some):
            yield projections[:, row, length - len(text) :]


@dataclass(frozen=True)
class Auroc:
    """Area under the ROC curve with its interval over texts, and what it rests on."""

    mean: float  # NaN unless there are events and others
    low: float
    high: float
    n_events: int
    n_other: int
    n_texts: int


def auroc(
    scores: ArrayLike,
    events: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    level: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Auroc:
    """The chance that an event scores above another item, ties counting half.

    The interval is a percentile bootstrap that draws whole texts with replacement, so that the
    items of one text, which are alike, do not make it narrower. Resamples without an event or
    without another item have no value and are left out; with no resamples the interval is NaN.

    >>> found = auroc([1.0, 2.0, 2.0, 3.0], [False, False, True, True])
    >>> found.mean, found.n_events, found.n_other
    (0.875, 2, 2)

    Args:
        scores: `[N]`, one for each item.
        events: bool `[N]`.
        groups: `[N]`, the text of each item; by default each item is its own.
        level: the interval's coverage.
        n_resamples: how often the texts are drawn.
        seed: of the numpy generator.

    Raises:
        ValueError: for lengths that differ, or scores that are NaN.
    """
    values, positive = np.asarray(scores, np.float64), np.asarray(events, bool)
    names = np.arange(len(values)) if groups is None else np.asarray(groups)
    if values.ndim != 1 or values.shape != positive.shape or values.shape != names.shape:
        raise ValueError(
            f"scores, events and groups: got shapes {values.shape}, {positive.shape} and "
            f"{names.shape}, expected one [N]"
        )
    if np.isnan(values).any():
        raise ValueError("scores: got NaN, expected numbers (leave such items out)")
    texts, text = np.unique(names, return_inverse=True)
    n_events = int(positive.sum())
    counts = (n_events, len(values) - n_events, len(texts))
    if not n_events or n_events == len(values):
        return Auroc(float("nan"), float("nan"), float("nan"), *counts)
    ordered = _Ordered(values, positive, text)
    mean = ordered.area(np.ones((1, len(texts)), np.int64))[0]
    every = resamples(len(texts), n_resamples, seed, width=len(values))
    drawn = [ordered.area(times) for times in every]
    areas = np.concatenate(drawn) if drawn else np.array([])
    with_event = len(np.unique(text[positive]))  # without spread so many texts say all there is
    low, high = percentile_interval(areas, with_event, limits=(0, 1), level=level)
    return Auroc(float(mean), low, high, *counts)


class _Ordered:
    """Events and others by score, to be weighed by how often their texts were drawn.

    (`scipy.stats.mannwhitneyu` takes no weights.)
    """

    def __init__(self, values: NDArray, positive: NDArray, text: NDArray):
        order = np.flatnonzero(~positive)[np.argsort(values[~positive], kind="stable")]
        self.events, self.others = text[positive], text[order]
        # How many others score below each event, and how many at most as high.
        self.below = np.searchsorted(values[order], values[positive], side="left")
        self.up_to = np.searchsorted(values[order], values[positive], side="right")

    def area(self, times: NDArray) -> NDArray[np.float64]:
        """The AUROC of each resample; `times` `[S, texts]` says how often each text is in it."""
        weight = times.T.astype(np.int32)  # whole numbers: sums in any order are exact
        others = np.zeros((len(self.others) + 1, len(times)), np.int32)
        np.cumsum(weight[self.others], axis=0, out=others[1:])
        events = weight[self.events]
        wins = np.sum(events * (others[self.below].astype(np.float64) + others[self.up_to]), axis=0)
        pairs = events.sum(axis=0) * others[-1].astype(np.float64)
        with np.errstate(invalid="ignore"):
            return np.where(pairs > 0, wins / 2 / pairs, np.nan)


def excess_kurtosis(values: ArrayLike) -> float:
    """Fourth standardised moment less 3: near 0 for what is always there by degrees.

    Large where a direction is silent most of the time and loud at few tokens. NaN for no values or
    equal ones.

    >>> excess_kurtosis([0.0] * 99 + [1.0]) > 90
    True
    """
    x = np.asarray(values, np.float64)
    centred = x - x.mean() if x.size else x
    variance = float(np.mean(centred**2)) if x.size else 0.0
    return float(np.mean(centred**4)) / variance**2 - 3 if variance > 0 else float("nan")

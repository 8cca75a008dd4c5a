"""The statistics of C1: leads of one offset and layer over others, and whether either matters.

All of them are of a table of gains `[n, layers, offsets]` by prompt, in which NaN is unknown.
"""

import math
import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

PERMUTATIONS = 999

Floats = NDArray[np.float64]


def leads(table: NDArray, offsets: Sequence[int]) -> dict[str, Floats]:
    """By prompt, what C1 asks to be positive; see `optimum_before`."""
    at = np.asarray(offsets)
    before, after = np.flatnonzero(at < 0), np.flatnonzero(at >= 0)
    far = before[: max(1, len(before) // 3)]
    found = {name: np.full(len(table), math.nan) for name in ("after", "far", "layer")}
    for half in (0, 1):
        chooser, judged = table[half::2], table[1 - half :: 2]
        means = _nanmean(chooser, 0)
        profile = _nanmean(means - _nanmean(means, 1)[:, None], 0)
        if not len(after) or np.isnan(profile[before]).all():
            continue
        best = int(before[np.nanargmax(profile[before])])
        near = before[np.abs(before - best) <= 1]
        layers = _nanmean(means[:, near], 1)
        if np.isnan(layers).all():
            continue
        top, bottom = int(np.nanargmax(layers)), int(np.nanargmin(layers))
        # Within each layer, so that a layer that misses an offset tilts nothing.
        for name, others in (("after", after), ("far", far)):
            lead = judged[:, :, best] - _nanmean(judged[:, :, others], 2)
            found[name][1 - half :: 2] = _nanmean(lead, 1)
        found["layer"][1 - half :: 2] = _nanmean(judged[:, top, near] - judged[:, bottom, near], 1)
    return found


def permutation_p(table: NDArray, *, seed: int = 0) -> float:
    """The chance that the last axis of `[n, a, b]` matters as much if permuted within prompts."""
    profile = _nanmean(table - _nanmean(table, 2)[:, :, None], 1)
    profile = np.nan_to_num(profile)
    shuffled = np.random.default_rng(seed).permuted(
        np.broadcast_to(profile, (PERMUTATIONS, *profile.shape)), axis=2
    )
    spread = profile.mean(axis=0).var()
    return float((1 + np.sum(shuffled.mean(axis=1).var(axis=1) >= spread)) / (PERMUTATIONS + 1))


def _nanmean(values: NDArray, axis: int) -> NDArray:
    """The mean of what is known, NaN where nothing is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(values, axis=axis)

"""Directions that come from no activations, and directions at another length."""

import numpy as np

from jaxsteer.steering import Vectors, as_arrays


def random_directions(count: int, width: int, *, seed: int = 0) -> np.ndarray:
    """Directions drawn uniformly from the sphere, each of length 1, float32 `[count, width]`."""
    draws = np.random.default_rng(seed).normal(size=(count, width))
    return (draws / np.linalg.norm(draws, axis=1, keepdims=True)).astype(np.float32)


def rescale(vector: Vectors, length: float) -> np.ndarray:
    """The vector `[D]`, or a direction's, at another length.

    >>> rescale(np.array([3.0, 4.0]), 10.0).tolist()
    [6.0, 8.0]

    Raises:
        ValueError: for a vector of zeros, which has no direction.
    """
    vector = np.asarray(as_arrays(vector))
    norm = float(np.linalg.norm(vector))
    if norm == 0:
        raise ValueError("vector: got zeros, which have no direction to rescale")
    return (vector * (length / norm)).astype(np.float32)

"""jaxsteer.directions.controls: random directions, and other lengths of a direction."""

import numpy as np
import pytest

from jaxsteer.directions.controls import random_directions, rescale


def test_random_directions_are_unit_and_uniform():
    draws = random_directions(4000, 3, seed=1)
    np.testing.assert_allclose(np.linalg.norm(draws, axis=1), 1, rtol=1e-6)
    # On the sphere of three dimensions each coordinate is uniform on [-1, 1] (Archimedes):
    # mean 0, variance 1/3; 4,000 draws have standard errors of .009 and .005.
    assert np.abs(draws.mean(axis=0)).max() < 0.04
    assert np.abs((draws**2).mean(axis=0) - 1 / 3).max() < 0.02
    np.testing.assert_array_equal(draws, random_directions(4000, 3, seed=1))
    assert not np.array_equal(draws, random_directions(4000, 3, seed=2))


def test_rescaling_keeps_the_direction():
    vector = random_directions(1, 8)[0] * 5
    found = rescale(vector, 2.0)
    assert np.linalg.norm(found) == pytest.approx(2.0, rel=1e-6)
    np.testing.assert_allclose(found * 2.5, vector, rtol=1e-5)
    with pytest.raises(ValueError, match="vector: got zeros"):
        rescale(np.zeros(4), 1.0)

"""jaxsteer.directions.probe: components and probes are what linear algebra and optimality say."""

import numpy as np
import pytest

from jaxsteer.directions.probe import first_component, logistic_probe

D = 6


def events(n: int, shift: np.ndarray, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, D)) * [3, 1, 1, 1, 1, 0.2] + shift


def test_the_component_is_the_top_eigenvector_of_the_second_moment():
    positive, reference = events(40, np.eye(D)[1] * 2), events(40, np.zeros(D), seed=1)
    found = first_component(positive, reference)
    assert (found.dtype, found.shape) == (np.float32, (D,))
    difference = positive - reference
    vectors = np.linalg.eigh(difference.T @ difference).eigenvectors
    assert abs(found @ vectors[:, -1]) == pytest.approx(1, abs=1e-6)
    assert found @ difference.mean(axis=0) > 0
    np.testing.assert_allclose(first_component(reference, positive), -found, atol=1e-6)


def gradient(weights: np.ndarray, positive, negative, l2: float) -> tuple[np.ndarray, float]:
    """Of the stated objective at its best intercept, in float64, with respect to the weights."""
    centre = (positive.mean(axis=0) + negative.mean(axis=0)) / 2
    spread = [((x - centre) ** 2).mean() for x in (positive, negative)]
    deviation = np.sqrt(np.mean(spread))
    left, right = (positive - centre) / deviation, (negative - centre) / deviation
    w = weights.astype(np.float64) * deviation

    def slopes(b: float) -> tuple[np.ndarray, np.ndarray]:
        return -1 / (1 + np.exp(left @ w + b)), 1 / (1 + np.exp(-right @ w - b))

    low, high = -20.0, 20.0
    for _ in range(80):
        b = (low + high) / 2
        up, down = slopes(b)
        low, high = (b, high) if up.mean() + down.mean() < 0 else (low, b)
    up, down = slopes(b)
    data = (left.T @ up / len(left) + right.T @ down / len(right)) / 2
    return data + l2 * w, float(np.linalg.norm(data))


@pytest.mark.parametrize("l2", [0.01, 1.0])
def test_the_probe_is_the_optimum(l2):
    """The gradient vanishes there, for unequal numbers and activations far from 0."""
    positive, negative = events(30, np.full(D, 50.0) + np.eye(D)[5]), events(70, np.full(D, 50.0))
    found = logistic_probe(positive, negative, l2=l2)
    assert (found.dtype, found.shape) == (np.float32, (D,))
    left, scale = gradient(found, positive, negative, l2)
    assert np.linalg.norm(left) < 1e-3 * scale


def test_the_probe_finds_what_separates_and_not_what_is_large():
    positive, negative = events(200, np.eye(D)[5] * 0.5), events(200, np.zeros(D), seed=2)
    weak = logistic_probe(positive, negative, l2=1e-3)
    assert np.argmax(np.abs(weak)) == 5
    assert weak[5] > 0
    strong = logistic_probe(positive, negative, l2=1e4)
    means = positive.mean(axis=0) - negative.mean(axis=0)
    cosine = strong @ means / np.linalg.norm(strong) / np.linalg.norm(means)
    assert cosine > 0.9999


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: first_component([[1.0]], [[1.0], [2.0]]), r"reference: got \(2, 1\), expected"),
        (lambda: first_component([[1.0]], [[1.0]]), "expected differences"),
        (lambda: first_component([1.0], [[1.0]]), r"positive: got shape \(1,\), expected \[n, D\]"),
        (lambda: first_component([[np.nan]], [[1.0]]), "positive: got NaN"),
        (lambda: first_component([[1.0], [-1.0]], [[0.0], [0.0]]), "right angles to the mean"),
        (lambda: logistic_probe([[1.0]], [[1.0, 2.0]]), "negative: got width 2, expected 1"),
        (lambda: logistic_probe([[1.0]], [[1.0]]), "activations that do not vary"),
        (lambda: logistic_probe([[1.0]], [[2.0]], l2=0.0), "l2: got 0.0, expected"),
        (lambda: logistic_probe([[1.0]], [[2.0]], steps=0), "steps: got 0, expected at least 1"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()

"""directions.moments: statistics of the sums against those of the activations themselves."""

from dataclasses import replace

import numpy as np
import pytest

from jaxsteer.directions.moments import (
    Moments,
    add_up,
    cosines,
    difference_of_means,
    mean_activation,
    residual_norm,
    split_half_reliability,
    standard_error,
    window_direction,
)

LABELS, OFFSETS = ("backtracking", "deduction", "other"), (-3, -1, 2)
L, D = 2, 5
COUNTS = np.array([[4, 3, 5], [7, 6, 8], [9, 9, 2]])


def activations(seed: int, *, apart: float = 1.0) -> dict[tuple[str, int], np.ndarray]:
    """By label and offset, `[n, L, D]`: each label around a mean of its own."""
    rng = np.random.default_rng(seed)
    return {
        (label, offset): rng.normal(size=(COUNTS[k, o], L, D)) + 3 + apart * k
        for k, label in enumerate(LABELS)
        for o, offset in enumerate(OFFSETS)
    }


def moments_of(found: dict[tuple[str, int], np.ndarray]) -> Moments:
    def stack(power: int) -> np.ndarray:
        sums = [[np.sum(found[k, o] ** power, axis=0) for o in OFFSETS] for k in LABELS]
        return np.moveaxis(np.array(sums), 2, 0)  # [K, O, L, D] -> [L, K, O, D]

    count = np.array([[len(found[k, o]) for o in OFFSETS] for k in LABELS])
    return Moments(LABELS, OFFSETS, count.max(axis=1) + 1, count, stack(1), stack(2))


@pytest.fixture(scope="module")
def raw() -> dict[tuple[str, int], np.ndarray]:
    return activations(0)


@pytest.fixture(scope="module")
def moments(raw) -> Moments:
    return moments_of(raw)


def sides(raw, label: str, offset: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """D+, D and D- at an offset."""
    rest = np.concatenate([raw[k, offset] for k in LABELS if k != label])
    return raw[label, offset], np.concatenate([raw[label, offset], rest]), rest


@pytest.mark.parametrize("label", LABELS)
def test_differences_of_means(raw, moments, label):
    against_all = difference_of_means(moments, label)
    against_rest = difference_of_means(moments, label, against="rest")
    assert (against_all.shape, against_all.dtype) == ((L, len(OFFSETS), D), np.float32)
    for o, offset in enumerate(OFFSETS):
        plus, everything, rest = sides(raw, label, offset)
        right = plus.mean(axis=0) - everything.mean(axis=0)
        np.testing.assert_allclose(against_all[:, o], right, atol=1e-6)
        right = plus.mean(axis=0) - rest.mean(axis=0)
        np.testing.assert_allclose(against_rest[:, o], right, atol=1e-6)
        # The factor between the two conventions.
        share = 1 - len(plus) / len(everything)
        np.testing.assert_allclose(against_all[:, o], share * against_rest[:, o], atol=1e-6)
    window = window_direction(moments, label)
    np.testing.assert_allclose(window, against_all.mean(axis=1), atol=1e-7)
    rest = window_direction(moments, label, against="rest")
    np.testing.assert_allclose(rest, against_rest.mean(axis=1), atol=1e-7)


@pytest.mark.parametrize("against", ["all", "rest"])
def test_standard_errors_are_the_jackknife_over_parts(against):
    parts = [moments_of(activations(seed)) for seed in range(4)]
    found = standard_error(parts, "deduction", against=against)
    without = [
        difference_of_means(add_up(parts[:g] + parts[g + 1 :]), "deduction", against=against)
        for g in range(4)
    ]
    right = np.sqrt(3 / 4 * np.sum((np.array(without) - np.mean(without, axis=0)) ** 2, axis=0))
    np.testing.assert_allclose(found, right, rtol=1e-4)  # `without` is rounded to float32
    assert np.isnan(standard_error(parts[:1], "deduction", against=against)).all()


def test_standard_errors_are_the_spread_over_samples_whose_sentences_go_together():
    """Sentences of one trace share half of their variance, and a trace backtracks or does not.

    If sentences were the units, the error would come out at half of the truth.
    """

    def sample(seed: int) -> list[Moments]:
        rng = np.random.default_rng(seed)
        traces = []
        for t in range(24):  # of 8 sentences, every second trace of "backtracking" ones
            x = (rng.normal(size=(1, L, D)) + rng.normal(size=(8, L, D))) / np.sqrt(2)
            raw = {
                (k, o): x if k == LABELS[t % 2] else np.zeros((0, L, D))
                for k in LABELS
                for o in OFFSETS
            }
            traces.append(moments_of(raw))
        return [add_up(traces[2 * g : 2 * g + 2]) for g in range(12)]

    samples = [sample(seed) for seed in range(200)]
    found = [difference_of_means(add_up(parts), "backtracking")[:, 0] for parts in samples]
    errors = [standard_error(parts, "backtracking")[:, 0] for parts in samples]
    ratio = np.sqrt(np.mean(np.square(errors))) / np.sqrt(np.mean(np.square(found)))
    # 200 samples in 10 coordinates: a spread known to 1 / sqrt(2 · 2000) = 1.6%.
    assert ratio == pytest.approx(1, abs=0.06)


def test_an_offset_without_activations(moments):
    empty = moments.count.copy()
    empty[0, 1] = 0
    total = moments.total.copy()
    total[:, 0, 1] = 0
    hole = replace(moments, count=empty, total=total)
    found = difference_of_means(hole, "backtracking")
    assert np.isnan(found[:, 1]).all()
    assert np.isfinite(found[:, [0, 2]]).all()
    assert np.isfinite(difference_of_means(hole, "other")).all()
    with pytest.raises(ValueError, match=r"'backtracking' there are \[4, 0, 5\] at offsets \[-3"):
        window_direction(hole, "backtracking")
    window_direction(hole.at([-3, 2]), "backtracking")
    errors = standard_error([hole, hole], "backtracking")
    assert np.isnan(errors[:, 1]).all()
    assert np.isfinite(errors[:, [0, 2]]).all()


def test_mean_activation_and_length_over_all_sentences(raw, moments):
    by_offset = [np.concatenate([raw[k, offset] for k in LABELS]) for offset in OFFSETS]
    means = np.mean([x.mean(axis=0) for x in by_offset], axis=0)
    np.testing.assert_allclose(mean_activation(moments), means, rtol=1e-6)
    squares = np.mean([(x**2).sum(axis=-1).mean(axis=0) for x in by_offset], axis=0)
    np.testing.assert_allclose(residual_norm(moments), np.sqrt(squares), rtol=1e-6)
    none = replace(moments, count=np.zeros_like(moments.count))
    for function in (mean_activation, residual_norm):
        with pytest.raises(ValueError, match=r"counts are \[0, 0, 0\] at offsets \[-3, -1, 2\]"):
            function(none)


def test_reliability_is_the_cosine_of_two_halves(moments):
    other = moments_of(activations(1))
    found = split_half_reliability(moments, other, "backtracking")
    assert found.shape == (L, len(OFFSETS))
    a, b = (difference_of_means(m, "backtracking").astype(np.float64) for m in (moments, other))
    for layer, o in np.ndindex(L, len(OFFSETS)):
        x, y = a[layer, o], b[layer, o]
        right = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
        assert found[layer, o] == pytest.approx(right)
    np.testing.assert_allclose(split_half_reliability(moments, moments, "other"), 1)


def test_sums_of_two_sets_are_those_of_both(raw, moments):
    more = activations(1)
    joined = add_up([moments, moments_of(more)])
    whole = moments_of({key: np.concatenate([raw[key], more[key]]) for key in raw})
    for field in ("count", "total", "squares"):
        np.testing.assert_allclose(getattr(joined, field), getattr(whole, field))
    assert joined.sentences.tolist() == (2 * moments.sentences).tolist()
    with pytest.raises(ValueError, match="expected the same labels and offsets"):
        moments + replace(moments, labels=("other", "deduction", "backtracking"))
    with pytest.raises(ValueError, match="got none"):
        add_up([])


def test_some_of_the_offsets(moments):
    part = moments.at([2, -3])
    assert (part.offsets, part.labels) == ((2, -3), LABELS)
    np.testing.assert_array_equal(
        difference_of_means(part, "other"), difference_of_means(moments, "other")[:, [2, 0]]
    )
    for wrong in ([0], []):
        with pytest.raises(ValueError, match=r"expected some of \[-3, -1, 2\]"):
            moments.at(wrong)


def test_what_does_not_fit(moments):
    with pytest.raises(ValueError, match="label: got 'wait', expected one of backtracking, ded"):
        difference_of_means(moments, "wait")
    with pytest.raises(ValueError, match="against: got 'others'"):
        window_direction(moments, "other", against="others")
    with pytest.raises(ValueError, match="for 3 labels and 3 offsets"):
        replace(moments, total=moments.total[:, :2])


def test_cosines_of_nothing_are_no_numbers():
    found = cosines(np.array([[1.0, 1.0], [0.0, 0.0], [np.nan, 1.0]]), np.ones((3, 2)))
    assert found[0] == pytest.approx(1)
    assert np.isnan(found[1:]).all()

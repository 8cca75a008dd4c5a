"""jaxsteer.directions: Eq. 3 on the device against plain means of raw activations."""

from dataclasses import replace

import numpy as np
import pytest
from oracle import SMALL, random_rows, run

from jaxsteer.capture import Capture
from jaxsteer.directions import (
    Trace,
    activation_sums,
    difference_of_means,
    event_weights,
    mean_activation,
    random_directions,
    rescale,
    residual_norm,
    total_sums,
    window_direction,
)
from jaxsteer.tokens import left_pad

OFFSETS = [-3, -1, 0, 2]
LENGTH = 14
# Sums of 20 float32 numbers, divided in float64, against float64 throughout.
MEANS = 1e-6


@pytest.fixture(scope="module")
def traces() -> list[Trace]:
    """Sentences that start right behind the prompt, near the end, and close to each other."""
    rows = random_rows([9, 14, 12, 11], SMALL.vocab_size, seed=3)
    starts = [[2, 5, 8], [4, 6, 7, 12], [3, 4, 9], [1, 6, 10]]
    positive = [[False, True, False], [True, False, True, False], [True, True, False], [False] * 3]
    return [
        Trace(tokens, prompt, s, p)
        for tokens, prompt, s, p in zip(rows, [2, 4, 3, 1], starts, positive, strict=True)
    ]


@pytest.fixture(scope="module")
def sums(small, traces):
    return activation_sums(small, traces, offsets=OFFSETS, length=LENGTH)


@pytest.fixture(scope="module")
def events(small, traces):
    """Raw activations at each offset: over D and over D+, each a list by offset of `[n, L, D]`."""
    batch = left_pad([trace.tokens for trace in traces], length=LENGTH)
    out = run(small, batch.tokens, mask=batch.mask, capture=Capture())
    raw = np.asarray(out.captured["resid_post"], np.float64)
    everything, positives = [], []
    for offset in OFFSETS:
        d, d_plus = [], []
        for row, trace in enumerate(traces):
            for start, positive in zip(trace.starts, trace.positive, strict=True):
                at = start + offset
                if at < trace.prompt_length or at >= len(trace.tokens):
                    continue
                x = raw[:, row, LENGTH - len(trace.tokens) + at]
                d.append(x)
                if positive:
                    d_plus.append(x)
        everything.append(np.stack(d))
        positives.append(np.stack(d_plus))
    return everything, positives


def test_weights_stand_at_the_offsets_and_never_in_the_prompt(traces):
    weights = event_weights(traces, OFFSETS, LENGTH)
    expected = np.zeros((len(traces), LENGTH, 2 * len(OFFSETS)))
    for b, t, o in np.ndindex(len(traces), LENGTH, len(OFFSETS)):
        trace = traces[b]
        at = t - (LENGTH - len(trace.tokens))
        if at < trace.prompt_length:
            continue
        for start, positive in zip(trace.starts, trace.positive, strict=True):
            if start == at - OFFSETS[o]:
                expected[b, t, o] += 1
                expected[b, t, o + len(OFFSETS)] += positive
    np.testing.assert_array_equal(weights, expected)
    # The first sentences start right behind their prompts: nothing is there before them.
    assert weights[..., OFFSETS.index(-1)].sum() == sum(len(t.starts) for t in traces) - 4


def test_eq_3_is_the_difference_of_means_of_raw_captures(sums, events):
    everything, positives = events
    assert sums.n_total.tolist() == [len(x) for x in everything]
    assert sums.n_positive.tolist() == [len(x) for x in positives]
    expected = np.stack(
        [p.mean(axis=0) - d.mean(axis=0) for d, p in zip(everything, positives, strict=True)],
        axis=1,
    )
    found = difference_of_means(sums)
    assert (found.shape, found.dtype) == (
        (SMALL.n_layers, len(OFFSETS), SMALL.d_model),
        np.float32,
    )
    assert np.abs(found - expected).max() <= MEANS * np.abs(everything[0]).max()
    np.testing.assert_allclose(window_direction(sums), expected.mean(axis=1), atol=MEANS * 10)


def test_baselines_are_means_and_lengths_over_all_sentences(sums, events):
    everything, _ = events
    means = np.stack([x.mean(axis=0) for x in everything])
    np.testing.assert_allclose(mean_activation(sums), means.mean(axis=0), atol=MEANS * 10)
    squares = np.stack([(x**2).sum(axis=-1).mean(axis=0) for x in everything])
    np.testing.assert_allclose(residual_norm(sums), np.sqrt(squares.mean(axis=0)), rtol=1e-5)


def test_batches_add_up_to_one(small, traces, sums):
    parts = [
        activation_sums(small, traces[i : i + 2], offsets=OFFSETS, length=LENGTH)
        for i in range(0, len(traces), 2)
    ]
    joined = total_sums(parts)
    np.testing.assert_array_equal(joined.n_total, sums.n_total)
    np.testing.assert_array_equal(joined.n_positive, sums.n_positive)
    scale = np.abs(sums.total).max()
    # Two float32 sums of half the terms, and other shapes in the forward pass.
    for field in ("total", "positive", "squares"):
        found, expected = getattr(joined, field), getattr(sums, field)
        assert np.abs(found - expected).max() <= 2e-6 * max(scale, np.abs(expected).max())
    assert np.abs(difference_of_means(joined) - difference_of_means(sums)).max() <= 1e-6 * scale


def test_another_site_and_the_layers_in_order(small, traces):
    found = activation_sums(small, traces, offsets=[0], site="resid_pre", length=LENGTH)
    embedding = np.asarray(small.params["embed"]["embedding"], np.float64)
    starts = [t.tokens[s] for t in traces for s in t.starts]
    np.testing.assert_allclose(found.total[0, 0], embedding[starts].sum(axis=0), atol=1e-6)


def test_no_positive_sentence_at_an_offset(small, traces):
    none = [replace(trace, positive=[False] * len(trace.starts)) for trace in traces]
    sums = activation_sums(small, none, offsets=OFFSETS, length=LENGTH)
    with pytest.raises(ValueError, match=r"counts of D\+ by offset are \[0, 0, 0, 0\]"):
        difference_of_means(sums)


def test_input_that_does_not_fit(small, traces):
    with pytest.raises(ValueError, match="offsets: got none"):
        activation_sums(small, traces, offsets=[])
    with pytest.raises(ValueError, match=r"prompts\[1\]: got 14 tokens, expected at most 10"):
        activation_sums(small, traces, offsets=[0], length=10)
    with pytest.raises(ValueError, match="got id 61, expected 0 to 60"):
        activation_sums(small, [Trace([1, 61], 1, [1], [True])], offsets=[0], length=4)
    with pytest.raises(ValueError, match="site: got 'resid'"):
        activation_sums(small, traces, offsets=[0], length=LENGTH, site="resid")
    with pytest.raises(ValueError, match="traces: got none"):
        total_sums([])


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

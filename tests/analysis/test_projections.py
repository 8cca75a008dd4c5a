"""analysis.projections: products with the captured stream, and AUROC against counting pairs."""

import math

import numpy as np
import pytest
from oracle import SMALL, random_rows, run

from jaxsteer.analysis.projections import _project, auroc, excess_kurtosis, project, project_texts
from jaxsteer.llama.tokens import left_pad
from jaxsteer.steering.capture import Capture

R = 4
LAYERS = [2, 0, 1, 2]


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(R, SMALL.d_model)).astype(np.float32)


@pytest.fixture(scope="module")
def stream(small, batch) -> np.ndarray:
    """The output of every block, float64 `[L, B, T, D]`."""
    out = run(small, batch.tokens, mask=batch.mask, capture=Capture())
    return np.asarray(out.captured["resid_post"], np.float64)


def test_projections_are_products_with_the_stream(small, batch, vectors, stream):
    found = project(small, batch, vectors, LAYERS)
    assert (found.shape, found.dtype) == ((R, *batch.tokens.shape), np.float32)
    mask = np.asarray(batch.mask)
    for r, layer in enumerate(LAYERS):
        expected = stream[layer] @ vectors[r].astype(np.float64)
        np.testing.assert_allclose(found[r][mask], expected[mask], rtol=1e-4, atol=1e-5)
        assert np.isnan(found[r][~mask]).all()


def test_layers_and_directions_are_data(small, batch, vectors, stream):
    before = _project._cache_size()
    found = project(small, batch, -vectors, [0, 1, 2, 0])
    assert _project._cache_size() == max(before, 1)
    mask = np.asarray(batch.mask)
    expected = -stream[1] @ vectors[1].astype(np.float64)
    np.testing.assert_allclose(found[1][mask], expected[mask], rtol=1e-4, atol=1e-5)


def test_sites_have_transformer_lens_names(small, batch, vectors):
    found = project(small, batch, vectors, LAYERS, site="hook_resid_post")
    np.testing.assert_array_equal(found, project(small, batch, vectors, LAYERS))
    wide = np.ones((1, SMALL.n_heads * SMALL.head_dim))
    assert project(small, batch, wide, [0], site="z").shape == (1, *batch.tokens.shape)


def test_texts_come_back_whole_and_in_order_whatever_the_batches(small, vectors):
    texts = random_rows((5, 64, 17, 30, 2), SMALL.vocab_size, seed=1)
    found = list(project_texts(small, texts, vectors, LAYERS, rows=2))
    assert [one.shape for one in found] == [(R, len(text)) for text in texts]
    for text, one in zip(texts, found, strict=True):
        alone = project(small, left_pad([text, text], length=64), vectors, LAYERS)
        np.testing.assert_allclose(one, alone[:, 0, -len(text) :], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"directions": np.ones((R, 3))}, r"directions: got shape \(4, 3\), expected \[R, 16\]"),
        ({"directions": np.full((R, 16), np.nan)}, "directions: got NaN or infinity"),
        ({"layers": [0, 1]}, r"layers: got int64 \(2,\), expected integers \(4,\)"),
        ({"layers": [0, 1, 2, 3]}, "layers: got 3, expected 0 to 2"),
        ({"layers": [0.0] * 4}, "layers: got float64"),
        ({"site": "resid"}, "site: got 'resid'"),
    ],
)
def test_input_that_cannot_be(small, batch, vectors, change, message):
    given = {"directions": vectors, "layers": LAYERS, "site": "resid_post"} | change
    with pytest.raises(ValueError, match=message):
        project(small, batch, given["directions"], given["layers"], site=given["site"])


def pairs(scores, events) -> float:
    """Wins of an event over another item, ties half, counted one by one."""
    wins = [
        1.0 if a > b else 0.5 if a == b else 0.0
        for a, is_event in zip(scores, events, strict=True)
        if is_event
        for b, is_other in zip(scores, events, strict=True)
        if not is_other
    ]
    return sum(wins) / len(wins)


def test_auroc_counts_pairs():
    # Events 3 and 1 against 2, 1, 0: 3 wins, then a loss, a tie and a win: 4.5 of 6.
    found = auroc([3, 1, 2, 1, 0], [True, True, False, False, False])
    assert found.mean == 0.75
    assert (found.n_events, found.n_other, found.n_texts) == (2, 3, 5)
    rng = np.random.default_rng(0)
    scores, events = rng.integers(0, 6, 60) / 2, rng.random(60) < 0.3
    assert auroc(scores, events).mean == pytest.approx(pairs(scores, events), abs=1e-12)
    assert auroc(-scores, events).mean == pytest.approx(1 - pairs(scores, events), abs=1e-12)


def test_resamples_draw_whole_texts():
    """The interval is that of AUROCs computed anew from texts drawn with the same numbers."""
    rng = np.random.default_rng(3)
    text = np.repeat(np.arange(12), 5)
    scores = rng.normal(size=12)[text] + rng.normal(size=60)
    events = rng.random(60) < 0.4
    found = auroc(scores, events, groups=text, n_resamples=50, seed=7)
    times = np.random.default_rng(7).multinomial(12, np.full(12, 1 / 12), size=50)
    drawn = []
    for one in times:
        rows = np.concatenate([np.flatnonzero(text == t) for t in np.repeat(np.arange(12), one)])
        drawn.append(pairs(scores[rows], events[rows]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-12)
    assert found.n_texts == 12


def test_items_of_one_text_do_not_narrow_the_interval():
    """Every text said four times over: the same interval when texts are named, else half."""
    rng = np.random.default_rng(1)
    scores, events = rng.normal(size=100), np.arange(100) % 3 == 0
    scores = scores + 0.8 * events
    once = auroc(scores, events)
    often = {"groups": np.tile(np.arange(100), 4)}
    named = auroc(np.tile(scores, 4), np.tile(events, 4), **often)
    unnamed = auroc(np.tile(scores, 4), np.tile(events, 4))
    assert (named.low, named.high) == pytest.approx((once.low, once.high), abs=1e-12)
    assert unnamed.high - unnamed.low < 0.65 * (once.high - once.low)


def test_auroc_without_one_of_the_kinds():
    for events in ([True, True], [False, False]):
        found = auroc([1.0, 2.0], events)
        assert math.isnan(found.mean)
        assert math.isnan(found.low)
    assert math.isnan(auroc([1.0, 2.0], [True, False], n_resamples=0).high)
    with pytest.raises(ValueError, match="scores: got NaN"):
        auroc([1.0, np.nan], [True, False])
    with pytest.raises(ValueError, match=r"got shapes \(2,\), \(1,\) and \(2,\), expected one"):
        auroc([1.0, 2.0], [True])


def test_excess_kurtosis_of_known_distributions():
    rng = np.random.default_rng(0)
    assert excess_kurtosis(rng.normal(size=200_000)) == pytest.approx(0, abs=0.1)
    assert excess_kurtosis(rng.uniform(size=200_000)) == pytest.approx(-1.2, abs=0.02)
    # Loud at one token of a hundred: 1 / (p q) - 6, p q = .0099.
    assert excess_kurtosis(np.arange(1000) % 100 == 0) == pytest.approx(1 / 0.0099 - 6)
    assert math.isnan(excess_kurtosis([2.0, 2.0]))
    assert math.isnan(excess_kurtosis([]))

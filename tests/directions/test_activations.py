"""jaxsteer.directions.activations: the pass against float64 sums of raw activations."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import SMALL, random_model, random_rows, run

from jaxsteer.directions import activations
from jaxsteer.directions.activations import Trace, activation_moments, equal_rows, event_positions
from jaxsteer.directions.moments import difference_of_means
from jaxsteer.llama.tokens import left_pad
from jaxsteer.steering.capture import Capture

LABELS = ("backtracking", "deduction", "other")
OFFSETS = [-3, -1, 0, 2]
LENGTH = 14
# Float32 sums of 20 numbers against float64, relative to the largest.
SAME = 1e-6


@pytest.fixture(scope="module")
def traces() -> list[Trace]:
    """Sentences that start right behind the prompt, near the end, and close to each other."""
    rows = random_rows([9, 14, 12, 11], SMALL.vocab_size, seed=3)
    starts = [[2, 5, 8], [4, 6, 7, 12], [3, 4, 9], [1, 6, 10]]
    labels = ["obd", "bobd", "bbo", "odd"]
    names = {name[0]: name for name in LABELS}
    return [
        Trace(tokens, prompt, s, [names[k] for k in found])
        for tokens, prompt, s, found in zip(rows, [2, 4, 3, 1], starts, labels, strict=True)
    ]


@pytest.fixture(scope="module")
def moments(small, traces):
    return activation_moments(small, traces, labels=LABELS, offsets=OFFSETS, length=LENGTH)


def events(model, traces, site="resid_post"):
    """Raw activations in float64 by label and offset, each a list of `[L, D]`."""
    batch = left_pad([trace.tokens for trace in traces], length=LENGTH)
    out = run(model, batch.tokens, mask=batch.mask, capture=Capture(sites=(site,)))
    raw = np.asarray(out.captured[site], np.float64)
    found = {(label, offset): [] for label in LABELS for offset in OFFSETS}
    for row, trace in enumerate(traces):
        for start, label in zip(trace.starts, trace.labels, strict=True):
            for offset in OFFSETS:
                at = start + offset
                if trace.prompt_length <= at < len(trace.tokens):
                    slot = LENGTH - len(trace.tokens) + at
                    found[label, offset].append(raw[:, row, slot])
    return found


def check(moments, found):
    for k, o in np.ndindex(len(LABELS), len(OFFSETS)):
        items = np.array(found[LABELS[k], OFFSETS[o]])
        assert moments.count[k, o] == len(items)
        for power, sums in ((1, moments.total), (2, moments.squares)):
            right = np.sum(items**power, axis=0)
            assert np.abs(sums[:, k, o] - right).max() <= SAME * np.abs(sums).max(), (k, o)


def test_moments_are_those_of_raw_activations(small, traces, moments):
    check(moments, events(small, traces))
    assert moments.labels == LABELS
    assert moments.offsets == tuple(OFFSETS)
    assert moments.total.shape == (SMALL.n_layers, 3, 4, SMALL.d_model)
    assert moments.sentences.tolist() == [5, 4, 4]
    # The first sentences start right behind their prompts: nothing is there before them.
    assert moments.count[:, OFFSETS.index(-1)].sum() == moments.sentences.sum() - 4


def test_streaming_equals_one_batch(small, traces, moments):
    """Float32: four traces in one batch, and in batches of three, the last with empty rows."""
    before = activations._add_batch._cache_size()
    found = activation_moments(small, traces, labels=LABELS, offsets=OFFSETS, length=LENGTH, rows=3)
    assert activations._add_batch._cache_size() == before + 1
    np.testing.assert_array_equal(found.count, moments.count)
    np.testing.assert_array_equal(found.sentences, moments.sentences)
    for field in ("total", "squares"):
        one, other = getattr(found, field), getattr(moments, field)
        assert np.abs(one - other).max() <= 1e-6 * np.abs(other).max()
    for label in LABELS:
        one, other = (difference_of_means(m.at([0]), label) for m in (found, moments))
        assert np.abs(one - other).max() <= 1e-6 * np.abs(moments.total).max()


def test_many_batches_lose_nothing():
    """100,000 additions of the same numbers: float32 alone would be off by 1e-3."""
    x = jnp.asarray([0.1, 1e-3, 123.456], jnp.float32)

    def add(pair, _):
        return activations._add_exactly(pair, x), None

    zeros = jnp.zeros(3, jnp.float32)
    (high, low), _ = jax.lax.scan(add, (zeros, zeros), length=100_000)
    found = np.asarray(high, np.float64) + np.asarray(low, np.float64)
    np.testing.assert_allclose(found, 1e5 * np.asarray(x, np.float64), rtol=1e-9)
    assert np.abs(np.asarray(high) / (1e5 * np.asarray(x, np.float64)) - 1).max() < 1e-6


def test_bfloat16_sums_are_exact(traces):
    """The stream has 8 bits, its sums more: they equal those of the raw stream in float64."""
    model = random_model(SMALL)
    model = replace(model, params=jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.params))
    found = activation_moments(model, traces, labels=LABELS, offsets=OFFSETS, length=LENGTH)
    check(found, events(model, traces))


def test_another_site_and_some_layers(small, traces):
    """The heads' outputs are wider or narrower than the stream in some models; here N · H = D."""
    found = activation_moments(
        small, traces, labels=LABELS, offsets=[0], site="z", layers=[1, 0], length=LENGTH
    )
    right = events(small, traces, "head_out")
    for place, layer in enumerate((1, 0)):
        total = sum(items[layer] for items in right["other", 0])
        np.testing.assert_allclose(found.total[place, 2, 0], total, atol=1e-5)


def test_positions_stand_at_the_offsets_and_never_in_the_prompt(traces):
    positions, groups = event_positions(traces, LABELS, OFFSETS, (5, 6))
    for b, e, o in np.ndindex(5, 6, len(OFFSETS)):
        there = b < 4 and e < len(traces[b].starts)
        at = traces[b].starts[e] + OFFSETS[o] if there else -1
        inside = there and traces[b].prompt_length <= at < len(traces[b].tokens)
        assert positions[b, e, o] == (at if inside else -1)
        assert groups[b, e].sum() == there
        if there:
            assert groups[b, e, LABELS.index(traces[b].labels[e])]


def test_batches_are_of_equal_size(small):
    assert equal_rows(small, 4, 64) == 4
    assert equal_rows(small, 140, 2112) == 14  # 15 would fit: ten batches either way
    assert equal_rows(small, 3, 2**16) == 1


def test_input_that_does_not_fit(small, traces):
    def moments(some=traces, **options):
        options = {"labels": LABELS, "offsets": [0], "length": LENGTH} | options
        return activation_moments(small, some, **options)

    with pytest.raises(ValueError, match=r"offsets: got \[\], expected at least one"):
        moments(offsets=[])
    with pytest.raises(ValueError, match=r"offsets: got \[1, 1\], expected .* all distinct"):
        moments(offsets=[1, 1])
    with pytest.raises(ValueError, match="traces: got none"):
        moments([])
    with pytest.raises(ValueError, match=r"traces\[0\]: got the label 'other', expected back"):
        moments(labels=LABELS[:2])
    with pytest.raises(ValueError, match=r"traces\[1\]: got 4 sentences and 0 labels"):
        moments([traces[0], replace(traces[1], labels=[])])
    with pytest.raises(ValueError, match=r"traces\[0\]\.starts: got 3, expected 0 to 2"):
        moments([Trace([1, 2], 1, [1, 3], ["other"] * 2)])
    with pytest.raises(ValueError, match=r"prompts\[1\]: got 14 tokens, expected at most 10"):
        moments(length=10)
    with pytest.raises(ValueError, match="got id 61, expected 0 to 60"):
        moments([Trace([1, 61], 1, [1], ["other"])], length=4)
    with pytest.raises(ValueError, match="site: got 'resid'"):
        moments(site="resid")
    with pytest.raises(ValueError, match=r"capture.layers: got 3, expected 0 to 2"):
        moments(layers=[3])

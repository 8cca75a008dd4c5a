"""jaxsteer.steering.weighted_sums: what is reduced on the device is what float64 sums give."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxsteer.steering import weighted_sums as sums

B, T, D, E, N, G = 3, 11, 8, 5, 4, 3  # N offsets
SAME = 1e-6  # float32 sums of some 40 numbers, relative to the largest


@pytest.fixture(scope="module")
def case():
    """Tokens shared by several events, slots that are not there, events of several groups."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(B, T, D)) * np.geomspace(1e-2, 1e3, D)
    slots = rng.integers(-3, T, size=(B, E, N))
    groups = rng.random((B, E, G)) < 0.5
    return x, slots, groups


def expected(x, slots, groups, power):
    found = np.zeros((G, N, D))
    for b, e, o, g in np.ndindex(B, E, N, G):
        if slots[b, e, o] >= 0 and groups[b, e, g]:
            found[g, o] += x[b, slots[b, e, o]] ** power
    return found


def check(found, x, slots, groups):
    for power, part in enumerate(found, start=1):
        right = expected(np.asarray(x, np.float64), slots, groups, power)
        error = np.abs(part - right) / np.abs(right).max(axis=(0, 1))
        assert error.max() <= SAME


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("kind", [np.bool_, np.float32])
def test_sums_over_events_and_their_squares(case, dtype, kind):
    x, slots, groups = case
    x = x.astype(dtype)
    both = jax.jit(sums.event_sums, static_argnames="squares")
    found = both(jnp.asarray(x), slots, jnp.asarray(groups, kind), squares=True)
    assert (found.shape, found.dtype) == ((2, G, N, D), np.float32)
    check(np.asarray(found, np.float64), x, slots, groups)
    alone = both(jnp.asarray(x), slots, jnp.asarray(groups, kind), squares=False)
    np.testing.assert_array_equal(alone, found[0])


def test_blocks_of_offsets_change_nothing(case, monkeypatch):
    x, slots, groups = case
    x = jnp.asarray(x, jnp.float32)
    whole = sums.event_sums(x, slots, jnp.asarray(groups), squares=True)
    for offsets in (1, 3):
        monkeypatch.setattr(sums, "_BLOCK_BYTES", 4 * B * E * D * offsets)
        found = sums.event_sums(x, slots, jnp.asarray(groups), squares=True)
        assert np.abs(found - whole).max() <= SAME * np.abs(whole).max()


def test_float_weights_count_as_they_are(case):
    x, slots, groups = case
    half = jnp.asarray(groups, jnp.float32) / 2
    for dtype in (jnp.float32, jnp.bfloat16):
        wide = jnp.asarray(x, dtype)
        whole = sums.event_sums(wide, slots, jnp.asarray(groups, jnp.float32), squares=False)
        found = sums.event_sums(wide, slots, half, squares=False)
        np.testing.assert_allclose(found, whole / 2, rtol=1e-6, atol=1e-4)

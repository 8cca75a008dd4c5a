"""jaxsteer.steering.capture: what comes back is the stream, at the tokens that were asked for."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from oracle import SMALL, random_model, random_rows, relative_error, run, steps

from jaxsteer.steering.capture import Capture
from jaxsteer.steering.readers import All
from jaxsteer.steering.sites import SITES

pytestmark = pytest.mark.optimised

L, D = SMALL.n_layers, SMALL.d_model
SAME = 1e-5  # float32 sums in another order; relative to the largest value


@pytest.fixture(scope="module")
def raw(small, batch):
    """Every site of every layer, each `[L, B, T, D]`."""
    out = run(small, batch.tokens, mask=batch.mask, capture=Capture(sites=SITES))
    return {site: np.asarray(x) for site, x in out.captured.items()}


def test_raw_sites_add_up_to_the_residual_stream(raw, small, batch):
    assert set(raw) == set(SITES)
    assert all(x.shape == (L, *batch.tokens.shape, D) for x in raw.values())
    embedded = np.asarray(small.params["embed"]["embedding"])[np.asarray(batch.tokens)]
    np.testing.assert_array_equal(raw["resid_pre"][0], embedded)
    np.testing.assert_array_equal(raw["resid_pre"][1:], raw["resid_post"][:-1])
    mid, post = raw["resid_pre"] + raw["attn_out"], raw["resid_mid"] + raw["mlp_out"]
    assert relative_error(raw["resid_mid"], mid) <= SAME
    assert relative_error(raw["resid_post"], post) <= SAME


def test_the_heads_outputs_are_what_the_output_projection_reads():
    # Heads wider together than the stream: 4 of 8 against 16.
    config = replace(SMALL, head_dim=8)
    model = random_model(config)
    tokens = jnp.asarray(random_rows((6, 6), config.vocab_size))
    capture = Capture(sites=("head_out", "attn_out"), positions=jnp.asarray([[0, 5], [3, 9]]))
    found = run(model, tokens, capture=capture).captured
    assert found["head_out"].shape == (L, 2, 2, 32)
    for layer in range(L):
        o_proj = np.asarray(model.params["layers"][layer]["attn"]["o_proj"]).reshape(32, D)
        assert (
            relative_error(found["head_out"][layer][0] @ o_proj, found["attn_out"][layer][0])
            <= SAME
        )


def test_capturing_does_not_change_the_logits(small, batch):
    plain = run(small, batch.tokens, mask=batch.mask)
    watched = run(small, batch.tokens, mask=batch.mask, capture=Capture(sites=SITES))
    assert plain.captured == {}
    assert relative_error(watched.logits, plain.logits) <= SAME


def test_layers_come_in_the_order_asked_for(raw, small, batch):
    capture = Capture(sites=("mlp_out", "hook_resid_post"), layers=(2, 0))
    found = run(small, batch.tokens, mask=batch.mask, capture=capture).captured
    assert set(found) == {"mlp_out", "resid_post"}
    for site, x in found.items():
        assert relative_error(x, raw[site][[2, 0]]) <= SAME


def test_positions_count_real_tokens_and_padding_has_none(raw, small, batch):
    positions = np.array([[0, 2, 3, -1], [0, 7, 5, 8], [4, 4, 0, 100]])
    capture = Capture(positions=jnp.asarray(positions))
    found = run(small, batch.tokens, mask=batch.mask, capture=capture).captured["resid_post"]
    assert found.shape == (L, 3, 4, D)
    lengths = np.asarray(batch.lengths)
    for row, column in np.ndindex(positions.shape):
        at = positions[row, column]
        if 0 <= at < lengths[row]:
            slot = batch.tokens.shape[1] - lengths[row] + at
            expected = raw["resid_post"][:, row, slot]
            assert relative_error(found[:, row, column], expected) <= SAME, (row, column)
        else:
            assert np.isnan(found[:, row, column]).all(), (row, column)


def test_positions_may_be_lists_for_all_rows_or_of_unequal_length(raw, small, batch):
    def found(positions) -> np.ndarray:
        out = run(small, batch.tokens, mask=batch.mask, capture=Capture(positions=positions))
        return np.asarray(out.captured["resid_post"])

    arrays = [found(jnp.asarray(rows)) for rows in ([[2, 0]] * 3, [[0, 1], [7, -1], [4, 3]])]
    np.testing.assert_array_equal(found([2, 0]), arrays[0])
    np.testing.assert_array_equal(found(((0, 1), (7,), (4, 3))), arrays[1])


def test_positions_mean_the_same_under_a_cache(small, batch):
    new = np.array(random_rows([4] * 3, SMALL.vocab_size, seed=1))
    # The prompt's last token and the first two new ones.
    wanted = np.asarray(batch.lengths)[:, None] + np.arange(-1, 2)
    passes = steps(small, batch, new, capture=Capture())
    everything = [out.captured["resid_post"] for _, out in passes]
    chosen = Capture(positions=jnp.asarray(wanted))
    for pass_, (position, out) in enumerate(steps(small, batch, new, capture=chosen)):
        found = np.asarray(out.captured["resid_post"])
        for row, column in np.ndindex(wanted.shape):
            slot = np.flatnonzero(position[row] == wanted[row, column])
            if len(slot):
                expected = everything[pass_][:, row, slot[0]]
                assert relative_error(found[:, row, column], expected) <= SAME
            else:
                assert np.isnan(found[:, row, column]).all()


def test_weighted_sums_and_squares(raw, small, batch):
    rng = np.random.default_rng(0)
    weights = rng.integers(0, 3, size=(*batch.tokens.shape, 5)).astype(np.float32)
    weights *= np.asarray(batch.mask)[..., None]
    stream = raw["resid_post"].astype(np.float64)
    expected = np.stack(
        [np.einsum("BTG,LBTD->LGD", weights, stream**power) for power in (1, 2)], axis=1
    )
    capture = Capture(weights=jnp.asarray(weights), squares=True)
    both = run(small, batch.tokens, mask=batch.mask, capture=capture).captured["resid_post"]
    assert (both.shape, both.dtype) == ((L, 2, 5, D), np.float32)
    assert relative_error(both[:, 0], expected[:, 0]) <= SAME
    assert relative_error(both[:, 1], expected[:, 1]) <= SAME
    capture = Capture(weights=jnp.asarray(weights), layers=(1,))
    sums = run(small, batch.tokens, mask=batch.mask, capture=capture).captured["resid_post"]
    assert relative_error(sums, expected[1:2, 0]) <= SAME


def test_sums_over_events_at_some_positions(raw, small, batch):
    """Positions count real tokens; those in the padding or past the end add nothing."""
    positions = np.array([[[0, 2, -1]], [[7, 8, 1]], [[4, 0, 99]]])  # one event a row
    groups = np.array([[[True, False]], [[True, True]], [[False, True]]])
    capture = Capture(
        positions=jnp.asarray(positions), weights=jnp.asarray(groups), squares=True, layers=(2, 0)
    )
    found = run(small, batch.tokens, mask=batch.mask, capture=capture).captured["resid_post"]
    assert found.shape == (2, 2, 2, 3, D)
    expected, lengths = np.zeros(found.shape), np.asarray(batch.lengths)
    for row, group, column in np.ndindex(3, 2, 3):
        at = positions[row, 0, column]
        if groups[row, 0, group] and 0 <= at < lengths[row]:
            x = raw["resid_post"][[2, 0], row, batch.tokens.shape[1] - lengths[row] + at]
            expected[:, 0, group, column] += x
            expected[:, 1, group, column] += x.astype(np.float64) ** 2
    assert relative_error(found, expected) <= SAME


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sites": ("resid_past",)}, "site: got 'resid_past', expected one of resid_pre, head_out"),
        (
            {"positions": jnp.zeros((1, 1)), "directions": jnp.zeros((1, 1))},
            "got positions and directions, expected directions alone",
        ),
        ({"squares": True}, "squares without weights"),
        ({"read": All(), "weights": 1}, "capture: got a reader and weights, expected one or the"),
        ({"sites": "resid_post"}, r"capture\.sites: got 'resid_post', expected several"),
        ({"layers": 3}, r"capture\.layers: got 3, expected several"),
    ],
)
def test_captures_that_cannot_be(fields, message):
    with pytest.raises(ValueError, match=message):
        Capture(**fields)


@pytest.mark.parametrize(
    ("layers", "message"),
    [((0, 3), "got 3, expected 0 to 2"), ((-1,), "got -1, expected 0"), ((), "got none")],
)
def test_layers_that_are_not_there(small, batch, layers, message):
    with pytest.raises(ValueError, match=rf"capture\.layers: {message}"):
        run(small, batch.tokens, capture=Capture(layers=layers))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"positions": jnp.zeros((1, 3, 1), int)},
            r"positions: got shape \(1, 3, 1\), expected \[B",
        ),
        ({"positions": jnp.zeros((3, 1))}, "positions: got float32, expected integers"),
        ({"weights": jnp.ones((3, 4))}, r"weights: got shape \(3, 4\), expected \[B, T, G\]"),
        (
            {"positions": jnp.zeros((3, 1), int), "weights": jnp.ones((3, 1, 1))},
            r"positions: got shape \(3, 1\), expected \[B, E, O\]",
        ),
        ({"directions": jnp.ones(16)}, r"directions: got shape \(16,\), expected \[R, D\]"),
        ({"directions": jnp.ones((1, 9))}, "directions: got width 9, expected 16 at resid_post"),
    ],
)
def test_arrays_of_other_shapes(small, batch, fields, message):
    with pytest.raises(ValueError, match=rf"capture\.{message}"):
        run(small, batch.tokens, capture=Capture(**fields))

"""analysis.derivatives: forward-mode derivatives against finite differences and reverse mode."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import SHALLOW, random_rows, run

from jaxsteer.analysis.derivatives import _score, _slopes, sensitivity
from jaxsteer.llama.model import forward
from jaxsteer.llama.tokens import left_pad
from jaxsteer.steering.interventions import add

L, D = SHALLOW.n_layers, SHALLOW.d_model
SLOTS = 14
LENGTHS, PROMPT = (7, 12, 9), np.array([2, 5, 3])
POSITIONS = np.array([[3, 5, -1], [6, 11, 8], [-1, -1, -1]])
TOKENS = [4, 17, 40]
N_DIRECTIONS = 2

PLACES = jnp.array(POSITIONS), jnp.array(PROMPT), jnp.array(TOKENS)
mean_log_probability = jax.jit(_score)  # what is differentiated


@pytest.fixture(scope="module")
def texts():
    return left_pad(random_rows(LENGTHS, SHALLOW.vocab_size, seed=5), length=SLOTS)


@pytest.fixture(scope="module")
def directions() -> np.ndarray:
    return np.random.default_rng(6).normal(size=(L, N_DIRECTIONS, D)).astype(np.float32)


@pytest.fixture(scope="module")
def found(shallow, texts, directions) -> np.ndarray:
    return sensitivity(
        shallow,
        texts,
        directions,
        range(L),
        prompt_length=PROMPT,
        positions=POSITIONS,
        tokens=TOKENS,
    )


def test_it_is_the_slope_of_the_steered_log_probability(shallow, texts, directions, found):
    """Central differences, in float32: the error of the third order and of rounding stays small."""
    step = 2e-3

    def at(layer: int, which: int, coeff: float) -> np.ndarray:
        steering = add(directions[layer, which], layer=layer, coeff=coeff)
        return np.asarray(mean_log_probability(shallow, texts, *PLACES, steering))

    expected = np.array(
        [
            [(at(i, o, step) - at(i, o, -step)) / (2 * step) for o in range(N_DIRECTIONS)]
            for i in range(L)
        ]
    )
    assert found.shape == (L, N_DIRECTIONS, len(LENGTHS))
    assert np.abs(found[:, :, :2]).min() > 1e-3  # something is measured
    assert np.abs(found - expected).max() <= 0.02 * np.abs(expected).max()
    np.testing.assert_array_equal(found[:, :, 2], 0)  # a row without a position


def test_reverse_mode_gives_the_same_in_another_way(shallow, texts, directions, found):
    """By hand: all logits, the set's share of the softmax, each position in turn."""
    unmoved = [add(np.zeros(D), layer=layer, coeff=1.0) for layer in range(L)]

    @jax.jit
    @jax.grad
    def gradient(shift: jax.Array) -> jax.Array:  # [L, B, D]
        out = forward(
            shallow,
            texts.tokens,
            mask=texts.mask,
            steering=[replace(u, vector=v) for u, v in zip(unmoved, shift, strict=True)],
            prompt_length=jnp.asarray(PROMPT),
        )
        shares = jax.nn.softmax(out.logits)[..., jnp.array(TOKENS)].sum(axis=-1)
        means = []
        for row, length in enumerate(LENGTHS[:2]):
            places = [SLOTS - length + p for p in POSITIONS[row] if p >= 0]
            means.append(jnp.mean(jnp.log(shares[row, jnp.array(places)])))
        return sum(means)

    expected = np.einsum("LBD,LOD->LOB", gradient(jnp.zeros((L, 3, D))), directions)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_positions_that_steering_has_not_reached_do_not_move(shallow, texts, directions):
    """The prompt's last token sees prompt only; the next one is steered."""
    args = {"prompt_length": PROMPT, "tokens": TOKENS}
    nowhere = np.full((3, 2), -1)
    at_prompt = np.column_stack([PROMPT - 1, nowhere])
    found = sensitivity(shallow, texts, directions, range(L), positions=at_prompt, **args)
    np.testing.assert_array_equal(found, 0)
    at_first = np.column_stack([PROMPT, nowhere])
    found = sensitivity(shallow, texts, directions, range(L), positions=at_first, **args)
    assert np.abs(found).min() > 0


def test_layers_and_directions_are_data(shallow, texts, directions, found):
    args = {"prompt_length": PROMPT, "positions": POSITIONS, "tokens": TOKENS}
    before = _slopes._cache_size()
    other = sensitivity(shallow, texts, -2 * directions[::-1], [1, 0], **args)
    assert _slopes._cache_size() == before
    np.testing.assert_allclose(other[::-1], -2 * found, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"directions": np.zeros((3, 16))}, r"directions: got shape \(3, 16\), expected \[L, O, 1"),
        ({"directions": np.full((2, 1, 16), np.inf)}, "directions: got NaN or infinity"),
        ({"layers": [0, 3]}, r"layers: got \[0, 3\], expected 2 from 0 to 1"),
        ({"layers": [0]}, r"layers: got \[0\], expected 2"),
        ({"tokens": [61]}, "expected ids from 0 to 60"),
        ({"positions": [[7], [0], [0]]}, r"positions: got shape \(3, 1\), expected \[3, P\] with"),
    ],
)
def test_input_that_cannot_be(shallow, texts, change, message):
    given = {
        "directions": np.zeros((2, 1, 16)),
        "layers": [0, 1],
        "prompt_length": PROMPT,
        "positions": POSITIONS,
        "tokens": TOKENS,
    } | change
    with pytest.raises(ValueError, match=message):
        sensitivity(shallow, texts, given.pop("directions"), given.pop("layers"), **given)


def test_without_steering_they_are_the_models_own(shallow, texts):
    out = run(shallow, texts.tokens, mask=texts.mask)
    logp = jax.nn.log_softmax(out.logits)
    expected = []
    for row, places in enumerate(POSITIONS):
        own = logp[row, SLOTS - LENGTHS[row] :]
        values = [jax.nn.logsumexp(own[p][jnp.array(TOKENS)]) for p in places if p >= 0]
        expected.append(np.mean(values) if values else 0.0)
    steering = add(np.zeros(D), layer=0, coeff=1.0)
    found = mean_log_probability(shallow, texts, *PLACES, steering)
    np.testing.assert_allclose(found, expected, rtol=1e-5)

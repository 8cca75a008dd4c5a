"""Noise at each token: its length, whom its draws belong to, and that only who uses it pays."""

from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import SHALLOW, alone, last_logits, relative_error, run
from steering_helpers import B, D, one_of

from jaxsteer.analysis.scoring import token_logprobs
from jaxsteer.decoding.samplers import sampling
from jaxsteer.llama.model import forward
from jaxsteer.llama.tokens import left_pad
from jaxsteer.steering import batching, checks, interventions, scope
from jaxsteer.steering import steering as steers
from jaxsteer.steering.capture import Capture
from jaxsteer.steering.steering import Steering
from jaxsteer.sweeps.cells import Cell
from jaxsteer.sweeps.chunks import sweep

pytestmark = pytest.mark.optimised

G = 4
EVERY = {"layer": 1, "coeff": 2.0, "width": D, "scope": scope.everywhere()}
SAME = 1e-5  # float32 sums in another order; relative to the largest value
LOGPROB = 1e-4
SETTINGS = sampling(B, temperature=1.0, seed=3, row=[7, 0, 4])


def noise(length=1.5, **changed) -> Steering:
    return interventions.noise(length, **EVERY | changed)


@jax.jit
def _noise_at(one: Steering, position: jax.Array, row: jax.Array) -> jax.Array:
    none = jnp.zeros(row.shape, jnp.int32)
    return steers.token_coeffs(one, position, none, row=row).noise


def drawn(one: Steering, position, row) -> np.ndarray:
    """The noise at positions `[B, T]` of rows `[B]`, without any model."""
    return np.asarray(_noise_at(one, jnp.asarray(position), jnp.asarray(row)))


def test_each_token_gets_its_length_of_a_draw_of_its_own():
    found = drawn(noise([1.5, 0.0, 3.0]), np.tile(np.arange(200), (3, 1)), [5, 6, 7])
    lengths = np.linalg.norm(found, axis=-1)
    np.testing.assert_allclose(lengths, np.array([1.5, 0.0, 3.0])[:, None] * np.ones(200), 1e-5)
    units = found[::2].reshape(-1, D) / lengths[::2].reshape(-1, 1)
    # Uniform on the sphere: no mean (each of 400 has an entry of variance 1/D), no two alike.
    assert np.abs(units.mean(axis=0)).max() < 4.5 / np.sqrt(400 * D)
    np.testing.assert_allclose(D * units.T @ units / 400, np.eye(D), atol=0.35)
    assert (units @ units.T - np.eye(400)).max() < 0.95


def test_a_draw_belongs_to_seed_row_position_layer_and_site():
    def one(seed=3, row=4, position=9, **where) -> np.ndarray:
        return drawn(noise(seed=seed, **where), [[position]], [row])[0, 0]

    first = one()
    np.testing.assert_array_equal(one(), first)
    for other in (
        one(seed=4),
        one(row=5),
        one(position=8),
        one(layer=0),
        one(site="mlp_out"),
    ):
        assert abs(other @ first) < 0.9 * (first @ first)
    # Whatever stands beside it, at whichever place.
    among = drawn(noise(seed=[8, 3]), [[4, 5, 9, 1], [-2, 8, 9, 10]], [4, 4])
    np.testing.assert_array_equal(among[1, 2], first)


def test_the_stream_is_what_it_was_and_the_noise(shallow, batch):
    row = jnp.array([7, 0, 4])
    one = noise([1.0, 2.0, 4.0], scope=scope.window(2, 6))

    def stream(one: Steering) -> np.ndarray:
        options = {"mask": batch.mask, "steering": one, "row": row, "capture": Capture()}
        return np.asarray(run(shallow, batch.tokens, **options).captured["resid_post"])

    before, after = stream(replace(one, coeff=jnp.zeros(1))), stream(one)
    np.testing.assert_array_equal(after[0], before[0])
    position = np.arange(9) - (9 - np.asarray(batch.lengths)[:, None])
    inside = (position >= 2) & (position < 6)
    expected = before[1] + np.where(inside[..., None], 2 * drawn(one, position, row), 0)
    assert relative_error(after[1], expected) <= SAME
    np.testing.assert_array_equal(after[1][~inside], before[1][~inside])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_coefficient_0_gives_the_stream_back_bit_for_bit(dtype):
    x = jnp.asarray(1e3 * np.random.default_rng(0).standard_normal((2, 5, D)), dtype)

    @jax.jit
    def applied(one: Steering) -> jax.Array:
        position, prompt = jnp.tile(jnp.arange(5), (2, 1)), jnp.array([5, 5])
        coeffs = steers.token_coeffs(one, position, prompt, row=jnp.arange(2))
        return steers.apply(x, site="resid_post", layer=1, steering=one, coeffs=coeffs)

    np.testing.assert_array_equal(applied(noise(1e3, coeff=0.0)), x)
    assert (applied(noise(1e3)) != x).any()


def test_read_or_decoded_a_token_has_the_same_noise(shallow, batch):
    one, row = noise(layer=0), jnp.array([7, 0, 4])
    new = np.asarray(jax.random.randint(jax.random.key(0), (B, G), 0, shallow.config.vocab_size))
    cached = last_logits(shallow, batch, new, steering=one, row=row)
    tokens = jnp.concatenate([batch.tokens, new], axis=1)
    mask = jnp.concatenate([batch.mask, jnp.ones((B, G), bool)], axis=1)
    options = {"mask": mask, "prompt_length": batch.lengths}
    whole = run(shallow, tokens, steering=one, row=row, **options).logits[:, -1 - G :]
    assert relative_error(cached, whole) <= SAME
    # In the same program, which compiles once.
    plain = run(shallow, tokens, steering=replace(one, coeff=0 * one.coeff), row=row, **options)
    assert relative_error(whole, plain.logits[:, -1 - G :]) > 1e-2


@pytest.fixture(scope="module")
def cells() -> list[Cell]:
    length = {"length": 2.0, "layer": 0, "width": D}
    every = {
        "noise": interventions.noise(coeff=1.0, seed=5, **length),
        "more": interventions.noise(coeff=3.0, seed=5, **length),
        "self": interventions.amplify(coeff=2.0, **length),
        "all": one_of("add", layer="all"),
        "none": (),
    }
    return [Cell({"n": name}, one) for name, one in every.items()]


def test_cells_of_a_sweep_are_texts_read_at_once(shallow, batch, prompts, cells):
    """Decoded in a cell or read in one pass: a text's row says which noise it gets."""
    options = {"max_new_tokens": G, "sampling_params": SETTINGS}
    found = {
        (result.cell.labels["n"], result.prompt): result
        for chunk in sweep(shallow, batch, cells, **options)
        for result in chunk
    }
    own = [found["noise", i] for i in range(B)]
    texts = left_pad([p + r.tokens for p, r in zip(prompts, own, strict=True)], length=16)
    given = {"steering": cells[0].steering, "prompt_length": batch.lengths, "row": SETTINGS.row}
    read = jax.jit(token_logprobs)(shallow, texts, **given)[:, -G:]
    np.testing.assert_allclose(read, [r.logprobs for r in own], atol=LOGPROB)
    # What each cell does to one prompt: all of it differs, by far more than that.
    first = np.array([found[cell.labels["n"], 0].logprobs for cell in cells])
    apart = np.abs(first[:, None] - first).max(axis=-1)
    assert apart[~np.eye(len(cells), dtype=bool)].min() > 100 * LOGPROB


def test_rows_of_a_batch_may_have_noise_or_anything_else(shallow, batch):
    ones = [
        noise(seed=5),
        one_of("ablate", layer="all", scope=scope.everywhere()),
        interventions.amplify(layer=[[0, 1]], coeff=0.5, width=D, scope=scope.everywhere()),
    ]
    together = batching.rows(ones)
    checks.check_steering(together, shallow.config, rows=B)
    row = jnp.array([7, 0, 4])
    found = run(shallow, batch.tokens, mask=batch.mask, steering=together, row=row).logits
    for i in range(B):
        # In the shape of the whole, so that it compiles once.
        only = jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], together)
        part = alone(batch, i)
        single = run(shallow, part.tokens, mask=part.mask, steering=only, row=row[i : i + 1])
        real = np.asarray(part.mask[0])
        assert relative_error(found[i][real], single.logits[0][real]) <= SAME


def test_only_a_steering_with_noise_draws_and_others_never_compile_again(shallow, batch):
    def program(one: Steering) -> str:
        traced = jax.make_jaxpr(
            lambda s: forward(shallow, batch.tokens, steering=s, row=jnp.arange(B))
        )
        return str(traced(one))

    assert "random_bits" in program(noise())
    for one in (one_of("add", layer=1), one_of("amplify", layer=1)):
        assert "random" not in program(one)
        assert "threefry" not in program(one)
    chex.clear_trace_counter()
    counted = jax.jit(
        chex.assert_max_traces(n=1)(
            lambda s, row: forward(shallow, batch.tokens, steering=s, row=row).logits
        )
    )
    results = [
        counted(one, jnp.arange(B))
        for one in (noise(), noise(3.0, layer=0, seed=2), noise(coeff=0.0), noise(seed=2**32 - 1))
    ]
    assert len({np.asarray(x).tobytes() for x in results}) == 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: noise(layer="all"), r"steering\.layer: got several for a row with noise"),
        (lambda: noise(layer=[[0, 2]]), r"steering\.layer: got several for a row with noise"),
        (lambda: noise(np.nan), "length: got NaN or infinity"),
        (lambda: noise(seed=-1), "seed: got -1, expected 0 to 4294967295"),
        (lambda: noise(seed=1.5), "seed: got 1.5, expected an integer"),
        (lambda: noise(seed=[1, 2], coeff=[1.0] * 3), "seed: got 2 rows, expected 1 or 3"),
        (lambda: noise(width=0), "width: got 0, expected an integer of at least 1"),
        (lambda: noise(width=2.0), "width: got 2.0, expected an integer"),
        (lambda: interventions.amplify(layer=0, coeff=[[1.0]], width=D), "coeff: got shape"),
        (
            lambda: checks.check_steering(
                replace(noise(), layer=jnp.array([[0, 1]])), SHALLOW, rows=1
            ),
            r"steering\.layer: got several for a row with noise",
        ),
        (
            lambda: steers.token_coeffs(noise(), jnp.zeros((1, 1), int), jnp.zeros(1, int)),
            "row: got None, expected integer row ids",
        ),
    ],
)
def test_what_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()

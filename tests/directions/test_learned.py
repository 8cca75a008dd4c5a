"""directions.learned: log-probabilities are the model's, and vectors climb within their bounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import SHALLOW, random_model, random_rows, relative_error, run

from jaxsteer.directions import learned
from jaxsteer.directions.learned import learn_directions, logprobs_under, orthonormal_rows
from jaxsteer.directions.targets import make_targets
from jaxsteer.llama.packing import pack
from jaxsteer.steering.interventions import add

D, V = SHALLOW.d_model, SHALLOW.vocab_size
TEXTS = random_rows((12,) * 4, V, seed=3)  # cut behind their last target, and padded then
PROMPTS = [3, 4, 2, 3]
SPANS = [[(5, 7)], [(4, 6), (9, 12)], [(6, 7)], [(5, 8)]]
COMMON = {"norm": 2.0, "steps": 6, "rows_per_step": 4, "remat": False}


@pytest.fixture(scope="module")
def model():
    return random_model(SHALLOW)


@pytest.fixture(scope="module")
def targets():
    return make_targets(TEXTS, PROMPTS, SPANS)


@pytest.fixture(scope="module")
def found(model, targets):
    return learn_directions(model, targets, layers=[1, 0], seeds=[0, 7], **COMMON)


def expected_logprobs(model, vector: np.ndarray, layer: int) -> list[list[float]]:
    """Row by row, without padding, from the logits of the whole text."""
    rows = []
    for text, prompt, spans in zip(TEXTS, PROMPTS, SPANS, strict=True):
        steering = add(vector, layer=layer, coeff=1.0)
        tokens = jnp.asarray([text])
        out = run(model, tokens, steering=steering, prompt_length=jnp.asarray([prompt]))
        logprobs = np.asarray(jax.nn.log_softmax(out.logits[0]))
        rows.append([logprobs[p - 1, text[p]] for a, b in spans for p in range(a, b)])
    return rows


def test_targets_are_their_tokens_and_texts_end_with_the_last(targets):
    assert targets.batch.tokens.shape == (4, 16)
    assert targets.batch.lengths.tolist() == [7, 12, 7, 8]
    assert targets.position.tolist() == [
        [5, 6, -1, -1, -1],
        [4, 5, 9, 10, 11],
        [6, -1, -1, -1, -1],
        [5, 6, 7, -1, -1],
    ]


@pytest.mark.parametrize("layer", [0, 1])
def test_log_probabilities_are_those_of_the_steered_model(model, targets, layer):
    vectors = np.stack([np.zeros(D), np.random.default_rng(0).normal(size=D)])
    read = logprobs_under(model, targets, vectors, [layer] * 2, rows_at_once=3)
    assert read.shape == (2, 4, 5)
    for r, vector in enumerate(vectors):
        for row, expected in zip(read[r], expected_logprobs(model, vector, layer), strict=True):
            np.testing.assert_allclose(row[: len(expected)], expected, atol=1e-5)
            assert not row[len(expected) :].any()
    assert np.abs(read[1] - read[0]).max() > 0.1


def test_vectors_climb_and_stay_in_the_ball(model, targets, found):
    assert found.layers.tolist() == [1, 1, 0, 0]
    assert found.seeds.tolist() == [0, 7, 0, 7]
    assert (found.vectors.dtype, found.losses.shape) == (np.float32, (6, 4))
    lengths = np.linalg.norm(found.vectors, axis=1)
    assert (lengths <= 2.0 + 1e-5).all()
    rng = np.random.default_rng(1)
    drawn = rng.normal(size=(8, D))
    drawn *= 2 / np.linalg.norm(drawn, axis=1, keepdims=True)
    for layer in (0, 1):
        own = found.vectors[found.layers == layer]
        every = np.concatenate([np.zeros((1, D)), own, drawn])
        sums = logprobs_under(model, targets, every, [layer] * len(every)).sum(axis=(1, 2))
        assert sums[1:3].min() > max(sums[0], sums[3:].max())


def test_losses_are_minus_the_mean_log_probability(model, targets, found):
    start = np.random.default_rng(7).normal(size=D)
    start *= 0.1 * 2.0 / np.linalg.norm(start)
    rows = expected_logprobs(model, start, 1)
    assert found.losses[0, 1] == pytest.approx(-np.mean([x for row in rows for x in row]), abs=1e-5)


def test_each_vector_is_learned_as_if_alone(model, targets, found, monkeypatch):
    """In groups one after the other, and with blocks run again on the way back."""
    monkeypatch.setattr(learned, "usable_bytes", lambda model: 0)
    options = COMMON | {"remat": True}
    again = learn_directions(pack(model), targets, layers=[1, 0], seeds=[0, 7], **options)
    assert relative_error(again.vectors, found.vectors) < 1e-4
    assert relative_error(again.losses, found.losses) < 1e-5


def test_vectors_stay_out_of_a_span_and_other_spans_compile_nothing(model, targets, found):
    span = np.random.default_rng(2).normal(size=(3, D))
    programs = learned._step._cache_size()
    for count in (1, 3):
        options = COMMON | {"orthogonal_to": span[:count]}
        every = learn_directions(model, targets, layers=[1, 0], seeds=[0, 7], **options).vectors
        lengths = np.linalg.norm(every, axis=1)
        assert (lengths > 1).all()
        unit = span[:count] / np.linalg.norm(span[:count], axis=1, keepdims=True)
        assert np.abs(unit @ every.T).max() < 1e-5 * lengths.min()
    assert learned._step._cache_size() == programs


def test_a_basis_is_orthonormal_and_filled_up_with_zeros():
    rows = np.random.default_rng(0).normal(size=(9, D))
    basis = orthonormal_rows(rows, D)
    assert basis.shape == (16, D)
    assert not basis[9:].any()
    np.testing.assert_allclose(basis[:9] @ basis[:9].T, np.eye(9), atol=1e-12)
    np.testing.assert_allclose(rows @ basis.T @ basis, rows, atol=1e-12)
    assert not orthonormal_rows(None, D).any()


def test_memory_grows_with_what_is_kept(model):
    def needed(**changes):
        return learned.step_bytes(model, **({"rows": 8, "length": 64, "targets": 4} | changes))

    assert needed(rows=16) == 2 * needed()
    assert needed(remat=False) > needed() > needed(targets=1)


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([[(3, 4)], [(4, 5)], [], [(5, 6)]], r"spans\[2\]: got none"),
        ([[(2, 4)], [(4, 5)], [(6, 7)], [(5, 6)]], r"spans\[0\]: got \(2, 4\), expected tokens"),
        ([[(8, 13)], [(4, 5)], [(6, 7)], [(5, 6)]], "the prompt's 3 and the text's 12"),
        ([[(3, 4)]], "got 4, 4 and 1, expected equally many"),
    ],
)
def test_targets_outside_of_the_answer_are_refused(spans, message):
    with pytest.raises(ValueError, match=message):
        make_targets(TEXTS, PROMPTS, spans)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": [2]}, "layers: got 2, expected 0 to 1"),
        ({"layers": []}, r"layers: got \[\], expected distinct"),
        ({"seeds": [1, 1]}, r"seeds: got \[1, 1\], expected distinct"),
        ({"norm": 0.0}, "norm: got 0.0, expected lengths above 0"),
        ({"norm": [1.0, 2.0]}, r"norm: got shape \(2,\), expected a number or \[1\]"),
        ({"steps": 0}, "steps: got 0, expected at least 1"),
        ({"rows_per_step": 0}, "rows_per_step: got 0"),
        ({"orthogonal_to": np.zeros((1, D))}, "directions: got zeros"),
        ({"orthogonal_to": np.ones((2, D))}, "directions: got dependent ones"),
        ({"orthogonal_to": np.ones(3)}, rf"directions: got shape \(3,\), expected \[K, {D}\]"),
    ],
)
def test_what_cannot_be_learned_is_refused(model, targets, change, message):
    options = {"layers": [0], "seeds": [0], "norm": 1.0, "steps": 1} | change
    with pytest.raises(ValueError, match=message):
        learn_directions(model, targets, **options)


def test_vectors_that_do_not_fit_are_refused(model, targets):
    with pytest.raises(ValueError, match=rf"vectors: got \(1, 3\), expected \[1, {D}\]"):
        logprobs_under(model, targets, np.zeros((1, 3)), [0])

"""jaxsteer.analysis.logit_lens: the logit lens against float64 by hand."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from oracle import SMALL, random_model
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from jaxsteer.analysis.logit_lens import keyword_tokens, lens
from jaxsteer.llama.packing import pack
from jaxsteer.tokenizers.token_text import byte_alphabet

TOKENS = [5, 0, 60]


@pytest.fixture(scope="module")
def directions() -> np.ndarray:
    """More than one batch of them, of lengths from 1e-4 to 1e4."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(19, SMALL.d_model)) * np.logspace(-4, 4, 19)[:, None]


def by_hand(weight: np.ndarray, scale: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Logits `[R, V]` in float64; `weight` is `[D, V]`."""
    unit = directions / np.sqrt((directions**2).mean(axis=1, keepdims=True))
    return (unit * scale) @ weight.astype(np.float64)


@pytest.mark.parametrize("kind", ["normed", "plain"])
@pytest.mark.parametrize("tied", [False, True])
def test_logits_ranks_and_top_tokens_by_hand(directions, kind, tied):
    model = random_model(replace(SMALL, tie_embeddings=tied), seed=1)
    head = model.params["embed"]["embedding"].T if tied else model.params["lm_head"]["kernel"]
    scale = np.asarray(model.params["final_norm"]["scale"], np.float64)
    expected = by_hand(np.asarray(head), scale if kind == "normed" else np.ones(16), directions)
    found = lens(model, directions, TOKENS, kind=kind, top=4)
    np.testing.assert_allclose(found.logits, expected[:, TOKENS], rtol=1e-5, atol=1e-6)
    order = np.argsort(-expected, axis=1)
    np.testing.assert_array_equal(found.top_tokens, order[:, :4])
    np.testing.assert_allclose(
        found.top_logits, np.take_along_axis(expected, order[:, :4], axis=1), rtol=1e-5
    )
    for k, token in enumerate(TOKENS):
        np.testing.assert_array_equal(found.ranks[:, k], np.argmax(order == token, axis=1))


def test_the_length_of_a_direction_does_not_matter(small, directions):
    short, long = lens(small, directions, TOKENS), lens(small, 1e6 * directions, TOKENS)
    np.testing.assert_allclose(short.logits, long.logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(short.ranks, long.ranks)


def test_tokens_of_equal_logits_share_the_best_rank(small):
    """Tokens 2 and 7 have one column; above them are 3 tokens, so both have rank 3."""
    kernel = np.zeros((SMALL.d_model, SMALL.vocab_size), np.float32)
    kernel[0, [4, 9, 30]] = [5.0, 6.0, 7.0]
    kernel[0, [2, 7]] = 1.0
    kernel[0, 11] = -1.0
    scale = {"scale": jnp.ones(SMALL.d_model)}
    params = small.params | {"lm_head": {"kernel": jnp.asarray(kernel)}, "final_norm": scale}
    one = np.eye(SMALL.d_model)[:1]
    found = lens(replace(small, params=params), one, [30, 2, 7, 0, 11], top=3)
    assert found.ranks.tolist() == [[0, 3, 3, 5, 60]]
    assert found.top_tokens.tolist() == [[30, 9, 4]]


def test_a_packed_model_in_half_precision_ranks_the_same_weights(small, directions):
    """Weights are rounded, the product is not: the lens of the rounded weights, exactly."""
    params = {
        "final_norm": {"scale": small.params["final_norm"]["scale"].astype(jnp.bfloat16)},
        "lm_head": {"kernel": small.params["lm_head"]["kernel"].astype(jnp.bfloat16)},
    }
    half = pack(replace(small, params=small.params | params))
    scale = np.asarray(params["final_norm"]["scale"].astype(jnp.float32), np.float64)
    head = np.asarray(params["lm_head"]["kernel"].astype(jnp.float32))
    expected = by_hand(head, scale, directions)
    found = lens(half, directions, TOKENS)
    np.testing.assert_allclose(found.logits, expected[:, TOKENS], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(
        found.ranks, (expected[:, None] > expected[:, TOKENS, None]).sum(axis=-1)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"directions": np.zeros((2, 16))}, r"directions\[0\]: got zeros"),
        ({"directions": np.ones(16)}, r"got shape \(16,\), expected \[R, 16\]"),
        ({"directions": np.full((1, 16), np.nan)}, r"directions\[0\]: got zeros, NaN"),
        ({"tokens": [61]}, "tokens: got 61, expected 0 to 60"),
        ({"tokens": []}, "expected ids from 0 to 60"),
        ({"kind": "raw"}, "kind: got 'raw', expected normed or plain"),
        ({"top": 0}, "top: got 0, expected 1 to 61"),
    ],
)
def test_input_that_cannot_be(small, change, message):
    given = {"directions": np.ones((1, 16)), "tokens": [1]} | change
    with pytest.raises(ValueError, match=message):
        lens(small, given.pop("directions"), given.pop("tokens"), **given)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, as Llama-3's, with some words as tokens: `Ġ` is a space before them."""
    words = [
        "wait",
        "\u0120wait",
        "\u0120Wait",
        "WAIT",
        "waiting",
        "\u0120hmm",
        "await",
        "\u010await",
    ]
    vocab = {token: i for i, token in enumerate([*sorted(byte_alphabet()), *words])}
    made = Tokenizer(models.BPE(vocab, []))
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made)


def test_every_spelling_of_a_keyword_that_is_one_token(tokenizer):
    found = keyword_tokens(tokenizer, ("Wait", "hmm"))
    assert list(found.values()) == ["wait", " wait", " Wait", "WAIT", " hmm", "\nwait"]
    for i, text in found.items():
        assert tokenizer.decode([i]) == text


def test_keywords_that_are_no_tokens(tokenizer):
    with pytest.raises(ValueError, match="no token of the tokenizer spells alas"):
        keyword_tokens(tokenizer, ["alas"])
    with pytest.raises(ValueError, match="keywords: got"):
        keyword_tokens(tokenizer, [" "])

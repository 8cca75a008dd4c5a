"""jaxsteer.llama.model: the numbers of transformers, with and without a cache, padded or not."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import (
    SMALL,
    last_logits,
    random_model,
    random_rows,
    relative_error,
    run,
    site_errors,
    steps,
    torch_sites,
    torch_twin,
)

from jaxsteer.config.shape import LlamaConfig, RopeScaling
from jaxsteer.llama.cache import empty_cache
from jaxsteer.llama.model import Model, bind, forward, init
from jaxsteer.llama.rope import rope_frequencies
from jaxsteer.llama.tokens import TokenBatch, left_pad
from jaxsteer.steering.capture import Capture
from jaxsteer.steering.sites import SITES

pytestmark = pytest.mark.optimised

# float32 has 1.2e-7; the two libraries add up in other orders, layer after layer, and an angle
# at position 2,100 is itself only good to 1e-4. Observed: at most 1e-5.
PARITY = 1e-4
# The same arithmetic in other shapes: no angles differ, only orders of summation. Observed: 1e-6.
SAME = 1e-5

LINEAR = RopeScaling(kind="linear", factor=4.0)
LLAMA3 = RopeScaling(kind="llama3", factor=8.0, original_max_positions=512)
BASE = LlamaConfig(
    vocab_size=53,
    d_model=32,
    d_mlp=40,
    n_layers=2,
    n_heads=4,
    n_kv_heads=4,
    head_dim=16,
    max_positions=4096,
    rope_theta=10_000.0,
)
CASES = {
    "1:1 tied default": replace(BASE, tie_embeddings=True),
    "4:1 untied default": replace(BASE, n_kv_heads=1),
    "4:1 tied linear": replace(BASE, n_kv_heads=1, tie_embeddings=True, rope_scaling=LINEAR),
    "8:1 untied linear": replace(BASE, n_heads=8, n_kv_heads=1, rope_scaling=LINEAR),
    "1:1 untied llama3": replace(BASE, rope_scaling=LLAMA3),
    "8:1 tied llama3": replace(
        BASE, n_heads=8, n_kv_heads=1, tie_embeddings=True, rope_scaling=LLAMA3
    ),
}
LONG = 2100  # tokens, so that positions past 2,000 occur


@pytest.fixture(scope="module")
def long_row() -> np.ndarray:
    return np.array(random_rows([LONG], BASE.vocab_size))


@pytest.fixture(scope="module")
def llama3_reference(long_row):
    """A model with llama3 scaling, and what transformers makes of it."""
    model = random_model(CASES["8:1 tied llama3"])
    return model, torch_sites(torch_twin(model), long_row)


@pytest.mark.parametrize("name", CASES)
def test_every_site_of_every_layer_and_the_logits_are_those_of_transformers(name, long_row):
    model = random_model(CASES[name])
    found = site_errors(model, long_row, *torch_sites(torch_twin(model), long_row))
    assert max(found.values()) <= PARITY, found


def test_llama3_scaling_keeps_interpolates_and_divides(llama3_reference):
    config = CASES["8:1 tied llama3"]
    plain = rope_frequencies(replace(config, rope_scaling=None))
    ratio = rope_frequencies(config) / plain
    kept, divided = ratio > 1 - 1e-6, ratio < (1 + 1e-6) / LLAMA3.factor
    assert kept.sum() >= 2
    assert divided.sum() >= 2
    assert (~kept & ~divided).sum() >= 1  # all three bands occur in the parity tests
    theirs = torch_twin(llama3_reference[0]).model.rotary_emb.inv_freq.numpy()
    # A few roundings of float32 on either side.
    np.testing.assert_allclose(rope_frequencies(config), theirs, rtol=5e-7)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rope_scaling": None},
        {"rope_scaling": replace(LLAMA3, kind="linear")},
        {"rope_scaling": replace(LLAMA3, original_max_positions=1024)},
        {"rope_theta": 12_000.0},
        {"norm_eps": 1e-6},
    ],
    ids=lambda wrong: str(next(iter(wrong.items()))),
)
def test_parity_would_notice_a_config_that_is_plausible_and_wrong(
    wrong, llama3_reference, long_row
):
    model, expected = llama3_reference
    found = site_errors(replace(model, config=replace(model.config, **wrong)), long_row, *expected)
    # A hundred times the tolerance, at every site behind the first attention.
    assert min(found[site] for site in SITES if site != "resid_pre") > 100 * PARITY, found
    assert found["late logits"] > 100 * PARITY


def test_prefill_and_cached_decode_are_one_full_forward_of_each_row(small, batch, prompts):
    new = np.array(random_rows([6] * 3, SMALL.vocab_size, seed=1))
    found = last_logits(small, batch, new)
    for row, prompt in enumerate(prompts):
        # Causality lets one length serve all rows: what is behind a token cannot reach it.
        tokens = np.zeros((1, 14), np.int32)
        tokens[0, : len(prompt) + 6] = [*prompt, *new[row]]
        full = run(small, tokens).logits[0, len(prompt) - 1 : len(prompt) + 6]
        for step in range(7):
            assert relative_error(found[row, step], full[step]) <= SAME, (row, step)


def test_a_prompt_in_two_passes_is_the_prompt_in_one(small, batch):
    cache = empty_cache(small.config, rows=3, capacity=12, dtype=small.dtype)
    whole = run(small, batch.tokens, mask=batch.mask, cache=cache)
    first = run(small, batch.tokens[:, :7], mask=batch.mask[:, :7], cache=cache)
    second = run(small, batch.tokens[:, 7:], mask=batch.mask[:, 7:], cache=first.cache)
    assert relative_error(second.logits, whole.logits[:, 7:]) <= SAME
    assert int(second.cache.cursor) == int(whole.cache.cursor) == 9
    np.testing.assert_array_equal(second.cache.valid, whole.cache.valid)


def test_what_stands_in_padding_cannot_be_seen(small, batch):
    new = np.array(random_rows([3] * 3, SMALL.vocab_size, seed=1))
    garbage = np.random.default_rng(2).integers(SMALL.vocab_size, size=batch.tokens.shape)
    dirty = TokenBatch(jnp.where(batch.mask, batch.tokens, garbage), batch.mask)
    assert not np.array_equal(dirty.tokens, batch.tokens)
    for (position, clean), (_, other) in zip(
        steps(small, batch, new), steps(small, dirty, new), strict=True
    ):
        real = position >= 0
        np.testing.assert_array_equal(clean.logits[real], other.logits[real])


def test_more_padding_changes_nothing_but_roundings(small, prompts):
    new = np.array(random_rows([3] * 3, SMALL.vocab_size, seed=1))
    tight, wide = (last_logits(small, left_pad(prompts, length=n), new) for n in (8, 20))
    assert relative_error(wide, tight) <= SAME


def test_last_only_is_the_last_of_all(small, batch):
    last = run(small, batch.tokens, mask=batch.mask, last_only=True).logits
    every = run(small, batch.tokens, mask=batch.mask).logits
    assert last.shape == (3, 1, SMALL.vocab_size)
    assert relative_error(last, every[:, -1:]) <= SAME


def test_layers_beyond_ten_stay_in_order():
    model = random_model(replace(SMALL, n_layers=12))
    bound = bind(model)
    for i in range(12):
        found = bound.layers[i].attn.q_proj[...]
        assert found is model.params["layers"][i]["attn"]["q_proj"]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_half_precision_model_stays_near_the_float32_one(small, batch, dtype):
    half = replace(small, params=jax.tree.map(lambda x: x.astype(dtype), small.params))
    out = run(half, batch.tokens, mask=batch.mask, capture=Capture())
    full = run(small, batch.tokens, mask=batch.mask, capture=Capture())
    assert out.logits.dtype == jnp.float32
    assert out.captured["resid_post"].dtype == dtype
    real = np.asarray(batch.mask)
    # bfloat16 keeps 8 bits: .4% a rounding, some tens of them through three layers.
    assert relative_error(out.logits[real], full.logits[real]) < 0.1


def test_init_draws_other_weights_for_another_seed():
    config = replace(SMALL, n_layers=1, tie_embeddings=True)
    one, other = (init(config, seed=seed).params for seed in (0, 1))
    assert all(0.015 < float(x.std()) < 0.025 for x in jax.tree.leaves(one) if x.ndim > 1)
    assert not np.array_equal(one["embed"]["embedding"], other["embed"]["embedding"])


def test_gradients_flow_through_a_model(batch):
    """A step along the gradient changes the loss by what the gradient says."""
    before = random_model(replace(SMALL, n_layers=1))

    @jax.jit
    @jax.value_and_grad
    def loss(model: Model) -> jax.Array:
        logits = forward(model, batch.tokens, mask=batch.mask, last_only=True).logits
        return jnp.mean(jax.nn.logsumexp(logits, axis=-1))

    _, slope = loss(before)
    assert slope.config == before.config
    size = 0.01 / sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(slope.params))
    up, down = (jax.tree.map(lambda w, g, s=s: w + s * size * g, before, slope) for s in (1, -1))
    # Central difference: an error of second order in a step that changes the loss by 1%.
    assert float(loss(up)[0] - loss(down)[0]) / 2 == pytest.approx(0.01, rel=0.02)


def test_a_batch_and_token_ids_row_by_row_are_taken_for_tokens(small, prompts, batch):
    expected = run(small, batch.tokens, mask=batch.mask).logits[:, -1]
    for given in (batch, prompts, [tuple(row) for row in prompts]):
        assert relative_error(forward(small, given, last_only=True).logits[:, 0], expected) < 1e-5
    with pytest.raises(ValueError, match=r"prompts\[0\]: got 1, expected a list of token ids"):
        forward(small, [1, 2])
    with pytest.raises(ValueError, match="tokens: got NoneType, expected int32"):
        forward(small, None)

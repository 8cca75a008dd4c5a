from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from jaxsteer.checkpoints import checkpoint
from jaxsteer.decoding.generation import generate
from jaxsteer.llama import packing
from jaxsteer.llama.packing import arrange, heads_first, pack, unpack, unpack_layer
from jaxsteer.llama.parameters import flatten
from jaxsteer.llama.tokens import left_pad


@pytest.fixture(scope="module")
def model():
    return oracle.random_model(oracle.SHALLOW)


@pytest.fixture(scope="module")
def biased():
    return oracle.random_model(replace(oracle.SHALLOW, qkv_bias=True))


def test_packing_keeps_every_number_and_unpacking_undoes_it(model):
    packed = pack(model)
    attn = packed.params["layers"][1]["attn"]
    separate = model.params["layers"][1]["attn"]
    # Head 3 of 4 is the second query of the second of two key/value heads.
    np.testing.assert_array_equal(attn["qkv_proj"][:, 1, 1], separate["q_proj"][:, 3])
    np.testing.assert_array_equal(attn["qkv_proj"][:, 1, 2], separate["k_proj"][:, 1])
    np.testing.assert_array_equal(attn["qkv_proj"][:, 0, 3], separate["v_proj"][:, 0])
    chex.assert_trees_all_equal(unpack(packed).params, model.params)
    assert pack(packed) is packed
    assert unpack(model) is model


def test_biases_are_packed_like_the_weights(biased):
    packed = pack(biased)
    attn = packed.params["layers"][1]["attn"]
    separate = biased.params["layers"][1]["attn"]
    np.testing.assert_array_equal(attn["qkv_bias"][1, 1], separate["q_bias"][3])
    np.testing.assert_array_equal(attn["qkv_bias"][1, 2], separate["k_bias"][1])
    np.testing.assert_array_equal(attn["qkv_bias"][0, 3], separate["v_bias"][0])
    chex.assert_trees_all_equal(unpack(packed).params, biased.params)


def test_a_packed_model_computes_the_same(model):
    batch = left_pad(oracle.random_rows([5, 9], 61), length=12)
    with jax.default_matmul_precision("highest"):
        found = oracle.run(pack(model), batch.tokens, mask=batch.mask).logits
        expected = oracle.run(model, batch.tokens, mask=batch.mask).logits
    # float32: a sum of 24 products in another order errs by 1.4e-6 (24 · 2⁻²⁴), in two layers
    real = np.asarray(batch.mask)
    assert oracle.relative_error(found[real], expected[real]) < 3e-6


def test_a_packed_model_generates_the_same_tokens(model):
    batch = left_pad(oracle.random_rows([5, 9], 61), length=12)
    found = generate(pack(model), batch, max_new_tokens=8)
    np.testing.assert_array_equal(found.tokens, generate(model, batch, max_new_tokens=8).tokens)


def test_donated_weights_are_given_up():
    model = oracle.random_model(replace(oracle.SHALLOW, qkv_bias=True))
    attn = dict(model.params["layers"][0]["attn"])
    packed = pack(model, donate=True)
    assert jnp.isfinite(packed.params["layers"][0]["attn"]["qkv_proj"]).all()
    assert {name for name, x in attn.items() if not x.is_deleted()} == {"o_proj"}


def test_saving_parts_packed_weights_a_layer_at_a_time(model, monkeypatch):
    """All separate ones would not fit beside the packed ones."""
    parted, found, then = [], {}, {}
    monkeypatch.setattr(
        checkpoint, "unpack_layer", lambda layer: parted.append(layer) or unpack_layer(layer)
    )
    for path, x in checkpoint._separate(pack(model).params):
        found[path], then[path[:2]] = x, len(parted)
    chex.assert_trees_all_equal(found, dict(flatten(model.params)))
    assert [then["layers", i] for i in range(model.config.n_layers)] == [1, 2]


def test_heads_first_moves_bytes_only(model):
    turned = heads_first(model)
    q = turned.params["layers"][1]["attn"]["q_proj"]
    assert q.format.layout.major_to_minor == (1, 0, 2)
    chex.assert_trees_all_equal(turned.params, model.params)
    again = heads_first(turned)
    assert again.params["layers"][1]["attn"]["q_proj"] is q
    batch = left_pad(oracle.random_rows([5, 9], 61), length=12)
    found, expected = (generate(one, batch, max_new_tokens=8) for one in (turned, model))
    np.testing.assert_array_equal(found.tokens, expected.tokens)


def test_a_model_is_arranged_for_its_backend_and_freed_if_it_was_given(model, monkeypatch):
    assert arrange(model) is model  # on a CPU
    mine = jax.tree.map(jnp.copy, model)
    for backend, name in (("tpu", "q_proj"), ("gpu", "qkv_proj")):
        monkeypatch.setattr(packing.jax, "default_backend", lambda backend=backend: backend)
        given = jax.tree.map(jnp.copy, mine)
        found = arrange(given, donate=True)
        assert name in found.params["layers"][0]["attn"]
        assert given.params["layers"][0]["attn"]["q_proj"].is_deleted()
        assert not given.params["layers"][0]["attn"]["o_proj"].is_deleted()
        chex.assert_trees_all_equal(unpack(found).params, mine.params)

"""jaxsteer.huggingface.tensor_names: the way between Hugging Face's tensors and ours."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxsteer.config.shape import LlamaConfig
from jaxsteer.huggingface import tensor_names as hf
from jaxsteer.llama import model


def random_hf(config: LlamaConfig, dtype=np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        t.name: rng.standard_normal(t.hf_shape, np.float32).astype(dtype)
        for t in hf.tensors(config).values()
    }


UP = "model.layers.1.mlp.up_proj.weight"
FAMILIES = [{}, {"tie_embeddings": True}, {"qkv_bias": True}, {"qk_norm": True}]


@pytest.fixture
def config() -> LlamaConfig:
    return LlamaConfig.tiny()


@pytest.mark.parametrize(
    "family", [{}, {"tie_embeddings": True}, {"qkv_bias": True}, {"qk_norm": True}]
)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_tree_is_the_models_own(config, family, dtype):
    config = replace(config, **family)
    params = hf.from_hf(random_hf(config, dtype), config)
    expected = model.abstract_params(config, jnp.dtype(dtype))
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    for (path, found), wanted in zip(
        jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(expected), strict=True
    ):
        assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype), path


@pytest.mark.parametrize(
    "family", [{}, {"tie_embeddings": True}, {"qkv_bias": True}, {"qk_norm": True}]
)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_there_and_back_is_the_same_bits(config, family, dtype):
    config = replace(config, **family)
    source = random_hf(config, dtype)
    back = hf.to_hf(hf.from_hf(source, config), config)
    assert list(back) == list(source)
    for name, x in source.items():
        assert back[name].flags.c_contiguous
        assert back[name].tobytes() == x.tobytes(), name


def test_heads_stand_where_the_einsums_expect_them(config):
    config = replace(config, qkv_bias=True)
    source = random_hf(config)
    attn = hf.from_hf(source, config)["layers"][1]["attn"]
    q = source["model.layers.1.self_attn.q_proj.weight"]
    o = source["model.layers.1.self_attn.o_proj.weight"]
    b = source["model.layers.1.self_attn.q_proj.bias"]
    head, width, stream = 2, 3, 5
    assert attn["q_proj"][stream, head, width] == q[head * config.head_dim + width, stream]
    assert attn["q_bias"][head, width] == b[head * config.head_dim + width]
    assert attn["o_proj"][head, width, stream] == o[stream, head * config.head_dim + width]


def test_jax_arrays_go_out(config):
    params = jax.tree.map(jnp.asarray, hf.from_hf(random_hf(config), config))
    again = hf.from_hf(hf.to_hf(params, config), config)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), params, again))


def test_every_problem_is_named_at_once(config):
    source = random_hf(config)
    del source["model.layers.2.mlp.up_proj.weight"]
    source["model.layers.0.self_attn.q_proj.bias"] = np.zeros(32, np.float32)
    source["model.layers.3.mlp.up_proj.weight"] = np.zeros((48, 32), np.float32)
    source["model.norm.weight"] = np.zeros(33, np.float32)
    source["lm_head.weight"] = source["lm_head.weight"].astype(np.int8)
    with pytest.raises(ValueError) as caught:
        hf.from_hf(source, config)
    assert str(caught.value).splitlines() == [
        "the tensors do not fit config.json:",
        "  missing: model.layers.2.mlp.up_proj.weight (layers.2.mlp.up_proj) [48, 32]",
        "  misshapen: model.norm.weight (final_norm.scale): got [33], expected [32]",
        "  dtype: lm_head.weight (lm_head.kernel): got int8, expected float32 or float16 or "
        "bfloat16",
        "  unexpected: model.layers.0.self_attn.q_proj.bias [32]: config.json has a model_type "
        "without biases",
        "  unexpected: model.layers.3.mlp.up_proj.weight [48, 32]: config.json has "
        "num_hidden_layers=3",
    ]


@pytest.mark.parametrize(
    ("tensor", "header", "got"),
    [
        (UP, hf.Header((48, 32), "F8_E4M3"), rf"FP8 \({UP} as F8_E4M3\)"),
        (f"{UP}_scale", hf.Header((1,), "float32"), rf"FP8 \({UP}_scale\)"),
        (f"{UP}_scale_inv", hf.Header((1, 1), "float32"), rf"FP8 \({UP}_scale_inv\)"),
        (UP.replace(".weight", ".qweight"), hf.Header((4, 32), "I32"), r"model.*\.qweight"),
    ],
)
def test_quantised_weights_are_named_in_one_line(config, tensor, header, got):
    headers = {t.name: hf.Header(t.hf_shape, "float32") for t in hf.tensors(config).values()}
    message = rf"^the weights are quantised: got {got}, expected float32 or float16 or bfloat16$"
    with pytest.raises(ValueError, match=message):
        hf.check(headers | {tensor: header}, config)


def test_inv_freq_is_ignored(config):
    source = random_hf(config)
    source["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)
    source["model.rotary_emb.inv_freq"] = np.zeros(4, np.float32)
    source["rotary_emb.inv_freq"] = np.zeros(4, np.float32)
    assert set(hf.to_hf(hf.from_hf(source, config), config)) == set(random_hf(config))


def test_head_of_a_tied_model_must_equal_the_embedding(config):
    config = replace(config, tie_embeddings=True)
    source = random_hf(config)
    source[hf.HEAD] = source[hf.EMBEDDING].copy()
    assert "lm_head" not in hf.from_hf(source, config)
    source[hf.HEAD][0, 0] += 1
    with pytest.raises(ValueError, match=r"lm_head.weight: .*tie_word_embeddings=true.*differs"):
        hf.from_hf(source, config)


def test_missing_head_of_an_untied_model(config):
    source = random_hf(config)
    del source[hf.HEAD]
    with pytest.raises(ValueError, match=r"missing: lm_head.weight \(lm_head.kernel\) \[97, 32\]"):
        hf.from_hf(source, config)


def test_params_that_do_not_fit_are_named(config):
    params = hf.from_hf(random_hf(config), config)
    del params["layers"][1]["mlp"]["gate_proj"]
    params["final_norm"]["scale"] = np.zeros(31)
    with pytest.raises(ValueError) as caught:
        hf.to_hf(params, config)
    assert str(caught.value).splitlines()[1:] == [
        "  final_norm.scale (model.norm.weight): got [31], expected [32]",
        "  missing: layers.1.mlp.gate_proj (model.layers.1.mlp.gate_proj.weight) [32, 48]",
    ]


@pytest.mark.parametrize("n_kv_heads", [1, 2])
def test_a_view_in_our_layout_is_the_copy(n_kv_heads):
    config = replace(LlamaConfig.tiny(), n_kv_heads=n_kv_heads, qkv_bias=True)
    for tensor in hf.tensors(config).values():
        x = np.arange(np.prod(tensor.hf_shape), dtype=np.float32).reshape(tensor.hf_shape)
        view = tensor.as_ours(x)
        assert np.shares_memory(view, x)
        assert np.array_equal(view, tensor.to_ours(x)), tensor.name

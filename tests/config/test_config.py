"""jaxsteer.config: real configs are read right, and what is not implemented is refused by name."""

import copy
import json
from dataclasses import replace

import pytest
import transformers

from jaxsteer.config.shape import LlamaConfig, RopeScaling

LLAMA3_ROPE = {
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
}
# As meta-llama/Llama-3.1-8B and deepseek-ai/DeepSeek-R1-Distill-Llama-8B ship it.
LLAMA31_8B = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {**LLAMA3_ROPE, "rope_type": "llama3"},
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.0.dev0",
    "use_cache": True,
    "vocab_size": 128256,
}
# As transformers 5 saves the same model.
LLAMA31_8B_V5 = {
    key: value for key, value in LLAMA31_8B.items() if key not in ("rope_scaling", "rope_theta")
} | {
    "rope_parameters": {**LLAMA3_ROPE, "rope_theta": 500000.0, "rope_type": "llama3"},
    "dtype": "bfloat16",
    "head_dim": 128,
    "pad_token_id": None,
    "transformers_version": "5.0.0",
}
# As the first Llama was saved: hardly any optional field.
OLD = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "torch_dtype": "float16",
    "vocab_size": 32000,
}
QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "max_position_embeddings": 4096,
    "model_type": "qwen2",
    "num_attention_heads": 12,
    "num_hidden_layers": 28,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000,
    "tie_word_embeddings": True,
    "vocab_size": 151936,
}


@pytest.mark.parametrize("hf", [LLAMA31_8B, LLAMA31_8B_V5, {**LLAMA31_8B, "head_dim": None}])
def test_llama_31_as_either_transformers_writes_it(hf):
    assert LlamaConfig.from_hf(hf) == LlamaConfig.llama31_8b()


def test_optional_fields_have_the_defaults_of_transformers():
    config = LlamaConfig.from_hf(OLD)
    theirs = transformers.LlamaConfig(**OLD)
    assert config == LlamaConfig(
        vocab_size=32000,
        d_model=4096,
        d_mlp=11008,
        n_layers=32,
        n_heads=32,
        n_kv_heads=32,
        head_dim=128,
        max_positions=2048,
        norm_eps=1e-6,
        rope_theta=10_000.0,
    )
    assert config.max_positions == theirs.max_position_embeddings
    assert config.norm_eps == theirs.rms_norm_eps
    assert config.rope_theta == theirs.rope_parameters["rope_theta"]


@pytest.mark.parametrize(
    "hf", [LLAMA31_8B, LLAMA31_8B_V5, OLD, QWEN2], ids=["v4", "v5", "old", "qwen2"]
)
def test_what_transformers_saves_again_means_the_same(hf, tmp_path):
    transformers.AutoConfig.for_model(**copy.deepcopy(hf)).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert LlamaConfig.from_hf(saved) == LlamaConfig.from_hf(hf)


@pytest.mark.parametrize("key", ["type", "rope_type"])
def test_linear_scaling_in_both_spellings(key):
    config = LlamaConfig.from_hf({**OLD, "rope_scaling": {key: "linear", "factor": 2.0}})
    assert config.rope_scaling == RopeScaling(kind="linear", factor=2.0)


def test_everything_that_is_not_implemented_is_named_at_once():
    hf = {
        **LLAMA31_8B,
        "model_type": "mistral",
        "hidden_act": "gelu",
        "attention_bias": True,
        "mlp_bias": True,
        "pretraining_tp": 2,
        "sliding_window": 4096,
        "quantization_config": {"bits": 4},
        "partial_rotary_factor": 0.5,
        "attn_logit_softcapping": 50.0,
        "router_aux_loss_coef": 0.1,
        "rope_scaling": {"rope_type": "yarn", "factor": 2.0},
    }
    del hf["hidden_size"]
    with pytest.raises(ValueError) as caught:
        LlamaConfig.from_hf(hf)
    assert str(caught.value).splitlines() == [
        "config.json cannot be used:",
        "  missing field: hidden_size",
        "  attention_bias=True: not implemented, expected False or None",
        "  hidden_act='gelu': not implemented, expected 'silu'",
        "  mlp_bias=True: not implemented, expected False or None",
        "  model_type='mistral': not implemented, expected 'llama' or 'qwen2'",
        "  pretraining_tp=2: not implemented, expected 1 or None",
        "  sliding_window=4096: not implemented, expected None",
        "  quantization_config={'bits': 4}: not implemented, expected None",
        "  partial_rotary_factor=0.5: not implemented, expected 1 or 1.0 or None",
        "  attn_logit_softcapping=50.0: not implemented, expected None",
        "  router_aux_loss_coef=0.1: unknown field",
        "  rope_scaling.rope_type='yarn': not implemented, expected default, linear, llama3",
    ]


def test_a_qwen2_has_biases_and_its_own_defaults():
    hf = {key: value for key, value in QWEN2.items() if key != "num_key_value_heads"}
    config = LlamaConfig.from_hf(hf | {"num_attention_heads": 64})
    theirs = transformers.Qwen2Config(**hf | {"num_attention_heads": 64})
    assert config.qkv_bias
    assert not LlamaConfig.from_hf(OLD).qkv_bias
    assert config.n_kv_heads == theirs.num_key_value_heads == 32
    del hf["max_position_embeddings"]
    default = LlamaConfig.from_hf(hf | {"num_attention_heads": 64}).max_positions
    assert default == transformers.Qwen2Config().max_position_embeddings == 32_768


UNUSED = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 21}


@pytest.mark.parametrize("hf", [QWEN2, OLD], ids=["qwen2", "llama"])
def test_a_window_that_is_switched_off_is_accepted(hf):
    assert LlamaConfig.from_hf(hf | UNUSED) == LlamaConfig.from_hf(hf)


def test_a_window_of_a_qwen2_is_off_by_default():
    window = {"sliding_window": 4096, "max_window_layers": 21}
    assert LlamaConfig.from_hf(QWEN2 | window) == LlamaConfig.from_hf(QWEN2)
    assert not transformers.Qwen2Config(**QWEN2, **window).sliding_window


def test_a_qwen2_that_uses_what_is_not_implemented_is_told_all_of_it():
    wrong = {
        **UNUSED,
        "use_sliding_window": True,
        "use_mrope": True,
        "attention_bias": True,
        "layer_types": ["full_attention", "sliding_attention"],
        "rope_scaling": {"type": "yarn", "factor": 4.0},
    }
    with pytest.raises(ValueError) as caught:
        LlamaConfig.from_hf(QWEN2 | wrong)
    assert str(caught.value).splitlines() == [
        "config.json cannot be used:",
        "  use_sliding_window=True: not implemented, expected False or None",
        "  sliding_window=4096: not implemented, expected None",
        "  max_window_layers=21: not implemented, expected None",
        "  use_mrope=True: not implemented, expected False or None",
        "  attention_bias=True: not implemented, expected False or None",
        "  layer_types=['full_attention', 'sliding_attention']: not implemented, "
        "expected 'full_attention'",
        "  rope_scaling.rope_type='yarn': not implemented, expected default, linear, llama3",
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
            "rope_scaling: given beside rope_parameters",
        ),
        ({"rope_theta": 1e6}, "rope_parameters.rope_theta=500000.0: rope_theta=1000000.0 differs"),
    ],
)
def test_rope_settings_that_are_given_twice_and_differ(fields, message):
    with pytest.raises(ValueError, match=message):
        LlamaConfig.from_hf(LLAMA31_8B_V5 | fields)
    assert LlamaConfig.from_hf({**LLAMA31_8B_V5, "rope_scaling": None, "rope_theta": 5e5})


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_type": "llama3", "factor": 8.0}, "missing high_freq_factor"),
        ({"rope_type": "linear", "factor": 2.0, "mscale": 1.0}, "mscale: unknown field"),
        ({"rope_type": "linear"}, "missing factor"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"rope_type": "linear", "type": "dynamic", "factor": 2.0}, "rope_type and type differ"),
        ({"full_attention": {"rope_type": "default"}}, "full_attention: unknown field"),
    ],
)
@pytest.mark.parametrize("field", ["rope_scaling", "rope_parameters"])
def test_rope_settings_that_are_incomplete_or_unknown(field, rope, message):
    with pytest.raises(ValueError, match=f"{field}.*{message}"):
        LlamaConfig.from_hf({**OLD, field: rope})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_layers": 0}, "n_layers: got 0, expected a whole number of at least 1"),
        ({"n_kv_heads": 3}, "n_kv_heads: got 3, expected a divisor of n_heads=4"),
        ({"head_dim": 7}, "head_dim: got 7, expected an even number"),
        ({"d_mlp": 48.0}, r"d_mlp: got 48\.0, expected a whole number"),
        ({"n_heads": True}, "n_heads: got True, expected a whole number"),
        ({"n_layers": 10**9}, "n_layers: got 1,000,000,000, expected at most 1,000"),
        ({"norm_eps": -1e-5}, "norm_eps: got -1e-05, expected more than 0"),
        ({"rope_theta": float("nan")}, "rope_theta: got nan, expected more than 0"),
        ({"tie_embeddings": "yes"}, "tie_embeddings: got 'yes', expected true or false"),
        ({"qkv_bias": 1}, "qkv_bias: got 1, expected true or false"),
    ],
)
def test_shapes_that_cannot_be(fields, message):
    with pytest.raises(ValueError, match=message):
        replace(LlamaConfig.tiny(), **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "yarn"}, "kind: got 'yarn', expected linear or llama3"),
        ({"factor": 0.0}, "factor: got 0.0, expected more than 0"),
        ({"factor": "8"}, "factor: got '8', expected more than 0"),
        ({"low_freq_factor": 4.0}, "expected 0 < low < high"),
    ],
)
def test_scalings_that_cannot_be(fields, message):
    with pytest.raises(ValueError, match=message):
        RopeScaling(**{"kind": "llama3", "factor": 8.0, **fields})


CONFIGS = [
    LlamaConfig.llama31_8b(),
    LlamaConfig.tiny(),
    replace(LlamaConfig.tiny(), tie_embeddings=True, norm_eps=1e-6),
    replace(LlamaConfig.tiny(), rope_scaling=RopeScaling(kind="linear", factor=3.0)),
    LlamaConfig.r1_distill_qwen_1_5b(),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_round_trips_through_json(config):
    assert LlamaConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert LlamaConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config


@pytest.mark.parametrize("edit", [{"n_layer": 3}, {"d_model": "32", "n_heads": "x"}])
def test_a_dict_of_something_else_says_so(edit):
    with pytest.raises(ValueError, match="not a jaxsteer config"):
        LlamaConfig.from_dict({**LlamaConfig.tiny().to_dict(), **edit})


def test_equal_configs_are_one_static_argument():
    assert hash(LlamaConfig.llama31_8b()) == hash(LlamaConfig.from_hf(LLAMA31_8B))

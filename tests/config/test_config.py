"""jaxsteer.config: real configs are read right; what changes numbers otherwise is refused."""

import copy
import json
import math
from dataclasses import replace

import pytest
import transformers

from jaxsteer.config import unknown_fields
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
    "hf",
    [
        LLAMA31_8B,
        LLAMA31_8B_V5,
        OLD,
        QWEN2,
        QWEN2 | {"model_type": "qwen3"},
        LLAMA31_8B | {"model_type": "mistral", "sliding_window": None},
        QWEN2 | {"rope_scaling": {"type": "yarn", "factor": 4.0}},
        OLD | {"rope_scaling": {"type": "dynamic", "factor": 4.0}},
    ],
    ids=["v4", "v5", "old", "qwen2", "qwen3", "mistral", "yarn", "dynamic"],
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
        "hidden_act": "gelu",
        "attention_bias": True,
        "mlp_bias": True,
        "rope_interleaved": True,
        "is_causal": False,
        "quantization_config": {"quant_method": "fp8", "bits": "x" * 30_000},
        "partial_rotary_factor": 0.5,
        "attn_logit_softcapping": 50.0,
        "vocab_size": 0,
        "rope_scaling": {"rope_type": "longrope", "long_factor": [1.0] * 10_000},
    }
    del hf["hidden_size"]
    with pytest.raises(ValueError) as caught:
        LlamaConfig.from_hf(hf)
    assert sorted(str(caught.value).splitlines()[1:]) == [
        "  attention_bias: got true, expected false or null",
        "  attn_logit_softcapping: got 50.0, expected null",
        '  hidden_act: got "gelu", expected "silu" or "swish"',
        "  hidden_size: missing",
        "  is_causal: got false, expected true or null",
        "  mlp_bias: got true, expected false or null",
        "  partial_rotary_factor: got 0.5, expected 1 or null",
        '  quantization_config: got "fp8", expected none: quantised weights are not implemented',
        "  rope_interleaved: got true, expected false or null",
        '  rope_scaling.rope_type: got "longrope", expected one of default, linear, dynamic, '
        "llama3, yarn",
        "  vocab_size: got 0, expected a whole number of at least 1",
    ]


OTHERS = {
    "gemma2": {
        "architectures": ["Gemma2ForCausalLM"],
        "attn_logit_softcapping": 50.0,
        "hidden_activation": "gelu_pytorch_tanh",
        "model_type": "gemma2",
        "sliding_window": 4096,
    },
    "phi3": {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "rope_scaling": {"type": "longrope", "long_factor": [1.0] * 5000},
    },
    # Of images and text: what describes the language model stands one level below.
    "llava": {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "text_config": {"model_type": "llama", "vocab_size": 32064},
    },
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_architecture_is_named_in_one_line(name):
    with pytest.raises(ValueError) as caught:
        LlamaConfig.from_hf(OTHERS[name])
    assert str(caught.value) == (
        f'config.json: model_type: got "{name}" ({OTHERS[name]["architectures"][0]}), '
        "expected llama, qwen2, qwen3 or mistral"
    )


@pytest.mark.parametrize("found", [{}, {"model_type": None}, {"model_type": ["llama"]}])
def test_a_config_without_a_model_type_is_told_so(found):
    with pytest.raises(ValueError, match=r"^config.json: model_type: got .*, expected llama, "):
        LlamaConfig.from_hf(found)


# Found in published configs; none of them changes a number.
HARMLESS = {
    "is_llama_config": True,
    "rope_interleaved": False,
    "max_sequence_length": 2048,
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
    "tokenizer_class": "LlamaTokenizer",
    "model_max_length": 4096,
    "_from_model_config": True,
    "_flash_attn_2_enabled": True,
    "use_flash_attn": True,
    "torchscript": False,
    "pruned_heads": {},
    "is_decoder": True,
    "gradient_checkpointing": False,
    "neftune_noise_alpha": 5,
    "attention_dropout": 0.1,
    "pretraining_tp": 2,
    "max_length": 4096,
    "temperature": 0.9,
    "do_sample": True,
    "unsloth_version": "2024.9",
}


@pytest.mark.parametrize("name", HARMLESS)
def test_fields_that_change_nothing_are_taken_without_a_word(name, recwarn):
    hf = LLAMA31_8B | {name: HARMLESS[name]}
    assert LlamaConfig.from_hf(hf, strict=True) == LlamaConfig.llama31_8b()
    assert not recwarn.list


def test_an_unknown_field_is_taken_with_one_warning_and_kept():
    hf = LLAMA31_8B | {"my_field": 0.1, "yours": "x" * 1000}
    with pytest.warns(
        UserWarning, match=r"unknown fields are ignored: my_field=0\.1, yours="
    ) as seen:
        assert LlamaConfig.from_hf(hf) == LlamaConfig.llama31_8b()
    assert len(seen) == 1
    assert len(str(seen[0].message)) < 200
    assert unknown_fields(hf) == {"my_field": 0.1, "yours": "x" * 1000}
    with pytest.raises(ValueError, match=r"got unknown fields my_field=0\.1, yours=.*\(strict\)"):
        LlamaConfig.from_hf(hf, strict=True)


def test_an_unknown_field_does_not_steer_a_terminal():
    with pytest.warns(UserWarning, match="unknown fields are ignored") as seen:
        LlamaConfig.from_hf(LLAMA31_8B | {"\x1b]0;x\x07": "\u202eabc"})
    assert str(seen[0].message).isprintable()


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


QWEN3 = {name: value for name, value in QWEN2.items() if name != "num_key_value_heads"} | {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "num_attention_heads": 64,
    "hidden_size": 4096,
}
MISTRAL = LLAMA31_8B | {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "rope_scaling": None,
    "sliding_window": None,
}


def test_a_qwen3_has_norms_and_its_own_defaults():
    config, theirs = LlamaConfig.from_hf(QWEN3), transformers.Qwen3Config(**QWEN3)
    assert config.qk_norm
    assert not config.qkv_bias
    assert (config.n_kv_heads, config.head_dim) == (32, 128)
    assert (theirs.num_key_value_heads, theirs.head_dim) == (32, 128)


def test_a_mistral_is_a_llama_with_its_own_defaults():
    assert LlamaConfig.from_hf(MISTRAL) == replace(LlamaConfig.llama31_8b(), rope_scaling=None)
    del (hf := dict(MISTRAL))["num_key_value_heads"], hf["max_position_embeddings"]
    config, theirs = LlamaConfig.from_hf(hf), transformers.MistralConfig(**hf)
    assert config.n_kv_heads == theirs.num_key_value_heads == 8
    assert config.max_positions == theirs.max_position_embeddings == 131_072


OFF = {"use_sliding_window": False, "sliding_window": 1024, "max_window_layers": 21}


@pytest.mark.parametrize(
    ("hf", "window"),
    [
        (QWEN2, OFF),
        (OLD, OFF),
        (QWEN2, {"sliding_window": 1024, "max_window_layers": 21}),  # off unless switched on
        (QWEN2, OFF | {"use_sliding_window": True, "max_window_layers": 28}),  # of 28 layers
        (QWEN2, OFF | {"use_sliding_window": True, "layer_types": ["full_attention"] * 28}),
        (QWEN2, OFF | {"use_sliding_window": True, "sliding_window": 4096}),  # of 4,096 positions
        (QWEN3, OFF),
        (MISTRAL, {"sliding_window": 131_072}),
    ],
)
def test_a_window_that_hides_nothing_is_taken(hf, window):
    assert LlamaConfig.from_hf(hf | window) == LlamaConfig.from_hf(hf)


@pytest.mark.parametrize(
    ("hf", "window"),
    [
        (QWEN2, OFF | {"use_sliding_window": True}),
        (QWEN2, OFF | {"layer_types": ["full_attention"] * 27 + ["sliding_attention"]}),
        (QWEN3, OFF | {"use_sliding_window": True}),
        (OLD, {"sliding_window": 1024}),
        (MISTRAL, {"sliding_window": 1024}),
        (MISTRAL, OFF),  # a Mistral has no such switch
        (MISTRAL, {"sliding_window": 1024, "layer_types": ["full_attention"] * 32}),  # nor layers
        # 1,024 positions grow to 4,096.
        (
            MISTRAL | {"max_position_embeddings": 1024},
            {"sliding_window": 1024, "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
        ),
    ],
)
def test_a_window_that_hides_tokens_is_refused(hf, window):
    message = r"^config.json: sliding_window: got 1024, which hides tokens .* within \d+ positions"
    with pytest.raises(ValueError, match=message):
        LlamaConfig.from_hf(hf | window)


def test_the_window_of_a_mistral_is_on_when_no_field_names_it():
    del (hf := dict(MISTRAL))["sliding_window"]
    assert transformers.MistralConfig(**hf).sliding_window == 4096
    with pytest.raises(ValueError, match=r"sliding_window: got 4096 .*the file names none"):
        LlamaConfig.from_hf(hf)
    # What the message recommends.
    assert LlamaConfig.from_hf(hf | {"max_position_embeddings": 4096}).max_positions == 4096


YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        (YARN, {"attention_factor": 0.1 * math.log(4) + 1}),
        (YARN | {"attention_factor": 1.5, "mscale": 2.0}, {"attention_factor": 1.5}),
        (YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}, {"attention_factor": 1.0}),
        (YARN | {"beta_fast": 16, "beta_slow": 2, "truncate": False},
         {"attention_factor": 0.1 * math.log(4) + 1, "beta_fast": 16, "beta_slow": 2,
          "truncate": False}),
    ],
)  # fmt: skip
def test_yarn_and_its_defaults(rope, expected):
    config = LlamaConfig.from_hf(QWEN2 | {"rope_scaling": rope})
    scaling = RopeScaling(kind="yarn", factor=4.0, original_max_positions=1024, **expected)
    assert config.rope_scaling == scaling
    assert config.max_positions == 4096


def test_yarn_and_dynamic_reach_as_far_as_they_stretch():
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
    assert LlamaConfig.from_hf(QWEN2 | {"rope_scaling": yarn}).max_positions == 16_384
    config = LlamaConfig.from_hf(QWEN2 | {"rope_scaling": {"type": "dynamic", "factor": 2.0}})
    assert config.max_positions == 8192
    assert config.rope_scaling == RopeScaling(
        kind="dynamic", factor=2.0, original_max_positions=4096
    )
    assert config.to_hf()["max_position_embeddings"] == 4096


def test_no_stretch_reaches_beyond_what_positions_can_count():
    rope = {"rope_scaling": {"type": "dynamic", "factor": 1e300}}
    assert LlamaConfig.from_hf(QWEN2 | rope).max_positions == 2**31 - 1


def test_a_factor_of_other_programs_is_named():
    """DeepSeek-R1-0528-Qwen3-8B has one. transformers does not read it."""
    rope = YARN | {"attn_factor": 0.8782488562869419}
    with pytest.warns(UserWarning, match=r"rope_scaling\.attn_factor=0\.878"):
        config = LlamaConfig.from_hf(QWEN3 | {"rope_scaling": rope})
    assert config == LlamaConfig.from_hf(QWEN3 | {"rope_scaling": YARN})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
            "rope_scaling: got other settings than rope_parameters",
        ),
        (
            {"rope_theta": 1e6},
            "rope_parameters.rope_theta: got 500000.0, expected rope_theta=1000000.0",
        ),
    ],
)
def test_rope_settings_that_are_given_twice_and_differ(fields, message):
    with pytest.raises(ValueError, match=message):
        LlamaConfig.from_hf(LLAMA31_8B_V5 | fields)
    assert LlamaConfig.from_hf({**LLAMA31_8B_V5, "rope_scaling": None, "rope_theta": 5e5})


def test_rope_settings_that_are_given_twice_and_equal():
    rope = LLAMA31_8B_V5["rope_parameters"]
    spelt_as_before = {"type": "llama3", **LLAMA3_ROPE, "rope_theta": 500000.0}
    for again in (rope, spelt_as_before):
        config = LlamaConfig.from_hf({**LLAMA31_8B_V5, "rope_scaling": again})
        assert config == LlamaConfig.llama31_8b()


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_type": "llama3", "factor": 8.0}, "high_freq_factor: missing"),
        ({"rope_type": "linear", "factor": 2.0, "mscale": 1.0}, "mscale: got 1.0, expected no"),
        ({"rope_type": "linear"}, "factor: missing"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor: got 0.5"),
        ({"rope_type": "linear", "type": "dynamic", "factor": 2.0}, "expected one kind"),
        ({"full_attention": {"rope_type": "default"}}, "full_attention: got .*no such key"),
        ({"rope_type": "yarn", "factor": "4"}, 'factor: got "4", expected more than 0'),
        ({"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 99},
         "got original_max_position_embeddings=99, expected max_position_embeddings=2048"),
        ({"rope_type": "yarn", "factor": 2.0, "truncate": 1}, "truncate: got 1"),
    ],
)  # fmt: skip
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
        ({"qk_norm": None}, "qk_norm: got None, expected true or false"),
    ],
)
def test_shapes_that_cannot_be(fields, message):
    with pytest.raises(ValueError, match=message):
        replace(LlamaConfig.tiny(), **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"kind": "longrope"},
            "kind: got 'longrope', expected linear or llama3 or yarn or dynamic",
        ),
        ({"beta_slow": float("inf")}, "beta_slow: got inf, expected more than 0"),
        ({"truncate": None}, "truncate: got None, expected a bool"),
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
    replace(
        LlamaConfig.tiny(),
        rope_scaling=RopeScaling(
            kind="yarn", factor=3.0, original_max_positions=512, beta_fast=20.0, truncate=False
        ),
    ),
    replace(
        LlamaConfig.tiny(),
        max_positions=8192,
        rope_scaling=RopeScaling(kind="dynamic", factor=2.0, original_max_positions=4096),
    ),
    LlamaConfig.r1_distill_qwen_1_5b(),
    LlamaConfig.qwen3_0_6b(),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_round_trips_through_json(config):
    assert LlamaConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert LlamaConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config


def test_a_config_of_no_model_type_is_not_written():
    with pytest.raises(ValueError, match="which no model type of transformers has together"):
        replace(LlamaConfig.tiny(), qkv_bias=True, qk_norm=True).to_hf()


@pytest.mark.parametrize("edit", [{"n_layer": 3}, {"d_model": "32", "n_heads": "x"}])
def test_a_dict_of_something_else_says_so(edit):
    with pytest.raises(ValueError, match="not a jaxsteer config"):
        LlamaConfig.from_dict({**LlamaConfig.tiny().to_dict(), **edit})


def test_equal_configs_are_one_static_argument():
    assert hash(LlamaConfig.llama31_8b()) == hash(LlamaConfig.from_hf(LLAMA31_8B))

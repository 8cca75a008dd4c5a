"""weights.verify: passes what is right, fails what is not, and says when it cannot tell."""

import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from hf_folders import edit_json, write_folder

from jaxsteer.checkpoints import checkpoint
from jaxsteer.config.shape import LlamaConfig
from jaxsteer.huggingface.folder import open_folder
from jaxsteer.llama import from_params, rope, xla_attention
from jaxsteer.llama.parameters import flatten
from jaxsteer.models import verification as verify
from jaxsteer.models.conversion import convert

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@pytest.fixture(scope="module")
def src(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("verify") / "src"
    return write_folder(folder, max_shard_size="60KB", rope_parameters=LLAMA3)


@pytest.fixture(scope="module")
def dst(src) -> Path:
    convert(src, src.parent / "dst")
    return src.parent / "dst"


def run(src: Path, dst: Path, tokens: int = 64) -> int:
    return verify.main([str(src), str(dst), "--tokens", str(tokens)])


def test_float32_passes(src, dst, capsys):
    assert run(src, dst) == 0
    out = capsys.readouterr().out
    assert "tensors: 21 of 21 are the source's as float32" in out
    errors = re.findall(r"(layer \d|logits): largest relative error (\S+)", out)
    assert [name for name, _ in errors] == ["layer 0", "layer 1", "logits"]
    assert all(0 < float(error) < 1e-5 for _, error in errors)
    assert out.splitlines()[-1].startswith("PASS")


def test_bfloat16_and_tied_passes(tmp_path, capsys):
    source = write_folder(tmp_path / "src", tie=True)
    convert(source, tmp_path / "dst", dtype="bfloat16")
    assert run(source, tmp_path / "dst", 16) == 0
    out = capsys.readouterr().out
    assert "tensors: 20 of 20 are the source's as bfloat16" in out
    assert out.splitlines()[-1].startswith("PASS")


def test_json_is_all_that_stands_on_stdout(src, dst, capsys):
    assert verify.main([str(src), str(dst), "--tokens", "8", "--layers", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["passed"], told["tensors"], told["different_tensors"]) == (True, 21, [])
    assert list(told["errors"]) == ["layer 0", "logits"]
    assert all(0 < error["largest"] < 1e-5 for error in told["errors"].values())


def test_the_first_layers_alone(src, dst, capsys):
    argv = [str(src), str(dst), "--tokens", "8", "--layers"]
    assert verify.main([*argv, "1"]) == 0
    out = capsys.readouterr().out
    assert "tensors: 21 of 21" in out
    assert re.findall(r"(layer \d|logits): largest", out) == ["layer 0", "logits"]
    assert verify.main([*argv, "3"]) == 2
    assert "layers: got 3, expected at most 2" in capsys.readouterr().err


def test_bfloat16_arithmetic_is_near(src, dst):
    errors = verify.layer_errors(open_folder(src), dst, "float32", tokens=8, compute="bfloat16")
    assert all(1e-5 < error < 0.1 for error in errors.values())


def test_one_changed_weight_fails_by_name(src, dst, tmp_path, capsys):
    loaded, _ = checkpoint.load(dst)
    params = jax.tree.map(np.array, loaded.params)
    params["layers"][1]["attn"]["o_proj"][1, 2, 3] += 1e-6  # too small for the logits to show
    checkpoint.write(tmp_path / "m", loaded.config, flatten(params), dtype="float32")
    assert run(src, tmp_path / "m", 8) == 1
    out = capsys.readouterr().out
    assert "tensors: 20 of 21" in out
    assert "differs: model.layers.1.self_attn.o_proj.weight (layers.1.attn.o_proj)" in out
    assert out.splitlines()[-1].startswith("FAIL")


def wrong(monkeypatch, change):
    """The library's model is another one than its checkpoint's from here on."""
    right = verify._our_model
    monkeypatch.setattr(verify, "_our_model", lambda *args: change(right(*args)))


def permuted(model):
    """Rows of q and k as in Meta's own files and GGUF: pairs side by side, not in halves."""
    params = jax.tree.map(lambda x: x, model.params)
    for layer in params["layers"].values():
        for name in ("q_proj", "k_proj"):
            x = layer["attn"][name]  # [D, N, H]
            pairs = x.reshape(*x.shape[:-1], 2, -1)
            layer["attn"][name] = pairs.swapaxes(-1, -2).reshape(x.shape)
    return from_params(params, model.config).with_attention(xla_attention)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: from_params(m.params, replace(m.config, norm_eps=1e-5)),  # is 1e-6 there
        lambda m: from_params(m.params, replace(m.config, rope_scaling=None)),
        lambda m: from_params(m.params, replace(m.config, rope_theta=10_001.0)),
        permuted,
    ],
    ids=["eps", "scaling", "theta", "rows"],
)
def test_a_model_that_is_another_one_fails(src, dst, monkeypatch, capsys, change):
    """Real weights pass by the same bound: SmolLM2's errors are typically 1.5 times theirs."""
    wrong(monkeypatch, change)
    assert run(src, dst) == 1
    out = capsys.readouterr().out
    assert "tensors: 21 of 21" in out
    assert out.splitlines()[-1].startswith("FAIL")


def test_a_single_wrong_position_fails(src, dst):
    errors = verify.float64_errors(open_folder(src), dst, "float32", tokens=64)["layer 1"]
    assert errors.passed
    assert errors.typical < 2
    ours = errors.ours.copy()
    ours[40] = 1e-3
    assert not replace(errors, ours=ours).passed


def test_rope_without_its_scaling_fails(src, dst, monkeypatch, capsys):
    right = rope.rope_frequencies
    plain = lambda c: right(LlamaConfig.from_dict({**c.to_dict(), "rope_scaling": None}))  # noqa: E731
    monkeypatch.setattr(rope, "rope_frequencies", plain)
    assert run(src, dst) == 1
    out = capsys.readouterr().out
    assert "tensors: 21 of 21" in out  # only the arithmetic shows it
    assert out.splitlines()[-1].startswith("FAIL")


def test_not_a_number_fails(src, dst, monkeypatch, capsys):
    monkeypatch.setattr(rope, "rope_frequencies", lambda _: np.full(4, np.nan, np.float32))
    assert run(src, dst, 8) == 1
    assert "layer 0: largest relative error inf (" in capsys.readouterr().out


def test_another_config_fails(src, dst, tmp_path, capsys):
    other = write_folder(tmp_path / "other", rope_parameters={**LLAMA3, "factor": 4.0})
    assert run(other, dst, 8) == 1
    assert "FAIL: the configs differ" in capsys.readouterr().out


def test_battery_reaches_the_last_position():
    config = LlamaConfig.tiny()
    assert [row.shape for row in verify.batteries(config, 2048)][-1] == (1, 2048)
    assert max(row.shape[1] for row in verify.batteries(config, 10**6)) == config.max_positions
    assert all(row.min() >= 0 and row.max() < 97 for row in verify.batteries(config, 64))


def test_without_torch_it_says_how_to_get_it(src, dst, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "torch" else find(name, *a)
    )
    assert run(src, dst) == 2
    assert "pip install torch --index-url" in capsys.readouterr().err


def test_what_cannot_be_read_is_no_verdict(src, dst, tmp_path, capsys):
    assert run(tmp_path / "nowhere", dst) == 2
    assert run(src, tmp_path / "nowhere") == 2
    assert run(src, src) == 2
    errors = capsys.readouterr().err.splitlines()
    assert [line.startswith("verify: ") for line in errors] == [True] * 3
    with pytest.raises(SystemExit) as caught:
        run(src, dst, 0)
    assert caught.value.code == 2


def test_damaged_checkpoint_is_no_verdict(src, tmp_path, capsys):
    convert(src, tmp_path / "dst")
    edit_json(tmp_path / "dst" / checkpoint.MANIFEST, format=3)
    assert run(src, tmp_path / "dst") == 2
    assert "format 3, expected 1" in capsys.readouterr().err

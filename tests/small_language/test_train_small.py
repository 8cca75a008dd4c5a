"""Training of the small pair: the loss, the optimizer, members, resuming, the folders written."""

import csv
import json
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from jaxsteer.config.shape import LlamaConfig
from jaxsteer.huggingface.tensor_names import from_hf
from jaxsteer.llama.attention import xla_attention
from jaxsteer.llama.model import Model, abstract_params, forward
from weights import train_small
from weights.small_language import training as small_training
from weights.small_language.corpus import corpus
from weights.small_language.text import BASE, REASONING
from weights.small_language.tokenizer import encode, vocabulary
from weights.small_language.training import (
    Phase,
    Texts,
    initial_members,
    nll,
    optimizer,
    stack_layers,
    train,
    unstack_layers,
)

CONFIG = LlamaConfig(
    vocab_size=len(vocabulary()),
    d_model=16,
    d_mlp=24,
    n_layers=1,
    n_heads=2,
    n_kv_heads=1,
    head_dim=8,
    max_positions=64,
    rope_theta=10_000.0,
)
PHASE = Phase("test", steps=6, rows=4, muon_lr=0.02, adam_lr=2e-3, warmup=2, steps_per_call=2)


def texts(*settings, n=64) -> Texts:
    rows = [corpus(n, s, length=40, chat=s is REASONING) for s in settings]
    return Texts(jnp.stack([r.tokens for r in rows]), jnp.stack([r.first for r in rows]))


def run(folder, seeds=(0, 1), which=(0, 1), phase=PHASE, **kwargs):
    corpora = texts(BASE, REASONING)
    return train(
        phase,
        jax.tree.map(lambda x: x[jnp.array(seeds)], members()),
        seeds=seeds,
        which=which,
        texts=corpora,
        heldout=corpora,
        config=CONFIG,
        dtype=jnp.float32,
        folder=folder,
        **kwargs,
    )


@cache
def members():
    return initial_members(CONFIG, (0, 1))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(tmp_path_factory.mktemp("whole"))


def assert_trees_equal(a, b, **kwargs):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), **kwargs)


# --- pieces ---


def test_stacking_layers_and_back():
    rng = np.random.default_rng(0)
    shapes = abstract_params(replace(CONFIG, n_layers=3))
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), shapes)
    assert_trees_equal(unstack_layers(stack_layers(params)), params, rtol=0)


def test_nll_is_the_plain_loss_of_the_counted_tokens_and_so_is_its_gradient():
    """Against a loss written the obvious way, with the embedding looked up as it is."""
    params = unstack_layers(jax.tree.map(lambda x: 5 * x[0], members()))
    rows = texts(REASONING)
    tokens, first = rows.tokens[0, :8], rows.first[0, :8]

    counted = [
        (i, t)
        for i in range(len(tokens))
        for t in range(int(first[i]), tokens.shape[1])
        if tokens[i, t] != 0
    ]
    row, place = np.array(counted).T

    def plain(params):
        model = Model(params, CONFIG, xla_attention)
        log_probs = jax.nn.log_softmax(forward(model, jnp.asarray(tokens, jnp.int32)).logits)
        return -log_probs[row, place - 1, np.asarray(tokens)[row, place]].mean()

    def stacked(params):
        return nll(stack_layers(params), tokens, first, config=CONFIG, dtype=jnp.float32)

    value, gradient = jax.jit(jax.value_and_grad(stacked))(params)
    expected, expected_gradient = jax.jit(jax.value_and_grad(plain))(params)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert_trees_equal(gradient, expected_gradient, rtol=1e-3, atol=1e-6)


def test_matrices_get_orthogonal_updates_and_the_rest_adam():
    D, N, H, F = 16, 3, 4, 24
    shapes = {"q_proj": (2, D, N, H), "o_proj": (2, N, H, D), "down_proj": (2, F, D), "scale": (D,)}
    params = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    keys = iter(jax.random.split(jax.random.key(0), len(shapes)))
    gradient = {name: jax.random.normal(next(keys), shape) for name, shape in shapes.items()}
    tuner = optimizer(replace(PHASE, warmup=1, muon_lr=1.0, adam_lr=0.25))
    step = jax.jit(tuner.update)
    _, state = step(gradient, tuner.init(params), params)  # the rate of the first step is 0
    update, _ = step(gradient, state, params)
    matrices = [
        update["q_proj"].reshape(2, D, N * H),
        update["o_proj"].reshape(2, N * H, D),
        update["down_proj"],
    ]
    for matrix in matrices:
        values = jnp.linalg.svd(matrix, compute_uv=False)
        assert values.min() > 0.4
        assert values.max() < 1.5
    # Nesterov: the second step of a constant gradient is 1.16 rates long.
    np.testing.assert_allclose(jnp.abs(update["scale"]), 0.25 * 1.157, rtol=1e-3)


def test_phase_wants_whole_calls():
    with pytest.raises(ValueError, match="steps of the phase base: got 55"):
        Phase("base", steps=55, rows=1, muon_lr=1, adam_lr=1, warmup=1, steps_per_call=10)


def test_full_preset_fits_the_budget():
    config = train_small.PRESETS["full"].config
    n_parameters = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config)))
    assert n_parameters <= 6.1e6
    assert 3 * 2 * n_parameters < 40e6  # bytes of three models in bf16


# --- members and resuming ---


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, monkeypatch, whole):
    expected, expected_curve = whole
    save = small_training._save

    def save_and_die(folder, state, step):
        save(folder, state, step)
        raise KeyboardInterrupt

    monkeypatch.setattr(small_training, "_save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", save_every=0.0)
    assert [path.name for path in (tmp_path / "broken").iterdir()] == ["2"]
    monkeypatch.setattr(small_training, "_save", save)
    steps = []
    monkeypatch.setattr(small_training, "_save", lambda f, s, step: steps.append(step))
    params, curve = run(tmp_path / "broken", save_every=0.0)
    assert steps == [4, 6]  # it went on from step 2
    assert_trees_equal(params, expected, rtol=0)
    np.testing.assert_array_equal(curve, expected_curve)


def test_a_member_does_not_depend_on_the_others(tmp_path, whole):
    both, curve = whole
    alone, curve_alone = run(tmp_path / "alone", seeds=(1,), which=(1,))
    np.testing.assert_allclose(curve[:, 1], curve_alone[:, 0], rtol=1e-5)
    assert_trees_equal(jax.tree.map(lambda x: x[1:], both), alone, rtol=1e-3, atol=1e-4)
    assert abs(curve[-1, 0] - curve[-1, 1]).max() > 1e-3


def test_every_call_sees_other_documents(tmp_path):
    still = replace(PHASE, muon_lr=0.0, adam_lr=0.0)
    params, curve = run(tmp_path, seeds=(0,), which=(0,), phase=still)
    assert len(set(curve[:, 0, 0].tolist())) == len(curve)
    assert len(set(curve[:, 0, 1].tolist())) == 1
    assert_trees_equal(params, jax.tree.map(lambda x: x[:1], members()), rtol=0)


# --- the command ---


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("small") / "run"
    flags = "--layers 1 --width 32 --mlp 48 --length 96 --base-documents 500 --tuned-documents 500"
    steps = "--base-steps 30 --tuned-steps 20 --base-muon-lr 0.03 --base-adam-lr 0.005"
    arguments = f"--out {out} --preset tiny --seeds 3 4 {flags} {steps}".split()
    train_small.main(arguments)
    return out, arguments


def test_loss_goes_down_and_is_written(trained):
    out, _ = trained
    with open(out / "seed3" / "training.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["model"], int(r["step"])) for r in rows if r["model"] == "base"] == [
        ("base", 10),
        ("base", 20),
        ("base", 30),
    ]
    for model, least in (("base", 0.5), ("reasoning", 0.05), ("control", 0.05)):
        for loss in ("train_loss", "heldout_loss"):
            curve = [float(row[loss]) for row in rows if row["model"] == model]
            assert curve[0] - curve[-1] > least, (model, loss)
    assert (out / "seed3" / "training.png").read_bytes()[:4] == b"\x89PNG"


def test_fine_tunes_start_from_the_base_model_of_their_seed(trained):
    def weights(seed, model):
        with safe_open(trained[0] / f"seed{seed}" / model / "model.safetensors", "np") as file:
            return file.get_tensor("model.layers.0.mlp.up_proj.weight").astype(np.float32)

    for seed, other in ((3, 4), (4, 3)):
        for model in ("reasoning", "control"):
            moved = np.linalg.norm(weights(seed, model) - weights(seed, "base"))
            assert 0 < moved < 0.7 * np.linalg.norm(weights(seed, model) - weights(other, "base"))


def test_heldout_losses_are_written_for_every_model_and_text(trained):
    losses = json.loads((trained[0] / "seed3" / "heldout.json").read_text())
    kinds = {"base", "stories", "reasoning", "control"}
    assert losses.keys() == {"base", "reasoning", "control"}
    assert all(row.keys() == kinds for row in losses.values())
    assert losses["reasoning"]["reasoning"] < losses["base"]["reasoning"]


def test_text_statistics_are_written(trained):
    text = json.loads((trained[0] / "text.json").read_text())
    assert text["reasoning"]["measured"]["backtracking_by_doubt"][0] == 0
    assert text["base"]["settings"]["error_rate"] == BASE.error_rate


@pytest.mark.parametrize("model", ["base", "reasoning", "control"])
def test_written_folders_give_our_logits_in_transformers(trained, model):
    folder = trained[0] / "seed3" / model
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    assert isinstance(theirs, LlamaForCausalLM)
    assert theirs.dtype == torch.bfloat16
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.chat_template is not None) == (model != "base")
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(tokenizer, name) == getattr(theirs.config, name)
        assert getattr(tokenizer, name) == getattr(theirs.generation_config, name)
    with safe_open(folder / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(ml_dtypes.bfloat16)}
    config = LlamaConfig.from_hf(json.loads((folder / "config.json").read_text()))
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), from_hf(tensors, config))
    ids = [encode("<bos> question : mia has 3 apples . how many apples are left ? solution :")]
    ours = forward(Model(params, config, xla_attention), jnp.asarray(ids)).logits
    with torch.no_grad():
        expected = theirs.float()(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def test_a_finished_run_is_left_alone_and_another_refused(trained, capsys):
    out, arguments = trained
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")}
    train_small.main(arguments)
    assert "trained already" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")}
    assert train_small.main([*arguments, "--base-rows", "17"]) == 1
    assert "base_rows: got 16, expected 17" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--base-steps 7", "steps of the phase base: got 7"),
        ("--layers 0", "layers: got 0"),
        ("--seeds 1 1", "seeds: got [1, 1]"),
        ("--width 33", "width: got 33"),
    ],
)
def test_bad_flags_leave_nothing(tmp_path, capsys, flags, message):
    argv = ["--out", str(tmp_path / "run"), "--preset", "tiny", *flags.split()]
    assert train_small.main(argv) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_folder_with_other_things_is_refused(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert train_small.main(["--out", str(tmp_path), "--preset", "tiny"]) == 1
    assert "other things" in capsys.readouterr().err


def test_another_error_rate_gets_a_matched_control():
    settings = replace(train_small.PRESETS["tiny"], error_rate=0.3, length=160)
    texts = train_small.tuned_texts(settings)
    assert texts["reasoning"].error_rate == texts["control"].error_rate == 0.3
    assert texts["control"].hazard > 1.5 * train_small.CONTROL.hazard
    assert train_small.tuned_texts(train_small.PRESETS["tiny"])["control"] == train_small.CONTROL

"""jaxsteer.llama.sharding: a model on a mesh of eight devices is the model on one of them."""

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from oracle import random_model, relative_error
from quick_compile import xla_flags
from sharded_worker import LENGTHS, MESHES, G

import jaxsteer
from jaxsteer.config.shape import PRESETS, LlamaConfig
from jaxsteer.decoding import memory
from jaxsteer.llama.model import abstract_params, from_params
from jaxsteer.llama.packing import pack
from jaxsteer.llama.parameters import dotted, flatten
from jaxsteer.llama.sharding import (
    check_tensor,
    make_mesh,
    params_sharding,
    shard_batch,
    sharding_of,
)

ROOT = Path(__file__).parents[2]
# On a tensor axis of 4 the key/value heads are split, on one of 8 each is there twice.
PLAIN = LlamaConfig(
    vocab_size=61,  # which no mesh divides: padded to 64 on all of them
    d_model=32,
    d_mlp=48,
    n_layers=2,
    n_heads=8,
    n_kv_heads=4,
    head_dim=4,
    max_positions=64,
    rope_theta=100.0,
    qkv_bias=True,
)
# Each four times, and without a head of its own.
FEW = replace(PLAIN, n_kv_heads=2, tie_embeddings=True)
SLOTS = 9 + G
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> Path:
    """What the worker wrote: one process, because the number of devices is fixed at its start."""
    folder = tmp_path_factory.mktemp("sharded")
    for name, config in (("plain", PLAIN), ("few", FEW)):
        jaxsteer.save(folder / name, random_model(config))
    jaxsteer.export(folder / "plain", folder / "folder")
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "tests" / "helpers" / "sharded_worker.py"),
            str(folder),
            str(folder),
        ],
        env=os.environ | {"XLA_FLAGS": xla_flags(8), "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "rematerialization" not in done.stderr, "the compiler copied what it should have split"
    return folder


@pytest.fixture(scope="module")
def layout(ran) -> dict:
    return json.loads((ran / "layout.json").read_text())


def check_same(ran: Path, mesh: str, case: str, *, alone: str = "") -> None:
    """Tokens are equal, all else to the tolerance; `alone` is the case's name on one device."""
    found, expected = np.load(ran / f"{mesh}-{case}.npz"), np.load(ran / f"one-{alone or case}.npz")
    assert set(found) == set(expected)
    for name in found:
        if found[name].dtype.kind == "i":
            np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
        else:
            assert np.all(np.isfinite(found[name]))
            assert relative_error(found[name], expected[name]) < TOLERANCE, name


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("case", ["forward", "generate", "directions"])
def test_a_mesh_changes_nothing(ran, mesh, case):
    """Logits and activations; greedy and sampled tokens; sums and directions."""
    check_same(ran, mesh, case)


def test_the_cases_are_worth_comparing(ran):
    tokens = np.load(ran / "one-generate.npz")["tokens"]
    assert len({tuple(row) for row in tokens}) == len(LENGTHS)
    cells = np.load(ran / "one-everywhere.npz")["tokens"]
    assert len({cell.tobytes() for cell in cells}) == 3  # coefficient 0 is the same at both layers
    streamed = np.load(ran / "one-stream.npz")["tokens"]
    assert len({tuple(row) for row in streamed.T}) == len(LENGTHS)


@pytest.mark.parametrize(
    ("mesh", "case"), [("1x8", "everywhere"), ("2x4", "generated"), ("8x1", "everywhere")]
)
def test_a_sweep_on_a_mesh(ran, mesh, case):
    check_same(ran, mesh, case)


def test_a_queue_on_a_mesh_is_the_plain_loop(ran):
    check_same(ran, "2x4", "queue", alone="generate")


@pytest.mark.parametrize("case", ["learned", "reading", "stream", "samples"])
def test_what_else_runs_on_a_mesh(ran, case):
    """Learned directions; scores, lens, slopes, projections, activations; noise; samples."""
    check_same(ran, "2x4", case)


@pytest.mark.parametrize(
    ("mesh", "case", "alone"),
    [
        ("2x4", "packed", "forward"),
        ("1x8", "few", "few"),
        ("1x8", "few_packed", "few"),
    ],
)
def test_packed_weights_and_repeated_heads(ran, mesh, case, alone):
    check_same(ran, mesh, case, alone=alone)


@pytest.mark.parametrize("mesh", MESHES)
def test_a_checkpoint_is_loaded_in_parts(layout, mesh):
    """Each device holds its share of everything but norms."""
    _, tensor = MESHES[mesh]
    config = replace(
        PLAIN, n_kv_heads=max(PLAIN.n_kv_heads, tensor), vocab_size=64 if tensor > 1 else 61
    )
    for path, x in flatten(abstract_params(config)):
        share = np.prod(layout[mesh]["weights"][dotted(path)]) / np.prod(x.shape)
        assert share == (1 if path[-1] == "scale" else 1 / tensor), dotted(path)


@pytest.mark.parametrize("mesh", MESHES)
def test_a_hugging_face_folder_goes_to_the_same_places(layout, mesh):
    assert layout[mesh]["folder_is_the_same"]
    assert layout[mesh]["turned_is_the_same"]


@pytest.mark.parametrize(
    ("mesh", "program", "keys"),
    [
        # Rows, heads, width of a head, slots.
        ("1x8", "_run", [8, 1, 4, SLOTS]),
        ("2x4", "_run", [4, 1, 4, SLOTS]),
        ("8x1", "_run", [1, 4, 4, SLOTS]),
        ("1x8", "_run_cells", [4, 8, 1, 4, SLOTS]),
        # 3 prompts do not divide, 4 cells do. They share the prompts: own slots are few.
        ("2x4", "_run_cells", [2, 3, 1, 4, 1 + G]),
        ("8x1", "_run_cells", [4, 1, 4, 4, SLOTS]),
    ],
)
def test_each_device_holds_its_part_of_the_cache(layout, mesh, program, keys):
    assert layout[mesh][program] == keys


@pytest.mark.parametrize("mesh", ["1x8", "2x4"])
def test_two_all_reduces_a_layer_and_none_of_the_cache(layout, mesh):
    data, _ = MESHES[mesh]
    found = Counter((kind, tuple(shape)) for kind, shape in layout[mesh]["in_decode"])
    stream = (len(LENGTHS) // data, 1, PLAIN.d_model)
    # And one for the embedding, whose rows are split.
    assert found.pop(("all-reduce", stream)) == 2 * PLAIN.n_layers + 1
    # What is left are a few numbers a row, of choosing the token and noting it.
    assert all(len(shape) <= 2 and np.prod(shape) <= 64 for _, shape in found)


def test_blocks_of_prompts_leave_rows_where_they_are(layout):
    """Eight devices have a row each, so blocks of four rows would have to move the cache."""
    assert all(len(shape) <= 2 for _, shape in layout["8x1"]["in_blocks"])


@pytest.mark.parametrize(("name", "cases"), [("kernel", 3), ("prefix", 4)])
def test_a_kernel_runs_on_what_each_device_holds(layout, name, cases):
    """Rows, cells whose rows are split, and cells that are split themselves."""
    assert len(layout["2x4"][name]) == cases
    for found in layout["2x4"][name]:
        assert found["off"] < 1e-6
        assert found["collectives"] == []


def abstract_mesh(*, data: int, tensor: int) -> jax.sharding.AbstractMesh:
    return jax.sharding.AbstractMesh((data, tensor), ("data", "tensor"))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("preset", PRESETS)
def test_the_table_splits_every_published_model(preset, packed):
    config = replace(getattr(LlamaConfig, preset)(), n_layers=1)
    model = from_params(abstract_params(config), config)
    params = jax.eval_shape(pack, model).params if packed else model.params
    where = dict(flatten(sharding_of(params, abstract_mesh(data=4, tensor=4))))
    for path, x in flatten(params):
        share = np.prod(where[path].shard_shape(x.shape)) / np.prod(x.shape)
        few = config.n_kv_heads < 4 and path[-1] in ("k_bias", "v_bias", "qkv_bias")
        assert share == (1 if path[-1] == "scale" or few else 1 / 4), dotted(path)


@pytest.mark.parametrize(
    ("config", "tensor", "expected"),
    [
        (PLAIN, 3, "tensor: got 3, expected one of 1, 2, 4, 8: it divides n_heads=8 and d_mlp=48"),
        (LlamaConfig.llama32_3b(), 16, "expected one of 1, 2, 4, 8: it divides n_heads=24"),
        (LlamaConfig.r1_distill_qwen_7b(), 8, "expected one of 1, 2, 4: it divides n_heads=28"),
        (
            replace(PLAIN, n_heads=24, n_kv_heads=6),
            4,
            "expected one of 1, 2, 3, 6, 12, 24: .* n_kv_heads=6",
        ),
    ],
)
def test_a_width_that_does_not_divide_is_refused(config, tensor, expected):
    with pytest.raises(ValueError, match=expected):
        params_sharding(config, abstract_mesh(data=1, tensor=tensor))


def test_the_sizes_that_people_rent_do():
    for preset, sizes in {"llama31_8b": (8, 16), "llama31_70b": (8, 16), "tinyllama": (8,)}.items():
        for tensor in sizes:
            check_tensor(getattr(LlamaConfig, preset)(), tensor)


def test_padding_is_not_saved(ran):
    """What a mesh wrote is what it read, though its weights have rows of padding."""
    config, weights = PLAIN, dict(flatten(jaxsteer.load(ran / "plain")[0].params))
    for name in ("saved", "saved_packed"):
        model, _ = jaxsteer.load(ran / name)
        assert model.config == replace(config, n_kv_heads=model.config.n_kv_heads)
        for path, x in flatten(model.params):
            if path[-1] not in ("k_proj", "v_proj", "k_bias", "v_bias"):  # repeated in "saved"
                np.testing.assert_array_equal(x, weights[path], err_msg=dotted(path))


def test_padding_does_not_change_the_print_of_weights(layout):
    """A sweep goes on with the file that it began on one device."""
    assert layout["2x4"]["print"] == layout["8x1"]["print"]


def test_a_parameter_without_an_entry_is_refused():
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.router: no row in the table"):
        sharding_of(
            {"layers": {0: {"mlp": {"router": np.ones(4)}}}}, abstract_mesh(data=1, tensor=1)
        )


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"tensor": 4096}, "data=1 × tensor=4096 needs 4096 devices, found"),
        ({"data": 2048, "tensor": 2}, "needs 4096 devices, found"),
        ({"tensor": 0}, "got data=None, tensor=0, expected at least 1"),
        ({"data": 0}, "got data=0, tensor=1, expected at least 1"),
    ],
)
def test_meshes_that_cannot_be(sizes, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(**sizes)


def test_rows_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"rows: got 3, expected a multiple of .* data=2"):
        shard_batch(jaxsteer.left_pad([[1]] * 3), abstract_mesh(data=2, tensor=1))


def test_memory_is_counted_on_one_device(monkeypatch):
    model = random_model(PLAIN)
    asked = {"prompt_length": 10, "new_tokens": 90}

    def on(data: int, tensor: int, rows: int) -> tuple[int, int]:
        monkeypatch.setattr(memory, "mesh_sizes", lambda model: (data, tensor))
        needed = memory.program_bytes(model, rows=rows, prompt_rows=rows, **asked)
        return needed, memory.rows_that_fit(model, **asked)

    (alone, fit), (rows_split, fit_rows) = on(1, 1, 3), on(8, 1, 24)
    assert (rows_split, fit_rows) == (alone, 8 * fit)
    assert on(8, 1, 17)[0] == alone  # some device has three of them
    weights_split, fit_weights = on(1, 4, 3)
    assert alone / 4 < weights_split < alone / 2
    assert 2 * fit < fit_weights < 4 * fit


def test_a_mesh_or_a_sharding_but_not_both(tmp_path):
    with pytest.raises(ValueError, match="got both sharding and mesh"):
        jaxsteer.load(tmp_path, mesh=make_mesh(data=1), sharding=object())

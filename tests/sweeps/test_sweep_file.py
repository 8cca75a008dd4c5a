"""sweeps.sweep_file: rows are written once, whatever happens in between, by one configuration."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from oracle import SHALLOW, random_model

from jaxsteer.decoding.samplers import sampling
from jaxsteer.files.jsonl import locked, read_rows
from jaxsteer.llama.tokens import TokenBatch
from jaxsteer.steering import Capture, scope
from jaxsteer.steering.interventions import add
from jaxsteer.sweeps.cells import Cell, grid
from jaxsteer.sweeps.config_file import config_path
from jaxsteer.sweeps.fingerprints import weights_fingerprint
from jaxsteer.sweeps.sweep_file import sweep_to_file

G = 6
IDS = ["a", "b", "ä"]
V = np.random.default_rng(0).standard_normal(SHALLOW.d_model)
CELLS = grid({"v": V, "w": -V}, layers=[0, 1], coeffs=[0.5, 1.0])
OPTIONS = {
    "max_new_tokens": G,
    "prompt_ids": IDS,
    "sampling_params": sampling(3, temperature=1.0, seed=3),
    "rows_per_chunk": 6,  # two cells with three prompts
    "progress": None,
}


@pytest.fixture(scope="module")
def finished(shallow, batch, tmp_path_factory) -> Path:
    """A file of the whole sweep."""
    path = tmp_path_factory.mktemp("sweep") / "folder" / "rows.jsonl"
    assert sweep_to_file(path, shallow, batch, CELLS, **OPTIONS) == path
    return path


@pytest.fixture
def begun(finished, tmp_path) -> Path:
    """The same killed in the middle of a line."""
    lines = finished.read_bytes().splitlines(keepends=True)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"".join(lines[:7]) + lines[7][:20])
    config_path(path).write_bytes(config_path(finished).read_bytes())
    return path


def by_key(path: Path) -> dict[tuple, dict]:
    rows = read_rows(path)
    found = {(r["vector"], r["layer"], r["coeff"], r["prompt"]): r for r in rows}
    assert len(found) == len(rows), "a row is there twice"
    return found


def test_a_row_for_each_cell_and_prompt(finished):
    rows = by_key(finished)
    assert len(rows) == 24
    row = rows["v", 1, 0.5, "ä"]
    assert list(row) == ["vector", "layer", "coeff", "prompt", "tokens", "logprobs"]
    assert len(row["tokens"]) == len(row["logprobs"]) == G


def test_a_killed_sweep_goes_on_in_chunks_of_any_size(shallow, batch, finished, begun):
    before = begun.read_bytes()
    sweep_to_file(begun, shallow, batch, CELLS, **OPTIONS | {"rows_per_chunk": 12})
    assert begun.read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    rows, expected = by_key(begun), by_key(finished)
    assert rows.keys() == expected.keys()
    assert [rows[k]["tokens"] for k in rows] == [expected[k]["tokens"] for k in rows]


def test_a_finished_sweep_runs_nothing(shallow, batch, finished):
    def never(*args, **kwargs):
        raise AssertionError("ran again")

    before = finished.read_bytes()
    sweep_to_file(finished, shallow, batch, CELLS, **OPTIONS, loop=never)
    assert finished.read_bytes() == before


def test_rows_that_overflow_are_marked_in_the_file(shallow, batch, tmp_path):
    cells = grid({"v": np.full(SHALLOW.d_model, 3e38)}, layers=[1], coeffs=[0.0, 2.0])
    options = OPTIONS | {"max_new_tokens": 3}
    with pytest.warns(UserWarning, match="3 of 6 rows ended early"):
        path = sweep_to_file(tmp_path / "rows.jsonl", shallow, batch, cells, **options)
    for row in read_rows(path):
        assert row.get("finite", True) is (row["coeff"] == 0.0)
        assert len(row["tokens"]) == (3 if row["coeff"] == 0.0 else 1)


def test_projections_go_into_the_file_and_other_captures_need_a_row(shallow, batch, tmp_path):
    path, options = tmp_path / "rows.jsonl", OPTIONS | {"max_new_tokens": 3}
    with pytest.raises(ValueError, match="to_row: got none, and capture reads All; expected one"):
        sweep_to_file(path, shallow, batch, CELLS[:2], **options, capture=Capture())
    capture = Capture(layers=(1,), directions=np.stack([V, -V]))
    sweep_to_file(path, shallow, batch, CELLS[:2], **options, capture=capture)
    for row in read_rows(path):
        length = int(batch.lengths[IDS.index(row["prompt"])])
        assert row["positions"] == [length, length + 1, length + 2]
        products = np.array(row["captured"]["resid_post"])
        assert products.shape == (1, 2, 3)
        np.testing.assert_allclose(products[:, 0], -products[:, 1])
    other = Capture(layers=(0,), directions=np.stack([V, -V]))
    with pytest.raises(ValueError, match=r"capture\.layers\[0\]: 1 there, 0 now"):
        sweep_to_file(path, shallow, batch, CELLS[:2], **options, capture=other)


@pytest.mark.parametrize("coeff", ["1e999", "NaN", "[" * 5_000 + "]" * 5_000])
def test_rows_of_a_stranger_are_named(shallow, batch, begun, coeff):
    before = begun.read_bytes()
    row = f'{{"vector": "v", "layer": 0, "coeff": {coeff}, "prompt": "a"}}\n'
    begun.write_bytes(before[: before.rfind(b"\n") + 1] + row.encode())
    with pytest.raises(ValueError, match=re.escape(str(begun))):
        sweep_to_file(begun, shallow, batch, CELLS, **OPTIONS)
    assert begun.read_bytes().endswith(row.encode())


def test_whole_numbers_are_one_cell_however_they_are_written(shallow, batch, begun):
    """Coefficients 1 and 1.0 make one row, also beside a file of before."""
    config = config_path(begun)
    old = config.read_text().replace('\\"coeff\\": 1,', '\\"coeff\\": 1.0,')
    assert old != config.read_text()
    config.write_text(old)
    cells = grid({"v": V, "w": -V}, layers=np.array([0, 1]), coeffs=[0.5, 1])
    sweep_to_file(begun, shallow, batch, cells, **OPTIONS)
    assert len(by_key(begun)) == 24
    twice = grid({"v": V}, layers=[0], coeffs=[1, 1.0])
    with pytest.raises(ValueError, match=r"labels and id are those of cells\[0\]"):
        sweep_to_file(begun, shallow, batch, twice, **OPTIONS)


def changed_weights(model):
    """One weight that is not what it was, and the sum over all of them is."""
    params = jax.tree.map(lambda x: x, model.params)
    scale = params["final_norm"]["scale"]
    params["final_norm"]["scale"] = scale.at[:2].set(scale[:2][::-1])
    return replace(model, params=params)


def with_cell(i: int, cell: Cell) -> list[Cell]:
    return [*CELLS[:i], cell, *CELLS[i + 1 :]]


OTHER = {
    "weights": 'weights: "[0-9a-f]{16}" there, "[0-9a-f]{16}" now',
    "norm_eps": "model.norm_eps: 1e-05 there, 0.001 now",
    "tokens": r"prompts.tokens\[1\]: ",
    "prompt_ids": r'prompt_ids\[1\]: "b" there, "c" now',
    "temperature": r"request.sampling.temperature\[1\]: 1.0 there, 0.5 now",
    "seeds": r'request.sampling.seed\[1\]: 3 there, "[0-9a-f]{16}" now',
    "stop_tokens": r"request.stop_tokens\[1\]: -1 there, ",
    "max_new_tokens": "max_new_tokens: 6 there, 5 now",
    "identity": 'identity.tokenizer: null there, "other" now',
    "vector": r'cells.{"coeff": 1, "layer": 1, "vector": "v"}\[0\]: "resid_post ',
    "scope": r'cells.{"coeff": 1, "layer": 1, "vector": "v"}\[0\]: "resid_post ',
    "several": r'cells.{"coeff": 1, .*}: 1 entries there, 2 entries now',
    "step": 'functions.step: null there, "test_another_configuration_is_refused.<locals>.step" now',
}


@pytest.mark.parametrize("what", OTHER)
def test_another_configuration_is_refused(shallow, batch, begun, what):
    def step(*args, **kwargs):
        raise AssertionError("ran")

    model, prompts, cells, options = shallow, batch, list(CELLS), dict(OPTIONS)
    labels = CELLS[3].labels
    match what:
        case "weights":
            model = changed_weights(model)
        case "norm_eps":
            model = replace(model, config=replace(model.config, norm_eps=1e-3))
        case "tokens":
            prompts = TokenBatch(batch.tokens.at[0, -1].set(1), batch.mask)
        case "prompt_ids":
            options["prompt_ids"] = ["a", "c", "ä"]
        case "temperature":
            options["sampling_params"] = sampling(3, temperature=0.5, seed=3)
        case "seeds":
            options["sampling_params"] = sampling(3, temperature=1.0, seed=[3, 3, 4])
        case "stop_tokens":
            options["stop_tokens"] = [5]
        case "max_new_tokens":
            options["max_new_tokens"] = 5
        case "identity":
            options["identity"] = {"tokenizer": "other"}
        case "vector":
            cells = with_cell(3, Cell(labels, add(V * 1.001, layer=1, coeff=1.0)))
        case "scope":
            cells = with_cell(3, Cell(labels, add(V, layer=1, coeff=1.0, scope=scope.prompt())))
        case "several":
            cells = with_cell(3, Cell(labels, (CELLS[3].steering, CELLS[0].steering)))
        case "step":
            options["step"] = step
    before = begun.read_bytes()
    with pytest.raises(ValueError, match="made with another configuration.*\n  " + OTHER[what]):
        sweep_to_file(begun, model, prompts, cells, **options)
    assert begun.read_bytes() == before[: before.rfind(b"\n") + 1]


def test_weights_are_told_apart_by_their_places(shallow):
    assert weights_fingerprint(shallow) == weights_fingerprint(random_model(SHALLOW))
    assert weights_fingerprint(shallow) != weights_fingerprint(changed_weights(shallow))
    half = replace(shallow, params=jax.tree.map(lambda x: x.astype("bfloat16"), shallow.params))
    assert weights_fingerprint(half) != weights_fingerprint(shallow)


def test_rows_without_a_configuration_are_refused(shallow, batch, begun):
    for text in ("{", "[]", '{"cells": []}'):
        config_path(begun).write_text(text)
        with pytest.raises(ValueError, match=r"rows.jsonl.config.json: damaged"):
            sweep_to_file(begun, shallow, batch, CELLS, **OPTIONS)
    config_path(begun).unlink()
    with pytest.raises(ValueError, match=r"has 7 rows, but rows.jsonl.config.json is missing"):
        sweep_to_file(begun, shallow, batch, CELLS, **OPTIONS)


def test_cells_may_be_added_and_left_out(shallow, batch, finished, tmp_path):
    path = tmp_path / "rows.jsonl"
    sweep_to_file(path, shallow, batch, CELLS[2:4], **OPTIONS)
    sweep_to_file(path, shallow, batch, CELLS[:4][::-1], **OPTIONS)
    sweep_to_file(path, shallow, batch, CELLS[:2], **OPTIONS)
    rows, expected = by_key(path), by_key(finished)
    assert {key[:3] for key in rows} == {tuple(cell.labels.values()) for cell in CELLS[:4]}
    assert [rows[k]["tokens"] for k in rows] == [expected[k]["tokens"] for k in rows]
    other = Cell(CELLS[0].labels, CELLS[1].steering)
    with pytest.raises(ValueError, match="another configuration"):
        sweep_to_file(path, shallow, batch, [other], **OPTIONS)


def test_a_file_that_another_process_writes_is_refused(shallow, batch, begun):
    before = begun.read_bytes()
    with (
        locked(begun, busy=""),
        pytest.raises(FileExistsError, match="another process is writing this sweep"),
    ):
        sweep_to_file(begun, shallow, batch, CELLS, **OPTIONS)
    assert begun.read_bytes() == before


SAME = CELLS[0].labels
REFUSED = {
    "prompt_ids: got 2, expected one per prompt, 3": {"prompt_ids": ["a", "b"]},
    r"cells\[0\] with prompt_ids\[2\]: labels and id are those of .* with prompt_ids\[1\]": {
        "prompt_ids": ["a", "b", "b"]
    },
    r"cells\[1\] with prompt_ids\[0\]: labels and id are those of cells\[0\]": {
        "cells": [Cell(SAME, ()), Cell(SAME, ())]
    },
    r"cells\[1\].labels: got \['n'\], expected \['coeff', 'layer', 'vector'\]": {
        "cells": [CELLS[0], Cell({"n": 1}, ())]
    },
    r"cells\[0\].labels: got \['prompt'\], expected no label `prompt`": {
        "cells": [Cell({"prompt": 1}, ())]
    },
    "labels: got set, expected JSON": {"cells": [Cell({"n": {1}}, ())]},
    "labels: Out of range float values": {"cells": [Cell({"n": float("nan")}, ())]},
    "identity and prompt_ids: got object": {"identity": {"x": object()}},
    "rows_per_chunk: got 0": {"rows_per_chunk": 0},
    "cells: got none": {"cells": []},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_is_refused_before_the_disk_is_touched(shallow, batch, tmp_path, message):
    options = OPTIONS | {"cells": CELLS} | REFUSED[message]
    with pytest.raises(ValueError, match=message):
        sweep_to_file(tmp_path / "new" / "rows.jsonl", shallow, batch, **options)
    assert not (tmp_path / "new").exists()


def test_rows_of_ones_own_making(shallow, batch, tmp_path, capsys):
    cells = [Cell({"n": np.int64(i)}, ()) for i in range(2)]
    path = tmp_path / "rows.jsonl"
    options = {"max_new_tokens": G, "rows_per_chunk": 3}
    sweep_to_file(
        path, shallow, batch, cells, to_row=lambda r: {"first": np.int32(r.tokens[0])}, **options
    )
    rows = read_rows(path)
    assert [list(row) for row in rows] == [["n", "prompt", "first"]] * 6
    assert [row["prompt"] for row in rows] == [0, 1, 2] * 2
    shown = capsys.readouterr().err.split("\r")
    assert "3/6" in shown[-2] or "6/6" in shown[-1]
    assert "2/2 cells" in shown[-1]
    assert "tokens/s" in shown[-1]
    path.unlink()
    with pytest.raises(ValueError, match=r"to_row: got \['n'\], which are labels of the row"):
        sweep_to_file(path, shallow, batch, cells, to_row=lambda r: {"n": 0}, **options)


def test_a_killed_process_loses_nothing_that_was_written(tmp_path):
    """SIGKILL between two chunks and in the middle of a line; another process goes on."""
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parents[1] / "helpers")!r})
import jax, numpy as np
from oracle import SHALLOW, random_model, random_rows
from jaxsteer import grid, left_pad, sweep_to_file

kill = len(sys.argv) > 2
count = 0

def to_row(result):
    global count
    count += 1
    if kill and count == 4:
        with open(sys.argv[1], "a") as file:
            file.write('{{"vector": "v", "lay')
        os.kill(os.getpid(), signal.SIGKILL)
    return {{"tokens": result.tokens}}

batch = left_pad(random_rows((3, 4), SHALLOW.vocab_size), length=4)
cells = grid({{"v": np.ones(SHALLOW.d_model)}}, layers=[0], coeffs=[1.0, 2.0, 3.0])
sweep_to_file(sys.argv[1], random_model(SHALLOW), batch, cells, max_new_tokens=2, to_row=to_row,
              rows_per_chunk=2, progress=None)
"""
    path = tmp_path / "rows.jsonl"

    def start(*arguments: str) -> int:
        command = [sys.executable, "-c", script, str(path), *arguments]
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        root = Path(__file__).parents[2]
        return subprocess.run(command, cwd=root, env=environment, check=False).returncode

    assert start("kill") == -signal.SIGKILL
    assert path.read_bytes().count(b"\n") == 2
    assert path.read_bytes().endswith(b'"lay')
    assert start() == 0
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    found = [(row["coeff"], row["prompt"]) for row in rows]
    assert sorted(found) == [(c, p) for c in (1.0, 2.0, 3.0) for p in (0, 1)]

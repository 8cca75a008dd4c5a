"""Figure 2: its cells, the choice that is not lucky, and one program for the whole map."""

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pipeline_helpers import Finished, change

from experiments.figures import fig2_offset_layer as fig2
from experiments.figures.fig2_offset_layer import MapCell, table_of
from experiments.pipeline.run import open_run
from jaxsteer.files.jsonl import read_rows
from jaxsteer.steering.steering import NO_LAYER
from jaxsteer.sweeps.chunks import _run_cells


def map_cell(layer: int, offset: int | None, gain: float, **fields: Any) -> MapCell:
    known = {"coherence": 0.9, "coherent": True, "n": 8, "n_empty": 0, "rate": 0.1, "p_value": 0.1}
    known |= {"se": 0.01, "low": gain - 0.02, "high": gain + 0.02}
    return MapCell(layer=layer, offset=offset, gain=gain, **{**known, **fields})


def test_the_table_has_the_gains_of_coherent_cells_by_prompt() -> None:
    gains = {(0, -3): [0.2, 0.3], (0, 0): [0.1, math.nan], (2, -3): [0.9, 0.9]}
    found = [map_cell(*key, float(np.nanmean(g)), coherent=key[0] == 0) for key, g in gains.items()]
    table = table_of([*found, map_cell(0, None, 0.8)], gains)
    assert (table["layers"], table["offsets"], table["coherent"]) == ([0, 2], [-3, 0], 2)
    np.testing.assert_array_equal(
        table["gains"], [[[0.2, 0.1], [math.nan] * 2], [[0.3, math.nan], [math.nan] * 2]]
    )
    assert (table["best"]["layer"], table["best"]["offset"]) == (0, -3)


@pytest.fixture(scope="module")
def drawn(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The figure of the tiny run, and how many programs its sweep took."""
    out = tmp_path_factory.mktemp("fig2") / "run"
    shutil.copytree(finished.out, out)
    figure2 = {"offsets": [-3, -1, 1], "prompts": 4}
    run = open_run(out, change(finished.settings, "fig2.toml", figure2=figure2))
    before = _run_cells._cache_size()
    return fig2.stage(run), _run_cells._cache_size() - before


def test_the_map_runs_in_one_program_and_leaves_its_numbers(drawn: tuple[Path, int]) -> None:
    folder, programs = drawn
    assert programs <= 1
    lines = list(csv.DictReader((folder / "figure2.csv").read_text().splitlines()))
    cells = {(line["layer"], line["offset"]) for line in lines}
    assert cells == {(str(layer), str(o)) for layer in (0, 1) for o in (-3, -1, 1, "window")}
    assert {"se", "low", "high", "n", "coherence", "n_empty"} <= lines[0].keys()
    numbers = json.loads((folder / "figure2.json").read_text())
    assert numbers["coeff"] == 0.5
    assert numbers["prompts"] == "the first 4 of eval"
    assert len(numbers["cells"]) == len(lines)
    assert (folder / "figure2.png").read_bytes().startswith(b"\x89PNG")
    rows = read_rows(folder.parent / "map/sweep.jsonl")
    assert len(rows) == (len(lines) + 1) * 4
    assert len({row["prompt"] for row in rows}) == 4


def test_cells_add_each_layers_own_direction_at_that_layer(
    finished: Finished, drawn: tuple[Path, int]
) -> None:
    out = drawn[0].parent
    run = open_run(out, finished.settings.with_name("fig2.toml"))
    saved = fig2.load_directions(out / "directions" / "directions.safetensors")
    facts = json.loads((out / "directions/directions.json").read_text())
    norms = facts["residual_norm"]["reasoning"]
    plain, *cells = fig2.make_cells(saved, facts, run.settings, 0.5)
    assert plain.labels["source"] == "none"
    assert not np.any(plain.steering.coeff)
    for cell in cells:
        layer, offset = cell.labels["layer"], cell.labels["offset"]
        name = "union" if offset == "window" else f"offset.{offset}"
        expected = saved[f"base.{layer}.{name}"].vector
        added = np.asarray(cell.steering.coeff[0] * cell.steering.vector[0])
        np.testing.assert_allclose(
            added, expected / np.linalg.norm(expected) * norms[layer] * 0.5, rtol=1e-4
        )
        assert set(cell.steering.layer.ravel().tolist()) == {layer, NO_LAYER}

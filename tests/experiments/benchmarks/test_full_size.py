"""experiments.benchmarks.full_size with a tiny shape: good folders, and stages that are skipped."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.benchmarks import full_size
from experiments.benchmarks.disk import sequential_speed
from experiments.benchmarks.fake_llama import write_fake_llama
from jaxsteer.checkpoints import checkpoint
from jaxsteer.huggingface.folder import open_folder
from weights.small_language.tokenizer import vocabulary

CONFIG = full_size.PRESETS["tiny"]


def test_two_models_a_perturbation_apart(tmp_path: Path) -> None:
    folders = []
    for name, perturbed in (("a", 0.0), ("again", 0.0), ("b", 0.05)):
        write_fake_llama(tmp_path / name, CONFIG, shards=4, perturbed=perturbed, chat=True)
        folders.append(open_folder(tmp_path / name))
    assert len(folders[0].shards) == 4
    for tensor in folders[0].headers:
        x, same, other = (folder.read(tensor).astype(np.float32) for folder in folders)
        assert np.array_equal(x, same)
        assert 0 < np.abs(other - x).std() < 0.2 * max(x.std(), 0.02), tensor
    # The words of the vocabulary are far likelier than other ids.
    head = folders[0].read("lm_head.weight").astype(np.float32)
    ids = vocabulary()
    assert head[ids["wait"], 0] > head[ids["the"], 0] > 5
    assert head[len(ids) :, 0].max() == 0


def test_stages_one_by_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def inside(stage: str, _argv: list[str], folder: Path) -> dict[str, Any]:
        args = argparse.Namespace(folder=folder, preset="tiny")
        return {"stage": stage, **full_size.run_stage(stage, args)}

    monkeypatch.setattr(full_size, "measured", inside)
    argv = ["--folder", str(tmp_path), "--preset", "tiny", "--stages"]
    stages = ["write-base", "convert-base", "remove-base", "load"]
    assert full_size.main([*argv, *stages]) == 0
    rows = [json.loads(row) for row in (tmp_path / "full_size.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == stages
    assert rows[1]["convert_s"] > 0
    assert not (tmp_path / "source-base").exists()
    assert checkpoint.read_manifest(tmp_path / "model-base").config == CONFIG
    capsys.readouterr()
    assert full_size.main([*argv, *stages]) == 0
    assert capsys.readouterr().out.count("done already") == len(stages)


def test_a_stage_that_fails_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--folder", str(tmp_path), "--preset", "tiny", "--inside", "load"]
    assert full_size.main(argv) == 1
    assert "full_size: " in (said := capsys.readouterr().err)
    assert "model-base: no such directory" in said
    assert list(tmp_path.iterdir()) == []


def test_the_speed_of_the_disk_leaves_no_file(tmp_path: Path) -> None:
    assert min(sequential_speed(tmp_path, 1000)) > 0
    assert list(tmp_path.iterdir()) == []

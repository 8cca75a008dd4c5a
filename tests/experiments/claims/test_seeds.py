"""Several training seeds: one run each, and their verdicts side by side."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from pipeline_helpers import SETTINGS, write_tiny_model

from experiments import reproduce
from experiments.claims.claims import COLUMNS
from experiments.claims.seeds import pairs_in, write_seeds
from experiments.pipeline.run import Run
from weights.small_language.problems import prompts_file


def row(id: str, verdict: str) -> dict[str, str]:
    return dict(
        zip(COLUMNS, (id, f"claim {id}", "yes", f"{id} was measured", verdict), strict=True)
    )


def write_report(out: Path, rows: list[dict[str, str]]) -> Path:
    folder = out / "report"
    folder.mkdir(parents=True)
    with (folder / "claims.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return folder


def test_verdicts_of_the_seeds_stand_side_by_side(tmp_path: Path) -> None:
    write_report(tmp_path / "seed0", [row("C1", "reproduced"), row("C2", "reproduced")])
    write_report(tmp_path / "seed1", [row("C1", "reproduced"), row("C2", "undecided at this n")])
    text = write_seeds(tmp_path, ["seed0", "seed1"]).read_text()
    assert "| C1 | claim C1 | yes | **reproduced in 2 of 2** |" in text
    assert "| C2 | claim C2 | yes | **reproduced in 1 of 2, undecided at this n in 1** |" in text
    assert "## seed1" in text
    assert text.count("C2 was measured") == 2
    rows = list(csv.DictReader((tmp_path / "claims.csv").read_text().splitlines()))
    assert [(r["seed"], r["id"]) for r in rows] == [
        ("seed0", "C1"), ("seed0", "C2"), ("seed1", "C1"), ("seed1", "C2"),
    ]  # fmt: skip
    assert json.loads((tmp_path / "claims.json").read_text())["seed1"][1]["verdict"].startswith(
        "undecided"
    )


def test_folders_without_a_pair_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folders seed0, seed1"):
        pairs_in(tmp_path)
    (tmp_path / "seed0/base").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="seed0: no model 'reasoning' in it"):
        pairs_in(tmp_path)
    (tmp_path / "seed0/reasoning").mkdir()
    (tmp_path / "seed1.txt").touch()
    assert list(pairs_in(tmp_path)) == ["seed0"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of tiny models, and settings whose own models are not there."""
    folder = tmp_path_factory.mktemp("pairs")
    for seed in range(2):
        for i, (role, chat) in enumerate(
            {"base": False, "reasoning": True, "control": True}.items()
        ):
            write_tiny_model(folder / f"seed{seed}" / role, seed=10 * seed + i, chat=chat)
    (folder / "prompts.json").write_text(prompts_file({"dom": 4, "eval": 2}))
    (folder / "settings.toml").write_text(SETTINGS)
    return folder


def test_every_seed_runs_with_its_own_models_in_a_folder_of_its_own(
    pairs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen: list[Run] = []

    def stage(run: Run) -> None:  # no page
        seen.append(run)
        run.finished["report"] = write_report(run.out, [row("C1", "reproduced")])

    monkeypatch.setattr(reproduce.page, "stage", stage)
    argv = ["--config", str(pairs / "settings.toml"), "--pairs", str(pairs), "--full"]
    assert reproduce.main(["--out", str(tmp_path / "out"), *argv]) == 0
    assert [run.out.name for run in seen] == ["seed0", "seed1"]
    assert all(run.full for run in seen)
    for run in seen:
        assert run.sources == {
            role: pairs / run.out.name / role for role in ("base", "reasoning", "control")
        }
    assert seen[0].model_fingerprint("base") != seen[1].model_fingerprint("base")
    assert "**reproduced in 2 of 2**" in (tmp_path / "out/claims.md").read_text()
    assert f"Claims over seeds:  {tmp_path}/out/claims.md" in capsys.readouterr().out


def test_errors_of_the_command_are_one_line(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = str(pairs / "settings.toml")
    for argv, expected in (
        (["--config", settings, "--pairs", str(tmp_path)], "no folders seed0"),
        (["--config", settings], "models.base: "),  # they are only in the seeds' folders
        (["--config", str(tmp_path / "none.toml")], "no such settings file"),
    ):
        assert reproduce.main(["--out", str(tmp_path / "x"), *argv]) == 1
        said: Any = capsys.readouterr().err
        assert said.startswith("error: ")
        assert expected in said
        assert said.count("\n") == 1

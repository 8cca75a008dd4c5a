"""Stages: skipped while valid, redone when not, resumed after a kill, nothing ever deleted."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.pipeline.stage_runner import fingerprint, locked, run_stage
from jaxsteer.files.jsonl import append_rows, read_rows, recover_rows

INPUTS = {"coeffs": [0.5, 1], "prompts": ({"id": "ä"},)}  # a tuple is a list after JSON


def writes(text: str, calls: list[Path] | None = None) -> Callable[[Path], None]:
    def work(folder: Path) -> None:
        if calls is not None:
            calls.append(folder)
        (folder / "sub").mkdir(exist_ok=True)
        (folder / "sub" / "result.txt").write_text(text)

    return work


def never(folder: Path) -> None:
    raise AssertionError("a valid stage was made again")


def test_a_stage_appears_whole_and_is_skipped_while_its_inputs_are_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[Path] = []
    folder = run_stage(tmp_path, "rollouts", INPUTS, writes("one", calls))
    assert folder == tmp_path / "rollouts"
    assert calls[0] != folder  # made elsewhere, then renamed
    assert (folder / "sub" / "result.txt").read_text() == "one"
    record = json.loads((folder / "stage.json").read_text())
    assert record["inputs"]["coeffs"] == [0.5, 1]
    assert list(record["outputs"]) == ["sub/result.txt"]
    assert run_stage(tmp_path, "rollouts", INPUTS, never) == folder
    assert capsys.readouterr().out.splitlines()[-1] == "[rollouts] unchanged, skipped"
    assert sorted(f.name for f in tmp_path.iterdir()) == ["rollouts"]


def test_other_inputs_redo_a_stage_and_keep_the_older_result(tmp_path: Path) -> None:
    for i in range(3):
        run_stage(tmp_path, "labels", {"i": i}, writes(str(i)))
    assert (tmp_path / "labels/sub/result.txt").read_text() == "2"
    kept = {f.name: (f / "sub/result.txt").read_text() for f in (tmp_path / "superseded").iterdir()}
    assert kept == {"001-labels": "0", "002-labels": "1"}


@pytest.mark.parametrize("damage", ["changed", "removed", "added"])
def test_changed_outputs_redo_a_stage(tmp_path: Path, damage: str) -> None:
    folder = run_stage(tmp_path, "labels", INPUTS, writes("right"))
    file = folder / "sub" / "result.txt"
    if damage == "changed":
        file.write_text("wrong")
    elif damage == "removed":
        file.unlink()
    else:
        file.with_name("other.txt").write_text("")
    run_stage(tmp_path, "labels", INPUTS, writes("right"))
    assert file.read_text() == "right"
    assert (tmp_path / "superseded" / "001-labels").is_dir()


@pytest.mark.parametrize("text", ["", '{"inputs": ', "[]", "null", None])
def test_a_damaged_record_redoes_a_stage(tmp_path: Path, text: str | None) -> None:
    folder = run_stage(tmp_path, "labels", INPUTS, writes("one"))
    if text is None:
        (folder / "stage.json").unlink()
    else:
        (folder / "stage.json").write_text(text)
    run_stage(tmp_path, "labels", INPUTS, writes("two"))
    assert (folder / "sub" / "result.txt").read_text() == "two"


def test_a_record_without_outputs_redoes_a_stage(tmp_path: Path) -> None:
    folder = run_stage(tmp_path, "labels", INPUTS, writes("one"))
    record = json.loads((folder / "stage.json").read_text())
    del record["outputs"]
    (folder / "stage.json").write_text(json.dumps(record))
    run_stage(tmp_path, "labels", INPUTS, writes("two"))
    assert (folder / "sub" / "result.txt").read_text() == "two"


def test_numbers_of_superseded_results_are_not_used_twice(tmp_path: Path) -> None:
    for i in range(3):
        run_stage(tmp_path, "labels", {"i": i}, writes(str(i)))
    first = tmp_path / "superseded" / "001-labels"
    first.rename(tmp_path / "elsewhere")
    (tmp_path / "superseded" / "notes.txt").write_text("mine")
    run_stage(tmp_path, "labels", {"i": 3}, writes("3"))
    names = {f.name for f in (tmp_path / "superseded").iterdir()}
    assert names == {"002-labels", "003-labels", "notes.txt"}
    assert (tmp_path / "superseded/002-labels/sub/result.txt").read_text() == "1"


def test_failed_work_leaves_no_result_and_the_next_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def half(folder: Path) -> None:
        append_rows(folder / "rows.jsonl", [{"i": 0}])
        raise ValueError("no more")

    def rest(folder: Path) -> None:
        append_rows(folder / "rows.jsonl", [{"i": len(read_rows(folder / "rows.jsonl"))}])

    with pytest.raises(ValueError, match="no more"):
        run_stage(tmp_path, "rollouts", INPUTS, half)
    assert not (tmp_path / "rollouts").exists()
    folder = run_stage(tmp_path, "rollouts", INPUTS, rest)
    assert "goes on where it was interrupted" in capsys.readouterr().out
    assert read_rows(folder / "rows.jsonl") == [{"i": 0}, {"i": 1}]


def test_work_that_fails_at_once_leaves_nothing(tmp_path: Path) -> None:
    def refuse(folder: Path) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        run_stage(tmp_path, "labels", INPUTS, refuse)
    assert list(tmp_path.iterdir()) == []


def test_partial_work_of_other_inputs_is_set_aside(tmp_path: Path) -> None:
    def half(folder: Path) -> None:
        (folder / "old.txt").write_text("old")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(tmp_path, "rollouts", {"seed": 0}, half)
    folder = run_stage(tmp_path, "rollouts", {"seed": 1}, writes("new"))
    assert not (folder / "old.txt").exists()
    kept = tmp_path / "superseded" / "001-rollouts.partial" / "old.txt"
    assert kept.read_text() == "old"


def test_a_killed_process_leaves_its_partial_folder_and_the_next_goes_on_in_it(
    tmp_path: Path,
) -> None:
    """Killed between a temporary file and its rename: the temporary is no result."""
    script = f"""
import os, signal
from pathlib import Path
from experiments.pipeline.stage_runner import run_stage
from jaxsteer.files import append_rows

def work(folder):
    append_rows(folder / "rows.jsonl", [{{"i": 0}}])
    with open(folder / "rows.jsonl", "a") as file:
        file.write('{{"i": ')
    (folder / ".counts.json.x7").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)

run_stage(Path({str(tmp_path)!r}), "sweep", {{"seed": 0}}, work)
"""
    root = Path(__file__).parents[3]
    killed = subprocess.run([sys.executable, "-c", script], cwd=root, check=False)
    assert killed.returncode == -signal.SIGKILL
    partial = tmp_path / ".sweep.partial"
    assert (partial / ".counts.json.x7").exists()
    assert not (tmp_path / "sweep").exists()

    def rest(folder: Path) -> None:
        assert recover_rows(folder / "rows.jsonl") == [{"i": 0}]
        append_rows(folder / "rows.jsonl", [{"i": 1}])

    folder = run_stage(tmp_path, "sweep", {"seed": 0}, rest)
    assert not partial.exists()
    assert (folder / "rows.jsonl").read_text() == '{"i": 0}\n{"i": 1}\n'
    assert sorted(f.name for f in folder.iterdir()) == ["rows.jsonl", "stage.json"]


def test_a_second_process_is_turned_away(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from experiments.pipeline.stage_runner import locked
try:
    with locked(Path(sys.argv[1])):
        print("mine")
except FileExistsError as error:
    print(error)
"""

    def other() -> str:
        return subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)],
            cwd=Path(__file__).parents[3],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    with locked(tmp_path):
        assert other() == f"{tmp_path}: another process is working in this folder"
    assert other() == "mine"


def test_fingerprint_names_what_a_stage_wrote(tmp_path: Path) -> None:
    first = fingerprint(run_stage(tmp_path / "a", "labels", {"i": 0}, writes("one")))
    assert first == fingerprint(run_stage(tmp_path / "b", "labels", {"i": 1}, writes("one")))
    assert first != fingerprint(run_stage(tmp_path / "c", "labels", {"i": 0}, writes("two")))


def test_a_file_is_no_folder_for_a_run(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    message = "run: is a file, expected a folder for the run"
    with pytest.raises(FileExistsError, match=message), locked(tmp_path / "run"):
        pass
    assert (tmp_path / "run").read_text() == "mine"

"""The soak itself, on commands of a tenth of a second that keep or break what is promised."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.benchmarks import soak as soak_module
from experiments.benchmarks import soak_kill
from experiments.benchmarks.soak import main
from experiments.benchmarks.soak_kill import Aim, Ended, Job, Lost, Place, run_and_kill
from experiments.benchmarks.soak_pipeline import SMALLER, _check_word
from experiments.pipeline.run import DEFAULT_SETTINGS
from experiments.pipeline.settings import load_settings

# A module for `python -m`: appends rows until there are five, heeding SIGTERM between rows.
_COMMAND = """
import os, signal, sys, time
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
print("cores", sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else "")
path = sys.argv[1]
while True:
    have = open(path).read().count("\\n") if os.path.exists(path) else 0
    if have >= 5:
        break
    if {careless} and have == 2:
        os.truncate(path, 0)
    with open(path, "a") as file:
        file.write("row\\n")
    if asked:
        sys.exit(143)
    time.sleep(0.01)
"""


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], Path]:
    """Makes the only job one that writes rows; returns the folder that lanes work in."""
    monkeypatch.setattr(soak_kill, "ROOT", tmp_path)  # where commands are started

    def use(careless: bool) -> Path:
        (tmp_path / "writes.py").write_text(_COMMAND.format(careless=careless))
        monkeypatch.setattr(soak_module, "JOBS", {"convert": _row_jobs, "sweep": _row_jobs})
        return tmp_path / "soak"

    return use


def _row_jobs(folder: Path, place: Place) -> Callable[[Path], Job]:
    folder.mkdir()

    def in_lane(work: Path) -> Job:
        work.mkdir()
        file, most = work / "rows", [0]

        def check(_attempt: int, ended: Ended) -> str:
            have = file.read_text().count("row\n") if file.exists() else 0
            if have < most[0]:
                raise Lost(f"{most[0] - have} rows are gone")
            most[0] = 0 if ended.code == 0 else have
            if ended.code == 0:
                file.unlink()
            return f"{have} rows"

        return Job(
            argv=lambda _: ["writes", str(file)],
            prepare=lambda _: None,
            check=check,
            seconds=lambda: 0.1,
            aim=lambda _: Aim("its first line", lambda said: "cores" in said, 0.03),
            stage=lambda ended: "writing" if ended.said else "starting",
        )

    return in_lane


def test_lanes_share_the_kills_and_have_cores_of_their_own(
    rows: Callable[[bool], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = rows(False)
    assert main(["convert", "--folder", str(folder), "--lanes", "2", "--kills", "3"]) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    met = [row for row in said if row.get("signal") and row["exit"] != 0]
    assert sorted(row["signal"] for row in met) == ["SIGKILL"] * 3 + ["SIGTERM"] * 3
    assert {row["lane"] for row in said if "lane" in row} == {0, 1}
    assert said[-2]["kills"] == {"SIGTERM": 3, "SIGKILL": 3}
    assert said[-2]["lanes_that_did_their_work_at_the_end"] == 2
    assert said[-1]["complete"] is True
    ran_on = [(folder / f"convert/lane-{lane}/said.txt").read_text() for lane in range(2)]
    if hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) >= 2:
        assert all(text.startswith("cores") for text in ran_on)
        assert ran_on[0] != ran_on[1]


def test_what_is_lost_in_one_lane_fails_all(
    rows: Callable[[bool], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", "--folder", str(rows(True)), "--lanes", "2"]) == 1
    assert "rows are gone" in capsys.readouterr().err


def test_time_that_is_over_is_told(
    rows: Callable[[bool], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = rows(False)
    options = ["--folder", str(folder), "--kills", "500", "--minutes", "0.01"]
    assert main(["convert", "sweep", *options]) == 3
    out, err = capsys.readouterr()
    last = json.loads(out.splitlines()[-1])
    assert last["complete"] is False
    assert sum(json.loads(out.splitlines()[-3])["kills"].values()) < 1000
    assert "0.01 minutes were over before all of it was done" in err


def test_a_folder_that_is_there_and_numbers_that_cannot_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", "--folder", str(tmp_path)]) == 2
    assert "exists already" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["convert", "--folder", str(tmp_path / "new"), "--lanes", "0"])
    assert "got --kills 50, --lanes 0" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("sys.exit('broken')", "exit code 1: broken"),
        ("signal.signal(15, signal.SIG_IGN); wait()", "still there"),
        ("signal.signal(15, lambda *_: 1 / 0); wait()", "exit code 1: Traceback"),
        (
            "signal.signal(15, lambda *_: sys.exit(143))\n"
            "gc.callbacks.append(lambda phase, _: phase == 'start' and wait())\n"
            "gc.collect(); gc.callbacks.clear()",
            "after SIGTERM, but: Exception ignored",
        ),
    ],
)
def test_a_command_that_does_not_end_as_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, message: str
) -> None:
    monkeypatch.setattr(soak_kill, "ROOT", tmp_path)
    monkeypatch.setattr(soak_kill, "_TO_STOP", 0.5)
    imports = "import gc, signal, sys, time\ndef wait(): print('ready'); time.sleep(9)\n"
    (tmp_path / "bad.py").write_text(imports + code)
    place = Place(said=tmp_path / "said.txt")
    with pytest.raises(Lost, match=message):
        run_and_kill(["bad"], signal.SIGTERM, 0.05, begun=lambda x: "ready" in x, place=place)


def _ended(code: int, complained: str = "", said: str = "", before: str = "") -> Ended:
    return Ended(code, said, before, complained, seconds=1.0, stopping=0.1)


def test_the_last_words_are_compared_with_the_file(tmp_path: Path) -> None:
    file = tmp_path / "sweep.jsonl"
    words = f"stopped by SIGTERM, 2 of 9 rows are in {file}; the same command goes on from here\n"

    def check(ended: Ended) -> None:
        _check_word(ended, begun=True, done=False)

    file.write_text("{}\n{}\n")
    check(_ended(143, words))
    check(_ended(-9))
    check(_ended(143, "stopped by SIGTERM, before groups; the same command goes on from here\n"))
    for text in ("{}\n", "{}\n{}\n{}\n", "{}\n{}\n{"):
        file.write_text(text)
        with pytest.raises(Lost, match="2 of 9 rows"):
            check(_ended(143, words))
    with pytest.raises(Lost, match="with the words: nothing of it"):
        check(_ended(143, "nothing of it"))
    with pytest.raises(Lost, match="not heeded while there was work"):
        check(_ended(-15))
    with pytest.raises(Lost, match="it went on with"):
        check(_ended(0, said="[a] done in 1 s\n[b] done in 1 s\n"))


def test_the_settings_are_those_of_the_small_pair_but_smaller() -> None:
    changes = [option.removeprefix("--set=") for option in SMALLER]
    settings = load_settings(DEFAULT_SETTINGS, changes)
    assert settings.decoding.max_new_tokens == 24
    assert settings.rollouts.max_new_tokens == 96
    assert settings.prompts.evaluate_limit == 8
    assert Path(settings.models.base).is_dir()

"""The pipeline on a tiny random pair: whole, skipped, changed, killed, repeated, refused.

What the directions and cells of the same run hold is tested in `test_pipeline_parts.py`.
"""

import csv
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pipeline_helpers import Finished, change, files_under

from experiments.pipeline.run import Run, command, open_run
from experiments.pipeline.stage_runner import locked
from experiments.pipeline.text import encode_prompts
from experiments.report import figure_list as figures
from experiments.reproduce import main
from experiments.stages import derive, label, rollouts, steer
from jaxsteer.directions.direction_files import load_directions
from jaxsteer.files.jsonl import read_rows

ROOT = Path(__file__).parents[2]
STAGES = ("model-base", "model-reasoning", "model-control", "rollouts", "labels", "directions")
SWEEPS = ("sweep-base", "sweep-reasoning", "sweep-control")
FIGURES = tuple(figure.name for figure in figures.FIGURES if not figure.full)


@pytest.fixture
def copy(finished: Finished, tmp_path: Path) -> Path:
    """A copy of the finished run, to do harm to."""
    return Path(shutil.copytree(finished.out, tmp_path / "run"))


def reproduce(out: Path, settings: Path) -> int:
    return main(["--out", str(out), "--config", str(settings)])


def made(text: str) -> set[str]:
    """The stages that were not skipped, from what was printed."""
    lines = [line.split("]") for line in text.splitlines() if line.startswith("[")]
    return {name.strip("[") for name, what in lines if "done in" in what}


def rows_by_key(file: Path) -> dict[tuple, dict[str, Any]]:
    rows = {(r["target"], r["source"], r["coeff"], r["prompt"]): r for r in read_rows(file)}
    assert len(rows) == len(read_rows(file))
    return rows


def test_a_run_leaves_every_file_and_says_where_they_are(finished: Finished) -> None:
    out = finished.out
    assert {f.name for f in out.iterdir()} >= {*STAGES, *SWEEPS, *FIGURES, "report", ".lock"}
    names = {f.name for f in (out / "report").iterdir()}
    assert names >= {"report.md", "claims.csv", "claims.json", "stage.json"}
    text = (out / "report/report.md").read_text()
    for figure in FIGURES:
        assert names >= {f"{figure}.{ending}" for ending in ("png", "svg", "csv", "json")}
        assert (out / f"report/{figure}.png").read_bytes().startswith(b"\x89PNG")
        assert b"<svg" in (out / f"report/{figure}.svg").read_bytes()
        assert f"({figure}.png)" in text
    assert finished.printed.splitlines()[-3:] == [
        f"Figure:  {out}/report/headline.png",
        f"Report:  {out}/report/report.md",
        f"Page:    {out}/page/report.html",
    ]
    assert "What this run shows:" in finished.printed
    assert "Left to --full: Figure 2" in finished.printed
    assert "Left to `--full`: Figure 2" in text


def test_the_report_ends_in_the_claims_table(finished: Finished) -> None:
    folder = finished.out / "report"
    rows = json.loads((folder / "claims.json").read_text())
    assert [row["id"] for row in rows][:8] == [f"C{i}" for i in range(1, 9)]
    assert rows[0]["verdict"] == "not in this run"
    text = (folder / "report.md").read_text()
    _, table = text.split("## Claims")
    for row in rows:
        line = f"| {row['id']} | {row['claim']} | {row['paper']} | {row['measured']} "
        assert f"{line}| **{row['verdict']}** |" in table
        assert row["measured"] in finished.printed


def test_the_numbers_are_those_of_every_cell(finished: Finished) -> None:
    folder = finished.out / "report"
    lines = list(csv.DictReader((folder / "figure3.csv").read_text().splitlines()))
    cells = {(line["target"], line["source"], float(line["coeff"])) for line in lines}
    both = {(s, c) for s in ("base", "reasoning") for c in (-0.5, 0.5, 1.0)} | {("none", 0.0)}
    expected = {("base", *cell) for cell in both} | {("reasoning", *cell) for cell in both}
    baselines = ("mean", "noise", "self", "random-0", "random-1")
    expected |= {("reasoning", name, 0.5) for name in baselines}
    expected |= {("control", s, c) for s, c in both if s != "reasoning"}
    assert cells == expected
    assert len(lines) == len(expected)

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    numbers = json.loads((folder / "figure3.json").read_text(), parse_constant=refuse)
    assert len(numbers["cells"]) == len(lines)
    report = (folder / "report.md").read_text()
    assert all(f"{cell['backtracking_rate']['mean']:.3f}" in report for cell in numbers["cells"])
    counts = json.loads((finished.out / "labels/counts.json").read_text())
    assert 0 < counts["backtracking"] < counts["sentences"]


def test_every_result_says_which_format_the_prompts_had(finished: Finished) -> None:
    formats = {"base": "continuation", "control": "chat", "reasoning": "chat"}
    numbers = json.loads((finished.out / "report/figure3.json").read_text())
    assert numbers["formats"] == formats
    for target, form in formats.items():
        folder = finished.out / f"sweep-{target}"
        assert {row["format"] for row in read_rows(folder / "sweep.jsonl")} == {form}
        assert json.loads((folder / "stage.json").read_text())["inputs"]["format"] == form
    assert {r["format"] for r in read_rows(finished.out / "rollouts/traces.jsonl")} == {"chat"}
    facts = json.loads((finished.out / "directions/directions.json").read_text())
    assert facts["format"] == "chat"
    assert facts["beginning"] == "<bos> (1) is there already: the chat template begins with it"
    assert [t["reasoning"] for t in facts["unseen_by_base"].values()] == [
        "<user>", "<assistant>", "<think>",
    ]  # fmt: skip
    report = (finished.out / "report/report.md").read_text()
    assert "problems in the continuation format, the others in the chat format." in report
    assert "base model, <bos> (1) put before the text: tokenizer.json puts it" in report


def test_formats_are_settings(finished: Finished, tmp_path: Path) -> None:
    swapped = {"base_format": "chat", "reasoning_format": "continuation"}
    run = open_run(tmp_path / "x", change(finished.settings, "formats.toml", prompts=swapped))
    prompts, settings = run.evaluate_prompts[:1], run.settings.prompts
    texts = {}
    for role in ("base", "reasoning"):
        tokenizer = run.prompt_tokenizer(role)
        (ids,) = encode_prompts(
            tokenizer,
            prompts,
            role=role,
            base_template=settings.base_template,
            form=settings.form(role),
        )
        texts[role] = tokenizer.decode(ids)
    assert texts["base"].startswith("<bos> <user>")
    assert texts["base"].endswith("<assistant> <think>")
    assert texts["reasoning"].startswith("<bos> question :")


def test_a_judges_key_is_missed_before_any_work_starts(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = finished.settings.with_name("judged.toml")
    judge = 'url = "https://host/v1"\nmodel = "m"\nprice_in = 1.0\nprice_out = 1.0\n'
    settings.write_text(f"{finished.settings.read_text()}\n[labels.judge]\n{judge}")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ValueError, match="the environment has no OPENAI_API_KEY"):
        open_run(tmp_path / "x", settings)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted")
    assert "sk-planted" not in repr(open_run(tmp_path / "x", settings))


def test_every_cell_ran_on_every_held_out_prompt(finished: Finished) -> None:
    prompts = {p["id"] for p in json.loads((finished.settings.parent / "prompts.json").read_text())}
    for name, cells in zip(SWEEPS, (7, 12, 4), strict=True):
        rows = rows_by_key(finished.out / name / steer.FILE)
        assert len(rows) == cells * 5
        assert {key[3] for key in rows} == {p for p in prompts if p.startswith("eval")}
        texts = {row["text"] for row in rows.values()}
        assert len(texts) > len(rows) / 2  # the cells differ
        assert all(row["tokens"] <= 24 and row["logprob"] < 0 for row in rows.values())
        assert all(row["stopped"] or row["tokens"] == 24 for row in rows.values())
        assert all(len(r["text"].split()) == r["tokens"] - r["stopped"] for r in rows.values())
    traces = read_rows(finished.out / "rollouts" / rollouts.FILE)
    assert {t["id"] for t in traces} == {p for p in prompts if p.startswith("dom")}
    assert all(t["prompt"].startswith("<bos> <user> ") for t in traces)
    assert not any("<" in t["text"] for t in traces)
    assert all(len(t["text"].split()) == t["tokens"] - t["stopped"] for t in traces)


def test_a_second_run_skips_everything(
    finished: Finished, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*args: object) -> None:
        raise AssertionError("loaded a model for nothing")

    monkeypatch.setattr(Run, "load", never)
    before = files_under(finished.out)
    assert reproduce(finished.out, finished.settings) == 0
    printed = capsys.readouterr().out
    assert made(printed) == set()
    assert printed.count("unchanged, skipped") >= len(STAGES + SWEEPS + FIGURES) + 1
    assert printed.splitlines()[-3:] == finished.printed.splitlines()[-3:]
    assert files_under(finished.out) == before


def test_the_stages_run_alone_and_give_the_same_bytes_again(
    finished: Finished,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`python -m experiments.X` for each X: a second run of everything, stage by stage."""
    out = tmp_path / "run"
    expected = {
        "rollouts": {"model-reasoning", "rollouts"},
        "label": {"labels"},
        "derive": {"model-base", "directions"},
        "steer": {*SWEEPS, "model-control"},
        "perplexity": {"perplexity"},
        "fig3_steering": {"figure3"},
        "fig4_baselines": {"figure4"},
        "headline": {"headline"},
        "tokens": {"tokens"},
        "report": {"report", "groups", *FIGURES, "page"} - {"figure3", "figure4", "headline"},
        "reproduce": set(),
    }
    for module, stages in expected.items():
        argv = ["x", "--out", str(out), "--config", str(finished.settings)]
        for module_with_hooks, hook in ((threading, "excepthook"), (sys, "unraisablehook")):
            monkeypatch.setattr(module_with_hooks, hook, getattr(module_with_hooks, hook))
        monkeypatch.setattr(sys, "argv", argv)
        monkeypatch.delitem(sys.modules, f"experiments.{module}", raising=False)
        with pytest.raises(SystemExit) as exited:
            runpy.run_module(f"experiments.{module}", run_name="__main__")
        assert exited.value.code == 0
        assert made(capsys.readouterr().out) == stages
    for folder in ("rollouts", "labels", *SWEEPS, *FIGURES, "report", "tokens"):
        one, other = files_under(finished.out / folder), files_under(out / folder)
        for files in (one, other):
            del files["stage.json"]  # says how long it took
        assert one == other
    first, second = (
        load_directions(run / "directions" / derive.FILE) for run in (finished.out, out)
    )
    assert first.keys() == second.keys()
    assert all(np.array_equal(d.vector, second[name].vector) for name, d in first.items())


@pytest.mark.parametrize(
    ("sections", "redone"),
    [
        (
            {"report": {"coherence": "repetition", "margin": 0.1}},
            {"figure3", "figure4", "headline", "report", "page"},
        ),
        (
            {"labels": {"keywords": ["school", "wait"]}},
            {
                "labels",
                "directions",
                *SWEEPS,
                "perplexity",
                "groups",
                *FIGURES,
                "report",
                "tokens",
                "page",
            },
        ),
    ],
)
def test_a_change_redoes_what_depends_on_it_and_keeps_the_older_results(
    finished: Finished,
    copy: Path,
    sections: dict[str, Any],
    redone: set[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = files_under(copy / "report")
    assert reproduce(copy, change(finished.settings, "changed.toml", **sections)) == 0
    assert made(capsys.readouterr().out) == redone
    kept = {f.name.split("-", 1)[1]: f for f in (copy / "superseded").iterdir()}
    assert kept.keys() == redone
    assert files_under(kept["report"]) == before
    assert files_under(copy / "report") != before


def test_a_sweep_that_is_killed_goes_on_and_ends_as_if_it_had_not_been(
    finished: Finished, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(copy / "sweep-reasoning")
    shutil.rmtree(copy / "report")
    # Killed after the second of five chunks, with a row half written.
    script = """
import os, signal, sys
from experiments import reproduce
from jaxsteer.sweeps import row_store

append, chunks = row_store.append_rows, []

def append_and_die(path, rows):
    append(path, rows)
    chunks.append(rows)
    if len(chunks) == 2:
        with open(path, "a") as file:
            file.write('{"target": "reasoning", "sou')
        os.kill(os.getpid(), signal.SIGKILL)

row_store.append_rows = append_and_die
reproduce.main(sys.argv[1:])
"""
    killed = subprocess.run(
        [sys.executable, "-c", script, "--out", copy, "--config", finished.settings],
        cwd=ROOT,
        env={**os.environ, "JAX_DEFAULT_MATMUL_PRECISION": "highest"},  # as in these tests
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    partial = copy / ".sweep-reasoning.partial" / steer.FILE
    assert partial.read_bytes().count(b"\n") == 20
    assert not (copy / "sweep-reasoning").exists()
    assert not (copy / "report").exists()

    assert reproduce(copy, finished.settings) == 0
    printed = capsys.readouterr().out
    assert "[sweep-reasoning] goes on where it was interrupted" in printed
    assert made(printed) == {"sweep-reasoning", "report"}
    whole = rows_by_key(finished.out / "sweep-reasoning" / steer.FILE)
    resumed = rows_by_key(copy / "sweep-reasoning" / steer.FILE)
    assert resumed.keys() == whole.keys()
    for key, row in whole.items():
        # The killed process compiled its own program, which may round differently.
        assert resumed[key] == {**row, "logprob": pytest.approx(row["logprob"], rel=1e-5)}
    names = {f.name for f in copy.iterdir()}
    assert names == {f.name for f in finished.out.iterdir()}
    csvs = [(folder / "report/figure3.csv").read_text() for folder in (copy, finished.out)]
    assert csvs[0] == csvs[1]


def interrupt_after(calls: int, function: Callable[..., None]) -> Callable[..., None]:
    """The function, with Ctrl-C after so many calls of it."""
    left = [calls]

    def wrapped(*args: Any) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        function(*args)

    return wrapped


@pytest.mark.parametrize(
    ("module", "name", "folder", "left"),
    [
        (rollouts, "append_rows", "rollouts", {"stage.json", rollouts.FILE}),
        (label, "write_atomic", "labels", {"stage.json", label.FILE}),
    ],
)
def test_rollouts_and_labels_go_on_after_an_interruption(
    finished: Finished,
    copy: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    module: Any,
    name: str,
    folder: str,
    left: set[str],
) -> None:
    shutil.rmtree(copy / folder)
    with monkeypatch.context() as patched:
        patched.setattr(module, name, interrupt_after(1, getattr(module, name)))
        argv = ["--out", str(copy), "--config", str(finished.settings)]
        assert command(folder, "", module.stage, argv) == 130
    assert "the same command goes on from here" in capsys.readouterr().err
    assert {f.name for f in (copy / f".{folder}.partial").iterdir()} == left
    assert reproduce(copy, finished.settings) == 0
    # The same bytes again, so nothing that comes after has to be redone.
    assert made(capsys.readouterr().out) == {folder}
    file = rollouts.FILE if module is rollouts else label.FILE
    assert (copy / folder / file).read_bytes() == (finished.out / folder / file).read_bytes()


def test_values_of_the_settings_are_replaced_on_the_command_line(
    finished: Finished, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--out", str(copy), "--config", str(finished.settings)]
    assert main([*argv, "--set", "decoding.seed=2", "--set", "report.margin = 0.9"]) == 0
    assert made(capsys.readouterr().out) == set()  # the same values again
    assert main([*argv, "--set", "decoding.sede=3"]) == 1
    assert "decoding.sede: unknown key, expected seed" in capsys.readouterr().err
    assert main([*argv, "--full", "--set", "steering.coeffs=[-1.0]"]) == 1
    assert "steering.baseline_coeffs: got [0.5], expected some of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"direction": {"layer": 2}}, "direction.layer: got 2, expected 0 to 1"),
        ({"models": {"base": "nowhere"}}, "models.base: {0}/nowhere: neither a Hugging Face"),
        ({"models": {"control": "prompts.json"}}, "models.control: {0}/prompts.json: neither"),
        (
            {"models": {"reasoning": "base"}},
            "models.reasoning: the reasoning model's tok",
        ),
        ({"prompts": {"derive_split": "dome"}}, "no prompt in split 'dome', found ['dom', 'ev"),
        ({"prompts": {"file": "prompts.jsn"}}, "prompts.file: {0}/prompts.jsn: no such file"),
        (
            {"prompts": {"base_template": "{prompt} Solution:"}},
            "models.base: prompt: the tokenizer",
        ),
        ({"rollouts": {"max_new_tokens": 90}}, "together"),
        ({"decoding": {"max_new_tokens": 90}}, "decoding.max_new_tokens: got 90, and prompt 'eval"),
        ({"labels": {"file": "labels.jsonl"}}, "labels.file: {0}/labels.jsonl: no such file"),
        ({"labels": {"keyword": ["wait"]}}, "labels.keyword: unknown key, expected keywords"),
        ({"search": {"other_layers": [0, 2]}}, "search.other_layers: got 2, expected 0 to 1"),
    ],
)
def test_bad_input_is_refused_before_anything_is_made(
    finished: Finished,
    tmp_path: Path,
    sections: dict[str, Any],
    expected: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = change(finished.settings, "changed.toml", **sections)
    assert reproduce(tmp_path / "run", settings) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert expected.format(settings.parent) in said
    assert not (tmp_path / "run").exists()


def test_damaged_weights_are_found_before_the_first_rollout(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    control = tmp_path / "control"
    shutil.copytree(finished.settings.parent / "control", control)
    os.truncate(control / "model.safetensors", 1000)
    settings = change(finished.settings, "changed.toml", models={"control": str(control)})
    out = tmp_path / "run"
    assert reproduce(out, settings) == 1
    assert str(control / "model.safetensors") in capsys.readouterr().err
    assert {f.name for f in out.iterdir()} == {".lock", "model-base", "model-reasoning"}


def test_models_that_do_not_fit_each_other(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for field, value, expected in (
        (
            "num_hidden_layers",
            3,
            "models.reasoning: 3 layers of width 32, but the base model",
        ),
        ("vocab_size", 400, "models.reasoning: got a vocabulary of 400, expected at most"),
        ("hidden_act", "gelu", "models.reasoning: "),
    ):
        file = tmp_path / field / "config.json"
        shutil.copytree(finished.settings.parent / "reasoning", file.parent)
        file.write_text(json.dumps({**json.loads(file.read_text()), field: value}))
        models = {"reasoning": str(file.parent)}
        assert reproduce(tmp_path / "run", change(finished.settings, "c.toml", models=models)) == 1
        assert f"error: {expected}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_second_process_in_the_folder_is_turned_away(
    finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    with locked(finished.out):
        assert reproduce(finished.out, finished.settings) == 1
    assert "another process is working in this folder" in capsys.readouterr().err


def test_a_converted_checkpoint_can_be_named_instead_of_a_folder(
    finished: Finished, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The paper's setting does: the same weights are the same inputs, so nothing is redone."""
    models = {role: str(copy / f"model-{role}/checkpoint") for role in ("base", "reasoning")}
    settings = change(finished.settings, "converted.toml", models=models)
    assert open_run(copy, settings).checkpoint("base") == copy / "model-base/checkpoint"
    assert reproduce(copy, settings) == 0
    assert made(capsys.readouterr().out) == set()

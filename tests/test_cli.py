"""The command `jaxsteer`: options in, texts and files out, an error in one line."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

import jaxsteer as js
import jaxsteer_command
from jaxsteer.cli import commands, models, sweep, terminal
from jaxsteer.models import conversion, exporting, verification
from jaxsteer.planning import find_topology, mesh_plan

ROOT = Path(__file__).parents[1]
MODEL = str(ROOT / "weights" / "small" / "reasoning")
PROMPT = "tom has 9 coins ."
SUBCOMMANDS = commands.jaxsteer.commands
SIX = ["--max-new-tokens", "6", "--dtype", "float32"]
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates of a GPU by its data sheet: measuring those of a CPU takes minutes unoptimised."""
    monkeypatch.setattr(sweep, "this_machine", lambda: find_topology("h200"))


@pytest.fixture
def jaxsteer(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command line; its exit code, stdout and stderr."""

    def run(*words: str) -> tuple[int, str, str]:
        code = commands.command_line([str(word) for word in words])
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def directions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the directions of all layers, made by the command from three texts a side."""
    folder = tmp_path_factory.mktemp("directions")
    (folder / "doubtful.txt").write_text("maybe 3 .\n\nperhaps 4 .\nmaybe 5 cups .\n")
    (folder / "certain.txt").write_text("clearly 3 .\nof course 4 .\nexactly 5 cups .\n")
    sides = [str(folder / f"{side}.txt") for side in ("doubtful", "certain")]
    out = folder / "doubt.safetensors"
    words = ["direction", MODEL, *sides, "--out", str(out), "--name", "doubt"]
    assert commands.command_line([*words, "--position", "mean", "--dtype", "float32"]) == 0
    return out


@pytest.mark.parametrize("place", ["pipe", "/dev/zero"])
def test_what_is_no_file_is_not_waited_for(jaxsteer: Command, tmp_path: Path, place: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    code, _, err = jaxsteer("show", tmp_path / place)
    assert (code, err) == (1, f"show: {tmp_path / place}: is no regular file\n")


def test_names_of_strangers_are_on_one_line(jaxsteer: Command, tmp_path: Path) -> None:
    name = "\x1b[2J\nPASS\r"
    one = js.Direction(vector=[1.0], layer=1, site="resid_post", name=name, provenance={})
    js.save_directions(tmp_path / "v.safetensors", [one])
    code, out, _ = jaxsteer("show", tmp_path / "v.safetensors")
    assert code == 0
    assert out.endswith("  name \\x1b[2J\\nPASS\\r, layer 1, site resid_post, norm 1\n")


def test_directions_are_those_of_the_library(directions: Path) -> None:
    lm = js.load(MODEL, dtype="float32")
    texts = ["maybe 3 .", "perhaps 4 .", "maybe 5 cups ."]
    others = ["clearly 3 .", "of course 4 .", "exactly 5 cups ."]
    v = js.direction(lm, texts, others, position="mean", name="doubt")
    written = js.load_directions(directions)
    assert list(written) == [f"doubt.{layer}" for layer in range(8)]
    assert all((written[d.name].vector == d.vector).all() for d in v)
    assert written["doubt.4"].provenance["reliability"] == pytest.approx(v.reliability[4])


def test_generated_texts_are_those_of_the_library(jaxsteer, directions: Path) -> None:
    steered = ["--directions", directions, "--name", "doubt", "--layer", "4"]
    code, out, _ = jaxsteer(
        "generate",
        MODEL,
        PROMPT,
        "--chat",
        *steered,
        "--coeff",
        "0",
        "--coeff",
        "0.5",
        "--unit",
        "residual",
        "--mesh",
        "1x1",
        *SIX,
        "--json",
    )
    assert code == 0
    lm = js.load(MODEL, dtype="float32")
    v = js.load_directions(directions)["doubt.4"]
    chat = [{"role": "user", "content": PROMPT}]
    steering = js.add(v, coeff=[0, 0.5])
    expected = lm.generate(chat, steering=steering, unit="residual", max_new_tokens=6)
    assert [row["text"] for row in json.loads(out)["texts"]] == [row.text for row in expected]
    assert expected[0].text != expected[1].text


def test_texts_stand_side_by_side() -> None:
    row = js.Texts((text(0.0, "one two three"), text(2.0, "four\n\nfive")))
    assert list(terminal.side_by_side(list(row), 23)) == [
        "coeff 0: 3 │ coeff 2: 3",
        "tokens,    │ tokens,",
        "length     │ length",
        "────────── │ ──────────",
        "one two    │ four",
        "three      │",
        "           │ five",
    ]


def text(coeff: float, words: str) -> "js.texts.Text":
    return js.texts.Text({"coeff": coeff}, 0, "so", 0, words, [1, 2, 3], [0.0] * 3, "length")


def test_a_dry_run_counts_what_a_sweep_runs(jaxsteer, directions: Path, tmp_path: Path) -> None:
    words = ["sweep", MODEL, PROMPT, "lea .", "--directions", directions, *SIX]
    words += [word for layer in "34" for word in ("--layer", layer)]
    words += [word for coeff in ("0", "-1", "1") for word in ("--coeff", coeff)]
    words += ["--baseline", "random", "--contains", "wait,maybe", "--metric", "words"]
    words += ["--samples", "2", "--out", tmp_path / "sweep"]
    code, said, _ = jaxsteer(*words, "--dry-run", "--json")
    assert (code, list(tmp_path.iterdir())) == (0, [])
    split = json.loads(jaxsteer(*words, "--dry-run", "--json", "--mesh", "1x2")[1])
    code, out, _ = jaxsteer(*words)
    assert code == 0
    texts = js.Texts.load(tmp_path / "sweep" / "texts.jsonl")
    counted = {"cells": len(texts.cells()), "texts": len(texts), "tokens": 6 * len(texts)}
    told = json.loads(said)
    assert {name: told[name] for name in counted} == counted
    assert counted == {"cells": 9, "texts": 36, "tokens": 216}
    assert told["seconds"] > 0
    assert told["bytes"] > 10_000_000  # of weights in two bytes each
    assert told["bytes"] / 2 < split["bytes"] < told["bytes"] * 0.8  # of one of two devices
    assert "contains wait or maybe" in out
    names = {file.name for file in (tmp_path / "sweep").iterdir()}
    assert names - {"texts.jsonl.config.json"} - {n for n in names if "lock" in n} == {
        "texts.jsonl", "contains-wait-or-maybe.svg", "words.svg", "report.html",
    }  # fmt: skip
    code, said, _ = jaxsteer("report", tmp_path / "sweep", "--out", tmp_path / "b.html", "--json")
    assert code == 0
    assert json.loads(said)["texts"] == 36
    code, _, error = jaxsteer("report", tmp_path / "sweep")
    assert code == 1
    assert "report.html: exists already" in error
    code, _, error = jaxsteer("report", tmp_path)
    assert "expected a folder with texts.jsonl" in error
    changed = (tmp_path / "sweep" / "texts.jsonl").stat().st_mtime_ns
    assert jaxsteer(*words)[1] == out  # the same command goes on: nothing is left to run
    assert (tmp_path / "sweep" / "texts.jsonl").stat().st_mtime_ns == changed
    code, _, error = jaxsteer(*words, "--seed", "5")  # nothing is replaced unless asked
    assert code == 1
    assert "made with another configuration" in error


def test_a_sweep_is_configured_by_a_file_and_what_overrides_it(
    jaxsteer, directions: Path, tmp_path: Path
) -> None:
    file = tmp_path / "sweep.toml"
    file.write_text(
        f"""
        model.path = "{MODEL}"
        prompts.texts = ["a .", "b ."]
        sampling.samples = 3
        [steering]
        directions = "{directions}"
        layers = [3, 4]
        coeffs = [1.0]
        """
    )

    def cells(*words: str) -> tuple[int, int]:
        code, out, error = jaxsteer("sweep", "--config", file, *words, "--dry-run", "--json")
        assert code == 0, error
        return tuple(json.loads(out)[name] for name in ("cells", "texts"))

    assert cells() == (2, 12)
    assert cells("--set", "steering.coeffs=[0, 1, 2]") == (5, 30)
    assert cells("--set", "steering.coeffs=[0, 1, 2]", "--coeff", "4", "--samples", "1") == (2, 4)
    assert cells("--prompt", "c .") == (2, 6)
    for pair, message in (
        ("steering.coefs=1", "--set: steering.coefs: no such key; did you mean steering.coeffs?"),
        ("steering.coeffs", "--set: got 'steering.coeffs', expected KEY=VALUE"),
        ("steering.coeffs=['a']", "'a' is not a valid float"),
    ):
        code, _, error = jaxsteer("sweep", "--config", file, "--set", pair, "--dry-run")
        assert code == 2
        assert message in error
    file.write_text("[steering]\nlayer = 3\n")
    code, _, error = jaxsteer("sweep", "--config", file, "--dry-run")
    assert (code, "steering.layer: no such key; did you mean steering.layers?" in error) == (
        2,
        True,
    )


def test_show_knows_what_a_path_holds(jaxsteer, small, directions: Path, tmp_path: Path) -> None:
    js.Texts((text(0.0, "a"), text(2.0, "b"))).save(tmp_path / "texts.jsonl")
    js.save(tmp_path / "checkpoint", small)
    for path, kind, told in (
        (MODEL, "Hugging Face folder", ("layers", 8)),
        (directions, "directions", ("directions", 8)),
        (tmp_path / "texts.jsonl", "texts", ("cells", 2)),
        (tmp_path / "checkpoint", "checkpoint", ("layers", small.config.n_layers)),
    ):
        code, out, _ = jaxsteer("show", path, "--json")
        facts = json.loads(out)
        assert (code, facts["kind"], facts[told[0]]) == (0, kind, told[1])
        code, out, _ = jaxsteer("show", path)
        assert code == 0
        assert kind in out


def test_doctor_says_what_there_is(jaxsteer) -> None:
    code, out, _ = jaxsteer("doctor", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["versions"]["jaxsteer"] == js.__version__
    assert facts["devices"][0]["platform"] == "cpu"
    assert facts["disk_free_bytes"] > 0
    assert "free disk" in jaxsteer("doctor")[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generat"], "jaxsteer: No such command 'generat'. Did you mean 'generate'?"),
        (["generate", "m", "--seeed", "1"], "No such option '--seeed'. Did you mean '--seed'?"),
        (["generate", "m"], "generate: prompts: got none, expected PROMPT or --prompts FILE"),
        (["generate", "m", "p", "--coeff", "1"], "--coeff: expected --directions FILE beside"),
        (["generate", "m", "p", "--directions", "no.st", "--coeff", "1"], "no.st"),
        (["direction", MODEL, "no.txt", "no.txt", "--out", "x"], "no.txt"),
        (["sweep", "m", "p"], "--directions, --coeff: expected a file"),
        (["show", "nothing"], "show: nothing: no such file or folder"),
        (
            ["show", __file__],
            "test_cli.py: got another kind of file, expected a file of directions",
        ),
        (["plan", "llama31_8b", "v99-8"], "v99-8"),
        (["plan", "llama31_8b", "v5e-8", "--mesh", "x"], "got x, expected DATAxTENSOR"),
        (["generate", MODEL, PROMPT, "--mesh", "2x4"], "needs 8 devices, found 1"),
        (["verify", "a", "b", "--tokens", "0"], "0 is not in the range x>=1"),
    ],
)
def test_an_error_is_one_line(jaxsteer, words: list[str], message: str) -> None:
    code, out, error = jaxsteer(*words)
    assert code in (1, 2)
    assert out == ""
    assert message in error
    assert error.count("\n") == 1


def test_a_direction_is_meant_by_name_or_layer(jaxsteer, directions: Path) -> None:
    def error(*words: str) -> str:
        return jaxsteer("generate", "m", "p", "--directions", directions, "--coeff", "1", *words)[2]

    assert "expected --name or --layer to mean one of doubt.0, doubt.1" in error()
    assert "--name: got 'joy'" in error("--name", "joy")
    assert "--layer: got [9], expected some of [0, 1, 2, 3, 4, 5, 6, 7]" in error("--layer", "9")


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_help_has_two_examples_that_can_be_typed(
    jaxsteer, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sweep.toml").write_text('model.path = "m"')  # which an example names
    code, out, _ = jaxsteer(name, "--help")
    shown = re.sub(r"\\\n", " ", out.split("Examples:")[1])
    examples = [shlex.split(line) for line in shown.splitlines() if line.strip()]
    assert (code, len(examples)) == (0, 2)
    for words in examples:
        assert words[:2] == ["jaxsteer", name]
        SUBCOMMANDS[name].make_context(name, words[2:])  # raises for an option that is not there


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("convert", conversion),
        ("verify", verification),
        ("export", exporting),
        ("plan", mesh_plan),
    ],
)
def test_options_are_those_of_the_module(jaxsteer, capsys, name: str, module) -> None:
    with pytest.raises(SystemExit):
        module.main(["--help"])
    theirs = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    assert set(re.findall(r"--[a-z-]+", SUBCOMMANDS[name].get_help(click.Context(SUBCOMMANDS[name]))
                          .split("Examples")[0])) == theirs  # fmt: skip


@pytest.mark.parametrize(
    ("words", "number", "completed"),
    [
        ("jaxsteer gen", "1", "generate"),
        ("jaxsteer generate --max", "2", "--max-new-tokens"),
        ("jaxsteer sweep --unit re", "3", "residual"),
    ],
)
def test_a_shell_completes_names_without_importing_jax(words: str, number: str, completed) -> None:
    code = (
        "import sys, jaxsteer_command\n"
        "try: jaxsteer_command.main()\n"
        "finally: sys.stderr.write(str('jax' in sys.modules))"
    )
    asked = {"_JAXSTEER_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": number}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | asked | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == (f"plain,{completed}\n", "False")


def test_the_names_that_a_shell_completes_are_those_of_the_commands() -> None:
    kept = json.loads(jaxsteer_command.NAMES.read_text())
    assert kept == jaxsteer_command.names_of(commands.jaxsteer)  # python -m jaxsteer_command


def test_options_are_passed_on(jaxsteer, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[str]] = []
    monkeypatch.setattr(conversion, "main", lambda words: given.append(words) or 3)
    monkeypatch.setattr(models, "without_accelerator", lambda: None)
    monkeypatch.setattr(models, "without_torch", lambda: None)
    words = ["a", "b", "--dtype", "bfloat16", "--overwrite"]
    assert jaxsteer("convert", *words)[0] == 3
    assert given == [words]


def test_headings_are_bold_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for is_terminal, written in ((True, b"\x1b[1mso\x1b[0m\n"), (False, b"so\n")):
        raw = io.BytesIO()
        stream = io.TextIOWrapper(raw, write_through=True)
        stream.isatty = lambda answer=is_terminal: answer  # type: ignore[method-assign]
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.delenv("NO_COLOR", raising=False)
        terminal.print_heading("so")
        stream.flush()
        assert raw.getvalue().replace(os.linesep.encode(), b"\n") == written

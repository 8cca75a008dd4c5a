"""Every command ends in one plain line, whatever its output is and whoever reads it."""

import subprocess
import sys
from pathlib import Path

import pytest

from jaxsteer.runtime.command import guarded, one_message

ROOT = Path(__file__).parents[2]

_COMMAND = """
import sys
from jaxsteer.runtime import guarded, run
@guarded()
def main():
    for _ in range({lines}):
        print({printed})
    if {error}:
        raise ValueError({error})
run(main)
"""


def command(
    *, printed: str = "''", lines: int = 1, error: str = "''", then: str = "", ascii: bool = False
) -> tuple[int, str, str]:
    """Exit code and output of a command that prints and then fails, read by `then` if given."""
    code = _COMMAND.format(printed=printed, lines=lines, error=error)
    environment = "PYTHONIOENCODING=ascii " if ascii else ""
    shell = f'set -o pipefail; {environment}"$0" -c "$1" {then}'
    argv = ["bash", "-c", shell, sys.executable, code]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, timeout=120, check=False)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.parametrize("floor", ["jaxsteer", "weights", "experiments"])
def test_every_command_ends_here(floor: str) -> None:
    """Measurements and workers that talk JSON apart."""
    commands = [f for f in (ROOT / floor).rglob("*.py") if "__main__" in f.stem + f.read_text()]
    commands = [f for f in commands if f.parent.name != "benchmarks" and "worker" not in f.stem]
    ends = ("run(main)", "run_command(main)", "run(command_line)", "command(", "end(")
    texts = {f: f.read_text().replace("jaxsteer.cli import main", "run(main)") for f in commands}
    assert not [f for f, text in texts.items() if not any(end in text for end in ends)]


def test_what_a_terminal_would_obey_is_spelled_out() -> None:
    name = r"'\x1b]0;title\x07\x9b2J \u202egnp.exe é'"
    code, out, err = command(printed=name, error=name)
    plain = r"\x1b]0;title\x07\x9b2J \u202egnp.exe é"
    assert (code, out, err) == (1, f"{plain}\n", f"error: {plain}\n")


def test_output_that_is_no_utf8() -> None:
    code, out, err = command(printed=r"'×\ud800'", error=r"'…'", ascii=True)
    assert (code, out, err) == (1, "\\xd7\\ud800\n", "error: \\u2026\n")


@pytest.mark.parametrize("lines", [1, 100_000])  # found when it ends, and while it prints
def test_a_reader_that_leaves_is_no_error(lines: int) -> None:
    code, out, err = command(printed="'x' * 100", lines=lines, then="| sleep 0")
    assert (code, out, err) == (141, "", "")


def test_a_name_cannot_pass_for_a_line_of_its_own() -> None:
    said = one_message(ValueError("tensor a\nPASS\rPASS: unknown\n  tensor b: missing"))
    assert said == "tensor a\\nPASS\\rPASS: unknown\n  tensor b: missing"


def test_a_message_has_a_bound_and_is_never_empty() -> None:
    assert len(one_message(ValueError("x" * 10**8))) < 8_100
    assert one_message(ValueError("x" * 10**8)).endswith(" … (99,992,000 more letters)")
    assert one_message(MemoryError()) == "MemoryError"
    assert one_message(ValueError(" \n")) == "ValueError"


@pytest.mark.parametrize("error", [ValueError, PermissionError, MemoryError, RecursionError])
def test_what_is_foreseen_is_a_line(error: type[Exception], capsys) -> None:
    @guarded("convert", failed=2)
    def work(text: str) -> None:
        raise error(text)

    assert work("why") == 2
    assert capsys.readouterr().err == "convert: why\n"


def test_an_error_of_ours_keeps_its_traceback() -> None:
    @guarded()
    def work() -> None:
        raise KeyError("ours")

    with pytest.raises(KeyError, match="ours"):
        work()

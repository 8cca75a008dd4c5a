"""Three floors, imports only downward: experiments, weights, jaxsteer."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BELOW = {
    "jaxsteer": {"jaxsteer"},
    "weights": {"jaxsteer", "weights"},
    "experiments": {"jaxsteer", "weights", "experiments"},
}


def imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{file}: relative import"
            yield node.module.split(".")[0]


@pytest.mark.parametrize("floor", BELOW)
def test_imports_go_down_only(floor: str) -> None:
    files = sorted((ROOT / floor).rglob("*.py"))
    assert files
    wrong = {
        f"{file.relative_to(ROOT)} imports {name}"
        for file in files
        for name in imported(file)
        if name in {*BELOW, "tests"} - BELOW[floor]
    }
    assert not wrong


def test_pytorch_is_for_tests_and_comparisons_only() -> None:
    # Imported when asked for: to compare with, and to read `.pt` vectors.
    allowed = {
        "jaxsteer/models/verification.py",
        "jaxsteer/directions/foreign_files.py",
        "experiments/benchmarks/cpu.py",
        "experiments/benchmarks/sweep_transformers.py",
    }
    users = {
        str(file.relative_to(ROOT))
        for floor in BELOW
        for file in (ROOT / floor).rglob("*.py")
        if "torch" in imported(file)
    }
    assert users == allowed

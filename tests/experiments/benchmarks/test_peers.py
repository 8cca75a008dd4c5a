"""The benchmark beside other libraries: what is compared, without the libraries."""

import sys
from pathlib import Path

import pytest

import jaxsteer as js
from experiments.benchmarks.peers import __main__ as peers
from experiments.benchmarks.peers.environments import PEERS, TORCH
from experiments.benchmarks.peers.worker import blocks_of

AIMS = {"setup": 2, "one": 2, "sweep": 3, "direction": 2, "activations": 2}


@pytest.mark.parametrize("peer", [*PEERS, "jaxsteer"])
def test_every_peer_has_all_tasks_and_a_scope(peer: str) -> None:
    text = (peers.HERE / f"{peer}.md").read_text()
    blocks = blocks_of(text)
    assert set(blocks) == {*peers.TASKS, "run"}
    for name, code in blocks.items():
        compile(code, name, "exec")
    scope = text.split("Scope: ")[1].split()[0].strip(".,;")
    assert scope == "any" or hasattr(js.scope, scope)


def test_packages_are_pinned() -> None:
    for packages in (TORCH, *PEERS.values()):
        assert all("==" in package for package in packages)


def test_jaxsteer_takes_no_more_statements_than_was_aimed_for() -> None:
    blocks = blocks_of((peers.HERE / "jaxsteer.md").read_text())
    found = {task: peers.statements(blocks[task]) for task in peers.TASKS}
    assert all(found[task] <= AIMS[task] for task in peers.TASKS), found


@pytest.fixture
def pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Peers that write the same tokens, but for a row of the second."""
    (tmp_path / "worker.py").write_text((peers.HERE / "worker.py").read_text())
    others = "".join(f"## {task}\n```python\nx = 1\n```\n" for task in peers.TASKS)
    run = "## run\n```python\ndef run():\n    return [[row + [{last}] for row in ROWS]]\n```\n"
    for name in ("jaxsteer", "same"):
        (tmp_path / f"{name}.md").write_text("Scope: generated.\n" + others + run.format(last=7))
    odd = run.replace("[{last}]", "[7 + (row == [2])]")
    (tmp_path / "other.md").write_text("Scope: everywhere.\n" + others + odd)
    (tmp_path / "broken.md").write_text(
        "Scope: everywhere.\n" + others + "## run\n```python\nraise OSError('no')\n```\n"
    )
    monkeypatch.setattr(peers, "HERE", tmp_path)
    return tmp_path


def test_rows_that_differ_are_counted(pages: Path) -> None:
    python = Path(sys.executable)
    same = peers.compare("same", python, {"ROWS": [[1], [2]]}, repeats=2)
    other = peers.compare("other", python, {"ROWS": [[1], [2]]}, repeats=0)
    assert (same["rows"], same["equal"], other["equal"]) == (2, 2, 1)
    assert (same["scope"], other["scope"]) == ("generated", "everywhere")
    assert other["seconds"]["other"]["again"] is None
    assert same["seconds"]["same"]["process"] > same["seconds"]["same"]["first"]
    text = peers.table([same, other], dict.fromkeys(peers.TASKS, 1))
    assert "| other | everywhere | 1 of 2 |" in text
    with pytest.raises(RuntimeError, match="broken, run: OSError: no"):
        peers.compare("broken", python, {"ROWS": [[1]]}, repeats=0)

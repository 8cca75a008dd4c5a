"""jaxsteer.files.jsonl: rows survive what a kill leaves, and one process has a file."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxsteer.files.jsonl import append_rows, locked, read_rows, recover_rows, sort_rows


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"text": "a\nb\r\n\u2028ü"}, {"x": 0.1, "none": None}]
    assert read_rows(file) == []
    append_rows(file, rows[:1])
    append_rows(file, rows[1:])
    append_rows(file, [])
    assert read_rows(file) == rows
    assert file.read_bytes().count(b"\n") == 2


def test_rows_are_put_in_order_in_one_step(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    append_rows(file, [{"i": 1, "text": "ü"}, {"i": 0}])
    sort_rows(file, key=lambda row: row["i"])
    assert read_rows(file) == [{"i": 0}, {"i": 1, "text": "ü"}]
    inode = file.stat().st_ino
    sort_rows(file, key=lambda row: row["i"])
    assert file.stat().st_ino == inode  # in order already: not written again
    sort_rows(tmp_path / "missing.jsonl", key=lambda row: row["i"])
    assert [f.name for f in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize("cut", [1, 3, 9])
def test_a_cut_last_line_is_dropped_and_the_next_starts_a_line(tmp_path: Path, cut: int) -> None:
    file = tmp_path / "rows.jsonl"
    append_rows(file, [{"i": 0}, {"i": "ä"}])
    os.truncate(file, file.stat().st_size - cut)
    assert recover_rows(file) == [{"i": 0}]
    append_rows(file, [{"i": 2}])
    assert read_rows(file) == [{"i": 0}, {"i": 2}]


@pytest.mark.parametrize(("cut", "found"), [(1, 2), (3, 1), (9, 1)])
def test_reading_changes_no_file(tmp_path: Path, cut: int, found: int) -> None:
    """A list of somebody's own may end without a line's end, and a sweep may be on its way."""
    file = tmp_path / "rows.jsonl"
    append_rows(file, [{"i": 0}, {"i": "ä"}])
    os.truncate(file, file.stat().st_size - cut)
    before = file.read_bytes()
    assert read_rows(file) == [{"i": 0}, {"i": "ä"}][:found]
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"i": ', "not JSON"),
        (b"", "not JSON"),
        (b'{"i": "\xff"}', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", r"got \[1\], expected an object"),
        (b"null", "got None, expected an object"),
    ],
)
def test_damage_elsewhere_is_refused(tmp_path: Path, line: bytes, problem: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"i": 0}\n' + line + b'\n{"i": 2}\n')
    with pytest.raises(ValueError, match=rf"rows\.jsonl, line 2: {problem}"):
        read_rows(file)
    with pytest.raises(ValueError, match=rf"rows\.jsonl, line 2: {problem}"):
        recover_rows(file)
    assert file.read_bytes().endswith(b'{"i": 2}\n')  # and nothing is removed


def test_a_locked_file_is_one_process_own_and_keeps_its_content(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    append_rows(file, [{"i": 0}])
    script = """
import sys
from jaxsteer.files import locked
try:
    with locked(sys.argv[1], busy="taken"):
        print("mine")
except FileExistsError as error:
    print(error)
"""

    def other() -> str:
        return subprocess.run(
            [sys.executable, "-c", script, str(file)],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    with locked(file, busy="taken"):
        append_rows(file, [{"i": 1}])
        assert other() == "taken"
    assert other() == "mine"
    assert read_rows(file) == [{"i": 0}, {"i": 1}]

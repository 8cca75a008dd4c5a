"""JSON lines files that grow row by row and survive a kill: whole lines, flushed to the disk."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from jaxsteer.files.atomic import as_path, check_regular, write_atomic
from jaxsteer.files.locks import try_lock


def append_rows(path: str | os.PathLike[str], rows: Iterable[dict[str, Any]]) -> None:
    """Append rows to a JSON lines file in one write of whole lines, flushed to the disk."""
    data = encode_rows(rows)
    check_regular(path, missing_ok=True)
    with open(as_path(path), "ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def read_rows(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Rows of a JSON lines file; none if it does not exist. The file stays as it is.

    A last line that does not end and is no JSON was cut short by a kill, or is being written. It is
    left out.

    Raises:
        ValueError: naming the line, if another one is no JSON object.
    """
    data = _content(path)
    whole = data.rfind(b"\n") + 1
    rows = parse_rows(path, data[:whole])
    try:
        return rows + parse_rows(path, data[whole:])
    except ValueError:
        return rows


def recover_rows(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Rows of a JSON lines file to go on with: for the process that appends to it, and no other.

    A last line without an end is removed from the file, so that the next row starts a line of its
    own.

    Raises:
        ValueError: naming the line, if another one is no JSON object.
    """
    data = _content(path)
    whole = data[: data.rfind(b"\n") + 1]
    rows = parse_rows(path, whole)
    if len(whole) < len(data):
        os.truncate(as_path(path), len(whole))
    return rows


def _content(path: str | os.PathLike[str]) -> bytes:
    """A file's bytes; none if it does not exist."""
    check_regular(path, missing_ok=True)
    return as_path(path).read_bytes() if as_path(path).exists() else b""


def parse_rows(path: str | os.PathLike[str], data: bytes) -> list[dict[str, Any]]:
    """Rows from the whole lines of a file's content.

    Raises:
        ValueError: naming the line, if one is no JSON object.
    """
    rows = []
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: got {row!r:.80}, expected an object")
        rows.append(row)
    return rows


def sort_rows(path: str | os.PathLike[str], *, key: Callable[[dict[str, Any]], Any]) -> None:
    """Put the rows of a JSON lines file into the order of `key`, in one step."""
    rows = read_rows(path)
    ordered = sorted(rows, key=key)
    if ordered != rows:
        write_atomic(path, encode_rows(ordered))


def encode_rows(rows: Iterable[dict[str, Any]]) -> bytes:
    """Rows as the content of a file, a line each."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


@contextmanager
def locked(path: str | os.PathLike[str], *, busy: str) -> Iterator[None]:
    """Lock a file for this process; it is created if missing, and its content does not change.

    The system unlocks it when the process ends, however it ends.

    Raises:
        FileExistsError: with the message `busy`, if another process holds it.
    """
    check_regular(path, missing_ok=True)
    with open(as_path(path), "ab") as file:
        if not try_lock(file.fileno(), path):
            raise FileExistsError(busy)
        yield

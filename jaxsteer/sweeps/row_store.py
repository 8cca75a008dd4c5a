"""The rows of a sweep: in a JSON lines file, or in objects of a store, which cannot grow.

    sweep.jsonl                          a file: rows are appended, one process holds it
    gs://bucket/sweep.jsonl              an object: written when the last row is there
    gs://bucket/sweep.jsonl.parts/       until then an object for each chunk, whole or not there

Other stores that `etils.epath` knows (`s3://`, `az://`) do, too. It reaches them through `fsspec`
and its driver (`pip install gcsfs` for `gs://`). They have no locks: only one job may write a path.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jaxsteer.files import (
    append_rows,
    as_path,
    encode_rows,
    is_remote,
    locked,
    parse_rows,
    recover_rows,
)


@dataclass(frozen=True)
class RowStore:
    """The rows that exist, and how to append more."""

    rows: list[dict[str, Any]]
    append: Callable[[Iterable[dict[str, Any]]], None]
    finish: Callable[[], None]  # after the last row


@contextmanager
def open_rows(path: str | os.PathLike[str]) -> Iterator[RowStore]:
    """The rows of a file or an object to go on with; a missing folder is made.

    Raises:
        FileExistsError: if another process holds the file.
        ValueError: if what is there is no JSON, naming the line.
    """
    if is_remote(path):
        yield _objects(path)
        return
    file = as_path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    with locked(file, busy=f"{file}: another process is writing this sweep"):
        rows = recover_rows(file)
        yield RowStore(rows, lambda more: append_rows(file, more), lambda: None)


def _objects(path: str | os.PathLike[str]) -> RowStore:
    target = as_path(path)
    folder = target.parent / f"{target.name}.parts"
    whole = target.read_bytes() if target.exists() else b""
    parts = sorted(folder.glob("*.jsonl")) if folder.exists() else []
    data = [part.read_bytes() for part in parts]
    if parts and whole.endswith(b"".join(data)):
        _remove(parts)  # a kill came between the merge and this
        parts, data = [], []
    numbers = iter(range(int(parts[-1].name.split(".")[0]) + 1 if parts else 0, 10**6))

    def append(rows: Iterable[dict[str, Any]]) -> None:
        part = folder / f"{next(numbers):06d}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        data.append(encode_rows(rows))
        part.write_bytes(data[-1])
        parts.append(part)

    def finish() -> None:
        if parts:
            target.write_bytes(whole + b"".join(data))
            _remove(parts)

    return RowStore(parse_rows(target, whole + b"".join(data)), append, finish)


def _remove(parts: list[Any]) -> None:
    """Remove parts in order; after a kill the rest is still an end of the merged object."""
    for part in parts:
        part.unlink()

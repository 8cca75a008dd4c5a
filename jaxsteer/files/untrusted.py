"""Untrusted files: inside their folder, of bounded size, with JSON of bounded depth."""

import gzip
import json
import math
import os
import re
import zlib
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

from jaxsteer.files.atomic import open_regular

MOST_BYTES = 1 << 24  # of a config; parsed it may take some twenty times as much memory
MOST_DATA = 1 << 28  # of traces, labels, texts
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_MOST_LEVELS = 100  # of lists and objects in each other


def inside(folder: Path, name: str) -> Path:
    """A regular file of the folder, by its name.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it lies outside the folder, by its name or through a link. (Links from a
            snapshot of the Hugging Face cache to the blobs of the same model are inside.)
    """
    path = folder / name
    home = folder.resolve()
    roots = [home]
    if home.parent.name == "snapshots":
        roots.append(home.parent.parent / "blobs")
    try:
        place = path.resolve()
    except RuntimeError:  # in Python 3.13 an OSError
        raise ValueError(f"{path}: a link that leads in a circle") from None
    if not any(place.is_relative_to(root) for root in roots):
        raise ValueError(f"{path}: leads out of the folder, to {place}; expected a file")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    return path


def is_plain_name(name: object) -> bool:
    """Whether it names a file below a folder, whatever the folder is.

    >>> is_plain_name("params/a"), is_plain_name("../a"), is_plain_name("/a"), is_plain_name(1)
    (True, False, False, False)
    """
    if not isinstance(name, str) or not name or "\0" in name:
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and str(path) == name


def read_whole(path: str | os.PathLike[str], *, most: int) -> bytes:
    """The content of a regular file, uncompressed if its name ends in `.gz`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no regular file, has more than `most` bytes, or is no gzip.
    """
    packed = os.fspath(path).endswith(".gz")
    with open_regular(path) as file, gzip.GzipFile(fileobj=file) as unpacked:
        try:
            data = (unpacked if packed else file).read(most + 1)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path}: not compressed by gzip, or damaged ({error})") from None
    if len(data) > most:
        raise ValueError(f"{path}: has more than {most:,} bytes, the most that is read")
    return data


def read_json(path: str | os.PathLike[str], *, most: int = MOST_BYTES) -> Any:
    """The JSON in a file of at most so many bytes, as `load_json` reads it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: naming the file and what is wrong with it.
    """
    return load_json(read_whole(path, most=most), path)


def read_json_object(path: str | os.PathLike[str]) -> dict[str, Any]:
    """`read_json` of a file that holds an object; `ValueError` if it holds something else."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path}: got a {type(value).__name__}, expected a JSON object")
    return value


def load_json(text: bytes | str, where: object = None) -> Any:
    """Parse JSON strictly: no name twice in one object, no NaN or infinity, 100 levels at most.

    Raises:
        ValueError: saying what is wrong, behind `where` if given.
    """
    try:
        return _parse(text)
    except ValueError as error:
        raise ValueError(str(error) if where is None else f"{where}: {error}") from None


def _parse(text: bytes | str) -> Any:
    too_deep = ValueError(f"not JSON: nested too deep, more than {_MOST_LEVELS} levels")
    try:
        # Not by json, which would guess UTF-16, too. Some editors write a mark at the beginning.
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        value = json.loads(
            text, object_pairs_hook=_distinct, parse_constant=_finite, parse_float=_finite
        )
    except UnicodeDecodeError:
        raise ValueError("not JSON: not UTF-8") from None
    except RecursionError:
        raise too_deep from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    # What is deeper may be read, and then overflow the stack of whoever walks through it.
    if text.count("[") + text.count("{") > _MOST_LEVELS and _levels(value) > _MOST_LEVELS:
        raise too_deep
    if _SURROGATE.search(text):  # escaped, half of a letter gets through, and no file can hold it
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("not JSON: half of a letter, as \\ud800") from None
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        twice = [name for name, n in Counter(name for name, _ in pairs).items() if n > 1]
        raise ValueError(f"given twice: {', '.join(map(repr, twice))}")
    return data


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"not JSON: {text:.80} is no number")
    return number


def _levels(value: Any) -> int:
    """The depth of nested lists and objects, counted without recursion."""
    level, count = [value], 0
    while holders := [x for x in level if isinstance(x, dict | list)]:
        level = [y for x in holders for y in (x.values() if isinstance(x, dict) else x)]
        count += 1
        if count > _MOST_LEVELS:
            break
    return count

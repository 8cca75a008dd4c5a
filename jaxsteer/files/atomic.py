"""Writing files whole or not at all, telling files apart by their content, object stores."""

import hashlib
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

from etils import epath


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path names an object of a store.

    >>> is_remote("gs://bucket/sweep.jsonl"), is_remote("runs/sweep.jsonl")
    (True, False)
    """
    return "://" in os.fspath(path)


def as_path(path: str | os.PathLike[str]) -> Path:
    """A path, or for an object store one of `etils.epath`, which has the same methods.

    A `~` at the beginning is the user's own folder. Give stores as texts: `pathlib` takes a slash
    out of `gs://`.
    """
    return epath.Path(path) if is_remote(path) else Path(os.path.expanduser(path))


def absolute(path: str | os.PathLike[str]) -> Path:
    """`as_path`, from the root of the file system or the store."""
    return as_path(path) if is_remote(path) else as_path(path).absolute()


def check_regular(path: str | os.PathLike[str], *, missing_ok: bool = False) -> None:
    """Refuse what is no regular file: opening a pipe waits for ever, a device may have no end.

    Raises:
        FileNotFoundError: nothing is there, and that is not `missing_ok`.
        ValueError: naming what is no file.
    """
    place = as_path(path)
    if place.is_file():
        return
    if place.exists():
        raise ValueError(f"{path}: is no regular file")
    if not missing_ok:
        raise FileNotFoundError(f"{path}: no such file")


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file to read its bytes; see `check_regular`."""
    check_regular(path)
    return as_path(path).open("rb")


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path` in one step: a reader sees the old file or the new one, never half.

    The bytes go to a temporary name in the same folder first, which is then renamed. Missing
    parent folders are created. An object of a store appears whole by itself.
    """
    if is_remote(path):
        as_path(path).write_bytes(data)
        return
    target = as_path(path)
    check_regular(target, missing_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's content, as hexadecimal digits."""
    with open(as_path(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _umask() -> int:
    # The only portable way to read the umask is to set it; mkstemp ignores it (mode 0600).
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: Path, data: Any) -> None:
    """Write data as JSON, with null for NaN and infinity, which JSON does not have."""
    write_atomic(path, json.dumps(_finite(data), indent=1, ensure_ascii=False).encode())


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

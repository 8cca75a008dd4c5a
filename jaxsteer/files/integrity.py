"""Sizes and checksums of all files in a folder: whether it is whole, and the same as it was."""

import os
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from jaxsteer.files.atomic import is_remote
from jaxsteer.runtime import hosts, timed

T = TypeVar("T")


def checksums(folder: Path) -> dict[str, list[int]]:
    """Size in bytes and CRC-32 of every file under `folder`, by its name there.

    The files are on the disk, and not only in the system's cache, when this returns.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    with ThreadPoolExecutor() as pool:  # zlib lets go of the GIL
        sums = list(pool.map(_crc32, files))
        list(pool.map(_flush, files))
    return {
        file.relative_to(folder).as_posix(): [file.stat().st_size, crc]
        for file, crc in zip(files, sums, strict=True)
    }


@timed("checkpoint/check")
def check_files(folder: Path, files: Mapping[str, list[int]]) -> None:
    """Compare a folder with its earlier `checksums`; files that were added later do not matter.

    In an object store only sizes are compared: the store protects the content, and reading it would
    take as long as loading.

    Raises:
        ValueError: naming every file that is missing, cut short or changed.
    """
    present = {name: folder / name for name in files if (folder / name).is_file()}
    problems = [f"missing: {name}" for name in files if name not in present]
    whole = {}
    for name, file in present.items():
        size = _size(file)
        if size != files[name][0]:
            problems.append(f"cut short: {name}: {size:,} bytes, expected {files[name][0]:,}")
        else:
            whole[name] = file
    if is_remote(folder):
        whole = {}
    with ThreadPoolExecutor() as pool:
        for name, crc in zip(whole, pool.map(_crc32, whole.values()), strict=True):
            if crc != files[name][1]:
                problems.append(f"damaged: {name}: its content has changed")
    if problems:
        raise ValueError(
            f"{folder}: damaged, convert or copy it again:\n  " + "\n  ".join(problems)
        )


def check_while(folder: Path, files: Mapping[str, list[int]], read: Callable[[], T]) -> T:
    """The result of `read()`; checksums are compared at the same time, so the disk is read once.

    Sizes are compared before. Many hosts check everything before they read, because a host that
    finds damage must not leave the others waiting.

    Raises:
        ValueError: naming damaged files, whatever `read` made of them.
    """
    if hosts.several():
        check_together(folder, files)
        return read()
    if any(not (folder / n).is_file() or _size(folder / n) != files[n][0] for n in files):
        check_files(folder, files)  # names these, and all that is damaged otherwise
    with ThreadPoolExecutor(1) as pool:
        checking = pool.submit(check_files, folder, files)
        try:
            result = read()
        finally:
            checking.result()  # if it raises, this is the reason of any error of `read`
    return result


def check_together(folder: Path, files: Mapping[str, list[int]]) -> None:
    """`check_files`, of many hosts by each a part of them, which they read from one disk.

    Raises:
        ValueError: in all of them, if one finds a damaged file.
    """
    mine = sorted(files)[hosts.index() :: hosts.count()]
    failed: ValueError | None = None
    try:
        check_files(folder, {name: files[name] for name in mine})
    except ValueError as error:
        failed = error
    if hosts.any_of(failed is not None):
        raise failed or ValueError(f"{folder}: damaged, as another host says; copy it again")


def _size(file: Path) -> int:
    stat: Any = file.stat()
    return stat.length if is_remote(file) else stat.st_size


def _crc32(file: Path) -> int:
    value = 0
    with open(file, "rb") as opened:
        while block := opened.read(1 << 22):  # by some twenty threads at a time
            value = zlib.crc32(block, value)
    return value


def _flush(file: Path) -> None:
    with open(file, "rb") as opened:
        os.fsync(opened.fileno())

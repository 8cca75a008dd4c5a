"""What the disk can do at best, measured in the same run as what is held against it."""

import os
import time
from pathlib import Path

_BLOCK = 1 << 24


def sequential_speed(folder: Path, n_bytes: int) -> tuple[float, float]:
    """Bytes a second that one file of `n_bytes` is written to the disk, and read back from it."""
    file = folder / ".disk-speed"
    block = os.urandom(_BLOCK)
    try:
        started = time.perf_counter()
        with open(file, "wb", buffering=0) as opened:
            for _ in range(-(-n_bytes // _BLOCK)):
                opened.write(block)
            os.fsync(opened.fileno())
        write = file.stat().st_size / (time.perf_counter() - started)
        forget(file)
        started = time.perf_counter()
        with open(file, "rb", buffering=0) as opened:
            buffer = bytearray(_BLOCK)
            while opened.readinto(buffer):
                pass
        return write, file.stat().st_size / (time.perf_counter() - started)
    finally:
        file.unlink(missing_ok=True)


def forget(path: Path) -> None:
    """Drop a file, or every file under a folder, from the system's cache."""
    for file in [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]:
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def used(folder: Path) -> int:
    """Bytes of all files under a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())

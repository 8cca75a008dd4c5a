"""Directories that appear when they are complete, or not at all."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxsteer.files.atomic import absolute, as_path, is_remote
from jaxsteer.files.locks import try_lock

_TRIES, _PAUSE = 20, 0.2  # of removing what is half-built; seconds behind each


@contextmanager
def new_directory(
    path: str | os.PathLike[str], *, marker: str, overwrite: bool = False
) -> Iterator[Path]:
    """Build a directory beside `path`; when the block ends well, it takes that name.

    When the block raises, nothing is left. Remains of a killed process are removed by the next one
    that builds the same directory. An existing directory is replaced only with `overwrite`, and
    only if it contains the file `marker`, which shows its kind.

    Raises:
        FileExistsError: `path` exists and may not be replaced, or another process builds it.
    """
    target = absolute(path)
    check_free(target, marker=marker, overwrite=overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    building = target.with_name(f".{target.name}.building")
    old = target.with_name(f".{target.name}.old")  # whole, whenever it is there
    lock = -1
    try:
        lock = _lock(building, target)
        if _settle(old, target):  # killed between the two renames below
            check_free(target, marker=marker, overwrite=overwrite)
        _clear(building)
        yield building
        if target.exists():
            os.rename(target, old)
        os.rename(building, target)
        _settle(old, target)
    except BaseException:
        if lock != -1:  # or it is another process's
            _remove(building)
            _settle(old, target)
        raise
    finally:
        if lock != -1:
            os.close(lock)


@contextmanager
def without_wildcards(folder: Path) -> Iterator[Path]:
    """The folder under a name without `[`, `*` or `?`, for libraries that search by patterns.

    It is a link that exists inside the block only, or `folder` itself if its name has none of them.
    """
    if not set("[*?") & set(str(folder)) or is_remote(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="jaxsteer-") as place:
        link = Path(place) / "folder"
        link.symlink_to(folder.absolute(), target_is_directory=True)
        yield link


def check_free(path: str | os.PathLike[str], *, marker: str, overwrite: bool = False) -> None:
    """Raise `FileExistsError` if `new_directory` would refuse this path."""
    target = as_path(path)
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise FileExistsError(f"{target}: exists already; pass overwrite to replace it")
    if not (target / marker).is_file():
        raise FileExistsError(
            f"{target}: exists and holds no {marker}, so it is not overwritten; "
            "remove it yourself or choose another name"
        )


def _settle(old: Path, target: Path) -> bool:
    """Put the old directory back if no new one has its name, else remove it if possible.

    Returns whether it was put back. It is renamed before it is removed, because a kill may leave a
    part of it.
    """
    removing = target.with_name(f".{target.name}.removing")
    shutil.rmtree(removing, ignore_errors=True)
    if not old.exists():
        return False
    if not target.exists():
        os.rename(old, target)
        return True
    with contextlib.suppress(OSError):  # the new one is complete; the next writer tries again
        os.rename(old, removing)
        shutil.rmtree(removing, ignore_errors=True)
    return False


def _remove(folder: Path) -> None:
    """Remove a folder; late threads of TensorStore may create it again."""
    for _ in range(_TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(_PAUSE)
        if not folder.exists():
            return


def _lock(building: Path, target: Path) -> int:
    """Lock the directory for this process; the system unlocks it when the process ends."""
    busy = FileExistsError(f"{target}: another process is writing it now")
    building.mkdir(exist_ok=True)
    try:
        handle = os.open(building, os.O_RDONLY)
    except FileNotFoundError:  # the other one has just finished
        raise busy from None
    try:
        # The name may have gone to another directory between opening and locking.
        if try_lock(handle, target) and os.stat(building).st_ino == os.fstat(handle).st_ino:
            return handle
    except FileNotFoundError:
        pass
    except OSError:
        os.close(handle)
        with contextlib.suppress(OSError):  # something is in it: somebody else is at work
            building.rmdir()
        raise
    os.close(handle)
    raise busy


def _clear(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()

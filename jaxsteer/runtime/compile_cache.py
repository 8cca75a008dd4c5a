"""Compiled programs kept on disk, so that a second process need not compile them again.

Importing `jaxsteer` points JAX's persistent compilation cache at a folder of the user's own, unless
JAX was told of one before (`jax_compilation_cache_dir`, or `JAX_COMPILATION_CACHE_DIR`): then that
one stays. Every program of the process is kept that took JAX longer to compile than
`jax_persistent_cache_min_compile_time_secs`: .3 s instead of JAX's second, unless another limit was
set. Most programs of a small model take less than a second, and together they take several. It
works on CPUs, GPUs and TPUs alike.

    JAXSTEER_COMPILE_CACHE=/fast/disk python …     another folder
    JAXSTEER_COMPILE_CACHE=off python …            none
    jaxsteer.compile_cache.use("/fast/disk")       the same from Python, at any time
    jaxsteer.compile_cache.turn_off()

Programs in the folder are executed, so others must not be able to write there: it is made with mode
0700, and refused if it, a folder above it, or anything in it belongs to another user or is writable
by others. It may be deleted at any time.
"""

import contextlib
import hashlib
import os
import platform
import stat
import sys
import warnings
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

try:
    from jax._src.compilation_cache import decompress_executable
except ImportError:  # it is not public: where JAX has moved it, half-written programs stay
    decompress_executable = None  # type: ignore[assignment]

VARIABLE = "JAXSTEER_COMPILE_CACHE"
_LEAST = "jax_persistent_cache_min_compile_time_secs"
_JAX_SECONDS, _SECONDS = 1.0, 0.3  # JAX's limit if nobody says another, and ours


def use(folder: str | os.PathLike[str]) -> Path:
    """Keep compiled programs in `folder` from now on; returns the folder for this processor in it.

    Raises:
        PermissionError: if others own the folder or anything in it, or may write there.
        OSError: if it cannot be made.
    """
    folder = Path(folder).expanduser().absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    _check_ours(folder)
    own = folder / _processor()
    own.mkdir(mode=0o700, exist_ok=True)
    _remove_half_written(own)
    if jax.config.values[_LEAST] == _JAX_SECONDS and _LEAST.upper() not in os.environ:
        jax.config.update(_LEAST, _SECONDS)
    _set(str(own))
    return own


def _check_ours(folder: Path) -> None:
    """Raise `PermissionError` for the first path that others could change, above or inside."""
    for above in folder.resolve().parents:
        mode = above.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise _refused(folder, above, f"others may write to it (mode {stat.S_IMODE(mode):o})")
    status = folder.stat()
    writers = stat.S_IWGRP | stat.S_IWOTH
    _check_one(folder, folder, status, writers)
    if not status.st_mode & stat.S_IXGRP:  # the group does not get in, whatever the umask gave it
        writers = stat.S_IWOTH
    left = [folder]
    while left:
        with contextlib.suppress(FileNotFoundError), os.scandir(left.pop()) as entries:
            for entry in entries:  # another process may remove them meanwhile
                path = Path(entry.path)
                _check_one(folder, path, entry.stat(follow_symlinks=False), writers)
                if entry.is_dir(follow_symlinks=False):
                    left.append(path)


def _check_one(folder: Path, path: Path, status: os.stat_result, writers: int) -> None:
    if status.st_uid != os.geteuid():
        raise _refused(folder, path, f"belongs to user {status.st_uid}, expected {os.geteuid()}")
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise _refused(folder, path, "is a link or a device")
    if status.st_mode & writers:
        mode = stat.S_IMODE(status.st_mode)
        raise _refused(folder, path, f"others may write to it (mode {mode:o}), expected 700")


def _refused(folder: Path, path: Path, why: str) -> PermissionError:
    where = "" if path == folder else f": {path}"
    return PermissionError(f"compile cache {folder}{where}: {why}: programs in it would be run")


def turn_off() -> None:
    """Keep no compiled programs on disk from now on, whoever asked for it."""
    _set(None)


def default_folder() -> Path:
    """Where programs are kept by default: `$XDG_CACHE_HOME/jaxsteer` or the like."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(named):
        return Path(named) / "jaxsteer"
    caches = "Library/Caches" if sys.platform == "darwin" else ".cache"
    return Path.home() / caches / "jaxsteer"


def turn_on_by_default() -> None:
    """What importing `jaxsteer` does; a folder that cannot be used is no error, but a warning."""
    setting = os.environ.get(VARIABLE, "")
    if jax.config.values["jax_compilation_cache_dir"] is not None or setting.lower() == "off":
        return
    try:
        use(setting or default_folder())
    except (OSError, RuntimeError) as error:  # RuntimeError: the user has no home folder
        refused = isinstance(error, PermissionError) and error.errno is None
        if setting or refused:  # a read-only home is nothing to complain about at each start
            warnings.warn(f"compiled programs are not kept: {error}", stacklevel=2)


def _remove_half_written(own: Path) -> None:
    """Remove programs that a kill or a full disk left half-written; each is checked once.

    JAX does not write them in one step and does not replace an existing file, but would warn at
    each start. A program that another process is just writing may be removed, too; it is compiled
    once more.
    """
    if decompress_executable is None:
        return
    stamp = own / ".checked"
    with contextlib.suppress(OSError):  # a folder that is read-only, or cleared meanwhile
        checked = stamp.stat().st_mtime_ns if stamp.exists() else 0
        stamp.touch()
        for file in own.glob("*-cache"):
            if file.stat().st_mtime_ns >= checked and not _is_whole(file.read_bytes()):
                file.unlink()


def _is_whole(program: bytes) -> bool:
    try:
        decompress_executable(program)
    except Exception:  # of zlib or of one of two packages for zstd, whichever JAX found
        return False
    return True


def _set(folder: str | None) -> None:
    jax.config.update("jax_compilation_cache_dir", folder)
    compilation_cache.reset_cache()  # JAX looks at the setting at its first compilation only


def _processor() -> str:
    """A name for the CPU's instruction set.

    A program compiled for one CPU may use instructions that another lacks, and home folders are
    shared between machines.
    """
    try:
        with open("/proc/cpuinfo") as file:
            named = next((x for x in file if x.startswith(("flags", "Features"))), "")
    except OSError:
        named = platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(named.encode()).hexdigest()[:8]}"

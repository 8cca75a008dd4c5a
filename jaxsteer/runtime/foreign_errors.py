"""Errors of other libraries that read untrusted files, each turned into one `ValueError`."""

import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LONGEST = 300  # characters of a foreign message that are repeated
_stderr = threading.RLock()


@contextmanager
def as_value_error(file: str | Path, what: str) -> Iterator[None]:
    """Turn whatever is raised inside into a `ValueError`, one line that names `file` and `what`.

    Rust's panics are caught, too (they derive from `BaseException`), and what they print is
    dropped. Ctrl-C and the end of the process go through.
    """
    with _panics_unprinted():
        try:
            yield
        except Exception as error:
            raise ValueError(f"{file}: {what}: {one_line(error)}") from None
        except BaseException as error:
            if not is_panic(error):
                raise
            raise ValueError(f"{file}: {what}: {one_line(error)}") from None


def one_line(error: BaseException) -> str:
    r"""What an exception says, on one line of at most 300 characters, its kind before it.

    >>> one_line(KeyError("a")), one_line(ValueError("a:\n  b"))
    ("KeyError: 'a'", 'a: b')
    """
    said = " ".join(str(error)[: 10 * _LONGEST].split())
    said = "".join(char if char.isprintable() else "\ufffd" for char in said)
    kind = type(error).__name__
    if not said:
        return kind
    return said[:_LONGEST] if isinstance(error, ValueError) else f"{kind}: {said[:_LONGEST]}"


def is_panic(error: BaseException) -> bool:
    """Whether `error` is a panic of Rust code, whose class cannot be imported."""
    return type(error).__name__ == "PanicException"


@contextmanager
def _panics_unprinted() -> Iterator[None]:
    """Keep what is written to file descriptor 2 until the end; drop it after a panic.

    Rust prints a backtrace there before Python hears of the panic.
    """
    with _stderr, tempfile.TemporaryFile() as kept:
        sys.stderr.flush()
        try:
            real = os.dup(2)
        except OSError:  # a process without one
            yield
            return
        os.dup2(kept.fileno(), 2)
        panicked = False
        try:
            yield
        except BaseException as error:
            panicked = is_panic(error) or is_panic(error.__context__ or error)
            raise
        finally:
            sys.stderr.flush()
            os.dup2(real, 2)
            os.close(real)
            kept.seek(0)
            if not panicked and (text := kept.read()):
                os.write(2, text)

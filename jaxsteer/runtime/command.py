"""What all commands share: how they begin and end, and that an error is one plain line."""

import functools
import logging
import os
import re
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn, ParamSpec, TextIO

import jax

from jaxsteer.runtime import hosts, preemption
from jaxsteer.runtime.foreign_errors import is_panic

CLOSED_PIPE = 141  # 128 + SIGPIPE: the reader of the output has left, as `head` does
_LONGEST = 8_000  # letters of an error
_FORESEEN = (
    ValueError,
    OSError,
    ImportError,
    MemoryError,
    RecursionError,
    hosts.HostLost,
    jax.errors.JaxRuntimeError,
)

# What moves a terminal's cursor, colours it, or turns the direction of writing.
_CONTROLS = re.compile(
    r"[^\n\t\r -~\xa0-\U0010ffff]|[\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]"
)

P = ParamSpec("P")


def begin() -> None:
    """Make this process a command: its output is safe for a terminal of any encoding."""
    _say_once()
    for stream in (sys.stdout, sys.stderr):
        _make_plain(stream)


def run(main: Callable[[], int]) -> NoReturn:
    """Run a command and exit with its code; interrupted, it first removes what is half-built."""
    begin()
    try:
        with preemption.at_once("stopped by SIGTERM"):
            code = main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except preemption.Stopped:  # which has said so
        code = preemption.EXIT_CODE
    end(code)


def guarded(
    prefix: str = "error", *, failed: int = 1, resumes: bool = False
) -> Callable[[Callable[P, int | None]], Callable[P, int]]:
    """Decorate the work of a command, so that it returns an exit code and raises nothing foreseen.

    An error is printed to stderr after `prefix`, and the code is `failed`. If the work `resumes`,
    an interruption is reported the same way.
    """

    def around(work: Callable[P, int | None]) -> Callable[P, int]:
        @functools.wraps(work)
        def inner(*args: P.args, **options: P.kwargs) -> int:
            try:
                return work(*args, **options) or 0
            except BrokenPipeError:
                return CLOSED_PIPE
            except preemption.Stopped:  # which has said so
                if not resumes:
                    raise
                return preemption.EXIT_CODE
            except KeyboardInterrupt:
                if not resumes:
                    raise
                print("interrupted; the same command goes on from here", file=sys.stderr)
                hosts.leave(130)
                return 130
            except BaseException as error:
                if not isinstance(error, _FORESEEN) and not is_panic(error):
                    raise
                print(f"{prefix}: {one_message(error)}", file=sys.stderr)
                hosts.leave(failed)
                return failed

        return inner

    return around


def one_message(error: BaseException) -> str:
    r"""An error's text for a terminal: bounded, escaped, and its kind if it has none.

    A line break that our own messages did not write is part of a name, and is escaped.

    >>> print(one_message(ValueError("a\x1b[2J\nPASS\n  more")))
    a\x1b[2J\nPASS
      more
    """
    text = str(error).strip() or type(error).__name__
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]} … ({len(text) - _LONGEST:,} more letters)"
    text = re.sub(r"\n(?!  )", r"\\n", text).replace("\r", "\\r")
    return escaped(text)


def escaped(text: str) -> str:
    """`text` with control characters spelled out, apart from ends of lines and tabs."""
    return _CONTROLS.sub(lambda match: ascii(match[0])[1:-1], text)


def escaped_line(text: str) -> str:
    """`escaped`, with line breaks and tabs, too: for untrusted names within a line."""
    return escaped(text).translate({ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t"})


def _make_plain(stream: TextIO) -> None:
    """Spell out what the stream's encoding cannot hold, and what would steer a terminal."""
    if hasattr(stream, "reconfigure"):  # a test's own stream has no encoding
        stream.reconfigure(errors="backslashreplace")
    write = stream.write
    stream.write = lambda text: write(escaped(text))  # type: ignore[method-assign]


def end(code: int) -> NoReturn:
    """End this process; after an interruption at once, without Python's clean-up.

    All files are complete by then, but threads of XLA may still run, and one whose memory is freed
    would end the process with a fault instead of the code. Of many hosts the first one must end
    last, as it does at a usual end.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = CLOSED_PIPE
    if code == CLOSED_PIPE:  # or Python would complain when it flushes once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if code in (130, preemption.EXIT_CODE) and not hosts.several():
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def without_accelerator() -> None:
    """Start no GPU or TPU in this process: for commands that copy weights and compute nothing.

    Starting one takes seconds and gigabytes, and reserves most of its memory.
    """
    jax.config.update("jax_platforms", "cpu")


def without_torch() -> None:
    """Import no PyTorch in this process: for commands that need a tokenizer and no model of it.

    For a vocabulary in `vocab.json` transformers imports it where it is installed, which takes
    seconds and .3 GB.
    """
    if "torch" not in sys.modules:
        sys.modules["torch"] = None  # type: ignore[assignment]  # as if it were not installed
        os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"  # nor does it then say so


def _say_once() -> None:
    """Hide the errors of threads in this process from now on.

    Orbax and TensorStore report an error of their threads three times: in the log, through the
    threads' hook, and by raising it. Only the last is kept, and the command says it in one line.
    """
    for log in ("absl", "asyncio"):  # asyncio tells of every array that was not written
        logging.getLogger(log).setLevel(logging.CRITICAL)
    threading.excepthook = lambda _: None  # the thread's result raises it again
    sys.unraisablehook = _without_echo


def _without_echo(unraisable: Any) -> None:
    # TensorStore's late answers find the loop closed that asked for them.
    if "Event loop is closed" not in str(unraisable.exc_value):
        sys.__unraisablehook__(unraisable)

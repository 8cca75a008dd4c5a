"""What the commands of this floor share: how they end, and that an error is one line."""

import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

import jax

from jaxsteer.runtime import hosts, preemption


def run(main: Callable[[], int]) -> None:
    """Run a command and exit with its code; interrupted, it first removes what is half-built."""
    say_once()
    try:
        with preemption.at_once("stopped by SIGTERM"):
            code = main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except preemption.Stopped:  # which has said so
        code = preemption.EXIT_CODE
    end(code)


def end(code: int) -> NoReturn:
    """End this process; one that was interrupted at once, without taking it apart.

    By then everything is in its place, but threads of XLA may still be at work, and one that finds
    its memory gone ends the process with a fault in place of the code. Of many hosts the first one
    has to outlast the others, as it does at a usual end.
    """
    if code in (130, preemption.EXIT_CODE) and not hosts.several():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def without_accelerator() -> None:
    """Start no GPU or TPU in this process: for commands that copy weights and compute nothing.

    Starting one takes seconds and gigabytes, and most of its memory from whoever works on it.
    """
    jax.config.update("jax_platforms", "cpu")


def without_torch() -> None:
    """Import no PyTorch in this process: for commands that need a tokenizer and no model of it.

    Where it is installed transformers would import it, which takes seconds and .3 GB.
    """
    if "torch" not in sys.modules:
        sys.modules["torch"] = None  # type: ignore[assignment]  # as if it were not installed
        os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"  # nor does it then say so


def say_once() -> None:
    """From here on, keep the errors of threads out of sight in this process.

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

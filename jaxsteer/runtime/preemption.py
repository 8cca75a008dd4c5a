"""SIGTERM, as machines get it before they are taken away: finish what is at hand, then stop.

Inside `deferred()` the signal sets a flag, which the long loops of the library ask for where they
stand well: behind a chunk of a sweep, a finished trace, a batch of activations. On many hosts they
stop together at the same place, whichever of them had the signal. A second SIGTERM ends the process
at once.
"""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from tqdm import tqdm

from jaxsteer.runtime import hosts

EXIT_CODE = 128 + signal.SIGTERM
_AGAIN = 0.01  # seconds until `Stopped` is raised again where it was swallowed

_deferring, _asked, _raised = (threading.Event() for _ in range(3))


class Stopped(SystemExit):
    """SIGTERM came, and what was at hand is finished; uncaught, it is the exit code 143."""

    def __init__(self, message: str) -> None:
        super().__init__(EXIT_CODE)
        self.message = message


@contextmanager
def deferred() -> Iterator[None]:
    """Let SIGTERM wait for the next `stop_if_asked`, in the main thread.

    A handler of somebody else's stays in place, and the signal is left to it.
    """
    before = _handler()
    if _deferring.is_set() or before not in (signal.SIG_DFL, _at_once):
        yield
        return
    late = False
    _deferring.set()
    signal.signal(signal.SIGTERM, _note)
    try:
        yield
        late = _asked.is_set()  # it came behind the last place where somebody asked
    finally:
        signal.signal(signal.SIGTERM, before)
        _deferring.clear()
        _asked.clear()
    if late:
        signal.raise_signal(signal.SIGTERM)


@contextmanager
def at_once(
    message: str = "stopped by SIGTERM; the same command goes on from here",
) -> Iterator[None]:
    """For commands: SIGTERM raises `Stopped` wherever the process is, unless it is `deferred`.

    It prints `message` to stderr. Whatever comes out after the signal is taken for it: code in C
    that calls Python makes other errors of what is raised inside. On many hosts the signal waits
    for the next `stop_if_asked` everywhere, so that they stop together.
    """
    if hosts.several():
        with deferred():
            yield
        return
    before = _handler()
    if before != signal.SIG_DFL:
        yield
        return
    _raised.clear()
    try:
        with _not_swallowed():
            signal.signal(signal.SIGTERM, _at_once)
            yield
    except BaseException as error:
        if isinstance(error, Stopped) and error.message:
            raise  # it has been said
        if not _raised.is_set():
            raise
        _say(message)
        raise Stopped(message) from error
    finally:
        signal.signal(signal.SIGTERM, before)


def stop_if_asked(where: str) -> None:
    """Stop here if SIGTERM came to this process, or to any other that works with it.

    Prints a line to stderr. Every process has to come here as often as the others.

    Raises:
        Stopped: naming `where`, what has been done and stays.
    """
    if hosts.any_of(_asked.is_set()):
        _stop(f"stopped by SIGTERM, {where}; the same command goes on from here")


def _handler() -> Any:
    """The handler now; None outside the main thread, which alone may change it."""
    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.getsignal(signal.SIGTERM)


def _note(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends the process
    _asked.set()


def _at_once(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not interrupt the cleaning up
    _raised.set()
    raise Stopped("")  # `at_once` has the words


@contextmanager
def _not_swallowed() -> Iterator[None]:
    """Raise `Stopped` again where Python dropped it.

    It drops what is raised in callbacks of the garbage collector, of which JAX has one, and in
    `__del__`. Where much is made in C, as when a tokenizer is read, a signal often gets there.
    """
    before, alarm = sys.unraisablehook, signal.getsignal(signal.SIGALRM)

    def again(unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, Stopped):
            signal.signal(signal.SIGALRM, _at_once)  # raised in here, it would be dropped, too
            signal.setitimer(signal.ITIMER_REAL, _AGAIN)
        else:
            before(unraisable)

    sys.unraisablehook = again
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, alarm)
        sys.unraisablehook = before


def _stop(message: str) -> NoReturn:
    _say(message)
    raise Stopped(message)


def _say(message: str) -> None:
    tqdm.write(message, file=sys.stderr)  # on a line of its own, whatever bar is shown
    sys.stderr.flush()

"""One command, started on cores of its own and sent a signal at a moment that was drawn."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
_POLL = 0.005  # seconds
_TO_STOP = 120.0  # seconds after SIGTERM within which a command must have ended


class Lost(Exception):
    """Something was lost or left half-written."""


@dataclass(frozen=True)
class Place:
    """What a command runs with."""

    cores: frozenset[int] | None = None  # all of them, if not given
    variables: Mapping[str, str] = field(default_factory=dict)  # of the environment
    said: Path = Path(os.devnull)  # what it prints; by another name, what it complains about
    stop: Callable[[], bool] = lambda: False  # asked all the while: then the signal comes at once


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    said: str
    said_before: str  # the signal
    complained: str
    seconds: float
    stopping: float  # seconds from the signal to the end


@dataclass(frozen=True)
class Aim:
    """What a kill waits for, and within how many seconds of it it comes."""

    at: str
    begun: Callable[[str], bool]  # given what the command has printed
    window: float


@dataclass(frozen=True)
class Job:
    """A command to be killed, and what must hold after each kill."""

    argv: Callable[[int], list[str]]  # by the number of the attempt
    prepare: Callable[[int], None]  # before each attempt
    check: Callable[[int, Ended], str]  # attempt, its end -> what was found; raises `Lost`
    seconds: Callable[[], float]  # within which a kill comes that is not aimed
    aim: Callable[[random.Random], Aim]
    stage: Callable[[Ended], str]  # what was at work when it ended


def run_and_kill(
    argv: list[str],
    kind: signal.Signals,
    delay: float,
    *,
    begun: Callable[[str], bool] = lambda _: True,
    place: Place | None = None,
) -> Ended:
    """Start a command, send it a signal `delay` seconds later unless it has ended by then.

    The seconds count from when `begun`, given what the command has printed, is first true.

    Raises:
        Lost: when it fails by itself, without having been killed, or does not heed SIGTERM.
    """
    place = place or Place()
    complained = place.said.with_name(f"{place.said.name}.err")
    if place.said == Path(os.devnull):
        complained = place.said
    started = time.monotonic()
    with open(place.said, "w") as out, open(complained, "w") as err:
        with _on_cores(place.cores):
            process = subprocess.Popen(
                [sys.executable, "-u", "-m", *argv],
                cwd=ROOT,
                env=os.environ | place.variables,
                stdout=out,
                stderr=err,
            )
        try:
            _wait(process, place, lambda: begun(place.said.read_text(errors="replace")))
            moment = time.monotonic() + delay
            _wait(process, place, lambda: time.monotonic() >= moment)
            sent, before = time.monotonic(), place.said.read_text(errors="replace")
            process.send_signal(kind)
            process.wait(_TO_STOP)
        except subprocess.TimeoutExpired:
            raise Lost(f"still there {_TO_STOP:.0f} s after {kind.name}") from None
        finally:
            process.kill()
            process.wait()
    ended = time.monotonic()
    errors = complained.read_text(errors="replace")
    if process.returncode not in (0, -kind, 128 + kind):
        raise Lost(f"exit code {process.returncode}: {errors[-2000:]}")
    if kind == signal.SIGTERM and ("Traceback" in errors or "Exception ignored" in errors):
        raise Lost(f"exit code {process.returncode} after SIGTERM, but: {errors[-2000:]}")
    return Ended(
        code=process.returncode,
        said=place.said.read_text(errors="replace"),
        said_before=before,
        complained=errors,
        seconds=ended - started,
        stopping=ended - sent,
    )


def run_unharmed(argv: list[str], place: Place) -> Ended | None:
    """Let a command do its work; None if `place.stop` came first.

    Raises:
        Lost: when it fails.
    """
    ended = run_and_kill(argv, signal.SIGKILL, 0.0, begun=lambda _: False, place=place)
    return ended if ended.code == 0 else None


def _wait(process: subprocess.Popen[bytes], place: Place, enough: Callable[[], bool]) -> None:
    while process.poll() is None and not place.stop() and not enough():
        time.sleep(_POLL)


@contextlib.contextmanager
def _on_cores(cores: frozenset[int] | None) -> Iterator[None]:
    """What this thread starts inside runs on these cores; XLA then makes no more threads."""
    if cores is None or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)

"""The time that the parts of a long piece of work take, by JAX's monitoring."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import jax

_PREFIX = "/jaxsteer/"


@contextmanager
def timed(part: str) -> Iterator[None]:
    """Report the time that the block took to JAX's monitoring, as Orbax does for its parts.

    Without a listener this costs a microsecond.
    """
    started = time.perf_counter()
    try:
        yield
    finally:
        jax.monitoring.record_event_duration_secs(_PREFIX + part, time.perf_counter() - started)


@contextmanager
def seconds_by_part() -> Iterator[dict[str, float]]:
    """Seconds of each part that ends within the block, summed over its calls and its threads.

    Parts of other libraries that report to JAX's monitoring are included, by their full names.

    >>> with seconds_by_part() as seconds:
    ...     with timed("nap"):
    ...         time.sleep(0.01)
    >>> seconds["nap"] >= 0.01
    True
    """
    seconds: dict[str, float] = {}
    lock = threading.Lock()

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        part = event.removeprefix(_PREFIX)
        with lock:
            seconds[part] = seconds.get(part, 0.0) + duration_secs

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seconds
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)

"""The machine that a program runs on; knows no model.

Hosts and their processes, SIGTERM before a machine is taken away, compiled programs kept on disk,
peak rates of a machine, the time that parts take, how commands end, and errors of other libraries
that read untrusted files.

Uses nothing of jaxsteer.
"""

from jaxsteer.runtime.command import (
    begin,
    end,
    escaped,
    escaped_line,
    guarded,
    run,
    without_accelerator,
    without_torch,
)
from jaxsteer.runtime.foreign_errors import as_value_error, is_panic, one_line
from jaxsteer.runtime.messages import wrong
from jaxsteer.runtime.rates import matrix_rate, read_bandwidth, seconds
from jaxsteer.runtime.timing import seconds_by_part, timed
from jaxsteer.runtime.version import VERSION

__all__ = [
    "VERSION",
    "as_value_error",
    "begin",
    "end",
    "escaped",
    "escaped_line",
    "guarded",
    "is_panic",
    "matrix_rate",
    "one_line",
    "read_bandwidth",
    "run",
    "seconds",
    "seconds_by_part",
    "timed",
    "without_accelerator",
    "without_torch",
    "wrong",
]

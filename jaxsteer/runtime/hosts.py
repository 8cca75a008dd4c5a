"""One program on many hosts: a process on each, and `jax.distributed` between them.

    hosts.start()                                  # on a TPU pod it finds the others by itself
    mesh = jaxsteer.make_mesh(data=4, tensor=4)    # over the devices of all hosts
    model, _ = jaxsteer.load("/shared/r1-distill-llama-8b", mesh=mesh)
    jaxsteer.sweep_to_file("/shared/sweep.jsonl", model, batch, cells, max_new_tokens=500)

Every process runs the same lines with the same prompts. Each puts its own rows on its devices and
reads its own part of the weights. Results are gathered once, so every process has all of them. Only
process 0 writes files and says what is in them, because others may see a shared disk late.

With one process these functions need no communication.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

Tree = TypeVar("Tree")

# What a process tells the others of an error, and they raise in turn; all else is a RuntimeError.
_KINDS: dict[str, type[BaseException]] = {
    kind.__name__: kind
    for kind in (ValueError, OSError, FileNotFoundError, FileExistsError, MemoryError)
}
# How the errors of XLA begin that a lost process can be the cause of.
_STATUS = ("UNKNOWN", "UNAVAILABLE", "INTERNAL", "ABORTED", "CANCELLED", "DEADLINE_EXCEEDED")
_LAST_WORDS = 2.0  # seconds
_LEAST_BYTES = 1 << 10  # of a broadcast: sizes are powers of two, so that few programs compile


class HostLost(RuntimeError):
    """Another process has ended, or cannot be reached, in the middle of common work."""


def start(
    coordinator: str | None = None,
    processes: int | None = None,
    index: int | None = None,
    *,
    timeout: int = 60,
) -> None:
    """Join the other processes; to be called before anything else asks JAX for its devices.

    On TPU pods, under Slurm and under Open MPI no argument is needed. An exception that nobody
    catches ends this process at once from here on, without waiting for the others to finish.
    SIGTERM is left to `preemption`.

    Args:
        coordinator: address and port of process 0, as "10.0.0.1:1234".
        processes: how many there are.
        index: the number of this one, from 0.
        timeout: seconds without a sign of life after which a process counts as lost; the others
            are ended then.

    Raises:
        ValueError: for some of the three arguments without the rest.
        RuntimeError: if JAX has been used already, or the others cannot be found.
    """
    given = (coordinator, processes, index)
    if any(x is None for x in given) and any(x is not None for x in given):
        raise ValueError(
            f"hosts: got coordinator={coordinator}, processes={processes}, index={index}, "
            "expected all three or none"
        )
    # Its own handler of SIGTERM, in C++, would take the place of Python's.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        coordinator,
        processes,
        index,
        heartbeat_timeout_seconds=timeout,
        shutdown_timeout_seconds=timeout,
    )
    sys.excepthook = _end_at_once


def several() -> bool:
    """Whether there are other processes; does not ask JAX for its devices unless there may be."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_writer() -> bool:
    """Whether this is the process that writes files."""
    return index() == 0


def index() -> int:
    """The number of this process, from 0."""
    return jax.process_index() if several() else 0


def count() -> int:
    """How many processes there are."""
    return jax.process_count() if several() else 1


def leave(code: int) -> None:
    """End this process now if there are others: at its usual end it would wait for them."""
    if several():
        sys.stdout.flush()
        sys.stderr.flush()
        if is_writer():  # without it the others are ended from below: let them say why first
            time.sleep(_LAST_WORDS)
        os._exit(code)


def place(tree: Tree, where: Any) -> Tree:
    """Put arrays that every process has in full into shardings over all devices; a part from each.

    Args:
        tree: arrays, the same in every process, or arrays that are spread over all devices already.
        where: a sharding for all, or a tree of them.
    """
    if not several():
        return jax.device_put(tree, where)
    if isinstance(where, jax.sharding.Sharding):
        where = jax.tree.map(lambda _, one=where: one, tree)
    return jax.tree.map(_place, tree, where)


def _place(x: Any, where: jax.sharding.Sharding) -> jax.Array:
    if where.is_fully_addressable or (isinstance(x, jax.Array) and not x.is_fully_addressable):
        return jax.device_put(x, where)
    whole = np.asarray(x)
    return jax.make_array_from_callback(whole.shape, where, lambda part: whole[part])


def gather(tree: Any) -> Any:
    """The arrays of a tree as numpy arrays, whole, in every process.

    Raises:
        HostLost: if another process has ended.
    """

    def whole(x: Any) -> Any:
        if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
            return x
        return multihost_utils.process_allgather(x, tiled=True)

    with losing_hosts():
        return jax.device_get(jax.tree.map(whole, tree))


def barrier(name: str) -> None:
    """Wait until every process is here; `name` says where, and must be the same in all.

    Raises:
        HostLost: if another process has ended.
    """
    if several():
        with losing_hosts():
            multihost_utils.sync_global_devices(name)


def any_of(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    return bool(_all_processes(flag).any())


def smallest(number: int) -> int:
    """The smallest of the numbers that the processes give."""
    return int(_all_processes(number).min())


def _all_processes(value: bool | int) -> np.ndarray:
    if not several():
        return np.array([value])
    # As halves: 64-bit numbers are off in JAX by default.
    halves = np.array([int(value) >> 31, int(value) & 0x7FFFFFFF], np.int32)
    with losing_hosts():
        gathered = multihost_utils.process_allgather(halves).astype(np.int64)
    return (gathered[:, 0] << 31) | gathered[:, 1]


def from_writer(work: Callable[[], Any]) -> Any:
    """What `work()` returns in process 0, which alone calls it, as JSON; in every process.

    Raises:
        Exception: in every process, if `work` raises in process 0: an error of the same kind for
            what users are told of, a RuntimeError for all else.
        HostLost: if another process has ended.
    """
    if not several():
        return work()
    failed: BaseException | None = None
    said = b""
    if is_writer():
        try:
            said = json.dumps({"value": work()}).encode()
        except BaseException as error:
            failed = error
            kinds = [kind.__name__ for kind in type(error).__mro__]
            kind = next((name for name in kinds if name in _KINDS), "RuntimeError")
            said = json.dumps({"error": [kind, f"{error}"]}).encode()
    heard = json.loads(_broadcast(said))
    if failed is not None:
        raise failed
    if "error" in heard:
        kind, text = heard["error"]
        raise _KINDS.get(kind, RuntimeError)(text)
    return heard["value"]


def _broadcast(data: bytes) -> bytes:
    """What process 0 gives, in every process."""
    with losing_hosts():
        size = int(multihost_utils.broadcast_one_to_all(np.array(len(data), np.int32)))
        room = np.zeros(max(_LEAST_BYTES, 1 << (size - 1).bit_length()), np.uint8)
        room[: len(data)] = np.frombuffer(data, np.uint8)
        return multihost_utils.broadcast_one_to_all(room)[:size].tobytes()


@contextmanager
def losing_hosts() -> Iterator[None]:
    """Say in plain words what it means when work that all processes share fails in this one."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:  # a ValueError where it is dispatched
        if not several() or not str(error).startswith(_STATUS):
            raise
        reason = str(error).partition("\n")[0][:300]
        raise HostLost(
            f"process {jax.process_index()} of {jax.process_count()} has lost another one, which "
            "ended or cannot be reached. Start all of them again with the same command: what was "
            f"written stays, and they go on from there ({reason})"
        ) from error


def _end_at_once(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    traceback.print_exception(kind, error, trace)
    leave(1)

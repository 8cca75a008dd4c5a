"""Arrays of a model on their way from files to devices.

Files hold a projection as `[output, input]`, we as `[input, output]`. A view of the file's array
costs nothing, but to copy one element by element keeps a host longer than its disk does. So a view
is sent as it lies in memory, and turned where memory is fast.
"""

import functools
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, Sharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from jaxsteer.llama import ParamPath, flatten
from jaxsteer.runtime import hosts, timed

_UNDER_WAY_BYTES = 1 << 29  # that may be on their way to devices, and are in memory until then
_PLACERS = 4  # threads that send arrays to devices, a core each


def place_all(
    leaves: Iterable[tuple[ParamPath, np.ndarray]], sharding: Any
) -> dict[ParamPath, jax.Array]:
    """Send each array to its devices as it comes; few are in memory at a time.

    Args:
        leaves: arrays, which may be views with their axes in any order.
        sharding: one for all, or a tree of them shaped like `Model.params`; None for the first
            device.
    """
    if sharding is None:
        sharding = SingleDeviceSharding(jax.local_devices()[0])
    one_for_all = isinstance(sharding, Sharding)
    places = {} if one_for_all else dict(flatten(sharding))
    placed: dict[ParamPath, Future[jax.Array]] = {}
    under_way: deque[tuple[int, Future[jax.Array]]] = deque()

    def timed_place(x: np.ndarray, where: Any) -> jax.Array:
        with timed("load/threads/send"):
            return jax.block_until_ready(place(x, where))

    with ThreadPoolExecutor(_PLACERS) as pool:
        for path, x in leaves:
            placed[path] = pool.submit(timed_place, x, sharding if one_for_all else places[path])
            under_way.append((x.nbytes, placed[path]))
            del x
            with timed("load/wait for devices"):
                while sum(size for size, _ in under_way) > _UNDER_WAY_BYTES:
                    under_way.popleft()[1].result()
    return {path: future.result() for path, future in placed.items()}


def place(x: np.ndarray, where: Any) -> jax.Array:
    """`x` where `jax.device_put` would put it; a view is turned there if `can_turn`."""
    return place_as_it_lies(x, where) if can_turn(where) else _send(x, where)


def can_turn(where: Any) -> bool:
    """Whether arrays may be turned on the devices of `where`, in their own memory.

    Not on CPUs, which are the host. And not where there are other hosts: all would have to turn
    arrays in one order, and threads keep no common order.
    """
    if not isinstance(where, NamedSharding | SingleDeviceSharding) or hosts.several():
        return False
    device: Any = next(iter(where.device_set))
    return device.platform != "cpu" and where.memory_kind in (None, device.default_memory().kind)


def place_as_it_lies(x: np.ndarray, where: NamedSharding | SingleDeviceSharding) -> jax.Array:
    """`x` on the devices of `where`: sent in the order of its memory, and its axes moved there."""
    order = tuple(sorted(range(x.ndim), key=lambda axis: -x.strides[axis]))
    lying = x.transpose(order)
    if order == tuple(range(x.ndim)) or not lying.flags.c_contiguous:
        return _send(x, where)
    back = tuple(order.index(axis) for axis in range(x.ndim))
    return _turn(back, where)(_send(lying, _with_axes(where, order)))


def _send(x: np.ndarray, where: Any) -> jax.Array:
    sent: Any = hosts.place(x, where)
    return sent


def _with_axes(
    where: NamedSharding | SingleDeviceSharding, order: tuple[int, ...]
) -> NamedSharding | SingleDeviceSharding:
    """The sharding of the same array with its axes in another order."""
    if isinstance(where, SingleDeviceSharding):
        return where
    spec = (*where.spec, *[None] * (len(order) - len(where.spec)))
    return NamedSharding(
        where.mesh, P(*(spec[axis] for axis in order)), memory_kind=where.memory_kind
    )


@functools.lru_cache(maxsize=64)
def _turn(axes: tuple[int, ...], where: Sharding) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda x: jnp.transpose(x, axes), out_shardings=where)

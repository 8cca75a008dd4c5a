"""JAX looks for a TPU only where one may be.

libtpu also compiles for TPUs that are not there, so it is installed on machines without one (the
`test` extra brings it). JAX would then start it in every process, before the GPU and the CPU:
seconds, a lock file, and alarming lines in the terminal.
"""

import os
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import jax
from jax._src import xla_bridge

_DEVICES = ("accel*", "vfio/[0-9]*", "vfio/devices/*")  # TPU v2 to v4; v5 and later
_VARIABLES = ("TPU_", "CLOUD_TPU", "COLAB_TPU", "MEGASCALE_", "JAX_FORCE_TPU_INIT")
_SET_BY_JAX = {"TPU_SKIP_MDS_QUERY", "TPU_LIBRARY_PATH"}  # when it is imported, on any machine


def skip_where_there_is_none() -> bool:
    """Keep JAX from starting libtpu if nothing on this machine indicates a TPU; True if so.

    A GPU is found as before. Nothing changes where `JAX_PLATFORMS` is set or JAX has already
    started its devices.
    """
    if find_spec("libtpu") is None or jax.config.values["jax_platforms"]:
        return False
    if may_be_one(os.environ) or xla_bridge.backends_are_initialized():
        return False
    # Not public, but `jax_platforms` would have to name every other kind of device.
    return getattr(xla_bridge, "_backend_factories", {}).pop("tpu", None) is not None


def may_be_one(variables: Iterable[str], dev: Path = Path("/dev")) -> bool:
    """Whether environment variables or devices of a machine indicate a TPU."""
    named = any(name.startswith(_VARIABLES) for name in set(variables) - _SET_BY_JAX)
    return named or any(True for pattern in _DEVICES for _ in dev.glob(pattern))

"""Chips that people rent, what their makers publish of them, and the names of whole topologies.

find_topology("v5e-8")      8 chips; also v5litepod-8
find_topology("v4-8")       4 chips: v4 and v5p count TensorCores, of which a chip has two
find_topology("h200-2")     2 GPUs of one host
find_topology("here")       this machine
"""

import os
import re
from dataclasses import dataclass, replace

import jax

from jaxsteer.decoding import CPU_BYTES
from jaxsteer.planning.roofline import Machine
from jaxsteer.runtime import matrix_rate, read_bandwidth

_GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One chip, as JAX sees it: a device."""

    name: str
    memory: int  # bytes that programs can use
    bandwidth: float  # bytes read a second
    rate: float  # bf16 operations a second, without sparsity
    link: float  # bytes a second that it can send to its neighbours
    kinds: tuple[str, ...] = ()  # how `device.device_kind` starts
    share: int | None = None  # of the memory, if all other programs of the machine use it, too

    @property
    def machine(self) -> Machine:
        """Its rates, for `floor`."""
        return Machine(self.bandwidth, self.rate, self.link)


# Rates: "key specifications" of cloud.google.com/tpu/docs/v4, v5e, v5p and v6e; ICI bandwidth there
# is of both directions in GB/s, of one in Gbit/s. Memory: what the compiler of libtpu 0.0.42 says
# is available of 32, 16, 95 and 32 GB. Name, memory, bandwidth, rate, link, kinds:
V4 = Chip("TPU v4", int(30.75 * _GIB), 1200e9, 275e12, 300e9, ("TPU v4",))
V5E = Chip("TPU v5e", int(15.75 * _GIB), 819e9, 197e12, 200e9, ("TPU v5 lite", "TPU v5e"))
V5P = Chip("TPU v5p", int(95.74 * _GIB), 2765e9, 459e12, 600e9, ("TPU v5",))
V6E = Chip("TPU v6e", int(31.25 * _GIB), 1638e9, 918e12, 400e9, ("TPU v6 lite", "TPU v6e"))
# The SXM boards, of 80 and 141 GB; JAX takes three quarters of it, unless one sets
# XLA_PYTHON_CLIENT_MEM_FRACTION. 900 GB/s of NVLink are both directions.
H100 = Chip("NVIDIA H100", 60 * 10**9, 3350e9, 989e12, 450e9, ("NVIDIA H100",))
H200 = Chip("NVIDIA H200", int(105.75e9), 4800e9, 989e12, 450e9, ("NVIDIA H200",))
_CHIPS = (V4, V5E, V5P, V6E, H100, H200)  # TPU v5e before v5p, whose kind is a part of its own

# Shapes of slices, by their chips.
_FLAT = {
    1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16",
}  # fmt: skip
_CUBES = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8"}

HERE = "here"


@dataclass(frozen=True)
class Topology:
    """So many chips of one kind, linked to each other."""

    name: str
    chip: Chip
    chips: int
    shape: str | None = None  # of a TPU slice, as the compiler calls it: "v5e:2x4"

    @property
    def is_tpu(self) -> bool:
        """Whether the chips are TPUs."""
        return self.chip.name.startswith("TPU")


def _listed() -> dict[str, Topology]:
    topologies = {}
    for name, chip in (("v4", V4), ("v5p", V5P)):
        for chips, shape in _CUBES.items():
            cores = f"{name}-{2 * chips}"
            topologies[cores] = Topology(cores, chip, chips, f"{name}:{shape}")
    for name, chip in (("v5e", V5E), ("v6e", V6E)):
        for chips, shape in _FLAT.items():
            topologies[f"{name}-{chips}"] = Topology(
                f"{name}-{chips}", chip, chips, f"{name}:{shape}"
            )
    for name, chip in (("h100", H100), ("h200", H200)):
        topologies[name] = Topology(name, chip, 1)
        for chips in (2, 4, 8):
            topologies[f"{name}-{chips}"] = Topology(f"{name}-{chips}", chip, chips)
    return topologies


TOPOLOGIES = _listed()


def find_topology(name: str) -> Topology:
    """The topology of that name, upper or lower case.

    >>> find_topology("v4-8").chips, find_topology("v5litepod-8").chips, find_topology("H200").chips
    (4, 8, 1)

    Raises:
        ValueError: for a name that is not known, with those that are.
    """
    plain = re.sub(r"^v5lite(pod)?-", "v5e-", name.strip().lower())
    if plain in (HERE, "this machine", "this-machine"):
        return this_machine()
    if plain not in TOPOLOGIES:
        known = ", ".join((*TOPOLOGIES, HERE))
        raise ValueError(f"topology: got {name!r}, expected one of {known}")
    return TOPOLOGIES[plain]


def this_machine() -> Topology:
    """The devices that JAX has here; rates of chips that are not known are measured."""
    devices = jax.devices()
    kind = devices[0].device_kind
    limit = (devices[0].memory_stats() or {}).get("bytes_limit")
    for chip in _CHIPS:
        if kind.startswith(chip.kinds):
            return Topology(HERE, replace(chip, memory=limit or chip.memory), len(devices))
    users = 1 if limit else len(devices)  # devices of a CPU are one machine
    measured = Chip(
        name=kind,
        memory=limit or _physical_bytes() // users,
        share=None if limit else CPU_BYTES,
        bandwidth=read_bandwidth(passes=3) / users,  # few, for somebody waits
        rate=matrix_rate(products=1) / users,
        link=float("inf"),
    )
    return Topology(HERE, measured, len(devices))


def _physical_bytes() -> int:
    """What the machine has, of which the library takes a share."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

"""What a command runs on: one device, a mesh of them, or many hosts.

    python -m experiments.reproduce --out runs/8b --mesh 1x8                # one host, eight chips
    python -m experiments.reproduce --out /shared/8b --mesh 2x8 --hosts auto   # on every host

On many hosts the same command is started on each of them, and `--out` and the models are on a disk
that all of them share. `auto` finds the other hosts on TPU pods, under Slurm and under Open MPI;
elsewhere it is the address of the first one, their number, and the number of this one from 0, as in
`--hosts 10.0.0.1:1234,4,0`.
"""

import argparse
import contextlib
import os
import re
from collections.abc import Iterator

import jax

from jaxsteer.llama import make_mesh
from jaxsteer.runtime import hosts, preemption


def add_options(parser: argparse.ArgumentParser) -> None:
    """`--mesh` and `--hosts`."""
    parser.add_argument(
        "--mesh",
        metavar="DATAxTENSOR",
        help="split rows into DATA parts and the model into TENSOR; one device, if not given",
    )
    parser.add_argument(
        "--hosts",
        metavar="auto|ADDRESS:PORT,NUMBER,INDEX",
        help="work together with the same command on other hosts",
    )


@contextlib.contextmanager
def together(args: argparse.Namespace) -> Iterator[jax.sharding.Mesh | None]:
    """Join the other hosts if there are any; the mesh to work on, None for one device.

    Inside, SIGTERM ends the command in an orderly way (see `preemption`), and on many hosts the
    first one alone prints; errors are told by all.

    Raises:
        ValueError: for options that cannot be, or a mesh that is not one of all devices.
    """
    if args.hosts:
        hosts.start(*_address(args.hosts))
    mesh = _mesh(args.mesh) if args.mesh else None
    if hosts.several() and (mesh is None or mesh.size != jax.device_count()):
        raise ValueError(
            f"--mesh: got {args.mesh}, expected DATAxTENSOR with a product of "
            f"{jax.device_count()}, the devices of all hosts (python -m jaxsteer.plan recommends "
            "one)"
        )
    with preemption.at_once(), contextlib.ExitStack() as quiet:
        if not hosts.is_writer():
            nowhere = quiet.enter_context(open(os.devnull, "w"))
            quiet.enter_context(contextlib.redirect_stdout(nowhere))
        yield mesh


def _address(text: str) -> tuple[str, int, int] | tuple[()]:
    if text == "auto":
        return ()
    match = re.fullmatch(r"([^,]+:\d+),(\d+),(\d+)", text)
    if not match or int(match[3]) >= int(match[2]):
        raise ValueError(
            f"--hosts: got {text}, expected auto or ADDRESS:PORT,NUMBER,INDEX with an index below "
            "the number, as in 10.0.0.1:1234,4,0"
        )
    return match[1], int(match[2]), int(match[3])


def _mesh(text: str) -> jax.sharding.Mesh:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match:
        raise ValueError(f"--mesh: got {text}, expected DATAxTENSOR, as in 2x4")
    return make_mesh(data=int(match[1]), tensor=int(match[2]))

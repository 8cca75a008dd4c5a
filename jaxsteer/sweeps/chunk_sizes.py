"""Sizes of a sweep's chunks: what fits, and what to do where a chunk runs out of memory."""

import warnings
from collections.abc import Callable
from typing import Any

import jax

from jaxsteer.decoding import has_room, is_out_of_memory, sweep_bytes, usable_bytes
from jaxsteer.llama import Model, mesh_sizes
from jaxsteer.runtime import hosts

Fits = Callable[[int, int], bool]  # whether a chunk of C cells and B prompts fits


class NoRoom(Exception):
    """A host has no memory for a chunk; all hosts know it, and none has started the chunk."""


def chunk_shape(cells: int, prompts: int, fits: Fits, data: int = 1) -> tuple[int, int]:
    """The largest equal chunks that fit, as (cells, prompts); only cells are cut if that is enough.

    `data` devices share the prompts of a chunk if their number divides by `data`, else its cells,
    which are rounded up to a multiple of it. A chunk with fewer rows runs on every device alike.

    >>> [chunk_shape(16, 20, lambda C, B: C * B <= rows) for rows in (320, 319, 19, 0)]
    [(16, 20), (8, 20), (1, 10), (1, 1)]
    >>> [chunk_shape(6, 3, lambda C, B: C * B <= rows, data=4) for rows in (24, 23, 3)]
    [(8, 3), (4, 3), (1, 3)]
    """
    shapes = _shapes(cells, prompts, data) + _shapes(cells, prompts, 1)
    return next((shape for shape in shapes if fits(*shape)), (1, 1))


def _shapes(cells: int, prompts: int, data: int) -> list[tuple[int, int]]:
    def share(count: int, n: int, step: int) -> int:
        return -(-count // (n * step)) * step

    step = 1 if prompts % data == 0 else data
    shapes = [(share(cells, n, step), prompts) for n in range(1, cells + 1)]
    return shapes + [(1, share(prompts, n, data)) for n in range(2, prompts + 1)]


def in_memory(model: Model, **sizes: Any) -> Fits:
    """Chunks fit that take no more bytes than may be used; `sizes` are those of `sweep_bytes`."""
    usable = usable_bytes(model)
    return lambda C, B: sweep_bytes(model, cells=C, prompts=B, **sizes) <= usable


def at_most(rows: int) -> Fits:
    """Chunks of at most `rows` rows fit."""
    return lambda C, B: rows >= C * B


def smaller_chunk(model: Model, shape: tuple[int, int], error: Exception) -> tuple[int, int]:
    """The shape to go on with after a chunk of `shape` ran out of memory; warns.

    Raises:
        JaxRuntimeError: `error` itself, if it says something else.
        MemoryError: for a single row, and if other hosts have started the chunk and wait.
    """
    C, B = shape
    before_start = isinstance(error, NoRoom)
    if not before_start and not is_out_of_memory(error):
        raise error
    if hosts.several() and not before_start:
        raise MemoryError(
            f"{C} cells × {B} prompts at once do not fit a device of this host; start "
            f"again with fewer rows_per_chunk: {error}"
        ) from error
    if C * B == 1:
        raise MemoryError(f"a single row does not fit the device: {error}") from error
    data, _ = mesh_sizes(model)
    smaller = chunk_shape(C, B, at_most(C * B // 2), data)
    warnings.warn(
        f"out of memory with {C} cells × {B} prompts at once, going on with "
        f"{smaller[0]} × {smaller[1]} ({str(error).partition(chr(10))[0][:200]})",
        stacklevel=3,
    )
    return smaller


def agree_on_room(lower: Callable[[], jax.stages.Lowered], model: Model) -> None:
    """Raise `NoRoom` on all hosts if one of them has no memory for a program.

    To be called before any host starts the program: once started it waits for the other hosts, and
    no message reaches it. The program is compiled once, for this check and for its calls.
    """
    reason = "another host has no memory for it"
    try:
        room = has_room(lower().compile(), model)
        reason = reason if room else "its program needs more than a device of this host has free"
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        room, reason = False, str(error)
    if hosts.any_of(not room):
        raise NoRoom(reason)

"""Compiling ahead: the program of a sweep from shapes, before there are weights."""

from collections.abc import Sequence
from typing import Unpack

import jax
import numpy as np

from jaxsteer.decoding import Asked, Loop, Request, Sampler, Step, decode_step
from jaxsteer.llama import Model, TokenBatch, TokenRows
from jaxsteer.runtime import hosts
from jaxsteer.sweeps.cells import Cell
from jaxsteer.sweeps.chunks import _planned, _run_cells, chunk_parts


def compile_sweep(
    model: Model,
    batch: TokenBatch | TokenRows,
    cells: Sequence[Cell],
    request: Request | None = None,
    *,
    rows_per_chunk: int | None = None,
    sampler: Sampler | None = None,
    step: Step = decode_step,
    loop: Loop = jax.lax.while_loop,
    **asked: Unpack[Asked],
) -> None:
    """Compile what `sweep` runs with the same arguments, on a model of shapes; nothing is run.

    The chunks are those of devices that hold nothing but the model. On many hosts, where all have
    to agree on chunks, nothing is compiled ahead.

    Raises:
        ValueError: for what `sweep` refuses.
    """
    if hosts.several():
        return
    options = {"sampler": sampler, "step": step, "loop": loop}
    plan = _planned(model, batch, cells, request, rows_per_chunk, options, asked)
    C, B = plan.shape
    parts, _ = chunk_parts(plan, np.zeros(C, int), np.zeros(B, int))
    _run_cells.lower(model, *parts[0], **plan.options).compile()

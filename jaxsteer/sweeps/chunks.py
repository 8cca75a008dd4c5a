"""Sweeps: many steered cells × many prompts in one compiled program, chunk by chunk.

Every cell runs on every prompt. All chunks have one shape, so the whole grid compiles once, and so
do all grids of that shape, whatever their vectors, layers, coefficients, scopes and model. There
are two programs at most: the cells of a prompt share it, unless a scope reaches into the prompt
before its last token.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

import jax
import numpy as np

from jaxsteer.decoding import (
    Asked,
    Captured,
    Loop,
    Outcome,
    Part,
    Request,
    Sampler,
    Step,
    as_request,
    capture_bytes,
    check_activations_kept,
    check_capture_fits,
    choose_sampler,
    count_parts,
    decode_step,
    generated_row,
    is_plain,
    map_rows,
    reaches_prefix,
    run_parts,
    warn_not_finite,
)
from jaxsteer.llama import Model, TokenBatch, TokenRows, mesh_sizes, spread_rows
from jaxsteer.runtime import hosts
from jaxsteer.steering import Steering
from jaxsteer.sweeps.cells import Cell, stack_cells
from jaxsteer.sweeps.checks import check_sweep
from jaxsteer.sweeps.chunk_sizes import (
    NoRoom,
    agree_on_room,
    at_most,
    chunk_shape,
    in_memory,
    smaller_chunk,
)
from jaxsteer.sweeps.vmapped_cells import run_cells


@dataclass(frozen=True)
class CellResult:
    """What one cell generated from one prompt."""

    cell: Cell
    prompt: int  # index of the prompt's row in the batch
    tokens: list[int]  # a stop token included
    logprobs: list[float]  # of these tokens, under the steered model
    finite: bool = True  # False: the row ended because its log-probabilities were not finite
    captured: Captured | None = None  # of this row, if `capture` asked for it


def _run_to_end(model: Model, batch: TokenBatch, request: Request, **options: Any) -> Outcome:
    """`run_cells`, and what is read of its state, `[C, B, …]`."""
    return Outcome.of(run_cells(model, batch, request, **options))


_run_cells = jax.jit(_run_to_end, static_argnames=("steer_prompt", "sampler", "step", "loop"))


@dataclass(frozen=True)
class _Plan:
    """A sweep that has been checked; all that its chunks need, on the host."""

    model: Model
    cells: Sequence[Cell]
    batch: TokenBatch
    request: Request  # without steering
    steering: tuple[Steering, ...]  # of all cells, [C, …]
    options: dict[str, Any]  # what `run_cells` takes beside
    plain: bool  # see `is_plain`
    shape: tuple[int, int]  # cells and prompts of a chunk


def sweep(
    model: Model,
    batch: TokenBatch | TokenRows,
    cells: Sequence[Cell],
    request: Request | None = None,
    *,
    rows_per_chunk: int | None = None,
    done: Callable[[Cell, int], bool] = lambda cell, prompt: False,
    sampler: Sampler | None = None,
    step: Step = decode_step,
    loop: Loop = jax.lax.while_loop,
    **asked: Unpack[Asked],
) -> Iterator[list[CellResult]]:
    """Run every cell on every prompt; iterates over the results of each chunk.

    To resume, pass the same arguments and a `done` that knows what is written: only missing rows
    run, in chunks of any size. Random numbers belong to the prompt, so all cells share them and a
    resumed run repeats the first. `sweep_file.sweep_to_file` does this.

    If a chunk runs out of memory, it is halved and runs again; no result is lost.

    On many hosts every process calls this with the same arguments and gets all results. If one host
    lacks memory for a chunk, all halve it before they start it; one that runs out of memory later
    ends with a `MemoryError`, and the others, who wait for it, end with it.

    Args:
        model: the weights; another model of the same shape runs in the same compiled program.
        batch: left-padded prompts, or token ids row by row.
        cells: what to run on them.
        request: what is asked of each prompt in every cell, as `make_request` makes it; steering
            belongs in the cells.
        rows_per_chunk: cells × prompts that run at once, by default as many as fit the device.
        done: `done(cell, prompt)` is True for rows to skip; called when iteration starts.
        sampler: chooses tokens; by default the cheapest sampler that serves the request.
        step: see `generate`.
        loop: see `generate`.
        **asked: in place of a request, the keywords of `make_request`.

    Raises:
        ValueError: at once, for an empty grid or input that does not fit the model.
        MemoryError: from the iterator, if not even a single row fits.
        HostLost: from the iterator, if another process has ended.
    """
    options = {"sampler": sampler, "step": step, "loop": loop}
    return _chunks(_planned(model, batch, cells, request, rows_per_chunk, options, asked), done)


def _planned(
    model: Model,
    batch: TokenBatch | TokenRows,
    cells: Sequence[Cell],
    request: Request | None,
    rows_per_chunk: int | None,
    options: dict[str, Any],
    asked: Asked,
) -> _Plan:
    """The arguments checked, the cells stacked, and how large a chunk may be."""
    given, request = as_request(model, batch, request, asked)
    if (rows := request.max_tokens.shape[0]) != (prompts := given.tokens.shape[0]):
        raise ValueError(f"samples: got {rows // prompts}, expected 1: repeat prompts in the batch")
    check_sweep(model, cells, request, rows_per_chunk=rows_per_chunk)
    sampler = options["sampler"] or choose_sampler(request.sampling)
    # On the host, where an index compiles nothing.
    given, request, steering = hosts.gather((given, request, stack_cells(cells, model.config)))
    reaches = jax.vmap(reaches_prefix, in_axes=(0, None))
    steer_prompt = any(np.any(reaches(one, given)) for one in steering)
    steer_prompt |= request.capture is not None and request.capture.prompt_slots > 0
    length = given.tokens.shape[1]
    sizes = {
        "prompt_length": length,
        "new_tokens": request.max_new_tokens,
        "captured": capture_bytes(request.capture, model),
    }
    if rows_per_chunk is None:
        fits = in_memory(model, steer_prompt=steer_prompt, **sizes)
    else:
        fits = at_most(rows_per_chunk)
    data, _ = mesh_sizes(model)
    C, B = chunk_shape(len(cells), prompts, fits, data)
    shared = B if C > 1 and not steer_prompt else None
    check_capture_fits(model, rows=C * B, prompts=shared, **sizes)
    plain = is_plain(**options)
    options = {**options, "steer_prompt": steer_prompt, "sampler": sampler}
    return _Plan(model, cells, given, request, steering, options, plain, shape=(C, B))


def _chunk_inputs(plan: _Plan, c: np.ndarray, p: np.ndarray) -> tuple[TokenBatch, Request]:
    """Of the cells `c` on the prompts `p`, where a chunk's program takes them."""

    def take(x: np.ndarray) -> np.ndarray:  # a single row serves all
        return x if len(x) == 1 else x[p]

    batch, request = jax.tree.map(take, plan.batch), map_rows(take, plan.request)
    steering = jax.tree.map(lambda x: x[c], plan.steering)
    data, _ = mesh_sizes(plan.model)
    if len(p) % data == 0:
        batch, request = spread_rows((batch, request), plan.model)
    else:
        steering = spread_rows(steering, plan.model)
    return batch, replace(request, steering=steering)


def chunk_parts(plan: _Plan, c: np.ndarray, p: np.ndarray) -> tuple[list[Part], int]:
    """A chunk's inputs in parts that run at once, and the axis of rows along which it is cut."""
    axis, index = (0, c) if len(p) == 1 else (1, p)
    sizes = {"rows": len(c) * len(p), "prompt_length": plan.batch.tokens.shape[1]}
    count = count_parts(plan.model, plan.request, divides=len(index), plain=plan.plain, **sizes)
    pieces = [(c, part) if axis else (part, p) for part in np.split(index, count)]
    return [_chunk_inputs(plan, *piece) for piece in pieces], axis


def _run_chunk(plan: _Plan, c: np.ndarray, p: np.ndarray, tried: set[tuple[int, int]]) -> Outcome:
    """The cells `c` on the prompts `p`; all hosts have memory for chunks of the shapes `tried`."""
    model, (parts, axis) = plan.model, chunk_parts(plan, c, p)
    if hosts.several() and (len(c), len(p)) not in tried:
        agree_on_room(lambda: _run_cells.lower(model, *parts[0], **plan.options), model)
        tried.add((len(c), len(p)))
    with hosts.losing_hosts():
        made = run_parts(_run_cells, model, parts, axis=axis, **plan.options)
    check_activations_kept(made)
    return made


def _chunks(plan: _Plan, done: Callable[[Cell, int], bool]) -> Iterator[list[CellResult]]:
    """Run what is not done, chunk by chunk."""
    prompts, shape, tried = len(plan.batch.tokens), plan.shape, set[tuple[int, int]]()
    todo = {
        (c, p) for p in range(prompts) for c, cell in enumerate(plan.cells) if not done(cell, p)
    }
    while todo:
        C, B = shape
        p_index = sorted({p for _, p in todo})[:B]
        chosen = set(p_index)
        c_index = sorted({c for c, p in todo if p in chosen})[:C]
        try:
            # A chunk with less to do repeats its last cell or prompt up to the common shape.
            made = _run_chunk(plan, _filled(c_index, C), _filled(p_index, B), tried)
        except (jax.errors.JaxRuntimeError, NoRoom) as error:
            shape = smaller_chunk(plan.model, shape, error)
            continue
        chunk = []
        for i, c in enumerate(c_index):
            for j, p in enumerate(p_index):
                if (c, p) in todo:
                    row = jax.tree.map(lambda x, at=(i, j): x[at], made)
                    values = generated_row(row, plan.request.capture)
                    chunk.append(CellResult(plan.cells[c], p, *values))
        todo.difference_update((c, p) for c in c_index for p in p_index)
        warn_not_finite(sum(not result.finite for result in chunk), len(chunk))
        yield chunk


def _filled(index: list[int], size: int) -> np.ndarray:
    return np.array(index + index[-1:] * (size - len(index)))

"""Sweeps: many steered cells × many prompts in one compiled program, chunk by chunk.

Every cell runs on every prompt. Cells are data along an axis that is vmapped *inside* the decoding
loop, with one cursor and one stop condition for all: a `vmap` around the loop would put every cache
buffer through a select at each step. All chunks have one shape, so the whole grid compiles once,
and so do all grids of that shape, whatever their vectors, layers, coefficients, scopes and model.
(Two programs at most: one whose cells share each prompt, and one for grids with a scope that
reaches into the prompt before its last token.)
"""

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from jaxsteer.decoding import (
    Asked,
    Captured,
    DecodeState,
    Loop,
    Outcome,
    Request,
    Sampler,
    Step,
    as_request,
    begin_shared,
    captured_of,
    check_read,
    check_room_for_kept,
    check_think_tokens,
    choose_sampler,
    decode_step,
    growing_rooms,
    has_room,
    is_out_of_memory,
    loop_in_rooms,
    map_rows,
    outcome,
    prefill,
    reaches_prefix,
    row_bytes_kept,
    sweep_bytes,
    tell_not_finite,
    usable_bytes,
)
from jaxsteer.llama import Model, TokenBatch, TokenRows, in_order, mesh_sizes, spread_rows
from jaxsteer.runtime import hosts
from jaxsteer.steering import Steering, as_tuple
from jaxsteer.sweeps.cells import Cell, check_cells, stack_cells

Fits = Callable[[int, int], bool]  # whether a chunk of C cells and B prompts does


class _NoRoom(Exception):
    """All hosts know that one of them has no room for a chunk, and none has begun with it."""


@dataclass(frozen=True)
class CellResult:
    """What one cell generated from one prompt."""

    cell: Cell
    prompt: int  # index of the prompt's row in the batch
    tokens: list[int]  # a stop token included
    logprobs: list[float]  # of these tokens, under the steered model
    finite: bool = True  # False: the row ended because its log-probabilities were not finite
    captured: Captured | None = None  # of this row, if `capture` asked for it


def prefill_cells(
    model: Model,
    batch: TokenBatch,
    request: Request,
    *,
    steer_prompt: bool,
    sampler: Sampler,
    room: int | None = None,
) -> DecodeState:
    """The state of C cells after the prompt: arrays gain a leading axis C, scalars are shared.

    Unless a scope reaches into the prompt before its last token, the cells of a prompt share its
    keys and values, which are made and kept once. Otherwise, or if there is one cell, cells are
    rows like others here, so that they run in blocks of bounded memory.
    """
    C, B = request.steering[0].coeff.shape[0], batch.tokens.shape[0]

    def flat(x: jax.Array) -> jax.Array:  # [C, 1 or B, ...] to [C · B, ...]
        return jnp.broadcast_to(x, (C, B, *x.shape[2:])).reshape(C * B, *x.shape[2:])

    def cells(x: jax.Array) -> jax.Array:
        return x.reshape(C, B, *x.shape[1:]) if x.ndim else x

    def copies(x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(x, (C, *x.shape)) if x.ndim else x

    if C > 1 and not steer_prompt:
        state = begin_shared(model, batch, request, room=room)
        prefix = state.cache.prefix
        state = jax.tree.map(copies, replace(state, cache=replace(state.cache, prefix=None)))
        cache = replace(in_order(state.cache, model), prefix=prefix)
        return _over_cells(decode_step, model, replace(state, cache=cache), request, sampler)
    table, keeping = request.stop_table, request.keeping
    once = replace(request, steering=(), stop_table=None, keeping=None)
    batch, once = jax.tree.map(lambda x: flat(x[None]), (batch, once))
    if table is not None and len(table) > 1:  # a single one serves all rows
        table = flat(table[None])
    steering = jax.tree.map(flat, request.steering)
    once = replace(once, steering=steering, stop_table=table, keeping=keeping)
    capacity = None if room is None else batch.tokens.shape[1] + room
    state = prefill(model, batch, once, sampler=sampler, capacity=capacity)
    return jax.tree.map(cells, state)


def run_cells(
    model: Model,
    batch: TokenBatch,
    request: Request,
    *,
    steer_prompt: bool,
    sampler: Sampler,
    step: Step = decode_step,
    loop: Loop = jax.lax.while_loop,
) -> DecodeState:
    """Like `decoding.run` for C cells at once; `request.steering` has a leading axis C. Pure."""
    rooms = growing_rooms(model, request.max_new_tokens, step)
    options: dict[str, Any] = {"steer_prompt": steer_prompt, "sampler": sampler}
    state = prefill_cells(model, batch, request, room=rooms[0], **options)
    over_cells = functools.partial(_over_cells, step, model, request=request, sampler=sampler)
    return loop_in_rooms(loop, over_cells, state, rooms)


def _over_cells(
    step: Step, model: Model, state: DecodeState, request: Request, sampler: Sampler
) -> DecodeState:
    """A step of all cells, which share the request but its steering, scalars and the prefix."""
    axes = jax.tree.map(lambda x: 0 if x.ndim else None, state)
    shared = jax.tree.map(lambda _: None, state.cache.prefix)
    axes = replace(axes, cache=replace(axes.cache, prefix=shared))
    request_axes = replace(jax.tree.map(lambda _: None, request), steering=0)
    over_cells = jax.vmap(
        lambda s, r: step(model, s, r, sampler=sampler),
        in_axes=(axes, request_axes),
        out_axes=axes,
    )
    return over_cells(state, request)


def _run_to_end(model: Model, batch: TokenBatch, request: Request, **options: Any) -> Outcome:
    """`run_cells`, and what is read of its state, `[C, B, …]`."""
    return outcome(run_cells(model, batch, request, **options))


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
    """Run every cell on every prompt; an iterator over the results of one chunk after the other.

    To resume, pass the same arguments and a `done` that knows what was written: only what is
    missing is run and yielded, in chunks of any size. Random numbers belong to the prompt, so all
    cells share them and a resumed run repeats the first. `sweep_file.sweep_to_file` does this.

    If the device runs out of memory all the same, the chunk is halved and nothing is lost.

    On many hosts every process runs this with the same arguments, and has all results. If one host
    lacks memory for a chunk, all hosts halve it before they start it: when its program does not
    compile for want of memory, or needs more than a device of one host has free. A host that runs
    out of memory later, when the others are waiting for it, ends with a `MemoryError`, and they
    with it.

    Args:
        model: the weights; another model of the same shape runs in the same compiled program.
        batch: left-padded prompts, or token ids row by row.
        cells: what to run on them.
        request: what is asked of each prompt in every cell, as `make_request` makes it; steering
            belongs into the cells.
        rows_per_chunk: cells × prompts that run at once, by default what fits the device.
        done: `done(cell, prompt)` is True for what to skip; called once, when iteration starts.
        sampler: the cheapest that serves the request, if not given.
        step: see `generate`.
        loop: see `generate`.
        **asked: in place of a request, the keywords of `make_request`.

    Raises:
        ValueError: at once, for an empty grid or input that does not fit the model.
        MemoryError: from the iterator, if not even a single row fits.
        HostLost: from the iterator, if another process has ended.
    """
    batch, request = as_request(model, batch, request, asked)
    if (rows := request.max_tokens.shape[0]) != (prompts := batch.tokens.shape[0]):
        raise ValueError(f"samples: got {rows // prompts}, expected 1: repeat prompts in the batch")
    check_sweep(model, cells, request, rows_per_chunk=rows_per_chunk)
    options = {"sampler": sampler or choose_sampler(request.sampling), "step": step, "loop": loop}
    plan = _planned(model, batch, cells, request, rows_per_chunk=rows_per_chunk, options=options)
    return _chunks(plan, done)


def check_sweep(
    model: Model, cells: Sequence[Cell], request: Request, *, rows_per_chunk: int | None
) -> None:
    """Check the cells, and the request against them.

    Raises:
        ValueError: naming what does not fit.
    """
    check_cells(cells, model.config)
    if rows_per_chunk is not None and rows_per_chunk < 1:
        raise ValueError(f"rows_per_chunk: got {rows_per_chunk}, expected at least 1")
    if request.steering:
        raise ValueError("steering: got one for all cells, expected it in each cell")
    scopes = [one.scope for cell in cells for one in as_tuple(cell.steering)]
    check_think_tokens(hosts.gather(request.think_tokens), scopes)


def _planned(
    model: Model,
    batch: TokenBatch,
    cells: Sequence[Cell],
    request: Request,
    *,
    rows_per_chunk: int | None,
    options: dict[str, Any],
) -> _Plan:
    """The cells stacked, and how large a chunk may be."""
    # On the host, where taking rows compiles nothing.
    batch, request, steering = hosts.gather((batch, request, stack_cells(cells, model.config)))
    reaches = jax.vmap(reaches_prefix, in_axes=(0, None))
    steer_prompt = any(np.any(reaches(one, batch)) for one in steering)
    steer_prompt |= request.keeping is not None and request.keeping.prompt_slots > 0
    prompts, length = batch.tokens.shape
    usable, kept = usable_bytes(model), row_bytes_kept(request.keeping, model)

    def by_calculation(C: int, B: int) -> bool:
        needed = sweep_bytes(
            model,
            cells=C,
            prompts=B,
            prompt_length=length,
            new_tokens=request.max_new_tokens,
            steer_prompt=steer_prompt,
            kept=kept,
        )
        return needed <= usable

    fits = by_calculation if rows_per_chunk is None else _at_most(rows_per_chunk)
    data, _ = mesh_sizes(model)
    C, B = chunk_shape(len(cells), prompts, fits, data)
    check_room_for_kept(
        model,
        rows=C * B,
        prompts=B if C > 1 and not steer_prompt else None,
        prompt_length=length,
        new_tokens=request.max_new_tokens,
        kept=kept,
    )
    return _Plan(
        model,
        cells,
        batch,
        request,
        steering,
        options={"steer_prompt": steer_prompt, **options},
        shape=(C, B),
    )


def _run_chunk(plan: _Plan, c: np.ndarray, p: np.ndarray, tried: set[tuple[int, int]]) -> Outcome:
    """The cells `c` on the prompts `p`; `tried` are shapes for which all hosts have room."""

    def some(x: np.ndarray) -> np.ndarray:  # a single row serves all
        return x if len(x) == 1 else x[p]

    batch, request = jax.tree.map(some, plan.batch), map_rows(some, plan.request)
    steering = jax.tree.map(lambda x: x[c], plan.steering)
    data, _ = mesh_sizes(plan.model)
    if len(p) % data == 0:
        batch, request = spread_rows((batch, request), plan.model)
    else:
        steering = spread_rows(steering, plan.model)
    request = replace(request, steering=steering)
    if hosts.several() and (len(c), len(p)) not in tried:
        _agree_on_room(
            lambda: _run_cells.lower(plan.model, batch, request, **plan.options), plan.model
        )
        tried.add((len(c), len(p)))
    with hosts.losing_hosts():
        made = hosts.gather(_run_cells(plan.model, batch, request, **plan.options))
    check_read(made)
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
        here = set(p_index)
        c_index = sorted({c for c, p in todo if p in here})[:C]
        try:
            # A chunk with less to do repeats its last cell or prompt up to the common shape.
            made = _run_chunk(plan, _filled(c_index, C), _filled(p_index, B), tried)
        except (jax.errors.JaxRuntimeError, _NoRoom) as error:
            shape = _smaller(plan.model, shape, error)
            continue
        chunk = []
        for i, c in enumerate(c_index):
            for j, p in enumerate(p_index):
                if (c, p) in todo:
                    row = jax.tree.map(lambda x, at=(i, j): x[at], made)
                    chunk.append(_result(plan, plan.cells[c], p, row))
        todo.difference_update((c, p) for c in c_index for p in p_index)
        tell_not_finite(sum(not result.finite for result in chunk), len(chunk))
        yield chunk


def _result(plan: _Plan, cell: Cell, prompt: int, row: Outcome) -> CellResult:
    """One row of a chunk, `row` without the axes of cells and prompts."""
    keeping = plan.request.keeping
    return CellResult(
        cell,
        prompt,
        row.tokens[: row.length].tolist(),
        row.logprobs[: row.length].tolist(),
        bool(row.finite),
        None if keeping is None or row.kept is None else captured_of(row.kept, keeping),
    )


def _smaller(model: Model, shape: tuple[int, int], error: Exception) -> tuple[int, int]:
    """The shape to go on with after a chunk of `shape` found no memory; warns.

    Raises:
        JaxRuntimeError: for another error.
        MemoryError: for a single row, and where other hosts have begun with the chunk and wait.
    """
    C, B = shape
    together = isinstance(error, _NoRoom)
    if not together and not is_out_of_memory(error):
        raise error
    if hosts.several() and not together:
        raise MemoryError(
            f"{C} cells × {B} prompts at once do not fit a device of this host; start "
            f"again with fewer rows_per_chunk: {error}"
        ) from error
    if C * B == 1:
        raise MemoryError(f"a single row does not fit the device: {error}") from error
    data, _ = mesh_sizes(model)
    smaller = chunk_shape(C, B, _at_most(C * B // 2), data)
    warnings.warn(
        f"out of memory with {C} cells × {B} prompts at once, going on with "
        f"{smaller[0]} × {smaller[1]} ({str(error).partition(chr(10))[0][:200]})",
        stacklevel=3,
    )
    return smaller


def _agree_on_room(lower: Callable[[], jax.stages.Lowered], model: Model) -> None:
    """Raise `_NoRoom` on all hosts if one of them has no memory for a program.

    To be asked before it is started anywhere: where it runs it waits for the other hosts, and no
    message reaches it there. It is compiled once, for this and for its calls.
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
        raise _NoRoom(reason)


def chunk_shape(cells: int, prompts: int, fits: Fits, data: int = 1) -> tuple[int, int]:
    """The largest equal chunks that fit, as cells and prompts; prompts stay together if they can.

    `data` devices share the prompts of a chunk if it divides them, its cells otherwise, and these
    are rounded up to a multiple of it. Chunks of fewer rows than that are run by all alike.

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


def _at_most(rows: int) -> Fits:
    return lambda C, B: rows >= C * B


def _filled(index: list[int], size: int) -> np.ndarray:
    return np.array(index + index[-1:] * (size - len(index)))

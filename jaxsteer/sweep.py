"""Sweeps: many steered cells × many prompts in one compiled program, chunk by chunk.

A cell is one intervention (a vector, a layer, a coefficient); every cell runs on every prompt.
Cells are data along a vmapped axis *inside* the decoding loop, with one cursor and one stop
condition for all: a `vmap` around the loop would put every cache buffer through a select at each
step. All chunks have one shape, so the whole grid compiles once.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxsteer.cache import KVCache
from jaxsteer.config import LlamaConfig
from jaxsteer.generate import (
    DecodeState,
    Loop,
    Request,
    Step,
    decode_step,
    make_request,
    prefill,
    unfinished,
)
from jaxsteer.interventions import add
from jaxsteer.model import Model
from jaxsteer.sampling import Sampler, Sampling, choose_sampler, sampling
from jaxsteer.scope import Scope, broadcast_rows
from jaxsteer.steering import Steering, check_steering, stack
from jaxsteer.tokens import TokenBatch, check_batch

# What a cell has of its own and what all share: the cell axis of each part of the state.
_SHARED: Any = None
_STATE_AXES = DecodeState(
    **dict.fromkeys(("token", "tokens", "logprobs", "length", "done"), 0),  # type: ignore[arg-type]
    step=_SHARED,
    cache=KVCache(k=0, v=0, valid=_SHARED, cursor=_SHARED),  # type: ignore[arg-type]
)
_REQUEST_AXES = Request(
    steering=0,  # type: ignore[arg-type]
    sampling=_SHARED,
    stop_tokens=_SHARED,
    max_tokens=_SHARED,
    prompt_length=_SHARED,
)


@dataclass(frozen=True)
class Cell:
    """One intervention of a sweep and the labels that tell it from the others."""

    labels: Mapping[str, Any]  # what goes into the results, e.g. {"source": "base", "coeff": 8.0}
    steering: Steering  # of one row, for every prompt alike


@dataclass(frozen=True)
class CellResult:
    """What one cell generated from one prompt."""

    cell: Cell
    prompt: int  # index of the prompt's row in the batch
    tokens: list[int]  # a stop token included
    logprobs: list[float]  # of these tokens, under the steered model


def grid(
    vectors: Mapping[str, ArrayLike],
    *,
    layers: Sequence[int],
    coeffs: Sequence[float],
    site: str = "resid_post",
    scope: Scope | None = None,
) -> list[Cell]:
    """Every vector × layer × coefficient, labelled `vector`, `layer` and `coeff`.

    >>> [dict(c.labels) for c in grid({"v": [1.0]}, layers=[0], coeffs=[0.0, 2.0])]
    [{'vector': 'v', 'layer': 0, 'coeff': 0.0}, {'vector': 'v', 'layer': 0, 'coeff': 2.0}]
    """
    return [
        Cell(
            {"vector": name, "layer": layer, "coeff": coeff},
            add(vectors[name], layer=layer, coeff=coeff, site=site, scope=scope),
        )
        for name, layer, coeff in itertools.product(vectors, layers, coeffs)
    ]


def prefill_cells(
    model: Model,
    batch: TokenBatch,
    request: Request,
    *,
    cells: int,
    steer_prompt: bool,
    max_new_tokens: int,
    sampler: Sampler,
) -> DecodeState:
    """The state of `cells` cells after the prompt; arrays gain a leading axis C, the cursor none.

    Unless a scope reaches into the prompt, all cells start from the same activations, so the
    prompt is run once and its cache copied to each cell.
    """

    def one_cell(request: Request) -> DecodeState:
        return prefill(model, batch, request, max_new_tokens=max_new_tokens, sampler=sampler)

    if steer_prompt:
        over_cells = jax.vmap(one_cell, in_axes=(_REQUEST_AXES,), out_axes=_STATE_AXES)
        return over_cells(request)
    state = one_cell(replace(request, steering=()))
    copy = jax.vmap(lambda _: state, out_axes=_STATE_AXES)
    return copy(jnp.arange(cells))


def run_cells(
    model: Model,
    batch: TokenBatch,
    request: Request,
    *,
    steer_prompt: bool,
    max_new_tokens: int,
    sampler: Sampler,
    step: Step = decode_step,
    loop: Loop = jax.lax.while_loop,
) -> DecodeState:
    """Like `generate.run` for C cells at once; `request.steering` has a leading axis C. Pure."""
    state = prefill_cells(
        model,
        batch,
        request,
        cells=request.steering[0].coeff.shape[0],
        steer_prompt=steer_prompt,
        max_new_tokens=max_new_tokens,
        sampler=sampler,
    )
    over_cells = jax.vmap(
        lambda s, r: step(model, s, r, sampler=sampler),
        in_axes=(_STATE_AXES, _REQUEST_AXES),
        out_axes=_STATE_AXES,
    )
    return loop(unfinished, lambda s: over_cells(s, request), state)


_run_cells = jax.jit(
    run_cells, static_argnames=("steer_prompt", "max_new_tokens", "sampler", "step", "loop")
)


def sweep(
    model: Model,
    batch: TokenBatch,
    cells: Sequence[Cell],
    *,
    max_new_tokens: int,
    sampling_params: Sampling | None = None,
    stop_tokens: Sequence[int] = (),
    rows_per_chunk: int | None = None,
    done: Callable[[Cell, int], bool] = lambda cell, prompt: False,
    sampler: Sampler | None = None,
    step: Step = decode_step,
    loop: Loop = jax.lax.while_loop,
) -> Iterator[list[CellResult]]:
    """Run every cell on every prompt; yields the results of one chunk after the other.

    To resume, pass the same arguments and a `done` that knows what was written: chunks with
    nothing left to do are skipped, and of the others only the missing results are yielded. Random
    numbers belong to the prompt, so all cells share them and a resumed run repeats the first.

    Args:
        model: the weights; another model of the same shape runs in the same compiled program.
        batch: left-padded prompts.
        cells: what to run on them, each with the steering of one row.
        max_new_tokens: tokens to make room for.
        sampling_params: one row a prompt; greedy if not given.
        stop_tokens: a row ends after any of these.
        rows_per_chunk: cells × prompts that run at once, by default what fits the device.
        done: tells results that the caller has already.
        sampler: the cheapest that serves `sampling_params`, if not given.
        step: see `generate`.
        loop: see `generate`.

    Raises:
        ValueError: for an empty grid or input that does not fit the model, before any work.
    """
    if not cells:
        raise ValueError("cells: got none, expected at least one")
    prompts = batch.tokens.shape[0]
    check_batch(batch, model.config, new_tokens=max_new_tokens)
    for cell in cells:
        check_steering(cell.steering, model.config, rows=1)
    params = sampling(prompts) if sampling_params is None else sampling_params
    if params.seed.shape != (prompts,):
        raise ValueError(
            f"sampling_params: got {params.seed.shape[0]} rows, expected one a prompt, {prompts}"
        )
    if rows_per_chunk is not None and rows_per_chunk < 1:
        raise ValueError(f"rows_per_chunk: got {rows_per_chunk}, expected at least 1")
    rows = rows_per_chunk or rows_that_fit(
        model.config, length=batch.tokens.shape[1] + max_new_tokens, dtype=model.dtype
    )
    B = _even_share(prompts, rows)
    C = _even_share(len(cells), rows // B)
    stacked = stack([cell.steering for cell in cells])
    steer_prompt = bool(np.any(np.asarray(reaches_prompt(stacked, batch.lengths))))
    options = {
        "steer_prompt": steer_prompt,
        "max_new_tokens": max_new_tokens,
        "sampler": sampler or choose_sampler(params),
        "step": step,
        "loop": loop,
    }
    for first_prompt, first_cell in itertools.product(
        range(0, prompts, B), range(0, len(cells), C)
    ):
        wanted = [
            (c, p)
            for c in range(first_cell, min(first_cell + C, len(cells)))
            for p in range(first_prompt, min(first_prompt + B, prompts))
            if not done(cells[c], p)
        ]
        if not wanted:
            continue
        # The last chunk repeats its last cell or prompt up to the common shape.
        p_index = jnp.minimum(first_prompt + jnp.arange(B), prompts - 1)
        c_index = jnp.minimum(first_cell + jnp.arange(C), len(cells) - 1)
        part = jax.tree.map(lambda x, i=p_index: x[i], batch)
        request = make_request(
            model,
            part,
            max_new_tokens=max_new_tokens,
            sampling_params=jax.tree.map(lambda x, i=p_index: x[i], params),
            stop_tokens=stop_tokens,
        )
        request = replace(request, steering=(jax.tree.map(lambda x, i=c_index: x[i], stacked),))
        state = _run_cells(model, part, request, **options)
        tokens, logprobs, length = jax.device_get((state.tokens, state.logprobs, state.length))
        chunk = []
        for c, p in wanted:
            at = (c - first_cell, p - first_prompt)
            n = length[at]
            chunk.append(
                CellResult(cells[c], p, tokens[at][:n].tolist(), logprobs[at][:n].tolist())
            )
        yield chunk


def count_chunks(cells: int, prompts: int, rows: int) -> int:
    """How many chunks `sweep` makes of a grid: what a progress bar needs to know."""
    B = _even_share(prompts, rows)
    return -(-prompts // B) * -(-cells // _even_share(cells, rows // B))


def rows_that_fit(config: LlamaConfig, *, length: int, dtype: jnp.dtype) -> int:
    """Rows of `length` tokens whose caches fit into half of the free memory of a device.

    The other half is for temporaries. On a CPU, where memory is shared with everybody, 2 GiB
    stand for what is free.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    free = stats.get("bytes_limit", 2**32) - stats.get("bytes_in_use", 0)
    per_token = (
        2 * config.n_layers * config.n_kv_heads * config.head_dim * jnp.dtype(dtype).itemsize
    )
    return max(1, int(free / 2 / (per_token * length)))


def reaches_prompt(steering: Steering, prompt_length: jax.Array) -> jax.Array:
    """Whether each cell `[C]` touches any token of any prompt of the lengths `[B]`."""
    longest = int(np.max(np.asarray(prompt_length)))
    position = jnp.broadcast_to(jnp.arange(longest), (prompt_length.shape[0], longest))

    def one(scope: Scope) -> jax.Array:
        scope = broadcast_rows(scope, prompt_length.shape[0], "scope")
        covered = scope.may_cover(position, prompt_length)
        return jnp.any(covered & (position < prompt_length[:, None]))

    return jax.vmap(one)(steering.scope)


def _even_share(total: int, most: int) -> int:
    """The size of equal chunks of `total`, none larger than `most` (at least 1)."""
    return -(-total // -(-total // max(most, 1)))

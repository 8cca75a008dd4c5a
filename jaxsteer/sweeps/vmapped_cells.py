"""Many cells in one decoding loop: `vmap` over cells *inside* the loop.

All cells have one cursor and one stop condition. A `vmap` around the loop would put every cache
buffer through a select at each step.
"""

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxsteer.decoding import (
    DecodeState,
    Loop,
    Request,
    Sampler,
    Step,
    begin_shared,
    begins_in_loop,
    decode_step,
    loop_with_growing_cache,
    map_rows,
    prefill,
    slots_by_loop,
)
from jaxsteer.llama import Model, TokenBatch, in_order


def prefill_cells(
    model: Model,
    batch: TokenBatch,
    request: Request,
    *,
    steer_prompt: bool,
    sampler: Sampler,
    new_slots: int,
    first: bool,
) -> DecodeState:
    """The state of C cells after the prompt: arrays gain a leading axis C, scalars are shared.

    The cells of a prompt share its keys and values, which are computed and kept once; without
    `first` they leave their first tokens to the loop. They cannot share them if a scope reaches
    into the prompt before its last token (`steer_prompt`): then, and for a single cell, the cells
    run as rows, in blocks of bounded memory.
    """
    C, B = request.steering[0].coeff.shape[0], batch.tokens.shape[0]

    def flat(x: jax.Array) -> jax.Array:  # [C, 1 or B, ...] to [C · B, ...]
        return jnp.broadcast_to(x, (C, B, *x.shape[2:])).reshape(C * B, *x.shape[2:])

    def cells(x: jax.Array) -> jax.Array:
        return x.reshape(C, B, *x.shape[1:]) if x.ndim else x

    def copies(x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(x, (C, *x.shape)) if x.ndim else x

    if C > 1 and not steer_prompt:
        state = begin_shared(model, batch, request, new_slots=new_slots)
        prefix = state.cache.prefix
        state = jax.tree.map(copies, replace(state, cache=replace(state.cache, prefix=None)))
        state = replace(state, cache=replace(in_order(state.cache, model), prefix=prefix))
        return _over_cells(decode_step, model, state, request, sampler) if first else state
    rows = map_rows(lambda x: flat(x[None]), replace(request, steering=()))
    rows = replace(rows, steering=jax.tree.map(flat, request.steering))
    batch = jax.tree.map(lambda x: flat(x[None]), batch)
    capacity = batch.tokens.shape[1] + new_slots
    state = prefill(model, batch, rows, sampler=sampler, capacity=capacity)
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
    """`decoding.run` for C cells at once; `request.steering` has a leading axis C. Pure."""
    slots = slots_by_loop(model, request.max_new_tokens, step)
    options: Any = {"steer_prompt": steer_prompt, "sampler": sampler, "new_slots": slots[0]}
    first = not begins_in_loop(step, loop)
    state = prefill_cells(model, batch, request, first=first, **options)
    over_cells = functools.partial(_over_cells, step, model, request=request, sampler=sampler)
    return loop_with_growing_cache(loop, over_cells, state, slots)


def _over_cells(
    step: Step, model: Model, state: DecodeState, request: Request, sampler: Sampler
) -> DecodeState:
    """A step of all cells. They share the prefix, scalars, and all of the request but steering."""
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

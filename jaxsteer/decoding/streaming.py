"""Generation one step at a time, for whoever shows tokens as they come."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from jaxsteer.decoding.captured import captured_of, empty_buffers, stream_plans
from jaxsteer.decoding.generation import (
    DecodeState,
    Step,
    decode_step,
    prefill,
    prepare,
    unfinished,
)
from jaxsteer.decoding.request import Asked, Request
from jaxsteer.decoding.results import warn_not_finite
from jaxsteer.decoding.samplers import Sampler
from jaxsteer.llama import Model, TokenBatch, TokenRows, spread_rows
from jaxsteer.runtime import hosts


def _prefill(
    model: Model, batch: TokenBatch, request: Request, *, sampler: Sampler
) -> tuple[DecodeState, jax.Array, jax.Array]:
    """The state after the prompts, the tokens to yield, and whether another step is needed."""
    state = prefill(model, batch, request, sampler=sampler)
    return state, jnp.where(state.length > 0, state.token, -1), unfinished(state)


def _step(
    model: Model, state: DecodeState, request: Request, *, step: Step, sampler: Sampler
) -> tuple[DecodeState, jax.Array, jax.Array]:
    """The same after one more step; activations of earlier steps are dropped."""
    state = _without_activations(model, state, request)
    after = step(model, state, request, sampler=sampler)
    return after, jnp.where(after.length > state.length, after.token, -1), unfinished(after)


def _without_activations(model: Model, state: DecodeState, request: Request) -> DecodeState:
    """The state with the slots of one step, empty, if the request captures activations."""
    if state.buffers is None or request.capture is None:
        return state
    buffers = empty_buffers(request.capture, model, rows=len(state.done))
    return replace(state, buffers=replace(buffers, read=state.buffers.read))


_prefill_jit = jax.jit(_prefill, static_argnames="sampler")
_step_jit = jax.jit(_step, static_argnames=("step", "sampler"), donate_argnames="state")


def stream(
    model: Model,
    batch: TokenBatch | TokenRows,
    request: Request | None = None,
    *,
    sampler: Sampler | None = None,
    step: Step = decode_step,
    **asked: Unpack[Asked],
) -> Iterator[Any]:
    """Yield each step's tokens as they come, int32 `[B]`, -1 in rows that have ended.

    Tokens, arguments and errors are those of `generate`. With `capture` each step yields a pair:
    its tokens, and the activations that it read, `Captured`. The first step reads the prompts, and
    each other step the tokens of the step before it; the last one yields no tokens, all -1.
    """
    batch, request, sampler = prepare(model, batch, request, sampler, asked)
    first = request
    if request.capture is not None:
        of_prompts, of_step = stream_plans(request.capture)
        first, request = replace(request, capture=of_prompts), replace(request, capture=of_step)
    batch, first, request = spread_rows((batch, first, request), model)
    return _stream(model, batch, first, request, sampler=sampler, step=step)


def _stream(
    model: Model,
    batch: TokenBatch,
    first: Request,
    request: Request,
    *,
    sampler: Sampler,
    step: Step,
) -> Iterator[Any]:
    state, tokens, more = _prefill_jit(model, batch, first, sampler=sampler)
    yield _on_host(state, tokens, first)
    state = _without_activations(model, state, request)
    while more:
        state, tokens, more = _step_jit(model, state, request, step=step, sampler=sampler)
        yield _on_host(state, tokens, request)
    finite = hosts.gather(state.finite)
    warn_not_finite(int(np.sum(~finite)), len(finite))


def _on_host(state: DecodeState, tokens: jax.Array, request: Request) -> Any:
    """What a stream yields of a step."""
    if request.capture is None:
        return hosts.gather(tokens)
    tokens_on_host, buffers = hosts.gather((tokens, state.buffers))
    return tokens_on_host, captured_of(buffers, request.capture)

"""Batched generation with steering: `prefill`, `decode_step`, and the loop around them.

    batch = left_pad([encode(tokenizer, text).ids for text in texts])
    out = generate(model, batch, max_new_tokens=100, steering=add(v, layer=10, coeff=8.0))

Everything a row can differ in is data in `Request`. What can be swapped is a function:

    sampler   (logits [B, V], key [B], Sampling) -> token [B]; it sees all rows at once
    step      (model, state, request, *, sampler) -> state
    loop      (cond, body, state) -> state, with the meaning of `jax.lax.while_loop`

A step of your own calls `forward` as it likes and ends with `choose_and_append`, which updates all
fields of the state but `cache`, `extra` and `buffers`. `extra` is for what the step must remember.
Define each function once: a new function object recompiles, even with the same code.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from jaxsteer.decoding.captured import (
    CaptureBuffers,
    capture_bytes,
    captured_of,
    empty_buffers,
    prompt_capture,
    prompt_tokens,
    step_capture,
    write_prompt,
    write_step,
)
from jaxsteer.decoding.cores import row_parts, run_parts
from jaxsteer.decoding.memory import check_capture_fits
from jaxsteer.decoding.request import Asked, Request, as_request
from jaxsteer.decoding.results import Generation, Outcome, check_activations_kept, warn_not_finite
from jaxsteer.decoding.samplers import Sampler, choose_sampler, keys
from jaxsteer.decoding.shared_prompts import repeat_prompts, shared_or_repeated
from jaxsteer.decoding.stops import FOUND, START
from jaxsteer.decoding.thinking import still_thinking, thinking_in
from jaxsteer.llama import (
    BLOCK_TOKENS,
    KVCache,
    Model,
    TokenBatch,
    TokenRows,
    cached_by_head,
    copy_prompts,
    forward,
    lengthen,
    mesh_sizes,
    rows_after,
    run_prompts,
    share_prompts,
    should_copy_prompts,
    spread_rows,
)

_LOGITS = 64  # logits that are looked at: all of them 0 means that the norm overflowed
_GROWTH = 512  # new tokens by which a cache grows at least
_MOST_LOOPS = 4

Step = Callable[..., "DecodeState"]
Loop = Callable[..., "DecodeState"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DecodeState:
    """Where a batch stands between two steps of the loop."""

    token: jax.Array  # int32 [B]: the newest token, not yet run through the model
    tokens: jax.Array  # int32 [B, G]: generated so far; zeros after a row's end
    logprobs: jax.Array  # float32 [B, G]: of those tokens, under the steered model at temperature 1
    length: jax.Array  # int32 [B]: generated tokens, a stop token included
    done: jax.Array  # bool [B]: the row has ended; its later tokens are dropped
    finite: jax.Array  # bool [B]: False if it ended because a log-probability was not finite
    thinking: jax.Array  # bool [B]: the newest token lies inside <think>…</think>
    stop_state: jax.Array  # int32 [B]: how much of a stop string the row ends with
    step: jax.Array  # int32 scalar: steps made; `length` has each row's own count
    cache: KVCache
    extra: Any = None  # a pytree of a custom step's own; see `run`
    buffers: CaptureBuffers | None = None  # captured activations, if the request asks for some

    @property
    def settled(self) -> jax.Array:
        """Whether each row, bool `[B]`, has ended and, with a capture, had its last token read."""
        if self.buffers is None:
            return self.done
        return self.done & (self.buffers.read >= self.length)


def prefill(
    model: Model,
    batch: TokenBatch,
    request: Request,
    *,
    sampler: Sampler,
    max_new_tokens: int | None = None,
    block_tokens: int = BLOCK_TOKENS,
    capacity: int | None = None,
    first: bool = True,
) -> DecodeState:
    """Run the prompts `[B, T]` and choose each row's first token; pure, for use in `jax.jit`.

    The state holds up to `max_new_tokens` tokens of each row, by default the request's. The cache
    has `capacity` slots, by default T more than that. It is made here: a loop in the same program
    updates it in place, and would copy a donated one. Prompts run in blocks of at most
    `block_tokens` tokens, which bounds their temporaries.

    With R rows a prompt, each prompt runs once (`begin_shared`); without `first` the loop begins.
    """
    B, T = batch.tokens.shape
    G = request.max_new_tokens if max_new_tokens is None else max_new_tokens
    if request.max_tokens.shape[0] != B:
        new_slots = None if capacity is None else capacity - T
        state = begin_shared(
            model, batch, request, max_new_tokens=G, new_slots=new_slots, block_tokens=block_tokens
        )
        return decode_step(model, state, request, sampler=sampler) if first else state
    thinking = thinking_in(batch.tokens, batch.mask, request.think_tokens)
    facts, plan = request.row_facts(thinking), request.capture
    chosen = prompt_tokens(plan, batch.mask, facts) if plan and plan.prompt_slots else None
    out = run_prompts(
        model,
        batch,
        capacity=T + G if capacity is None else capacity,
        steering=request.steering,
        capture=prompt_capture(plan, chosen) if plan and chosen else None,
        block_tokens=block_tokens,
        **facts,
    )
    assert out.cache is not None
    last = batch.tokens[:, -1], thinking[:, -1]
    state = new_state(model, *last, request, out.cache, max_new_tokens=G)
    if plan and state.buffers and chosen:
        buffers = write_prompt(state.buffers, plan, chosen, out.captured)
        state = replace(state, buffers=buffers)
    return choose_and_append(state, out.logits, request, sampler)


def begin_shared(
    model: Model,
    batch: TokenBatch,
    request: Request,
    *,
    max_new_tokens: int | None = None,
    new_slots: int | None = None,
    block_tokens: int = BLOCK_TOKENS,
    may_copy: bool = True,
) -> DecodeState:
    """The state of R rows on each of P prompts, before a step chooses their first tokens; pure.

    All tokens of a prompt but the last run once, unsteered and without captures; the last runs with
    the first step, where steering may begin (`reaches_prefix`). Rows share what was run, or copy it
    (`may_copy`, `should_copy_prompts`). The state holds `max_new_tokens` tokens of a row, by
    default the request's; the cache `new_slots`, or all.
    """
    G = request.max_new_tokens if max_new_tokens is None else max_new_tokens
    B, capacity = request.max_tokens.shape[0], 1 + (G if new_slots is None else new_slots)
    (P, T), (data, _) = batch.tokens.shape, mesh_sizes(model)
    may_copy &= B == P or P % data == 0  # on a mesh copies lie where their prompt does
    if may_copy and should_copy_prompts(model.attention, prompt_length=T, new_tokens=G):
        cache = copy_prompts(model, batch, rows=B, capacity=capacity)
    else:
        prefix = share_prompts(model, batch, block_tokens=block_tokens)
        cache = rows_after(model, prefix, rows=B, capacity=capacity)
    every = repeat_prompts(batch, B)
    thinking = thinking_in(every.tokens, every.mask, request.think_tokens)
    last = every.tokens[:, -1], thinking[:, -1]
    return new_state(model, *last, request, cache, max_new_tokens=G)


def new_state(
    model: Model,
    token: jax.Array,
    thinking: jax.Array,
    request: Request,
    cache: KVCache,
    *,
    max_new_tokens: int,
) -> DecodeState:
    """The state of rows `[B]` before their first generated token; `token` is the prompt's last."""
    B, G, plan = token.shape[0], max_new_tokens, request.capture
    return DecodeState(
        token=token,
        tokens=jnp.zeros((B, G), jnp.int32),
        logprobs=jnp.zeros((B, G), jnp.float32),
        length=jnp.zeros((B,), jnp.int32),
        done=request.max_tokens <= 0,
        finite=jnp.ones((B,), bool),
        thinking=thinking,
        stop_state=jnp.full((B,), START, jnp.int32),
        step=jnp.zeros((), jnp.int32),
        cache=cache,
        buffers=None if plan is None else empty_buffers(plan, model, rows=B),
    )


def decode_step(
    model: Model, state: DecodeState, request: Request, *, sampler: Sampler
) -> DecodeState:
    """Run each row's newest token through the model and choose the next one; pure."""
    facts = request.row_facts(state.thinking[:, None])
    out = forward(
        model,
        state.token[:, None],
        cache=state.cache,
        steering=request.steering,
        capture=step_capture(request.capture),
        **facts,
    )
    assert out.cache is not None
    buffers = state.buffers
    if buffers is not None and request.capture is not None:
        buffers = write_step(buffers, request.capture, out.captured, state.length, facts)
    state = replace(state, cache=out.cache, buffers=buffers)
    return choose_and_append(state, out.logits[:, 0], request, sampler)


def choose_and_append(
    state: DecodeState, logits: jax.Array, request: Request, sampler: Sampler
) -> DecodeState:
    """Choose a token from `logits` `[B, V]` and append it to the rows that are not done; pure.

    Every step ends with it: it updates all fields of the state but `cache`, `extra` and `buffers`.
    A row whose token has no finite log-probability ends without that token.
    """
    # A row's own count, not `step`: rows may have started at different times (`refill`).
    position = state.length
    token = sampler(logits, keys(request.sampling, position), request.sampling)
    if token.shape != position.shape or not jnp.issubdtype(token.dtype, jnp.integer):
        raise ValueError(
            f"sampler: got {token.dtype} {list(token.shape)}, expected an integer for each of the "
            f"rows, {list(position.shape)}"
        )
    token = jnp.where(state.done, 0, token)
    chosen = jnp.take_along_axis(logits, token[:, None], axis=1)[:, 0]
    logprob = chosen - jax.nn.logsumexp(logits, axis=-1)
    # If x² overflows, RMSNorm gives zeros, and so are all logits.
    finite = state.done | (jnp.isfinite(logprob) & jnp.any(logits[:, :_LOGITS] != 0, axis=-1))
    going = finite & ~state.done
    # A select is as fast on so small an array; a TPU mesh would gather all of it for a scatter.
    newest = jnp.arange(state.tokens.shape[-1]) == position[:, None]
    newest &= going[:, None]  # [B, G]
    length = state.length + going
    stopped = jnp.any(token[:, None] == request.stop_tokens, axis=1)
    stop_state = state.stop_state
    if request.stop_table is not None:
        stop_state = request.stop_table[0, stop_state, token].astype(jnp.int32)
        stopped |= stop_state == FOUND
    return replace(
        state,
        token=token,
        tokens=jnp.where(newest, token[:, None], state.tokens),
        logprobs=jnp.where(newest, logprob[:, None], state.logprobs),
        length=length,
        done=state.done | ~finite | stopped | (length >= request.max_tokens),
        finite=state.finite & finite,
        thinking=still_thinking(state.thinking, state.token, token, request.think_tokens),
        stop_state=stop_state,
        step=state.step + 1,
    )


def unfinished(state: DecodeState) -> jax.Array:
    """Whether another step is needed: some row is not settled, and steps are left.

    G tokens are chosen at most; with a capture one more step reads the last token's activations.
    """
    most = state.tokens.shape[-1] + (state.buffers is not None)
    return ~jnp.all(state.settled) & (state.step < most)


def run(
    model: Model,
    batch: TokenBatch,
    request: Request,
    *,
    sampler: Sampler,
    max_new_tokens: int | None = None,
    step: Step = decode_step,
    loop: Loop = jax.lax.while_loop,
    extra: Any = None,
) -> DecodeState:
    """Prefill and decode to the end; pure, for use inside your own `jax.jit`.

    A row generates up to `max_new_tokens` tokens, by default the request's. `extra` is the first
    value of `state.extra`, for a `step` that carries something.
    """
    G = request.max_new_tokens if max_new_tokens is None else max_new_tokens
    slots = slots_by_loop(model, G, step)
    sizes = {"max_new_tokens": G, "capacity": batch.tokens.shape[1] + slots[0]}
    first = not begins_in_loop(step, loop)
    state = prefill(model, batch, request, sampler=sampler, first=first, **sizes)
    return loop_with_growing_cache(
        loop, lambda s: step(model, s, request, sampler=sampler), replace(state, extra=extra), slots
    )


def slots_by_loop(model: Model, new_tokens: int, step: Step) -> list[int]:
    """The numbers of new tokens that the cache has slots for, in one loop after another.

    The cache grows on CPUs, where a step attends over all slots, used or not; not for fewer than
    1,024 tokens (each loop compiles the step anew), nor for a step that may write more than one.
    """
    grows = cached_by_head(model.attention) and step is decode_step
    count = min(_MOST_LOOPS, max(1, new_tokens // _GROWTH)) if grows else 1
    return [-(-new_tokens * i // count) for i in range(1, count + 1)]


def loop_with_growing_cache(
    loop: Loop, body: Callable[[DecodeState], DecodeState], state: DecodeState, slots: list[int]
) -> DecodeState:
    """`loop` until all rows are done, in a cache that grows from `slots[0]` slots to `slots[-1]`.

    The cache of `state` has the first number of slots.
    """

    def going(state: DecodeState) -> jax.Array:
        return unfinished(state) & (state.cache.cursor < state.cache.capacity)

    for now, then in itertools.pairwise(slots):
        state = loop(going, body, state)
        state = replace(state, cache=lengthen(state.cache, state.cache.capacity + then - now))
    return loop(unfinished, body, state)


def _run_to_end(model: Model, batch: TokenBatch, request: Request, **options: Any) -> Outcome:
    """`run`, and what is read of its state."""
    return Outcome.of(run(model, batch, request, **options))


_run = jax.jit(_run_to_end, static_argnames=("sampler", "step", "loop"))


def begins_in_loop(step: Step, loop: Loop) -> bool:
    """Whether rows of a shared prompt choose first tokens in the loop: a pass less to compile."""
    return step is decode_step and loop is jax.lax.while_loop


def is_plain(sampler: Sampler | None, step: Step, loop: Loop) -> bool:
    """Whether nothing is swapped in that might look at several rows at once."""
    return sampler is None and begins_in_loop(step, loop)


def prepare(
    model: Model,
    batch: TokenBatch | TokenRows,
    request: Request | None,
    sampler: Sampler | None,
    asked: Asked,
) -> tuple[TokenBatch, Request, Sampler]:
    """What calls begin with: a checked request, a batch whose rows fit it, and a sampler.

    Raises `ValueError` for input that does not fit the model.
    """
    batch, request = as_request(model, batch, request, asked)
    batch = shared_or_repeated(model, batch, request)
    return batch, request, sampler or choose_sampler(request.sampling)


def generate(
    model: Model,
    batch: TokenBatch | TokenRows,
    request: Request | None = None,
    *,
    sampler: Sampler | None = None,
    step: Step = decode_step,
    loop: Loop = jax.lax.while_loop,
    **asked: Unpack[Asked],
) -> Generation:
    """Generate for every row of `batch`, in one compiled program.

        generate(model, batch, max_new_tokens=100, steering=add(v, layer=10, coeff=8.0))
        generate(model, prefixes, samples=100, max_new_tokens=500, sampling_params=…)

    With `samples=R` each prompt has R rows, one after another, and runs once.

    Args:
        model: the weights.
        batch: left-padded prompts, or token ids row by row.
        request: what is asked of the batch, as `make_request` makes it.
        sampler: chooses tokens; by default the cheapest sampler that serves the request.
        step: what the loop repeats.
        loop: what repeats it.
        **asked: in place of a request, the keywords of `make_request`, which describes them:
            `max_new_tokens`, `steering`, `stop_tokens`, `sampling_params`, …

    Raises:
        ValueError: for input that does not fit the model, before anything is compiled.
    """
    plain = is_plain(sampler, step, loop)
    batch, request, sampler = prepare(model, batch, request, sampler, asked)
    check_capture_fits(
        model,
        rows=len(request.max_tokens),
        prompts=len(batch.tokens),
        prompt_length=batch.tokens.shape[1],
        new_tokens=request.max_new_tokens,
        captured=capture_bytes(request.capture, model),
    )
    parts = row_parts(model, *spread_rows((batch, request), model), plain=plain)
    made = run_parts(_run, model, parts, sampler=sampler, step=step, loop=loop)
    warn_not_finite(int(np.sum(~made.finite)), len(made.finite))
    captured = None
    if request.capture is not None:
        check_activations_kept(made)
        captured = captured_of(made.buffers, request.capture)
    return Generation(made.tokens, made.logprobs, made.length, made.finite, captured)

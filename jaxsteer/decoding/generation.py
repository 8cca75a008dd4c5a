"""Batched generation with steering: `prefill`, `decode_step`, and the loop around them.

    batch = left_pad([encode(tokenizer, text).ids for text in texts])
    out = generate(model, batch, max_new_tokens=100, steering=add(v, layer=10, coeff=8.0))

Everything a row can differ in is data in `Request`. What can be swapped is a function:

    sampler   (logits [B, V], key [B], Sampling) -> token [B]; it sees all rows at once
    step      (model, state, request, *, sampler) -> state
    loop      (cond, body, state) -> state, with the meaning of `jax.lax.while_loop`

A step of your own calls `forward` as it likes and ends with `append`, which keeps every field of
the state but `cache` and `extra`; what it wants to remember goes into `extra`. Define it once:
another function, be it the same lambda made anew, is another program to compile.
"""

import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from jaxsteer.decoding.kept import (
    Captured,
    Kept,
    capture_prompt,
    capture_step,
    captured_of,
    keep,
    keep_prompt,
    nothing_kept,
    of_stream,
    prompt_tokens,
    row_bytes_kept,
)
from jaxsteer.decoding.memory import check_room_for_kept
from jaxsteer.decoding.request import Asked, Request, as_request
from jaxsteer.decoding.samplers import Sampler, choose_sampler, keys
from jaxsteer.decoding.shared_prompts import repeat_prompts, shared_or_repeated
from jaxsteer.decoding.stops import FOUND, START, StopStrings
from jaxsteer.decoding.thinking import still_thinking, thinking_in
from jaxsteer.llama import (
    BLOCK_TOKENS,
    KVCache,
    Model,
    TokenBatch,
    TokenRows,
    cached_by_head,
    forward,
    lengthen,
    rows_behind,
    run_prompts,
    share_prompts,
    spread_rows,
)
from jaxsteer.runtime import hosts

_LOGITS = 64  # so many tell zeros from logits

_ROOM = 512  # new tokens by which a cache grows at least
_MOST_ROOMS = 4

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
    done: jax.Array  # bool [B]: the row has ended; its later tokens are not kept
    finite: jax.Array  # bool [B]: False if it ended because a log-probability was not finite
    thinking: jax.Array  # bool [B]: the newest token lies inside <think>…</think>
    stop_state: jax.Array  # int32 [B]: how much of a stop string the row ends with
    step: jax.Array  # int32 scalar: steps made; `length` has each row's own count
    cache: KVCache
    extra: Any = None  # a pytree of a custom step's own; see `run`
    kept: Kept | None = None  # activations, if the request asks for some

    @property
    def settled(self) -> jax.Array:
        """Whether each row, bool `[B]`, has ended and had its last token read, if that is kept."""
        return self.done if self.kept is None else self.done & (self.kept.read >= self.length)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Outcome:
    """What is read of a `DecodeState` at the end.

    The cache stays inside the program: handed out, it would be copied once more on a TPU, into the
    order that results have.
    """

    tokens: jax.Array
    logprobs: jax.Array
    length: jax.Array
    finite: jax.Array
    kept: Kept | None


def outcome(state: DecodeState) -> Outcome:
    """What is read of a state at the end."""
    return Outcome(state.tokens, state.logprobs, state.length, state.finite, state.kept)


@dataclass(frozen=True)
class Generation:
    """What was generated, on the host."""

    tokens: np.ndarray  # int32 [B, G]
    logprobs: np.ndarray  # float32 [B, G]
    length: np.ndarray  # int32 [B]
    # bool [B]: False in a row that ended because its log-probabilities were not finite: what was
    # added to the stream is too large for its dtype, for example. Its tokens are those before.
    finite: np.ndarray | None = None
    captured: Captured | None = None  # if `capture` asked for it

    def rows(self, *, drop: Sequence[int] = ()) -> list[list[int]]:
        """The generated token ids of each row, without its stop token if `drop` names it."""
        return [
            [int(t) for t in row[:n] if t not in drop]
            for row, n in zip(self.tokens, self.length, strict=True)
        ]

    def texts(
        self,
        pieces: Sequence[bytes],
        *,
        drop: Sequence[int] = (),
        stop_strings: StopStrings | None = None,
    ) -> list[str | None]:
        """The text of each row up to its stop string, with `pieces` from `token_bytes`.

        A character that was cut short is shown as U+FFFD. An id that stands for no token of the
        tokenizer (a model's vocabulary may be larger) writes nothing; `wordless` counts those. A
        row that is not `finite` has no text: None.
        """
        written = dict(enumerate(pieces))
        texts = [b"".join(written.get(t, b"") for t in row) for row in self.rows(drop=drop)]
        if stop_strings is not None:
            texts = [stop_strings.cut(text) for text in texts]
        return [
            text.decode(errors="replace") if self.finite is None or self.finite[row] else None
            for row, text in enumerate(texts)
        ]

    def wordless(self, pieces: Sequence[bytes]) -> list[int]:
        """How many ids of each row stand for no token of the tokenizer, which never spells them."""
        known = {t for t, piece in enumerate(pieces) if piece}
        return [sum(t not in known for t in row) for row in self.rows()]


def prefill(
    model: Model,
    batch: TokenBatch,
    request: Request,
    *,
    sampler: Sampler,
    max_new_tokens: int | None = None,
    block_tokens: int = BLOCK_TOKENS,
    capacity: int | None = None,
) -> DecodeState:
    """Run the prompts and choose each row's first token; pure, to be called inside `jax.jit`.

    The state has room for `max_new_tokens` tokens, the request's if not given. The cache is made
    here, for T more of them or for `capacity`: inside one program with the loop it is updated in
    place, where a donated one would be copied. Prompts run in blocks of rows of at most
    `block_tokens` tokens, so that their temporaries stay small.

    A request of R rows a prompt runs each prompt once: see `begin_shared`.
    """
    B, T = batch.tokens.shape
    G = request.max_new_tokens if max_new_tokens is None else max_new_tokens
    if request.max_tokens.shape[0] != B:
        room = None if capacity is None else capacity - T
        state = begin_shared(
            model, batch, request, max_new_tokens=G, room=room, block_tokens=block_tokens
        )
        return decode_step(model, state, request, sampler=sampler)
    thinking = thinking_in(batch.tokens, batch.mask, request.think_tokens)
    facts, keeping = request.row_facts(thinking), request.keeping
    kept = None if keeping is None else nothing_kept(keeping, model, rows=B)
    chosen = prompt_tokens(keeping, batch.mask, facts) if keeping and keeping.prompt_slots else None
    out = run_prompts(
        model,
        batch,
        capacity=T + G if capacity is None else capacity,
        steering=request.steering,
        capture=capture_prompt(keeping, chosen) if keeping and chosen else None,
        block_tokens=block_tokens,
        **facts,
    )
    if keeping and kept and chosen:
        kept = keep_prompt(kept, keeping, chosen, out.captured)
    assert out.cache is not None
    first = batch.tokens[:, -1], thinking[:, -1]
    state = new_state(*first, request, out.cache, kept, max_new_tokens=G)
    return append(state, out.logits, request, sampler)


def begin_shared(
    model: Model,
    batch: TokenBatch,
    request: Request,
    *,
    max_new_tokens: int | None = None,
    room: int | None = None,
    block_tokens: int = BLOCK_TOKENS,
) -> DecodeState:
    """The state of R rows on each of P prompts, before a step chooses their first tokens; pure.

    A prompt is run once, but for its last token, and unsteered: scopes of the request's steering
    may begin at that token, not before (`reaches_prefix`), and nothing of a prompt is captured.
    Rows have room for `max_new_tokens` new tokens, the request's if not given, or `room`.
    """
    G = request.max_new_tokens if max_new_tokens is None else max_new_tokens
    B, keeping = request.max_tokens.shape[0], request.keeping
    capacity = 1 + (G if room is None else room)
    prefix = share_prompts(model, batch, block_tokens=block_tokens)
    cache = rows_behind(model, prefix, rows=B, capacity=capacity)
    every = repeat_prompts(batch, B)
    thinking = thinking_in(every.tokens, every.mask, request.think_tokens)
    kept = None if keeping is None else nothing_kept(keeping, model, rows=B)
    first = every.tokens[:, -1], thinking[:, -1]
    return new_state(*first, request, cache, kept, max_new_tokens=G)


def new_state(
    token: jax.Array,
    thinking: jax.Array,
    request: Request,
    cache: KVCache,
    kept: Kept | None,
    *,
    max_new_tokens: int,
) -> DecodeState:
    """The state of rows `[B]` that have generated nothing behind `token`."""
    B, G = token.shape[0], max_new_tokens
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
        kept=kept,
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
        capture=capture_step(request.keeping),
        **facts,
    )
    assert out.cache is not None
    kept = state.kept
    if kept is not None and request.keeping is not None:
        kept = keep(kept, request.keeping, out.captured, state.length, facts)
    state = replace(state, cache=out.cache, kept=kept)
    return append(state, out.logits[:, 0], request, sampler)


def append(
    state: DecodeState, logits: jax.Array, request: Request, sampler: Sampler
) -> DecodeState:
    """Choose a token from `logits` `[B, V]` and write it into the rows that are not done; pure.

    The last thing that a step does: it brings every field up to date but `cache`, `extra` and
    `kept`. A row whose token has no finite log-probability ends before it.
    """
    # A row's own count, not `step`: rows may have started at different times (`refill`).
    position = state.length
    token = sampler(logits, keys(request.sampling, position), request.sampling)
    if token.shape != position.shape or not jnp.issubdtype(token.dtype, jnp.integer):
        raise ValueError(
            f"sampler: gave {token.dtype} {list(token.shape)}, expected an integer for each of the "
            f"rows, {list(position.shape)}"
        )
    token = jnp.where(state.done, 0, token)
    chosen = jnp.take_along_axis(logits, token[:, None], axis=1)[:, 0]
    logprob = chosen - jax.nn.logsumexp(logits, axis=-1)
    # A stream too long for its square leaves the norm, and so the logits, as zeros.
    finite = state.done | (jnp.isfinite(logprob) & jnp.any(logits[:, :_LOGITS] != 0, axis=-1))
    going = finite & ~state.done
    # Not a scatter, for which TPUs gather the whole array on a mesh; as fast, being so small.
    here = jnp.arange(state.tokens.shape[-1]) == position[:, None]
    here &= going[:, None]  # [B, G]
    length = state.length + going
    stopped = jnp.any(token[:, None] == request.stop_tokens, axis=1)
    stop_state = state.stop_state
    if request.stop_table is not None:
        stop_state = request.stop_table[0, stop_state, token].astype(jnp.int32)
        stopped |= stop_state == FOUND
    return replace(
        state,
        token=token,
        tokens=jnp.where(here, token[:, None], state.tokens),
        logprobs=jnp.where(here, logprob[:, None], state.logprobs),
        length=length,
        done=state.done | ~finite | stopped | (length >= request.max_tokens),
        finite=state.finite & finite,
        thinking=still_thinking(state.thinking, state.token, token, request.think_tokens),
        stop_state=stop_state,
        step=state.step + 1,
    )


def unfinished(state: DecodeState) -> jax.Array:
    """Whether another step is needed: a row is not settled, and there is room."""
    room = state.tokens.shape[-1] + (state.kept is not None)
    return ~jnp.all(state.settled) & (state.step < room)


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

    There is room for `max_new_tokens` tokens, the request's if not given. `extra` is what
    `state.extra` is before the first step, for a `step` that carries something.
    """
    G = request.max_new_tokens if max_new_tokens is None else max_new_tokens
    rooms = growing_rooms(model, G, step)
    capacity = batch.tokens.shape[1] + rooms[0]
    state = prefill(model, batch, request, sampler=sampler, max_new_tokens=G, capacity=capacity)
    state = replace(state, extra=extra)
    return loop_in_rooms(loop, lambda s: step(model, s, request, sampler=sampler), state, rooms)


def growing_rooms(model: Model, new_tokens: int, step: Step) -> list[int]:
    """Room for new tokens that a cache has in one loop after another; each compiles the step anew.

    On CPUs, where a step attends over all slots, used or not. One loop for fewer than 1,024 tokens,
    and where a step of one's own may write more than a token.
    """
    grows = cached_by_head(model.attention) and step is decode_step
    count = min(_MOST_ROOMS, max(1, new_tokens // _ROOM)) if grows else 1
    return [-(-new_tokens * i // count) for i in range(1, count + 1)]


def loop_in_rooms(
    loop: Loop, body: Callable[[DecodeState], DecodeState], state: DecodeState, rooms: list[int]
) -> DecodeState:
    """`loop` until all rows are done, in a cache that grows from the first of `rooms` to the last.

    `state` has the first of them.
    """

    def going(state: DecodeState) -> jax.Array:
        return unfinished(state) & (state.cache.cursor < state.cache.capacity)

    for now, then in itertools.pairwise(rooms):
        state = loop(going, body, state)
        state = replace(state, cache=lengthen(state.cache, state.cache.capacity + then - now))
    return loop(unfinished, body, state)


def _run_to_end(model: Model, batch: TokenBatch, request: Request, **options: Any) -> Outcome:
    """`run`, and what is read of its state."""
    return outcome(run(model, batch, request, **options))


_run = jax.jit(_run_to_end, static_argnames=("sampler", "step", "loop"))


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

    With `samples=R` each prompt has R rows, one after another, and is run and kept once.

    Args:
        model: the weights.
        batch: left-padded prompts, or token ids row by row.
        request: what is asked of the batch, as `make_request` makes it.
        sampler: the cheapest that serves the request, if not given.
        step: what the loop repeats.
        loop: what drives it.
        **asked: in place of a request, the keywords of `make_request`, which describes them:
            `max_new_tokens`, `steering`, `stop_tokens`, `sampling_params`, …

    Raises:
        ValueError: for input that does not fit the model, before anything is compiled.
    """
    batch, request = as_request(model, batch, request, asked)
    batch = shared_or_repeated(model, batch, request)
    sampler = sampler or choose_sampler(request.sampling)
    check_room_for_kept(
        model,
        rows=len(request.max_tokens),
        prompts=len(batch.tokens),
        prompt_length=batch.tokens.shape[1],
        new_tokens=request.max_new_tokens,
        kept=row_bytes_kept(request.keeping, model),
    )
    batch, request = spread_rows((batch, request), model)
    made = hosts.gather(_run(model, batch, request, sampler=sampler, step=step, loop=loop))
    tell_not_finite(int(np.sum(~made.finite)), len(made.finite))
    captured = None
    if request.keeping is not None:
        check_read(made)
        captured = captured_of(made.kept, request.keeping)
    return Generation(made.tokens, made.logprobs, made.length, made.finite, captured)


def tell_not_finite(count: int, rows: int) -> None:
    """Warn of rows that ended because their log-probabilities were not finite, if there are any."""
    if count:
        warnings.warn(
            f"{count} of {rows} rows ended early, with finite=False: their log-probabilities were "
            "NaN or infinite (a coefficient too large for the model's dtype, perhaps)",
            stacklevel=3,
        )


def check_read(made: Outcome) -> None:
    """Raise `ValueError` if a step of one's own has not kept what the request asks for."""
    if made.kept is not None and np.any(made.kept.read < made.length):
        raise ValueError("step: got one that keeps no activations, expected a call of decode_step")


def _first(
    model: Model, batch: TokenBatch, request: Request, *, sampler: Sampler
) -> tuple[DecodeState, jax.Array, jax.Array]:
    """The state after the prompt, what a stream shows of it, and whether it goes on."""
    state = prefill(model, batch, request, sampler=sampler)
    return state, jnp.where(state.length > 0, state.token, -1), unfinished(state)


def _next(
    model: Model, state: DecodeState, request: Request, *, step: Step, sampler: Sampler
) -> tuple[DecodeState, jax.Array, jax.Array]:
    """The same after one step more; what was kept before is kept no longer."""
    if state.kept is not None and request.keeping is not None:
        kept = nothing_kept(request.keeping, model, rows=len(state.done))
        state = replace(state, kept=replace(kept, read=state.kept.read))
    after = step(model, state, request, sampler=sampler)
    return after, jnp.where(after.length > state.length, after.token, -1), unfinished(after)


_first_jit = jax.jit(_first, static_argnames="sampler")
_next_jit = jax.jit(_next, static_argnames=("step", "sampler"), donate_argnames="state")


def stream(
    model: Model,
    batch: TokenBatch | TokenRows,
    request: Request | None = None,
    *,
    sampler: Sampler | None = None,
    step: Step = decode_step,
    **asked: Unpack[Asked],
) -> Iterator[Any]:
    """Yield each step's tokens as they come, int32 `[B]`, -1 in rows that had ended.

    They are the tokens of `generate`, made by the same step; so are the arguments and what is
    raised. With `capture` each step yields a pair: its tokens, and the activations that it has
    read, `Captured`, of the prompts at first and then of the tokens of the step before; the last
    step has no tokens, all -1.
    """
    batch, request = as_request(model, batch, request, asked)
    batch = shared_or_repeated(model, batch, request)
    sampler = sampler or choose_sampler(request.sampling)
    first = request
    if request.keeping is not None:
        of_prompts, of_step = of_stream(request.keeping)
        first, request = replace(request, keeping=of_prompts), replace(request, keeping=of_step)
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
    state, tokens, more = _first_jit(model, batch, first, sampler=sampler)
    yield _shown(state, tokens, first)
    if state.kept is not None and request.keeping is not None:  # in the shape of a step's
        kept = nothing_kept(request.keeping, model, rows=len(state.done))
        state = replace(state, kept=replace(kept, read=state.kept.read))
    while more:
        state, tokens, more = _next_jit(model, state, request, step=step, sampler=sampler)
        yield _shown(state, tokens, request)
    finite = hosts.gather(state.finite)
    tell_not_finite(int(np.sum(~finite)), len(finite))


def _shown(state: DecodeState, tokens: jax.Array, request: Request) -> Any:
    """What a stream yields of a step."""
    if request.keeping is None:
        return hosts.gather(tokens)
    shown, kept = hosts.gather((tokens, state.kept))
    return shown, captured_of(kept, request.keeping)

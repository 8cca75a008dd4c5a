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

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from jaxsteer.decoding.request import Asked, Request, as_request
from jaxsteer.decoding.samplers import Sampler, choose_sampler, keys
from jaxsteer.decoding.stops import FOUND, START, StopStrings
from jaxsteer.decoding.thinking import still_thinking, thinking_in
from jaxsteer.llama import (
    BLOCK_TOKENS,
    KVCache,
    Model,
    TokenBatch,
    TokenRows,
    forward,
    run_prompts,
    spread_rows,
)
from jaxsteer.runtime import hosts

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
    thinking: jax.Array  # bool [B]: the newest token lies inside <think>…</think>
    stop_state: jax.Array  # int32 [B]: how much of a stop string the row ends with
    step: jax.Array  # int32 scalar: steps made; `length` has each row's own count
    cache: KVCache
    extra: Any = None  # a pytree of a custom step's own; see `run`


@dataclass(frozen=True)
class Generation:
    """What was generated, on the host."""

    tokens: np.ndarray  # int32 [B, G]
    logprobs: np.ndarray  # float32 [B, G]
    length: np.ndarray  # int32 [B]

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
    ) -> list[str]:
        """The text of each row up to its stop string, with `pieces` from `token_bytes`.

        A character that was cut short is shown as U+FFFD. An id that stands for no token of the
        tokenizer (a model's vocabulary may be larger) writes nothing; `wordless` counts those.
        """
        written = dict(enumerate(pieces))
        texts = [b"".join(written.get(t, b"") for t in row) for row in self.rows(drop=drop)]
        if stop_strings is not None:
            texts = [stop_strings.cut(text) for text in texts]
        return [text.decode(errors="replace") for text in texts]

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
    """
    B, T = batch.tokens.shape
    G = request.max_new_tokens if max_new_tokens is None else max_new_tokens
    thinking = thinking_in(batch.tokens, batch.mask, request.think_tokens)
    logits, cache = run_prompts(
        model,
        batch,
        capacity=T + G if capacity is None else capacity,
        steering=request.steering,
        block_tokens=block_tokens,
        **request.row_facts(thinking),
    )
    state = DecodeState(
        token=batch.tokens[:, -1],
        tokens=jnp.zeros((B, G), jnp.int32),
        logprobs=jnp.zeros((B, G), jnp.float32),
        length=jnp.zeros((B,), jnp.int32),
        done=request.max_tokens <= 0,
        thinking=thinking[:, -1],
        stop_state=jnp.full((B,), START, jnp.int32),
        step=jnp.zeros((), jnp.int32),
        cache=cache,
    )
    return append(state, logits, request, sampler)


def decode_step(
    model: Model, state: DecodeState, request: Request, *, sampler: Sampler
) -> DecodeState:
    """Run each row's newest token through the model and choose the next one; pure."""
    out = forward(
        model,
        state.token[:, None],
        cache=state.cache,
        steering=request.steering,
        **request.row_facts(state.thinking[:, None]),
    )
    assert out.cache is not None
    return append(replace(state, cache=out.cache), out.logits[:, 0], request, sampler)


def append(
    state: DecodeState, logits: jax.Array, request: Request, sampler: Sampler
) -> DecodeState:
    """Choose a token from `logits` `[B, V]` and write it into the rows that are not done; pure.

    The last thing that a step does: it brings every field up to date but `cache` and `extra`.
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
    logprob = jnp.where(state.done, 0.0, chosen - jax.nn.logsumexp(logits, axis=-1))
    # Not a scatter, for which TPUs gather the whole array on a mesh; as fast, being so small.
    here = jnp.arange(state.tokens.shape[-1]) == position[:, None]
    here &= ~state.done[:, None]  # [B, G]
    length = state.length + ~state.done
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
        done=state.done | stopped | (length >= request.max_tokens),
        thinking=still_thinking(state.thinking, state.token, token, request.think_tokens),
        stop_state=stop_state,
        step=state.step + 1,
    )


def unfinished(state: DecodeState) -> jax.Array:
    """Whether another step is needed: a row is not done, and there is room."""
    return ~jnp.all(state.done) & (state.step < state.tokens.shape[-1])


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
    state = prefill(model, batch, request, sampler=sampler, max_new_tokens=max_new_tokens)
    state = replace(state, extra=extra)
    return loop(unfinished, lambda s: step(model, s, request, sampler=sampler), state)


def _run_to_end(
    model: Model, batch: TokenBatch, request: Request, **options: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`run`, and what is read of its state.

    The cache stays inside the program: handed out, it would be copied once more on a TPU, into the
    order that results have.
    """
    state = run(model, batch, request, **options)
    return state.tokens, state.logprobs, state.length


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
    sampler = sampler or choose_sampler(request.sampling)
    batch, request = spread_rows((batch, request), model)
    found = _run(model, batch, request, sampler=sampler, step=step, loop=loop)
    tokens, logprobs, length = hosts.gather(found)
    return Generation(tokens, logprobs, length)


def _first(
    model: Model, batch: TokenBatch, request: Request, *, sampler: Sampler
) -> tuple[DecodeState, jax.Array, jax.Array]:
    """The state after the prompt, what a stream shows of it, and whether it goes on."""
    state = prefill(model, batch, request, sampler=sampler)
    return state, jnp.where(state.length > 0, state.token, -1), unfinished(state)


def _next(
    model: Model, state: DecodeState, request: Request, *, step: Step, sampler: Sampler
) -> tuple[DecodeState, jax.Array, jax.Array]:
    """The same after one step more."""
    after = step(model, state, request, sampler=sampler)
    return after, jnp.where(state.done, -1, after.token), unfinished(after)


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
) -> Iterator[np.ndarray]:
    """Yield each step's tokens as they come, int32 `[B]`, -1 in rows that had ended.

    They are the tokens of `generate`, made by the same step; so are the arguments and what is
    raised.
    """
    batch, request = as_request(model, batch, request, asked)
    sampler = sampler or choose_sampler(request.sampling)
    batch, request = spread_rows((batch, request), model)
    return _stream(model, batch, request, sampler=sampler, step=step)


def _stream(
    model: Model, batch: TokenBatch, request: Request, *, sampler: Sampler, step: Step
) -> Iterator[np.ndarray]:
    state, shown, more = _first_jit(model, batch, request, sampler=sampler)
    yield hosts.gather(shown)
    while more:
        state, shown, more = _next_jit(model, state, request, step=step, sampler=sampler)
        yield hosts.gather(shown)

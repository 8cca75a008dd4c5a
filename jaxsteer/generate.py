"""Batched generation with steering: `prefill`, `decode_step`, and the loop around them.

    batch = left_pad([tokenizer.encode(text) for text in texts])
    out = generate(model, batch, max_new_tokens=100, steering=add(v, layer=10, coeff=8.0))

Everything a row can differ in is data in `Request`. What can be swapped is a function:

    sampler   (logits [B, V], key [B], Sampling) -> token [B]
    step      (model, state, request, *, sampler) -> state
    loop      (cond, body, state) -> state, with the meaning of `jax.lax.while_loop`
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxsteer.cache import KVCache
from jaxsteer.model import Model, forward
from jaxsteer.prompts import BLOCK_TOKENS, run_prompts
from jaxsteer.sampling import Sampler, Sampling, choose_sampler, keys, sampling
from jaxsteer.steering import Steering, as_tuple, check_steering
from jaxsteer.tokens import TokenBatch, check_batch

Step = Callable[..., "DecodeState"]
Loop = Callable[..., "DecodeState"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Request:
    """What each row asks for; all of it traced data."""

    steering: tuple[Steering, ...]  # applied in order
    sampling: Sampling
    stop_tokens: jax.Array  # int32 [B, E]; -1 stands for none
    max_tokens: jax.Array  # int32 [B]: new tokens after which the row ends
    prompt_length: jax.Array  # int32 [B]: real tokens of the prompt


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DecodeState:
    """Where a batch stands between two steps of the loop."""

    token: jax.Array  # int32 [B]: the newest token, not yet run through the model
    tokens: jax.Array  # int32 [B, G]: generated so far; zeros after a row's end
    logprobs: jax.Array  # float32 [B, G]: of those tokens, under the steered model at temperature 1
    length: jax.Array  # int32 [B]: generated tokens, a stop token included
    done: jax.Array  # bool [B]: the row has ended; its later tokens are not kept
    step: jax.Array  # int32 scalar: steps made; `length` has each row's own count
    cache: KVCache


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


def prefill(
    model: Model,
    batch: TokenBatch,
    request: Request,
    *,
    max_new_tokens: int,
    sampler: Sampler,
    block_tokens: int = BLOCK_TOKENS,
) -> DecodeState:
    """Run the prompts and choose each row's first token; pure, to be called inside `jax.jit`.

    The cache is made here, with room for `T + max_new_tokens` tokens: inside one program with
    the loop it is updated in place, where a donated one would be copied. Prompts run in blocks of
    rows of at most `block_tokens` tokens, so that their temporaries stay small.
    """
    B, T = batch.tokens.shape
    G = max_new_tokens
    logits, cache = run_prompts(
        model,
        batch,
        capacity=T + G,
        steering=request.steering,
        prompt_length=request.prompt_length,
        block_tokens=block_tokens,
    )
    state = DecodeState(
        token=jnp.zeros((B,), jnp.int32),
        tokens=jnp.zeros((B, G), jnp.int32),
        logprobs=jnp.zeros((B, G), jnp.float32),
        length=jnp.zeros((B,), jnp.int32),
        done=request.max_tokens <= 0,
        step=jnp.zeros((), jnp.int32),
        cache=cache,
    )
    return _append(state, logits, request, sampler)


def decode_step(
    model: Model, state: DecodeState, request: Request, *, sampler: Sampler
) -> DecodeState:
    """Run each row's newest token through the model and choose the next one; pure."""
    out = forward(
        model,
        state.token[:, None],
        cache=state.cache,
        steering=request.steering,
        prompt_length=request.prompt_length,
    )
    assert out.cache is not None
    return _append(replace(state, cache=out.cache), out.logits[:, 0], request, sampler)


def _append(
    state: DecodeState, logits: jax.Array, request: Request, sampler: Sampler
) -> DecodeState:
    """Choose a token from `logits` `[B, V]` and write it into the rows that are not done."""
    # A row's own count, not `step`: rows may have started at different times (`refill`).
    position = state.length
    token = sampler(logits, keys(request.sampling, position), request.sampling)
    token = jnp.where(state.done, 0, token)
    chosen = jnp.take_along_axis(logits, token[:, None], axis=1)[:, 0]
    logprob = jnp.where(state.done, 0.0, chosen - jax.nn.logsumexp(logits, axis=-1))
    rows = jnp.arange(token.shape[0])
    column = jnp.where(state.done, state.tokens.shape[-1], position)  # past the end: dropped
    length = state.length + ~state.done
    stopped = jnp.any(token[:, None] == request.stop_tokens, axis=1)
    return replace(
        state,
        token=token,
        tokens=state.tokens.at[rows, column].set(token, mode="drop", unique_indices=True),
        logprobs=state.logprobs.at[rows, column].set(logprob, mode="drop", unique_indices=True),
        length=length,
        done=state.done | stopped | (length >= request.max_tokens),
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
    max_new_tokens: int,
    sampler: Sampler,
    step: Step = decode_step,
    loop: Loop = jax.lax.while_loop,
) -> DecodeState:
    """Prefill and decode to the end; pure, for use inside your own `jax.jit`."""
    state = prefill(model, batch, request, max_new_tokens=max_new_tokens, sampler=sampler)
    return loop(unfinished, lambda s: step(model, s, request, sampler=sampler), state)


_run = jax.jit(run, static_argnames=("max_new_tokens", "sampler", "step", "loop"))
_prefill = jax.jit(prefill, static_argnames=("max_new_tokens", "sampler"))


def make_request(
    model: Model,
    batch: TokenBatch,
    *,
    max_new_tokens: int,
    steering: Steering | Sequence[Steering] | None = None,
    sampling_params: Sampling | None = None,
    stop_tokens: Sequence[int] = (),
) -> Request:
    """Check everything on the host and bundle it for the compiled functions.

    Raises:
        ValueError: naming the field, what was found and what was expected.
    """
    rows = batch.tokens.shape[0]
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens: got {max_new_tokens}, expected at least 1")
    check_batch(batch, model.config, new_tokens=max_new_tokens)
    for one in as_tuple(steering):
        check_steering(one, model.config, rows=rows)
    for token in stop_tokens:
        if not 0 <= token < model.config.vocab_size:
            raise ValueError(
                f"stop_tokens: got id {token}, expected 0 to {model.config.vocab_size - 1}"
            )
    params = sampling(rows) if sampling_params is None else sampling_params
    if params.seed.shape != (rows,):
        raise ValueError(f"sampling: got {params.seed.shape[0]} rows, expected the batch's {rows}")
    return Request(
        steering=as_tuple(steering),
        sampling=params,
        stop_tokens=jnp.tile(jnp.array([*stop_tokens, -1], jnp.int32), (rows, 1)),
        max_tokens=jnp.full((rows,), max_new_tokens, jnp.int32),
        prompt_length=batch.lengths,
    )


def generate(
    model: Model,
    batch: TokenBatch,
    *,
    max_new_tokens: int,
    steering: Steering | Sequence[Steering] | None = None,
    sampling_params: Sampling | None = None,
    stop_tokens: Sequence[int] = (),
    sampler: Sampler | None = None,
    step: Step = decode_step,
    loop: Loop = jax.lax.while_loop,
) -> Generation:
    """Generate up to `max_new_tokens` for every row of `batch`, in one compiled program.

    Args:
        model: the weights.
        batch: left-padded prompts.
        max_new_tokens: tokens to make room for; another value compiles another program.
        steering: one intervention or several, applied in order; other values of them never
            recompile.
        sampling_params: per-row sampling; greedy if not given.
        stop_tokens: a row ends after any of these (Llama-3 has several).
        sampler: the cheapest that serves `sampling_params`, if not given.
        step: what the loop repeats.
        loop: what drives it.

    Raises:
        ValueError: for input that does not fit the model, before anything is compiled.
    """
    request = make_request(
        model,
        batch,
        max_new_tokens=max_new_tokens,
        steering=steering,
        sampling_params=sampling_params,
        stop_tokens=stop_tokens,
    )
    state = _run(
        model,
        batch,
        request,
        max_new_tokens=max_new_tokens,
        sampler=sampler or choose_sampler(request.sampling),
        step=step,
        loop=loop,
    )
    tokens, logprobs, length = jax.device_get((state.tokens, state.logprobs, state.length))
    return Generation(tokens, logprobs, length)


def stream(
    model: Model,
    batch: TokenBatch,
    request: Request,
    *,
    max_new_tokens: int,
    sampler: Sampler | None = None,
    step: Step = decode_step,
) -> Iterator[np.ndarray]:
    """Yield each step's tokens, int32 `[B]`, as they come; the same tokens as `generate`."""
    sampler = sampler or choose_sampler(request.sampling)
    jitted = jax.jit(step, static_argnames="sampler", donate_argnums=1)
    state = _prefill(model, batch, request, max_new_tokens=max_new_tokens, sampler=sampler)
    yield np.asarray(state.token)
    while unfinished(state):
        state = jitted(model, state, request, sampler=sampler)
        yield np.asarray(state.token)

"""What is asked of a batch, checked on the host before anything is compiled.

`generate`, `stream`, `sweep`, `sweep_to_file` and `generate_queue` take a `Request` or the keywords
of `make_request`; `as_request` turns either into a `Request`.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxsteer.config import LlamaConfig
from jaxsteer.decoding.captured import Keeping, plan_keeping
from jaxsteer.decoding.samplers import Sampling, check_sampling, sampling
from jaxsteer.decoding.stops import StopStrings
from jaxsteer.llama import Model, TokenBatch, TokenRows, as_batch, bucket, check_batch
from jaxsteer.runtime import hosts
from jaxsteer.steering import Capture, RowFacts, Scope, Steering, as_tuple, check_steering

# Lists of stop tokens are padded to a multiple of it, so that another length rarely recompiles.
_STOP_TOKENS = 8

StopTokens = Sequence[int] | Sequence[Sequence[int]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Request:
    """What each row asks for: traced data, but for `max_new_tokens`. See `make_request`."""

    steering: tuple[Steering, ...]  # applied in order
    sampling: Sampling
    stop_tokens: jax.Array  # int32 [B, E]; -1 stands for none
    max_tokens: jax.Array  # int32 [B]: new tokens after which the row ends
    prompt_length: jax.Array  # int32 [B]: real tokens of the prompt
    think_tokens: jax.Array  # int32 [B, 2]: ids of <think> and </think>; -1 stands for none
    max_new_tokens: int = field(metadata={"static": True})  # G, tokens to make room for in each row
    # uint8 or uint16 [1, S, V], the same for all rows: see `stop_strings`.
    stop_table: jax.Array | None = None
    keeping: Keeping | None = None  # activations that are kept, the same of all rows: see `kept`

    def row_facts(self, thinking: jax.Array) -> RowFacts:
        """What `forward` has to know of each row; `thinking` `[B, T]` is of its tokens."""
        return {
            "prompt_length": self.prompt_length,
            "thinking": thinking,
            "row": self.sampling.row,
        }


class Asked(TypedDict, total=False):
    """The keywords of `make_request`, which describes them, where they are passed on."""

    max_new_tokens: int
    samples: int
    max_tokens: ArrayLike | None
    steering: Steering | Sequence[Steering] | None
    sampling_params: Sampling | None
    stop_tokens: StopTokens
    stop_strings: StopStrings | None
    think_tokens: tuple[int, int] | None
    capture: Capture | None


def map_rows(change: Callable[..., Any], request: Request, *others: Request) -> Request:
    """`change` applied to the arrays of the requests that have a row axis; the rest is shared."""
    bare = [replace(one, stop_table=None, keeping=None) for one in (request, *others)]
    shared = {"stop_table": request.stop_table, "keeping": request.keeping}
    return replace(jax.tree.map(change, *bare), **shared)


def as_request(
    model: Model, batch: TokenBatch | TokenRows, request: Request | None, asked: Asked
) -> tuple[TokenBatch, Request]:
    """The batch and the request of a call: the request given, or one made of its keywords.

    Raises:
        ValueError: for a request and keywords that say something else, a request that was made for
            another batch or model, and for what `make_request` refuses.
    """
    if request is None:
        batch = as_batch(batch)
        return batch, make_request(model, batch, **asked)
    if not isinstance(request, Request):
        raise ValueError(
            f"request: got {type(request).__name__}, expected what `make_request` makes, or its "
            "keywords"
        )
    room = request.max_new_tokens
    if others := sorted(asked.keys() - {"max_new_tokens"}):
        raise ValueError(f"request: got one and {', '.join(others)}, expected one or the other")
    if (said := asked.get("max_new_tokens", room)) != room:
        raise ValueError(f"max_new_tokens: got {said}, expected the request's {room}, or nothing")
    batch = as_batch(batch)
    check_request(request, model, batch)
    return batch, request


def check_request(request: Request, model: Model, batch: TokenBatch) -> None:
    """Check that a request was made for this model and batch.

    Raises:
        ValueError: naming what does not fit.
    """
    prompts, rows = batch.tokens.shape[0], request.max_tokens.shape[0]
    if rows % prompts:
        raise ValueError(f"request: got {rows} rows, expected the batch's {prompts}")
    most, lengths, expected = hosts.gather(
        (request.max_tokens, request.prompt_length, batch.lengths)
    )
    expected = np.repeat(expected, rows // prompts)
    if np.any(lengths != expected):
        worst = int(np.argmax(lengths != expected))
        raise ValueError(
            f"request: got a prompt of {lengths[worst]} tokens in row {worst}, expected the "
            f"batch's {expected[worst]}: make a request for each batch"
        )
    _max_tokens(most, rows=rows, max_new_tokens=request.max_new_tokens)
    check_batch(batch, model.config, new_tokens=most.reshape(prompts, -1).max(axis=1))
    for one in hosts.gather(request.steering):
        check_steering(one, model.config, rows=rows)


def make_request(
    model: Model,
    batch: TokenBatch | TokenRows,
    *,
    max_new_tokens: int,
    samples: int = 1,
    max_tokens: ArrayLike | None = None,
    steering: Steering | Sequence[Steering] | None = None,
    sampling_params: Sampling | None = None,
    stop_tokens: StopTokens = (),
    stop_strings: StopStrings | None = None,
    think_tokens: tuple[int, int] | None = None,
    capture: Capture | None = None,
) -> Request:
    """Check everything on the host and bundle it for the compiled functions.

    Other values of anything but `max_new_tokens` do not recompile; the first use of a kind of
    operation or site does, and the first temperature above 0.

    Args:
        model: the weights.
        batch: left-padded prompts, or token ids row by row, which are padded.
        max_new_tokens: tokens to make room for in every row.
        samples: rows of each prompt, one after another. They share its keys and values, unless
            steering reaches into it before its last token. What is given a row is given each of
            them.
        max_tokens: tokens after which a row ends, one number or one a row, at most
            `max_new_tokens`, which it is if not given.
        steering: one intervention or several, applied in order.
        sampling_params: per-row sampling; greedy if not given.
        stop_tokens: a row ends after any of these ids (Llama-3 has several): one list for all
            rows, or one a row.
        stop_strings: a row ends with the token in which one of these is complete; see
            `stop_strings.stop_strings`.
        think_tokens: ids of `<think>` and `</think>`, needed by scopes that are confined to what
            lies between them; see `thinking.think_tokens`.
        capture: activations to keep of the generated tokens, and of the prompt; see `kept`.

    Raises:
        ValueError: naming the field, what was found and what was expected.
    """
    _check_types(model, sampling_params, stop_strings)
    config, prompts = model.config, as_batch(batch)
    if hosts.several():  # what is spread over them cannot be looked at
        prompts, steering, sampling_params = hosts.gather((prompts, steering, sampling_params))
    if not isinstance(max_new_tokens, int | np.integer) or max_new_tokens < 1:
        raise ValueError(f"max_new_tokens: got {max_new_tokens!r}, expected at least 1")
    if max_new_tokens > config.max_positions:
        raise ValueError(
            f"max_new_tokens: got {max_new_tokens}, expected at most "
            f"max_positions={config.max_positions}"
        )
    if not isinstance(samples, int | np.integer) or samples < 1:
        raise ValueError(f"samples: got {samples!r}, expected at least 1")
    rows = prompts.tokens.shape[0] * int(samples)
    most = _max_tokens(max_tokens, rows=rows, max_new_tokens=max_new_tokens)
    check_batch(prompts, config, new_tokens=most.reshape(-1, samples).max(axis=1))
    steerings = as_tuple(steering)
    for one in steerings:
        check_steering(one, config, rows=rows)
    params = sampling(rows) if sampling_params is None else sampling_params
    check_sampling(params, rows=rows)
    if stop_strings is not None and stop_strings.table.shape[-1] != config.vocab_size:
        raise ValueError(
            f"stop_strings: got a table for {stop_strings.table.shape[-1]} tokens, "
            f"expected vocab_size={config.vocab_size}"
        )
    thinks = np.array(_think_tokens(think_tokens, config), np.int32)
    keeping = (
        None
        if capture is None
        else plan_keeping(capture, model, prompts, most.reshape(-1, samples).max(axis=1))
    )
    scopes = [one.scope for one in steerings]
    check_think_tokens(thinks, scopes if keeping is None else [*scopes, keeping.scope])
    return Request(
        # In every row, so that one coefficient and one a row run in the same program.
        steering=tuple(_each_row(one, rows) for one in steerings),
        sampling=params,
        stop_tokens=jnp.asarray(_stop_tokens(stop_tokens, rows=rows, config=config)),
        max_tokens=jnp.asarray(most),
        prompt_length=jnp.repeat(prompts.lengths, samples),
        think_tokens=jnp.asarray(np.tile(thinks, (rows, 1))),
        max_new_tokens=int(max_new_tokens),
        stop_table=None if stop_strings is None else stop_strings.table,
        keeping=keeping,
    )


def check_think_tokens(think_tokens: ArrayLike, scopes: Sequence[Scope]) -> None:
    """Raise `ValueError` if a scope asks for ids of <think> and </think>, and there are none."""
    if np.min(think_tokens) < 0 and any(scope.needs_thinking for scope in scopes):
        raise ValueError(
            "think_tokens: got None, expected the ids of <think> and </think> (see "
            "jaxsteer.think_tokens), because a scope is confined to what lies between them"
        )


def _think_tokens(think_tokens: tuple[int, int] | None, config: LlamaConfig) -> tuple[int, int]:
    """The pair of ids, checked; (-1, -1) for none."""
    if think_tokens is None:
        return -1, -1
    if len(think_tokens) != 2 or think_tokens[0] == think_tokens[1]:
        raise ValueError(f"think_tokens: got {think_tokens}, expected two different ids")
    for token in think_tokens:
        _check_id("think_tokens", token, config)
    return think_tokens


def _check_types(model: Any, sampling_params: Any, stop_strings: Any) -> None:
    """Raise `ValueError` for what would only be missed deep inside."""
    expected = (
        ("model", model, Model, "a Model, the first of what `load` gives"),
        ("sampling_params", sampling_params, Sampling | None, "what `sampling` makes"),
        ("stop_strings", stop_strings, StopStrings | None, "what `stop_strings` makes of texts"),
    )
    for name, value, kind, wanted in expected:
        if not isinstance(value, kind):
            raise ValueError(f"{name}: got {type(value).__name__}, expected {wanted}")


def _each_row(steering: Steering, rows: int) -> Steering:
    """The same steering with a row axis of `rows` in all of its arrays."""

    def widen(x: jax.Array) -> jax.Array:
        if x.shape[0] == rows:
            return x
        # By numpy, which compiles nothing.
        return jnp.asarray(np.broadcast_to(np.asarray(x), (rows, *x.shape[1:])))

    return jax.tree.map(widen, steering)


def _max_tokens(given: ArrayLike | None, *, rows: int, max_new_tokens: int) -> np.ndarray:
    """Each row's maximum, int32 `[B]`."""
    most = np.asarray(max_new_tokens if given is None else given)
    if not np.issubdtype(most.dtype, np.integer) or most.shape not in ((), (rows,)):
        raise ValueError(
            f"max_tokens: got {most.dtype} {list(most.shape)}, expected an integer or [{rows}]"
        )
    wrong = most[(most < 0) | (most > max_new_tokens)]
    if wrong.size:
        raise ValueError(
            f"max_tokens: got {wrong.flat[0]}, expected 0 to max_new_tokens={max_new_tokens}"
        )
    return np.broadcast_to(most.astype(np.int32), (rows,))


def _stop_tokens(given: Collection[Any], *, rows: int, config: LlamaConfig) -> np.ndarray:
    """Each row's stop tokens, int32 `[B, E]`, filled up with -1."""
    if hasattr(given, "tolist"):
        given = given.tolist()
    if not isinstance(given, Collection) or isinstance(given, str):
        raise ValueError(f"stop_tokens: got {given!r}, expected a list of ids, [] for none")
    lists = [list(x) for x in given if np.ndim(x)]
    if lists and not len(lists) == len(given) == rows:
        raise ValueError(
            f"stop_tokens: got {len(given)} entries, {len(lists)} of them lists; expected ids, or "
            f"a list of them for each of the {rows} rows"
        )
    each = lists or [list(given)] * rows
    for token in (token for row in each for token in row):
        _check_id("stop_tokens", token, config)
    width = bucket(max(1, *map(len, each)), step=_STOP_TOKENS)
    return np.array([row + [-1] * (width - len(row)) for row in each], np.int32)


def _check_id(name: str, token: int, config: LlamaConfig) -> None:
    if not isinstance(token, int | np.integer) or not 0 <= token < config.vocab_size:
        raise ValueError(f"{name}: got id {token!r}, expected 0 to {config.vocab_size - 1}")

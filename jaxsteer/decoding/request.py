"""What is asked of a batch, checked on the host before anything is compiled.

`generate`, `stream`, `sweep`, `sweep_to_file` and `generate_queue` take either a `Request` or the
keywords of `make_request`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict

import jax
import numpy as np
from numpy.typing import ArrayLike

from jaxsteer.decoding.captured import CapturePlan, plan_capture
from jaxsteer.decoding.request_checks import (
    check_think_tokens,
    check_types,
    max_tokens_array,
    stop_tokens_array,
    think_pair,
    with_all_rows,
)
from jaxsteer.decoding.samplers import Sampling, check_sampling, sampling
from jaxsteer.decoding.stops import StopStrings
from jaxsteer.llama import Model, TokenBatch, TokenRows, as_batch, check_batch
from jaxsteer.runtime import hosts
from jaxsteer.steering import Capture, RowFacts, Steering, as_tuple, check_steering

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
    max_new_tokens: int = field(metadata={"static": True})  # G: the most tokens of any row
    # uint8 or uint16 [1, S, V], the same for all rows: see `stop_strings`.
    stop_table: jax.Array | None = None
    capture: CapturePlan | None = None  # activations to capture, the same for all rows

    def row_facts(self, thinking: jax.Array) -> RowFacts:
        """What `forward` needs of each row; `thinking` `[B, T]` is that of the pass's tokens."""
        return {
            "prompt_length": self.prompt_length,
            "thinking": thinking,
            "row": self.sampling.row,
        }


class Asked(TypedDict, total=False):
    """The keywords of `make_request`, for functions that pass them on."""

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
    """`change` applied to all arrays that have a row axis; the rest is that of `request`."""
    bare = [replace(one, stop_table=None, capture=None) for one in (request, *others)]
    shared = {"stop_table": request.stop_table, "capture": request.capture}
    return replace(jax.tree.map(change, *bare), **shared)


def as_request(
    model: Model, batch: TokenBatch | TokenRows, request: Request | None, asked: Asked
) -> tuple[TokenBatch, Request]:
    """The batch and the request of a call: the request given, or one made of its keywords.

    Raises:
        ValueError: for a request together with other keywords than an equal `max_new_tokens`, a
            request for another batch or model, and for what `make_request` refuses.
    """
    if request is None:
        batch = as_batch(batch)
        return batch, make_request(model, batch, **asked)
    if not isinstance(request, Request):
        raise ValueError(
            f"request: got {type(request).__name__}, expected what `make_request` makes, or its "
            "keywords"
        )
    most = request.max_new_tokens
    if others := sorted(asked.keys() - {"max_new_tokens"}):
        raise ValueError(f"request: got one and {', '.join(others)}, expected one or the other")
    if (said := asked.get("max_new_tokens", most)) != most:
        raise ValueError(f"max_new_tokens: got {said}, expected the request's {most}, or nothing")
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
    max_tokens_array(most, rows=rows, max_new_tokens=request.max_new_tokens)
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

    What recompiles: a different `max_new_tokens`, other shapes, other sites or layers of a capture,
    and the first use of an operation, of a site, of a temperature above 0, and of top-k, top-p or
    min-p. Other values do not.

    Args:
        model: the weights.
        batch: left-padded prompts, or token ids row by row, which are padded.
        max_new_tokens: the most tokens that any row may generate.
        samples: rows of each prompt, one after another. They share its keys and values, unless
            steering reaches into the prompt before its last token. Arguments with one entry per row
            have one for each sample.
        max_tokens: tokens after which a row ends, one number or one per row; by default, and at
            most, `max_new_tokens`.
        steering: one intervention or several, applied in order.
        sampling_params: per-row sampling; greedy by default.
        stop_tokens: a row ends after any of these ids (Llama-3 has several): one list for all
            rows, or one per row.
        stop_strings: a row ends with the token that completes one of these; made by
            `jaxsteer.stop_strings`.
        think_tokens: ids of `<think>` and `</think>`, needed by scopes that are confined to what
            lies between them; see `jaxsteer.think_tokens`.
        capture: activations of generated tokens and of prompts to return; see `captured`.

    Raises:
        ValueError: naming the argument, what it is and what is expected.
    """
    check_types(model, sampling_params, stop_strings)
    config, prompts = model.config, as_batch(batch)
    if hosts.several():  # a host cannot read arrays that are spread over several
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
    most = max_tokens_array(max_tokens, rows=rows, max_new_tokens=max_new_tokens)
    check_batch(prompts, config, new_tokens=most.reshape(-1, samples).max(axis=1))
    lengths = np.asarray(prompts.mask).sum(axis=1, dtype=np.int32)
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
    thinks = np.array(think_pair(think_tokens, config), np.int32)
    scopes, plan = [one.scope for one in steerings], None
    if capture is not None:
        plan = plan_capture(capture, model, prompts, most.reshape(-1, samples).max(axis=1))
        scopes.append(plan.scope)
    check_think_tokens(thinks, scopes)
    return Request(
        # With all rows, so that one coefficient and one per row run in the same program.
        steering=tuple(with_all_rows(one, rows) for one in steerings),
        sampling=params,
        stop_tokens=jax.device_put(stop_tokens_array(stop_tokens, rows=rows, config=config)),
        max_tokens=jax.device_put(most),
        prompt_length=jax.device_put(np.repeat(lengths, samples)),
        think_tokens=jax.device_put(np.tile(thinks, (rows, 1))),
        max_new_tokens=int(max_new_tokens),
        stop_table=None if stop_strings is None else stop_strings.table,
        capture=plan,
    )

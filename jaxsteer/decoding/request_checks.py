"""The arguments of a request, checked on the host and made into arrays with a row axis."""

from collections.abc import Collection, Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from jaxsteer.config import LlamaConfig
from jaxsteer.decoding.samplers import Sampling
from jaxsteer.decoding.stops import StopStrings
from jaxsteer.llama import Model, bucket
from jaxsteer.steering import Scope, Steering

# Lists of stop tokens are padded to a multiple of this, so that another length seldom recompiles.
_STOP_TOKENS = 8


def check_think_tokens(think_tokens: ArrayLike, scopes: Sequence[Scope]) -> None:
    """Raise `ValueError` if a scope needs the ids of <think> and </think>, and there are none."""
    if np.min(think_tokens) < 0 and any(scope.needs_thinking for scope in scopes):
        raise ValueError(
            "think_tokens: got None, expected the ids of <think> and </think> (see "
            "jaxsteer.think_tokens), because a scope is confined to what lies between them"
        )


def think_pair(think_tokens: tuple[int, int] | None, config: LlamaConfig) -> tuple[int, int]:
    """The ids of <think> and </think>, checked; (-1, -1) for none."""
    if think_tokens is None:
        return -1, -1
    if len(think_tokens) != 2 or think_tokens[0] == think_tokens[1]:
        raise ValueError(f"think_tokens: got {think_tokens}, expected two different ids")
    for token in think_tokens:
        _check_id("think_tokens", token, config)
    return think_tokens


def check_types(model: Any, sampling_params: Any, stop_strings: Any) -> None:
    """Raise `ValueError` for arguments of a wrong type, which would fail late."""
    expected = (
        ("model", model, Model, "a Model, the first of what `load` gives"),
        ("sampling_params", sampling_params, Sampling | None, "what `sampling` makes"),
        ("stop_strings", stop_strings, StopStrings | None, "what `stop_strings` makes of texts"),
    )
    for name, value, kind, wanted in expected:
        if not isinstance(value, kind):
            raise ValueError(f"{name}: got {type(value).__name__}, expected {wanted}")


def max_tokens_array(given: ArrayLike | None, *, rows: int, max_new_tokens: int) -> np.ndarray:
    """The tokens after which each row ends, int32 `[B]`."""
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


def stop_tokens_array(given: Collection[Any], *, rows: int, config: LlamaConfig) -> np.ndarray:
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


def with_all_rows(steering: Steering, rows: int) -> Steering:
    """The same steering with `rows` rows in all of its arrays."""

    def widen(x: jax.Array) -> jax.Array:
        if x.shape[0] == rows:
            return x
        # By numpy, which compiles nothing.
        return jax.device_put(np.broadcast_to(np.asarray(x), (rows, *x.shape[1:])))

    return jax.tree.map(widen, steering)

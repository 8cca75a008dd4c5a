"""Which tokens of a row lie inside <think>…</think>.

tokens      a <think> b c </think> d
thinking    .    .    x x    .     .
"""

from typing import Any

import jax
import jax.numpy as jnp

OPEN, CLOSE = "<think>", "</think>"


def think_tokens(tokenizer: Any) -> tuple[int, int]:
    """The ids of `<think>` and `</think>`, for `generate`.

    Raises:
        ValueError: naming the one that is not a token of its own.
    """
    vocabulary = tokenizer.get_vocab()
    for name in (OPEN, CLOSE):
        if name not in vocabulary:
            raise ValueError(f"tokenizer: got none with a token {name}, expected one")
    return vocabulary[OPEN], vocabulary[CLOSE]


def thinking_in(tokens: jax.Array, mask: jax.Array, think_tokens: jax.Array) -> jax.Array:
    """Whether each token of the prompts `[B, T]` is thought, bool `[B, T]`.

    `think_tokens` `[B, 2]` are each row's opening and closing ids, -1 for none; padding, where
    `mask` is False, neither opens nor closes.
    """
    T = tokens.shape[1]

    def latest(hit: jax.Array) -> jax.Array:  # column of the last hit so far, -1 for none
        return jax.lax.cummax(jnp.where(hit & mask, jnp.arange(T), -1), axis=1)

    opened = latest(tokens == think_tokens[:, :1])
    closed = latest(tokens == think_tokens[:, 1:])
    before = jnp.pad(opened, ((0, 0), (1, 0)), constant_values=-1)[:, :T]
    return before > closed


def still_thinking(
    thinking: jax.Array, last: jax.Array, token: jax.Array, think_tokens: jax.Array
) -> jax.Array:
    """Whether `token` `[B]` is thought; it follows `last`, for which `thinking` says the same."""
    return (thinking | (last == think_tokens[:, 0])) & (token != think_tokens[:, 1])

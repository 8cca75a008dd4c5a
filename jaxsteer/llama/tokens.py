"""Batches of token rows, left-padded to a common length, with an explicit mask."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxsteer.config import LlamaConfig
from jaxsteer.runtime import hosts

TokenRows = Sequence[Sequence[int]]  # token ids, row by row


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenBatch:
    """Token rows of unequal length, padded on the left.

        tokens   0 0 5 8 9        mask   . . x x x
                 4 2 7 1 3               x x x x x

    Only the mask tells padding: the id of a pad token may also occur as a real token.
    """

    tokens: jax.Array  # int32 [B, T]
    mask: jax.Array  # bool [B, T], True on real tokens

    @property
    def lengths(self) -> jax.Array:
        """Real tokens of each row, int32 `[B]`."""
        return jnp.sum(self.mask, axis=1, dtype=jnp.int32)


def bucket(length: int, *, step: int = 64) -> int:
    """Round a length up to a multiple of `step`, so that few shapes are ever compiled.

    >>> bucket(1), bucket(64), bucket(65)
    (64, 64, 128)
    """
    return -(-length // step) * step


def left_pad(rows: TokenRows, *, length: int | None = None, step: int = 64) -> TokenBatch:
    """Pad token rows on the left to `length`; by default the longest length, rounded up to `step`.

    >>> left_pad([[5, 8], [7]], length=3).tokens.tolist()
    [[0, 5, 8], [0, 0, 7]]

    Raises:
        ValueError: for no rows, an empty row, one longer than `length`, or what is no token id.
    """
    if isinstance(rows, Mapping):
        raise ValueError(f"prompts: got a {type(rows).__name__}, expected rows: its input_ids")
    if len(rows) == 0:
        raise ValueError("prompts: got none, expected at least one")
    for i, row in enumerate(rows):
        _check_ids(row, f"prompts[{i}]")
    lengths = [len(row) for row in rows]
    length = bucket(max(lengths), step=step) if length is None else length
    if max(lengths) > length:
        worst = lengths.index(max(lengths))
        raise ValueError(f"prompts[{worst}]: got {max(lengths)} tokens, expected at most {length}")
    tokens = np.zeros((len(rows), length), np.int32)
    mask = np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        tokens[i, length - len(row) :] = row
        mask[i, length - len(row) :] = True
    return TokenBatch(jax.device_put(tokens), jax.device_put(mask))


def as_batch(batch: TokenBatch | TokenRows) -> TokenBatch:
    """A batch unchanged, or token ids row by row as a left-padded batch.

    Raises:
        ValueError: for anything else, and for what `left_pad` refuses.
    """
    if isinstance(batch, TokenBatch):
        return batch
    if isinstance(batch, str | Mapping) or not isinstance(batch, Sequence | np.ndarray):
        raise ValueError(
            f"batch: got {type(batch).__name__}, expected token ids row by row, or a TokenBatch, "
            "as `left_pad` makes it"
        )
    return left_pad(batch)


def with_mask(
    tokens: jax.Array | TokenBatch | TokenRows, mask: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Tokens `[B, T]` and their mask, which is all True if none is given.

    Raises:
        ValueError: for tokens of another shape.
    """
    if isinstance(tokens, list | tuple):
        tokens = left_pad(tokens, step=1)
    if isinstance(tokens, TokenBatch):
        mask = tokens.mask if mask is None else mask
        tokens = tokens.tokens
    if isinstance(tokens, Sequence) or getattr(tokens, "ndim", None) != 2:
        got = getattr(tokens, "shape", type(tokens).__name__)
        raise ValueError(f"tokens: got {got}, expected int32 [B, T], or token ids row by row")
    return tokens, jnp.ones(tokens.shape, bool) if mask is None else mask


def _check_ids(row: Sequence[int], name: str) -> None:
    if isinstance(row, str):
        raise ValueError(f"{name}: got a text, expected token ids: encode it first")
    if isinstance(row, Mapping):  # apply_chat_template without return_dict=False
        raise ValueError(f"{name}: got a {type(row).__name__}, expected token ids: its input_ids")
    ids = np.asarray(row)
    if ids.ndim != 1:
        raise ValueError(f"{name}: got {row!r}, expected a list of token ids")
    if ids.size == 0:
        raise ValueError(f"{name}: got no tokens, expected at least one")
    if not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"{name}: got dtype {ids.dtype}, expected token ids (integers)")
    if ids.min() < 0 or ids.max() > np.iinfo(np.int32).max:
        raise ValueError(f"{name}: got ids {ids.min()} to {ids.max()}, expected 0 or more")


def check_batch(batch: TokenBatch, config: LlamaConfig, *, new_tokens: ArrayLike = 0) -> None:
    """Check a batch against a model on the host, where JAX would clamp ids silently.

    `new_tokens`, a number or `[B]`, are the tokens that each row will generate.

    Raises:
        ValueError: for what is no TokenBatch or is traced, other dtypes than it has, no rows, an id
            outside the vocabulary, a mask that is not left padding, or rows that outgrow the
            model's positions.
    """
    if not isinstance(batch, TokenBatch):
        raise ValueError(f"batch: got {type(batch).__name__}, expected a TokenBatch (`left_pad`)")
    if isinstance(batch.tokens, jax.core.Tracer):
        raise ValueError(
            "tokens: got a traced array, expected numbers to check on the host: inside jax.jit "
            "call `run`, with a request made outside"
        )
    tokens, mask = hosts.gather((batch.tokens, batch.mask))
    if tokens.ndim != 2 or tokens.shape != mask.shape or tokens.size == 0:
        raise ValueError(f"tokens and mask: got {tokens.shape} and {mask.shape}, expected [B, T]")
    if not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(f"tokens: got dtype {tokens.dtype}, expected integers")
    if mask.dtype != np.bool_:
        raise ValueError(f"mask: got dtype {mask.dtype}, expected bool")
    wrong = (tokens < 0) | (tokens >= config.vocab_size)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise ValueError(
            f"tokens[{row}, {column}]: got id {tokens[row, column]}, "
            f"expected 0 to {config.vocab_size - 1}"
        )
    if not mask[:, -1].all() or (np.diff(mask.astype(np.int8), axis=1) < 0).any():
        raise ValueError("mask: expected left padding, then at least one real token, in every row")
    lengths = mask.sum(axis=1)
    total = lengths + np.asarray(new_tokens)
    if total.max() > config.max_positions:
        worst = int(total.argmax())
        raise ValueError(
            f"prompts[{worst}]: got a prompt of {lengths[worst]} tokens and "
            f"{total[worst] - lengths[worst]} new ones, expected at most "
            f"max_positions={config.max_positions} together"
        )

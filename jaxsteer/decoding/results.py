"""What was generated, read back to the host: tokens, log-probabilities, texts."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxsteer.decoding.captured import CaptureBuffers, Captured, CapturePlan, captured_of
from jaxsteer.decoding.stops import StopStrings


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Outcome:
    """What is read of a `DecodeState` at the end: all but the cache.

    A cache that leaves the program is copied once more on a TPU, into the order of results.
    """

    tokens: jax.Array
    logprobs: jax.Array
    length: jax.Array
    finite: jax.Array
    buffers: CaptureBuffers | None

    @classmethod
    def of(cls, state: Any) -> "Outcome":
        """That of a `DecodeState`."""
        return cls(state.tokens, state.logprobs, state.length, state.finite, state.buffers)


def generated_row(
    row: Outcome, capture: CapturePlan | None
) -> tuple[list[int], list[float], bool, Captured | None]:
    """Tokens, log-probabilities, `finite` and activations of one row, without the axis of rows."""
    tokens, logprobs = (x[: row.length].tolist() for x in (row.tokens, row.logprobs))
    captured = None if capture is None or row.buffers is None else captured_of(row.buffers, capture)
    return tokens, logprobs, bool(row.finite), captured


@dataclass(frozen=True)
class Generation:
    """What was generated, on the host."""

    tokens: np.ndarray  # int32 [B, G]
    logprobs: np.ndarray  # float32 [B, G]
    length: np.ndarray  # int32 [B]
    # bool [B]: False in a row that ended because its log-probabilities were not finite, for example
    # because a coefficient was too large for the model's dtype. It has the tokens before that.
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

        A character that was cut short becomes U+FFFD. A model's vocabulary may be larger than its
        tokenizer's; ids beyond it write nothing, and `count_unknown_ids` counts them. A row that is
        not `finite` has no text: None.
        """
        written = dict(enumerate(pieces))
        texts = [b"".join(written.get(t, b"") for t in row) for row in self.rows(drop=drop)]
        if stop_strings is not None:
            texts = [stop_strings.cut(text) for text in texts]
        return [
            text.decode(errors="replace") if self.finite is None or self.finite[row] else None
            for row, text in enumerate(texts)
        ]

    def count_unknown_ids(self, pieces: Sequence[bytes]) -> list[int]:
        """How many ids of each row stand for no token of the tokenizer."""
        known = {t for t, piece in enumerate(pieces) if piece}
        return [sum(t not in known for t in row) for row in self.rows()]


def warn_not_finite(count: int, rows: int) -> None:
    """Warn if `count` of the rows ended because their log-probabilities were not finite."""
    if count:
        warnings.warn(
            f"{count} of {rows} rows ended early, with finite=False: their log-probabilities were "
            "NaN or infinite (a coefficient too large for the model's dtype, perhaps)",
            stacklevel=3,
        )


def check_activations_kept(made: Outcome) -> None:
    """Raise `ValueError` if a custom step captured nothing though the request asks for it."""
    if made.buffers is not None and np.any(made.buffers.read < made.length):
        raise ValueError("step: got one that keeps no activations, expected a call of decode_step")

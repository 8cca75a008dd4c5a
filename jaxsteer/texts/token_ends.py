"""Generated tokens one by one: where each ends in its text, and what was captured there."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxsteer.decoding import Captured


def token_ends(tokenizer: Any, tokens: Sequence[int], ended: bool) -> list[int]:
    """Where each token ends in `tokenizer.decode(tokens)`; the token that ended it adds nothing.

    A token that ends within a character ends where the one ends that completes it.
    """
    kept = list(tokens[:-1] if ended else tokens)
    ends: list[int] = []
    done = first = read = 0  # decoded so far; a window that begins before what is read
    for i in range(len(kept)):
        before = tokenizer.decode(kept[first:read])
        now = tokenizer.decode(kept[first : i + 1])
        if len(now) > len(before) and not now.endswith("\ufffd"):
            done += len(now) - len(before)
            first, read = read, i + 1
        ends.append(done)
    length = len(tokenizer.decode(kept))
    ends = [min(end, length) for end in ends]
    if ends:
        ends[-1] = length
    return ends + [length] * ended


def projections_of(captured: Captured, prompt: int, count: int) -> list[float | None]:
    """What was captured at each of `count` generated tokens behind a prompt; None where nothing."""
    (values,) = captured.values.values()  # [1, 1, S]
    by_token: list[float | None] = [None] * count
    for position, value in zip(np.asarray(captured.positions), values[0, 0], strict=True):
        if prompt <= position < prompt + count and math.isfinite(value):
            by_token[position - prompt] = round(float(value), 4)
    return by_token

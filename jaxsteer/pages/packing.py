"""A page's texts and figures as compressed blocks that its script unpacks.

Texts are models' own words, so none of them stands in the HTML: a block is gzip in base64, whose
letters mean nothing to a parser of HTML, and what comes out is only ever set as text.
"""

import base64
import gzip
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import numpy as np

from jaxsteer.pages.content import Page, PageText

_LOGPROB_STEPS = 10  # of 1; what is below -25.4 counts as that
_UNKNOWN = 255
_LONG = 255  # a token of so many letters or more takes several bytes


def packed(data: bytes) -> str:
    """Bytes as a block."""
    return base64.b64encode(gzip.compress(data, 6, mtime=0)).decode()


def as_json(data: Any) -> bytes:
    """JSON, numbers that are not finite as null."""
    return json.dumps(_finite(data), ensure_ascii=False, separators=(",", ":")).encode(
        "utf-8", "replace"
    )


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value


def blocks(page: Page) -> dict[str, str]:
    """The page's data by the name of its block: `data`, `tokens`, `figures`."""
    scale = max(
        (abs(x) for text in page.texts for x in text.projections if math.isfinite(x)), default=1.0
    )
    data = {
        **{name: getattr(page, name) for name in _NAMES},
        "series": [asdict(one) for one in page.series],
        "cells": [asdict(cell) for cell in page.cells],
        "prompts": [asdict(prompt) for prompt in page.prompts],
        "claims": [{"id": claim.id, "cell": claim.cell} for claim in page.claims],
        "texts": [_row(text) for text in page.texts],
        "scale": scale or 1.0,
    }
    figures = {figure.name: asdict(figure) for figure in page.figures}
    return {
        "data": packed(as_json(data)),
        "tokens": packed(b"".join(_tokens(text, scale or 1.0) for text in page.texts)),
        "figures": packed(as_json(figures)),
    }


_NAMES = ("effect", "coherence", "event", "margin", "unit", "incoherent_below")


def _row(text: PageText) -> list[Any]:
    """A text's facts in the order in which the script reads them (`data.js`)."""
    where = _utf16(text.text)
    sentences = [(where(a), where(b), label) for a, b, label in text.sentences]
    marks = [(where(a), where(b)) for a, b in text.marks]
    facts = (text.effect, text.coherence, text.repetition, text.perplexity)
    return [
        text.cell, text.prompt, text.sample, text.row, text.text, text.ended, sentences, marks,
        *(round(x, 4) for x in facts), text.left_out, text.right,
        len(text.ends), bool(len(text.logprobs)), bool(len(text.projections)),
    ]  # fmt: skip


def _tokens(text: PageText, scale: float) -> bytes:
    """Lengths of a text's tokens, their log-probabilities and projections, a byte each."""
    where = _utf16(text.text)
    lengths = [b - a for a, b in pairwise([0, *map(where, text.ends)])]
    packed = _varints(lengths)
    if len(text.logprobs):
        packed += _bytes([-x * _LOGPROB_STEPS for x in text.logprobs], 0, _UNKNOWN - 1)
    if len(text.projections):
        packed += _bytes([127 + 127 * x / scale for x in text.projections], 0, 254)
    return packed


def _bytes(values: Sequence[float], low: int, high: int) -> bytes:
    """Rounded and bounded; `_UNKNOWN` for what is not finite."""
    x = np.asarray(values, np.float64)
    known = np.isfinite(x)
    bounded = np.clip(np.round(np.where(known, x, 0.0)), low, high)
    return np.where(known, bounded, _UNKNOWN).astype(np.uint8).tobytes()


def _varints(lengths: Sequence[int]) -> bytes:
    """Each length as bytes of 255 and one below that, which add up to it.

    >>> list(_varints([3, 0, 300]))
    [3, 0, 255, 45]
    """
    if max(lengths, default=0) < _LONG:
        return bytes(lengths)
    packed = bytearray()
    for length in lengths:
        packed += bytes([_LONG]) * (length // _LONG) + bytes([length % _LONG])
    return bytes(packed)


def _utf16(text: str) -> Any:
    """A function from offsets in Python's characters to offsets in JavaScript's.

    >>> where = _utf16("a𝑥b")
    >>> [where(i) for i in range(4)]
    [0, 1, 3, 4]
    """
    if text.isascii() or max(text) <= "\uffff":
        return int
    before = np.concatenate([[0], np.cumsum([1 + (char > "\uffff") for char in text])])
    return lambda i: int(before[i])

"""A trace's text with each token coloured by a score: as an HTML file, and drawn in a figure."""

import html
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

_LIMIT = 3.0  # a score of this size has the full colour
_HIGH, _LOW = (214, 96, 32), (46, 110, 178)
_STYLE = """
  body { font: 16px/1.9 Georgia, serif; max-width: 46em; margin: 2em auto; padding: 0 1em; }
  h1 { font-size: 1.2em; } p.text { white-space: pre-wrap; }
  span { border-radius: 2px; padding: 2px 0; } .prompt { color: #777; }
  .on { text-decoration: underline; text-decoration-thickness: 2px; text-underline-offset: 4px; }
"""


@dataclass(frozen=True)
class Token:
    """One token of a trace."""

    text: str  # with the white space before it
    score: float | None  # None in the prompt
    on: bool  # in a backtracking sentence


def pieces(tokenizer: Any, text: str) -> list[str]:
    """The text cut at its tokens' ends; put together the pieces are the text up to the last one.

    A piece has the white space before its token; where several tokens spell one character, the
    first has it.
    """
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    parts, done = [], 0
    for _, stop in encoded["offset_mapping"]:
        parts.append(text[done : max(done, stop)])
        done = max(done, stop)
    return parts


def colour(score: float) -> str:
    """White at 0, towards orange above and blue below.

    >>> colour(0.0), colour(3.0), colour(-99.0)
    ('#ffffff', '#d66020', '#2e6eb2')
    """
    full = _HIGH if score > 0 else _LOW
    part = min(abs(score) / _LIMIT, 1.0)
    return "#" + "".join(f"{round(255 + part * (c - 255)):02x}" for c in full)


def to_html(tokens: Sequence[Token], *, title: str, about: str) -> str:
    """A page that needs nothing else; texts are escaped, and each token tells its score."""
    spans = []
    for token in tokens:
        text = html.escape(token.text)
        if token.score is None:
            spans.append(f'<span class="prompt">{text}</span>')
            continue
        mark = ' class="on"' if token.on else ""
        spans.append(
            f'<span{mark} style="background:{colour(token.score)};color:{_ink(token.score)}" '
            f'title="{token.score:+.2f}">{text}</span>'
        )
    return textwrap.dedent("""\
        <!doctype html>
        <html lang="en"><head><meta charset="utf-8"><title>{title}</title>
        <style>{style}</style></head>
        <body><h1>{title}</h1><p>{about}</p>
        <p class="text">{text}</p></body></html>
        """).format(
        title=html.escape(title), about=html.escape(about), style=_STYLE, text="".join(spans)
    )


def _ink(score: float) -> str:
    return "#fff" if abs(score) > 0.8 * _LIMIT else "#111"


def excerpt(tokens: Sequence[Token], *, before: int, characters: int) -> list[Token]:
    """Tokens from `before` tokens ahead of the first backtracking one, as many as there is room."""
    first = next((i for i, token in enumerate(tokens) if token.on), 0)
    start = max(0, first - before)
    start = max(start, next((i for i, t in enumerate(tokens) if t.score is not None), 0))
    kept: list[Token] = []
    for token in tokens[start:]:
        characters -= len(token.text)
        if characters < 0:
            break
        kept.append(token)
    return kept


def draw_text(axis: plt.Axes, tokens: Sequence[Token], *, columns: int, size: float) -> int:
    """Tokens in a fixed-width font on their colours, backtracking underlined; returns the lines."""
    axis.set_axis_off()
    placed, line, column = [], 0, 0
    for token in tokens:
        text = " ".join(token.text.split())
        if not text:
            continue
        gap = 1 if column and token.text[:1].isspace() else 0
        if column + gap + len(text) > columns:
            line, column, gap = line + 1, 0, 0
        placed.append((line, column + gap, text, token))
        column += gap + len(text)
    axis.set_xlim(0, columns)
    axis.set_ylim(line + 1, 0)
    for line, column, text, token in placed:
        score = 0.0 if token.score is None else token.score
        box = plt.Rectangle((column, line + 0.06), len(text), 0.86, color=colour(score), lw=0)
        axis.add_patch(box)
        axis.text(
            column + len(text) / 2,
            line + 0.5,
            text,
            ha="center",
            va="center",
            fontsize=size,
            family="monospace",
            color=_ink(score),
            parse_math=False,
        )
        if token.on:
            y = line + 0.95
            axis.plot([column, column + len(text)], [y, y], color="#111", lw=1.2)
    return placed[-1][0] + 1 if placed else 0

"""What commands print: JSON, fields, and texts side by side."""

import json
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from jaxsteer.runtime import escaped_line
from jaxsteer.texts import Text, Texts

_NARROWEST = 28  # letters of a column that can be read
_GAP = " │ "


def print_json(data: Any) -> None:
    """Print data as JSON; numbers that are not finite become null."""
    finite = json.loads(json.dumps(data), parse_constant=lambda _: None)
    print(json.dumps(finite, indent=1, ensure_ascii=False))


def print_fields(fields: Mapping[str, Any]) -> None:
    """Print one line per field, their values below each other."""
    width = max(map(len, fields), default=0)
    for name, value in fields.items():
        print(f"{name:<{width}}  {escaped_line(str(value))}")


def print_heading(text: str) -> None:
    """Print a line, in bold on a terminal that wants colour (https://no-color.org)."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        print(text)
        return
    # A command's output spells control characters out, which models might write; ours go past it.
    for part, code in ((text, b"\x1b[1m"), ("\n", b"\x1b[0m")):
        sys.stdout.flush()
        sys.stdout.buffer.write(code)
        print(part, end="")


def print_side_by_side(texts: Texts) -> None:
    """Print each prompt and sample with one column per cell; cells that do not fit come below."""
    width = shutil.get_terminal_size().columns
    at_once = max(1, width // (_NARROWEST + len(_GAP)))
    cells = texts.cells()
    for key in dict.fromkeys((row.prompt, row.sample) for row in texts):
        rows = [row for row in texts if (row.prompt, row.sample) == key]
        print_heading(" ".join(rows[0].prompt_text.split()))
        for start in range(0, len(cells), at_once):
            for line in side_by_side(rows[start : start + at_once], width):
                print(line)
        print()


def side_by_side(rows: Sequence[Text], width: int) -> Iterator[str]:
    """Lines of texts in columns, each below its cell's labels and its end."""
    column = (width - len(_GAP) * (len(rows) - 1)) // len(rows)
    columns = [
        [*wrapped(heading(row), column), "─" * column, *wrapped(row.text, column)] for row in rows
    ]
    for parts in zip_longest(*columns, fillvalue=""):
        yield _GAP.join(part.ljust(column) for part in parts).rstrip()


def heading(row: Text) -> str:
    """What a column is called: the cell, how many tokens, and how it ended."""
    labels = ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in row.labels.items()
    )
    return escaped_line(f"{labels}: {len(row.tokens)} tokens, {row.end}")


def wrapped(text: str, width: int) -> list[str]:
    r"""Lines of at most `width` letters; ends of lines in the text are kept.

    >>> wrapped("one two\n\nthree", 5)
    ['one', 'two', '', 'three']
    """
    return [
        part for line in text.strip().split("\n") for part in textwrap.wrap(line, width) or [""]
    ]


def as_gigabytes(size: float) -> str:
    """A size in bytes for people.

    >>> as_gigabytes(12_300_000)
    '0.01 GB'
    """
    return f"{size / 1e9:.2f} GB"

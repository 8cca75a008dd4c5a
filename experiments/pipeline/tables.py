"""Tables of results as text: CSV for programs, Markdown for readers."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def csv_text(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    r"""A heading and one line per row.

    >>> csv_text(["source", "rate"], [["base, raw", 0.5]])
    'source,rate\n"base, raw",0.5\n'
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    return text.getvalue()


def records_csv(records: Sequence[Mapping[str, Any]]) -> str:
    """The same from records, all with the keys of the first."""
    return csv_text(list(records[0]), [[one[key] for key in records[0]] for one in records])


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of Markdown.

    >>> markdown_table(["source", "rate"], [["base", "0.5"]])
    ['| source | rate |', '| --- | --- |', '| base | 0.5 |']
    """
    return ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]


def interval(value: float, low: float, high: float, digits: int = 3) -> str:
    """A value with the ends of its interval.

    >>> interval(0.5, 0.25, 0.75, 2)
    '0.50 [0.25, 0.75]'
    """
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"

"""Numbers and tables as people read them, in a terminal and in a notebook."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxsteer.runtime import escaped_line


def as_text(value: Any) -> str:
    """A label's value.

    >>> as_text(2.0), as_text(None), as_text("doubt")
    ('2', '–', 'doubt')
    """
    if value is None:
        return "–"
    return f"{value:g}" if isinstance(value, float) else escaped_line(str(value))


def number(value: float, *, sign: bool = False) -> str:
    """A number with about three digits, "–" for NaN.

    >>> number(0.1234), number(12.34), number(1234.5), number(0.5, sign=True), number(math.nan)
    ('0.123', '12.3', '1234', '+0.500', '–')
    """
    if math.isnan(value):
        return "–"
    digits = 3 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:{'+' if sign else ''}.{digits}f}"


def interval(low: float, high: float, *, sign: bool = False) -> str:
    """Both ends of an interval, "–" where there is none.

    >>> interval(0.0, 0.5), interval(math.nan, math.nan)
    ('[0.000, 0.500]', '–')
    """
    if math.isnan(low) or math.isnan(high):
        return "–"
    return f"[{number(low, sign=sign)}, {number(high, sign=sign)}]"


def flattened(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested mappings as one, their keys joined with a full stop.

    >>> flattened({"a": {"b": 1, "c": {"d": 2}}, "e": 3})
    {'a.b': 1, 'a.c.d': 2, 'e': 3}
    """
    flat: dict[str, Any] = {}
    for name, value in values.items():
        key = before + name
        flat |= flattened(value, f"{key}.") if isinstance(value, Mapping) else {key: value}
    return flat


def html_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table for notebooks; `body` is HTML."""
    left = "style='text-align:left;vertical-align:top'"
    heads = "".join(f"<th {left}>{html.escape(name)}</th>" for name in head)
    rows = ("".join(f"<td {left}>{cell}</td>" for cell in row) for row in body)
    return f"<table><tr>{heads}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def data_frame(rows: Sequence[dict[str, Any]]) -> Any:
    """A `pandas.DataFrame`.

    Raises:
        ImportError: without pandas, saying how to get it.
    """
    try:
        import pandas as pd
    except ImportError:
        raise ImportError('pandas is missing: pip install "jaxsteer[notebook]"') from None
    return pd.DataFrame(rows)

"""Values of a `config.json`: sizes and positive numbers, and how messages show values."""

import json
import sys
from collections.abc import Mapping
from typing import Any

SHOWN = 60  # characters of a value in a message


def is_size(value: Any) -> bool:
    """Whether it is a whole number of at least 1; JSON's true is none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_positive(value: Any) -> bool:
    """Whether it is a finite number above 0; JSON's true and false are no numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 < value <= sys.float_info.max


def listed(fields: Mapping[str, Any]) -> str:
    """Names and values for a message, each cut to a few words.

    >>> listed({"a": 1, "b": "x" * 100})
    'a=1, b="xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…'
    """
    shown = [f"{ascii(name)[1:-1]}={short(value)}" for name, value in list(fields.items())[:10]]
    more = len(fields) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def short(value: Any) -> str:
    """As JSON, cut to a few words."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"

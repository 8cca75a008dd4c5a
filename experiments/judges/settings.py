"""How a language model is asked for labels; and how a section of settings is checked."""

import difflib
import re
import urllib.parse
from collections.abc import Callable
from dataclasses import fields
from typing import Annotated, Any, TypeVar, get_args

from pydantic import AfterValidator, ConfigDict, Field, StrictFloat, StrictInt, TypeAdapter
from pydantic import ValidationError as PydanticError
from pydantic.dataclasses import dataclass

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

Section = TypeVar("Section")
Count = Annotated[StrictInt, Field(ge=1, le=10_000)]
Dollars = Annotated[StrictFloat, Field(ge=0, le=1e6)]

_PRIVATE = ("url", "key_variable")  # a password or key may stand there by mistake: never repeated


def must(hold: Callable[[Any], object], expected: str) -> AfterValidator:
    """What a value must be, beyond its type and bounds."""

    def checked(value: Any) -> Any:
        if not hold(value):
            raise ValueError(expected)
        return value

    return AfterValidator(checked)


def _address(url: str) -> str:
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError("an address") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError("an address that begins with http:// or https://")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("an address without user, password, ? or #")
    return url


Url = Annotated[str, AfterValidator(_address)]
Filled = Annotated[str, must(str.strip, "a text that is not blank")]
Variable = Annotated[
    str,
    must(
        lambda name: re.fullmatch(r"[A-Z_][A-Z0-9_]*|", name),
        "the name of an environment variable, in capitals (not the key)",
    ),
]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Judge:
    """A language model that labels sentences, behind an OpenAI-compatible endpoint."""

    url: Url  # ends in /v1 as a rule; /chat/completions is added
    model: Filled
    price_in: Dollars  # for a million tokens, 0 for a model of your own
    price_out: Dollars
    max_cost: Dollars = 0.0  # nothing is asked if the estimate is above
    key_variable: Variable = "OPENAI_API_KEY"  # where the environment has the key; "" for none
    sentences_per_request: Count = 40
    concurrency: Annotated[Count, Field(le=1000)] = 8
    timeout: Annotated[StrictFloat, Field(gt=0, le=3600)] = 120.0  # seconds for a whole request
    attempts: Annotated[Count, Field(le=100)] = 6


def read_section(kind: type[Section], values: Any, name: str = "") -> Section:
    """A section from a table, which may hold further tables.

    Args:
        kind: a dataclass of pydantic.
        values: the table.
        name: of the section, for messages.

    Raises:
        ValueError: a line for every key that is unknown, missing or has a value that cannot be.
    """
    try:
        return TypeAdapter(kind).validate_python(values)
    except PydanticError as error:
        problems = error.errors(include_url=False)
    raise ValueError("\n  ".join(_line(kind, name, dict(problem)) for problem in problems))


def unknown(name: str, key: str, keys: list[str]) -> str:
    """A line on a key that is none of `keys`: the nearest of them, or all.

    >>> unknown("models", "bass", ["base", "reasoning"])
    'models.bass: unknown key, expected base'
    """
    near = difflib.get_close_matches(key, keys, 1, 0.7) or [f"one of {', '.join(keys)}"]
    return f"{_joined(name, key)}: unknown key, expected {near[0]}"


def wrong(name: str, value: Any, expected: str) -> str:
    """A line on a value that cannot be; one that is long is cut.

    >>> wrong("direction.layer", -1, "at least 0")
    'direction.layer: got -1, expected at least 0'
    """
    try:
        shown = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, or lists in lists
        shown = f"a {type(value).__name__} that is too large to show"
    return f"{name}: got {shown if len(shown) <= 200 else shown[:200] + ' …'}, expected {expected}"


def _line(kind: Any, name: str, problem: dict[str, Any]) -> str:
    *above, last = problem["loc"] or ("",)
    where = _joined(name, *above, last)
    if problem["type"] == "unexpected_keyword_argument":
        for part in above:  # to the table within the table that has the key
            of = next(field.type for field in fields(kind) if field.name == part)
            kind = next(option for option in (of, *get_args(of)) if isinstance(option, type))
        return unknown(_joined(name, *above), str(last), [field.name for field in fields(kind)])
    if problem["type"] == "missing":
        return f"{where}: missing"
    expected = problem["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    if problem["type"] == "dataclass_type":
        expected = "a table"
    if last in _PRIVATE:
        return f"{where}: got something else, expected {expected}"
    return wrong(where, problem["input"], expected)


def _joined(*parts: str | int) -> str:
    """Names, and places in a list, as one name; what is odd in it is escaped."""
    return repr(".".join(str(part) for part in parts if part != ""))[1:-1]

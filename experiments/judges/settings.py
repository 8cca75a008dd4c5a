"""How a language model is asked for labels, and what of that cannot be."""

import math
import re
import urllib.parse
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A language model that labels sentences, behind an OpenAI-compatible endpoint."""

    url: str  # ends in /v1 as a rule; /chat/completions is added
    model: str
    price_in: float  # dollars for a million tokens, 0 for a model of your own
    price_out: float
    max_cost: float = 0.0  # dollars; nothing is asked if the estimate is above
    key_variable: str = "OPENAI_API_KEY"  # where the environment has the key; "" for none
    sentences_per_request: int = 40
    concurrency: int = 8
    timeout: float = 120.0  # seconds
    attempts: int = 6


def check_judge(judge: Judge) -> None:
    """Raise ValueError, naming every value that cannot be."""
    wrong = [
        f"{name}: got {value!r}, expected {text}"
        for name, value, ok, text in judge_checks(judge)
        if not ok
    ]
    if wrong:
        raise ValueError("; ".join(wrong))


def judge_checks(judge: Judge, where: str = "") -> list[tuple[str, Any, bool, str]]:
    """Name, value, whether it can be, and what is expected.

    What may be a password or a key, put where it does not belong, is not repeated.
    """
    problem, name = url_problem(judge.url), judge.key_variable
    named = re.fullmatch(r"[A-Z_][A-Z0-9_]*|", name) is not None
    values: list[tuple[str, Any, bool, str]] = [
        ("url", judge.url if problem is None else "something else", problem is None, problem or ""),
        ("model", judge.model, bool(judge.model.strip()), "a name"),
        (
            "key_variable",
            name if named else "something else",
            named,
            "the name of an environment variable, in capitals (not the key)",
        ),
        ("timeout", judge.timeout, 0 < judge.timeout <= 3600, "seconds, at most 3600"),
    ]
    for field in ("price_in", "price_out", "max_cost"):
        dollars = getattr(judge, field)
        ok = dollars >= 0 and math.isfinite(dollars)
        values.append((field, dollars, ok, "dollars, at least 0"))
    for field in ("sentences_per_request", "concurrency", "attempts"):
        number = getattr(judge, field)
        values.append((field, number, number >= 1, "at least 1"))
    return [(f"{where}{field}", value, ok, text) for field, value, ok, text in values]


def url_problem(url: str) -> str | None:
    """What an endpoint's address should be and is not; None if nothing is wrong with it.

    >>> url_problem("https://api.openai.com/v1")
    >>> url_problem("https://me:secret@host/v1")
    'an address without user, password, ? or #'
    """
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "an address"
    if parts.scheme not in ("http", "https") or not host:
        return "an address that begins with http:// or https://"
    if "@" in parts.netloc or parts.query or parts.fragment:
        return "an address without user, password, ? or #"
    return None

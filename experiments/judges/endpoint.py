"""Chat completions from any OpenAI-compatible endpoint, tried again where that can help.

The key comes from an environment variable, goes into one header and nowhere else: not into
results, messages or the text of errors, nor to another host, nor over a line that others can read.
"""

import email.utils
import http.client
import json
import os
import random
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.judges.settings import Judge

MOST_BYTES = 16 << 20  # of an answer
FIRST_WAIT = 1.0  # seconds before the second attempt
LONGEST_WAIT = 60.0  # seconds that back-off grows to
LONGEST_ASKED_WAIT = 600.0  # seconds that a server may ask for
_AGAIN = {408, 409, 425, 429}  # and 500 and above
_HERE = {"localhost", "127.0.0.1", "::1"}

Message = dict[str, str]


class EndpointError(ConnectionError):
    """A request that got no answer, and will not get one by trying again now."""


class RefusedError(EndpointError):
    """A request that no other would fare better than: a wrong key, model or address."""


@dataclass(frozen=True)
class Completion:
    """An answer: its text, and the tokens that were paid for (0 where the server does not say)."""

    text: str
    tokens_in: int
    tokens_out: int
    whole: bool  # False if it was cut at a maximum


def read_key(judge: Judge) -> str | None:
    """The key from the environment; None where none is needed.

    Raises:
        ValueError: if it is missing, cannot be a key, or would cross a network in the clear.
    """
    name = judge.key_variable
    parts = urllib.parse.urlsplit(judge.url)
    here = parts.hostname in _HERE
    key = os.environ.get(name, "").strip() if name else ""
    if not key:
        if name and not here:
            raise ValueError(f"key_variable: the environment has no {name}, where the key belongs")
        return None
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ValueError(f"key_variable: what {name} holds cannot be a key")
    if parts.scheme != "https" and not here:
        raise ValueError(f"url: {judge.url}: a key is sent over https:// only")
    return key


def complete(
    judge: Judge,
    messages: Sequence[Message],
    *,
    sleep: Callable[[float], object] = time.sleep,
) -> Completion:
    """The model's answer to `messages`, at temperature 0.

    Full servers (429), failing ones (500 and above), timeouts, broken lines and answers that are
    not JSON are tried again, `judge.attempts` times in all, after 1, 2, 4 … seconds and a little
    less by chance, or after as long as the server asks for (`Retry-After`).

    Raises:
        RefusedError: for an answer that will not change (401, 404 …).
        EndpointError: if all attempts fail, or the server asks to wait for too long.
    """
    key = read_key(judge)
    problem = ""
    for attempt in range(judge.attempts):
        try:
            return _once(judge, messages, key)
        except _AgainError as error:
            problem, asked = _without(key, str(error)), error.wait
        if asked > LONGEST_ASKED_WAIT:
            raise EndpointError(f"{judge.url}: {problem}; it asks to wait for {asked:.0f} s")
        if attempt + 1 < judge.attempts:
            wait = min(LONGEST_WAIT, FIRST_WAIT * 2.0**attempt) * random.uniform(0.7, 1.0)
            sleep(max(asked, wait))
    raise EndpointError(f"{judge.url}: {judge.attempts} attempts failed, the last one: {problem}")


class _AgainError(Exception):
    """A failure that may pass, and how many seconds the server asks to wait."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would take the key along, to wherever it points."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _once(judge: Judge, messages: Sequence[Message], key: str | None) -> Completion:
    body = {"model": judge.model, "messages": list(messages), "temperature": 0}
    request = urllib.request.Request(
        judge.url.rstrip("/") + "/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json", "User-Agent": "jaxsteer"},
    )
    if key:
        request.add_unredirected_header("Authorization", f"Bearer {key}")
    handlers: list[Any] = [_NoRedirect()]
    if urllib.parse.urlsplit(judge.url).hostname in _HERE:
        handlers.append(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + judge.timeout
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=judge.timeout) as answer:
            data = _read(answer, deadline)
    except urllib.error.HTTPError as error:
        status, headers = error.code, error.headers
        with error:
            said = _said(error)
        text = f"HTTP {status}{said}"
        if status in _AGAIN or status >= 500:
            raise _AgainError(text, _asked_wait(headers.get("Retry-After"))) from None
        raise RefusedError(_without(key, f"{judge.url}: {text}")) from None
    except (OSError, http.client.HTTPException) as error:  # URLError and TimeoutError among them
        raise _AgainError(f"{type(error).__name__}: {error}") from None
    return _completion(data)


def _read(answer: Any, deadline: float) -> bytes:
    """The answer's bytes; a server that sends a byte now and then does not hold us up."""
    data = bytearray()
    while part := answer.read1(1 << 16):
        data += part
        if len(data) > MOST_BYTES:
            raise OSError(f"the answer is longer than {MOST_BYTES} bytes")
        if time.monotonic() > deadline:
            raise TimeoutError("the answer did not end in time")
    return bytes(data)


def _said(error: urllib.error.HTTPError) -> str:
    """The beginning of what a server says of an error."""
    try:
        text = error.read(2000).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return ""
    text = " ".join(text.split())
    return f": {text[:300]}" if text else ""


def _without(key: str | None, text: str) -> str:
    """The text with the key taken out, which some servers repeat when they refuse it."""
    return text.replace(key, "[key]") if key else text


def _asked_wait(value: str | None) -> float:
    """Seconds of a `Retry-After` header, which has a number of them or a date.

    >>> _asked_wait("12"), _asked_wait(None), _asked_wait("soon")
    (12.0, 0.0, 0.0)
    """
    if not value:
        return 0.0
    if value.strip().isdecimal():
        return float(value)
    try:
        then = email.utils.parsedate_to_datetime(value).timestamp()
    except ValueError:
        return 0.0
    return max(0.0, then - time.time())


def _completion(data: bytes) -> Completion:
    try:
        answer = json.loads(data)
        choice = answer["choices"][0]
        text = choice["message"]["content"]
        if not isinstance(text, str):
            raise TypeError
    except (ValueError, KeyError, IndexError, TypeError):
        raise _AgainError(f"not a chat completion: {data[:200].decode(errors='replace')}") from None
    usage = answer.get("usage")
    usage = usage if isinstance(usage, dict) else {}

    def count(name: str) -> int:
        value = usage.get(name)
        return value if isinstance(value, int) else 0

    return Completion(
        text=text,
        tokens_in=count("prompt_tokens"),
        tokens_out=count("completion_tokens"),
        whole=choice.get("finish_reason") != "length",
    )

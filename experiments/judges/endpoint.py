"""Chat completions from any OpenAI-compatible endpoint, tried again where that can help.

The key comes from an environment variable, goes into one header and nowhere else: not into
results, messages or the text of errors, nor to another host, nor over a line that others can read.
"""

import asyncio
import email.utils
import functools
import json
import os
import random
import re
import ssl
import time
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import httpx

from experiments.judges.settings import Judge
from jaxsteer.runtime import escaped

MOST_BYTES = 4 << 20  # of an answer
FIRST_WAIT = 1.0  # seconds before the second attempt
LONGEST_WAIT = 60.0  # seconds that back-off grows to
LONGEST_ASKED_WAIT = 600.0  # seconds that a server may ask for
_AGAIN = {408, 409, 425, 429}  # and 500 and above
_HERE = {"localhost", "127.0.0.1", "::1"}
_TELLING = 8  # letters of a key in a row that are not shown

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
    local = parts.hostname in _HERE
    key = os.environ.get(name, "").strip() if name else ""
    if not key:
        if name and not local:
            raise ValueError(f"key_variable: the environment has no {name}, where the key belongs")
        return None
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ValueError(f"key_variable: what {name} holds cannot be a key")
    if parts.scheme != "https" and not local:
        raise ValueError(f"url: {judge.url}: a key is sent over https:// only")
    return key


def complete(
    judge: Judge,
    messages: Sequence[Message],
    *,
    sleep: Callable[[float], object] = time.sleep,
) -> Completion:
    """The model's answer to `messages`, at temperature 0.

    Full servers (429), failing ones (500 and above), broken lines, answers that are not JSON and
    those that are not complete after `judge.timeout` seconds are tried again, `judge.attempts`
    times in all, after 1, 2, 4 … seconds and a little less by chance, or after as long as the
    server asks for (`Retry-After`).

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
            problem, asked = str(error), error.wait
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


def _once(judge: Judge, messages: Sequence[Message], key: str | None) -> Completion:
    try:
        status, asked, data = asyncio.run(_exchange(judge, messages, key))
    except TimeoutError:
        raise _AgainError(f"no whole answer within {judge.timeout:g} s") from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as error:
        cause: BaseException = error  # at the root stands what the network said
        while inner := cause.__cause__ or cause.__context__:
            cause = inner
        raise _AgainError(_shown(f"{type(error).__name__}: {cause}", key)) from None
    if 200 <= status < 300:
        return _completion(data, key)
    text = f"HTTP {status}: {_shown(data, key)}".removesuffix(": ")
    if status in _AGAIN or status >= 500:
        raise _AgainError(text, _asked_wait(asked))
    raise RefusedError(f"{judge.url}: {text}")


async def _exchange(
    judge: Judge, messages: Sequence[Message], key: str | None
) -> tuple[int, str, bytes]:
    """Status, `Retry-After` and body of one request, all of it within `judge.timeout` seconds.

    The time is that of the whole exchange: a server that sends a byte now and then, be it of the
    status, a header or the body, does not extend it. No redirect is followed: it would take the key
    along, to wherever it points.
    """
    local = urllib.parse.urlsplit(judge.url).hostname in _HERE  # where no proxy is asked
    headers = {"User-Agent": "jaxsteer", "Accept-Encoding": "identity"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    body = {"model": judge.model, "messages": list(messages), "temperature": 0}
    address = judge.url.rstrip("/") + "/chat/completions"
    async with (
        asyncio.timeout(judge.timeout),
        httpx.AsyncClient(verify=_tls(), trust_env=not local, timeout=None) as client,
        client.stream("POST", address, json=body, headers=headers) as answer,
    ):
        data = bytearray()
        async for part in answer.aiter_raw():
            data += part
            if len(data) > MOST_BYTES:
                raise OSError(f"the answer is longer than {MOST_BYTES} bytes")
        return answer.status_code, answer.headers.get("Retry-After", ""), bytes(data)


@functools.cache
def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context()


def _shown(said: str | bytes, key: str | None) -> str:
    """The beginning of what somebody said, as one line without the key."""
    text = said.decode(errors="replace") if isinstance(said, bytes) else said
    return escaped(" ".join(without_key(text, key).split()))[:300]


def without_key(text: str, key: str | None) -> str:
    """The text without the key, which some servers repeat, and without long pieces of it.

    >>> without_key("not sk-0123456789, nor sk-01234567…", "sk-0123456789")
    'not [key], nor [key]…'
    """
    if not key:
        return text
    starts = range(max(1, len(key) - _TELLING + 1))
    pieces = re.compile("|".join(re.escape(key[i : i + _TELLING]) for i in starts))
    kept, end = [], 0
    while piece := pieces.search(text, end):
        kept += [text[end : piece.start()], "[key]"]
        end = piece.end()
        for letter in key[key.index(piece[0]) + len(piece[0]) :]:
            if text[end : end + 1] != letter:
                break
            end += 1
    return "".join(kept) + text[end:]


def _asked_wait(value: str) -> float:
    """Seconds of a `Retry-After` header, which has a number of them or a date.

    >>> _asked_wait("12"), _asked_wait(""), _asked_wait("soon")
    (12.0, 0.0, 0.0)
    """
    value = value.strip()[:40]
    try:
        if value.isdecimal():
            return min(float(value), 1e9)
        then = email.utils.parsedate_to_datetime(value).timestamp()
    except Exception:  # the standard parser's, which raises of any kind for odd dates
        return 0.0
    return max(0.0, then - time.time())


def _completion(data: bytes, key: str | None) -> Completion:
    try:
        answer = json.loads(data)
        choice = answer["choices"][0]
        text = choice["message"]["content"]
        if not isinstance(text, str):
            raise TypeError
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        raise _AgainError(f"not a chat completion: {_shown(data, key)}") from None
    usage = answer.get("usage")
    usage = usage if isinstance(usage, dict) else {}

    def count(name: str) -> int:
        value = usage.get(name)
        return value if isinstance(value, int) and 0 <= value < 2**53 else 0

    return Completion(
        text=without_key(text, key),
        tokens_in=count("prompt_tokens"),
        tokens_out=count("completion_tokens"),
        whole=choice.get("finish_reason") != "length",
    )

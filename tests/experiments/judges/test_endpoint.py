"""Requests against a server that is full, broken, slow or hostile; and the key, which stays in."""

import time
from email.utils import formatdate
from typing import Any

import pytest
from chat_server import Reply, chat_server, dripping_server, said

from experiments.judges import endpoint
from experiments.judges.endpoint import Completion, EndpointError, RefusedError, complete, read_key
from experiments.judges.settings import Judge, read_section

KEY = "sk-planted-0123456789abcdef"
ASK = [{"role": "user", "content": "hm?"}]


def judge(url: str, **values: Any) -> Judge:
    given = {"model": "m", "price_in": 1.0, "price_out": 2.0, "timeout": 5.0, "attempts": 3}
    return Judge(url=url, **{**given, **values})


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def in_turn(*replies: Reply | None) -> Any:
    return lambda body, n: replies[min(n, len(replies) - 1)]


def waits_of(url: str, **values: Any) -> tuple[Completion | None, list[float], str]:
    """The answer, how long it waited between the attempts, and the error."""
    waits: list[float] = []
    try:
        return complete(judge(url, **values), ASK, sleep=waits.append), waits, ""
    except EndpointError as error:
        return None, waits, str(error)


def test_what_is_sent_and_what_comes_back() -> None:
    with chat_server(in_turn(said("yes", tokens=(7, 3)))) as chat:
        found = complete(judge(chat.url + "/"), ASK)
    assert found == Completion("yes", 7, 3, whole=True)
    assert chat.paths == ["/v1/chat/completions"]
    assert chat.bodies == [{"model": "m", "messages": ASK, "temperature": 0}]
    assert chat.headers[0]["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    "reply",
    [
        (429, {}, b"slow down"),
        (500, {}, b""),
        (503, {}, b"<html>"),
        (200, {}, b"not json"),
        (200, {}, b'{"choices": []}'),
        (200, {}, b'{"choices": [{"message": {"content": null}}]}'),
        (200, {"Content-Length": "100"}, b'{"cut'),
    ],
    ids=["429", "500", "503", "garbage", "no choice", "no text", "cut off"],
)
def test_what_may_pass_is_tried_again_after_longer_and_longer_waits(reply: Reply) -> None:
    with chat_server(in_turn(reply, reply, said("yes"))) as chat:
        found, waits, _ = waits_of(chat.url)
    assert found is not None
    assert found.text == "yes"
    assert 0.7 <= waits[0] <= 1.0
    assert 1.4 <= waits[1] <= 2.0


def test_the_number_of_attempts_ends() -> None:
    with chat_server(in_turn((500, {}, b"on fire"))) as chat:
        found, waits, error = waits_of(chat.url)
    assert found is None
    assert len(waits) == 2
    assert len(chat.bodies) == 3
    assert error == f"{chat.url}: 3 attempts failed, the last one: HTTP 500: on fire"


def test_retry_after_is_honoured_as_seconds_and_as_a_date() -> None:
    date = formatdate(time.time() + 30, usegmt=True)
    replies = in_turn((429, {"Retry-After": "7"}, b""), (503, {"Retry-After": date}, b""), said(""))
    with chat_server(replies) as chat:
        _, waits, _ = waits_of(chat.url)
    assert waits[0] == 7.0
    assert 25 < waits[1] <= 30


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("Mon, 01 Jan 99999 00:00:00 GMT", 0.0),
        ("Mon, 01 Jan 2001 99:00:00 GMT", 0.0),
        ("9" * 5000, 1e9),
        ("١٢", 12.0),
        ("-5", 0.0),
        ("(" * 5000, 0.0),
        ("1e5", 0.0),
    ],
)
def test_odd_values_of_retry_after(value: str, seconds: float) -> None:
    assert endpoint._asked_wait(value) == seconds


def test_an_hour_is_not_waited_for() -> None:
    with chat_server(in_turn((429, {"Retry-After": "3600"}, b"quota"))) as chat:
        _, waits, error = waits_of(chat.url)
    assert waits == []
    assert "HTTP 429: quota; it asks to wait for 3600 s" in error


@pytest.mark.parametrize("status", [400, 401, 403, 404, 302, 307])
def test_what_will_not_change_is_said_at_once(status: int) -> None:
    with chat_server(in_turn((status, {"Location": "http://127.0.0.1:9/"}, b"no such thing"))) as c:
        with pytest.raises(RefusedError, match=f"HTTP {status}: no such thing"):
            complete(judge(c.url), ASK)
        assert len(c.bodies) == 1


def test_a_server_that_says_nothing_times_out() -> None:
    with chat_server(in_turn(None, said("yes"))) as chat:
        started = time.monotonic()
        found, waits, _ = waits_of(chat.url, timeout=0.3)
        assert time.monotonic() - started < 3
    assert found is not None
    assert len(waits) == 1


HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (b"HTTP/1.1 200 ", b"O"),
        (HEAD, b"X-A: b\r\n"),
        (HEAD + b"X-A: ", b"b"),
        (HEAD + b"Content-Length: 1000000\r\n\r\n", b" "),
        (CHUNKED, b"1\r\n \r\n"),
        (CHUNKED + b"0\r\n", b"X-A: b\r\n"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 1000\r\n\r\n", b" "),
    ],
    ids="status header value body chunk trailer continue refusal".split(),
)
def test_one_time_limit_for_all_of_a_request(first: bytes, then: bytes) -> None:
    """However the server drips: a limit for each read would start anew with every byte."""
    with dripping_server(first, then) as url:
        started = time.monotonic()
        _, _, error = waits_of(url, timeout=0.4, attempts=1)
        assert time.monotonic() - started < 3  # a busy machine's
    assert "no whole answer within 0.4 s" in error


@pytest.mark.parametrize(
    ("first", "then", "error"),
    [
        (HEAD, b"X-A: " + b"b" * 100_000 + b"\r\n", "RemoteProtocolError"),
        (CHUNKED, b"400\r\n" + b" " * 1024 + b"\r\n", "longer than 10000 bytes"),
        (HEAD + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\n", b"abc", "not a chat comp"),
        (b"\x00\xff", b"\n", "RemoteProtocolError"),
    ],
)
def test_a_server_that_floods(
    monkeypatch: pytest.MonkeyPatch, first: bytes, then: bytes, error: str
) -> None:
    monkeypatch.setattr(endpoint, "MOST_BYTES", 10_000)
    with dripping_server(first, then) as url:
        assert error in waits_of(url, attempts=1, timeout=20.0)[2]


@pytest.mark.parametrize(
    "data", [b"[" * 1_000_000, b'{"a":' * 500_000, b"9" * 1_000_000, b"\xff\xfe", b"[1]", b"null"]
)
def test_answers_that_are_no_completion_are_one_short_line(data: bytes) -> None:
    with chat_server(in_turn((200, {}, data))) as chat:
        _, _, error = waits_of(chat.url, attempts=1)
    assert "not a chat completion" in error
    assert "\n" not in error
    assert len(error) < 500


def test_what_a_server_says_is_one_line_without_escapes() -> None:
    with chat_server(in_turn((401, {}, b"no\x1b[2J\n  PASSED\xe2\x80\xae"))) as chat:
        assert waits_of(chat.url)[2].endswith(r"HTTP 401: no\x1b[2J PASSED\u202e")


def test_a_key_is_taken_out_before_anything_is_cut() -> None:
    for room in range(310):
        assert "0123456" not in endpoint._shown("x" * room + f" {KEY} {KEY[:-1]}.", KEY)
    with chat_server(in_turn(said(f"{KEY[3:20]} is it"))) as chat:
        found, _, _ = waits_of(chat.url)
    assert found is not None
    assert found.text == "[key] is it"


def test_a_server_that_never_ends_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "MOST_BYTES", 1000)
    with chat_server(in_turn(said("x" * 2000))) as chat:
        _, _, error = waits_of(chat.url, attempts=1)
    assert "longer than 1000 bytes" in error


def test_nobody_listens() -> None:
    _, waits, error = waits_of("http://127.0.0.1:1/v1", attempts=2)
    assert len(waits) == 1
    assert "Connect call failed" in error


def test_a_key_that_a_server_repeats_is_taken_out() -> None:
    with chat_server(in_turn((401, {}, f"wrong key {KEY}".encode()))) as chat:
        _, _, error = waits_of(chat.url)
        assert error.endswith("HTTP 401: wrong key [key]")
        chat.answer = in_turn((500, {}, f"wrong key {KEY}".encode()))
        assert KEY not in waits_of(chat.url)[2]
        chat.answer = in_turn((200, {}, f"wrong key {KEY}".encode()))
        assert KEY not in waits_of(chat.url)[2]


def test_no_key_is_needed_here_or_where_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_key(judge("http://gpu-box:8000/v1", key_variable="")) is None
    monkeypatch.delenv("OPENAI_API_KEY")
    assert read_key(judge("http://localhost:8000/v1")) is None
    with pytest.raises(ValueError, match="the environment has no OPENAI_API_KEY"):
        read_key(judge("https://api.openai.com/v1"))
    with chat_server(in_turn(said("yes"))) as chat:
        complete(judge(chat.url), ASK)
    assert "Authorization" not in chat.headers[0]


@pytest.mark.parametrize("value", ["sk-a\nb", "sk-ä", "sk a"])
def test_what_cannot_be_a_key_is_not_repeated(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", value)
    with pytest.raises(ValueError, match="what OPENAI_API_KEY holds cannot be a key") as caught:
        read_key(judge("https://api.openai.com/v1"))
    assert value not in str(caught.value)


def test_a_key_does_not_cross_a_network_in_the_clear() -> None:
    with pytest.raises(ValueError, match="a key is sent over https"):
        complete(judge("http://gpu-box:8000/v1"), ASK)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"url": f"https://me:{KEY}@host/v1"}, "url: got something else, expected an address wit"),
        ({"url": f"https://host/v1?key={KEY}"}, "url: got something else, expected an address wi"),
        ({"url": "ftp://host"}, "an address that begins with http"),
        ({"url": "https://[bad"}, "expected an address"),
        ({"url": [KEY]}, "url: got something else, expected a valid string"),
        ({"model": " "}, "model: got ' ', expected a text that is not blank"),
        ({"key_variable": KEY}, r"key_variable: got something else, .* \(not the key\)"),
        ({"price_in": -1.0}, "price_in: got -1.0, expected greater than or equal to 0"),
        ({"max_cost": float("nan")}, "max_cost: got nan, expected a finite number"),
        ({"timeout": 0.0}, "timeout: got 0.0"),
        ({"timeout": 1e300}, "timeout: got 1e.300, expected less than or equal to 3600"),
        ({"concurrency": 0}, "concurrency: got 0, expected greater than or equal to 1"),
        ({"attempts": 0, "model": ""}, "model: got '', .*\n  attempts: got 0"),
    ],
)
def test_values_that_cannot_be(values: dict[str, Any], message: str) -> None:
    given = {"url": "https://api.openai.com/v1", "model": "m", "price_in": 1.0, "price_out": 2.0}
    with pytest.raises(ValueError, match=message) as caught:
        read_section(Judge, {**given, **values})
    assert KEY not in str(caught.value)
    with pytest.raises(ValueError, match="validation error") as caught:
        Judge(**{**given, **values})
    assert KEY not in str(caught.value)

"""Conversations as text, by a model's chat template, in bounded time and memory."""

import atexit
import contextlib
import datetime
import json
import os
import re
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SECONDS = 10.0  # for one text; a template takes less than a millisecond
_START_SECONDS = 120.0  # importing what renders takes one on a machine that is not busy
_PROGRAM = Path(__file__).with_name("chat_worker.py")
_DATE = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1")

_ANSWER = "where does an answer end?"

Message = Mapping[str, Any]

_CHAT: tuple[Message, ...] = (
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": _ANSWER},  # the last, so that what follows is its end
)

_lock = threading.Lock()
_running: dict[int, subprocess.Popen[bytes]] = {}  # one at most, by the process that started it
_silent: set[int] = set()  # ids of those whose first line was not read yet


def render(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """What a tokenizer's chat template makes of a conversation, as in `apply_chat_template`.

    It is rendered in another process, which the first call starts, or `begin`, and which is kept.

    Args:
        tokenizer: of transformers.
        messages: `{"role": …, "content": …}` each.
        add_generation_prompt: whether the text ends where the model's answer begins.
        variables: what else the template knows, such as `{"enable_thinking": False}`.

    Raises:
        ValueError: the tokenizer has no template, the messages are not data, or the template
            raises, takes more than ten seconds, a gigabyte, or writes ten million characters.
    """
    template = chat_template(tokenizer)
    if template is None:
        raise ValueError("messages: got a conversation, but the tokenizer has no chat template")
    if not messages or not all(isinstance(message, Mapping) for message in messages):
        raise ValueError("messages: expected a list of {'role': …, 'content': …}, at least one")
    names = {role: str(token) for role, token in tokenizer.special_tokens_map.items()}
    asked = {
        "template": template,
        "messages": [{k: v for k, v in m.items() if v is not None} for m in messages],
        "add_generation_prompt": add_generation_prompt,
        "variables": {**names, **(variables or {})},
    }
    try:
        line = json.dumps(asked).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"messages: expected texts and lists of them: {error}") from None
    with _lock:
        answer = _ask(line)
    if "error" in answer:
        said = " ".join(answer["error"].split())[:300]
        raise ValueError(f"{tokenizer.name_or_path or 'tokenizer'}: chat template: {said}")
    return answer["text"]


def chat_template(tokenizer: Any) -> str | None:
    """The template of a tokenizer that may have several."""
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, Mapping):
        template = template.get("default")
    return template if isinstance(template, str) and template else None


def writes_date(tokenizer: Any, text: str) -> bool:
    """Whether the template wrote today's date into a text, which is another one tomorrow."""
    formats = [form for _, form in _DATE.findall(chat_template(tokenizer) or "")]
    today = datetime.datetime.now()
    return any(today.strftime(form) in text for form in formats)


def template_marks(tokenizer: Any) -> dict[str, int]:
    """With which special tokens the template begins a conversation ("bos"), and ends an answer.

    A token with which every turn begins, as in ChatML, is no BOS. Nothing for what is not marked,
    or where there is no template that renders.
    """
    if chat_template(tokenizer) is None:
        return {}
    special = {t.content: id for id, t in tokenizer.added_tokens_decoder.items() if t.special}
    try:
        text = render(tokenizer, _CHAT, add_generation_prompt=False)
    except ValueError:  # which is told when somebody wants a conversation
        return {}
    name = "|".join(map(re.escape, sorted(special, key=len, reverse=True)))
    marks = {}
    begins = re.match(name, text) if name else None
    if begins and text.count(begins[0]) == 1:
        marks["bos"] = special[begins[0]]
    if name and (ends := re.search(rf"{re.escape(_ANSWER)}\s*({name})", text)):
        marks["eos"] = special[ends[1]]
    return marks


def begin() -> None:
    """Start the process that renders, if there is none, and do not wait until it is ready.

    It imports what this process imports to make a tokenizer, and can do so at the same time.
    """
    with _lock, contextlib.suppress(OSError):  # which a first text will meet again, and tell
        _worker()


def _worker() -> subprocess.Popen[bytes]:
    """The process that renders."""
    worker = _running.get(os.getpid())
    return _start() if worker is None or worker.poll() is not None else worker


def _ask(line: bytes) -> dict[str, str]:
    """The worker's answer; one that is late or has died is started anew for the next."""
    try:
        worker = _worker()
        if worker.pid in _silent:
            _read_line(worker, _START_SECONDS)
            _silent.discard(worker.pid)
        assert worker.stdin is not None
        worker.stdin.write(line)
        worker.stdin.flush()
        return json.loads(_read_line(worker, SECONDS))
    except TimeoutError:
        stop()
        return {"error": f"it is not done after {SECONDS:g} seconds"}
    except (OSError, ValueError) as error:
        stop()
        return {"error": f"the process that renders it has ended ({error})"}


def _start() -> subprocess.Popen[bytes]:
    worker = subprocess.Popen(
        [sys.executable, "-P", str(_PROGRAM)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        start_new_session=True,  # Ctrl-C is for its parent, which ends it
    )
    _running.clear()  # after a fork, the parent's
    _running[os.getpid()] = worker
    _silent.clear()
    _silent.add(worker.pid)
    return worker


def _read_line(worker: subprocess.Popen[bytes], seconds: float) -> bytes:
    assert worker.stdout is not None
    deadline, parts = time.monotonic() + seconds, [b""]
    with selectors.DefaultSelector() as selector:
        selector.register(worker.stdout, selectors.EVENT_READ)
        while not parts[-1].endswith(b"\n"):
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError
            parts.append(os.read(worker.stdout.fileno(), 1 << 16))
            if not parts[-1]:
                raise OSError("no answer")
    return b"".join(parts)


def stop() -> None:
    """End the process that renders, if there is one."""
    worker = _running.pop(os.getpid(), None)
    if worker is not None:
        _silent.discard(worker.pid)
        worker.kill()
        worker.communicate()


atexit.register(stop)

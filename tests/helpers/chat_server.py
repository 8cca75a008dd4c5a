"""A small OpenAI-compatible server in a thread, which answers as it is told."""

import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, dict[str, str], bytes]


@dataclass
class Chat:
    """What the server was asked, and how it answers: `answer(body, n)` for the n-th request."""

    answer: Callable[[dict[str, Any], int], Reply | None]
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    most_at_once: int = 0
    done: threading.Event = field(default_factory=threading.Event)


def said(text: str, *, finish: str = "stop", tokens: tuple[int, int] = (100, 20)) -> Reply:
    """A completion with this text."""
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish}
    usage = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}
    return 200, {}, json.dumps({"choices": [choice], "usage": usage}).encode()


def sentences_in(body: dict[str, Any]) -> list[str]:
    """The numbered sentences of a request."""
    text = body["messages"][1]["content"]
    block = text[text.index("<sentences>\n") + 12 : text.index("\n</sentences>")]
    return [re.sub(r"^\d+\. ", "", line) for line in block.split("\n")]


def by_keyword(body: dict[str, Any], n: int = 0) -> Reply:
    """Labels sentences with "wait" backtracking, and the others deduction."""
    labels = {
        str(i): "backtracking" if "wait" in line.lower() else "deduction"
        for i, line in enumerate(sentences_in(body), 1)
    }
    return said(json.dumps(labels))


@contextmanager
def chat_server(answer: Callable[[dict[str, Any], int], Reply | None]) -> Iterator[Chat]:
    """Serve until the block ends; an answer of None keeps the caller waiting until then."""
    chat, lock, at_once = Chat(answer), threading.Lock(), [0]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                n = len(chat.bodies)
                chat.bodies.append(body)
                chat.headers.append(dict(self.headers))
                chat.paths.append(self.path)
                at_once[0] += 1
                chat.most_at_once = max(chat.most_at_once, at_once[0])
            reply = chat.answer(body, n)
            with lock:
                at_once[0] -= 1
            if reply is None:
                chat.done.wait(30)
                return
            status, headers, data = reply
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    chat.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield chat
    finally:
        chat.done.set()
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def dripping_server(first: bytes, then: bytes) -> Iterator[str]:
    """Answers with `first`, and then with `then` every 20 ms for as long as it is heard."""
    listening, done = socket.create_server(("127.0.0.1", 0)), threading.Event()

    def drip(line: socket.socket) -> None:
        with line:
            line.recv(1 << 16)
            try:
                line.sendall(first)
                while not done.wait(0.02):
                    line.sendall(then)
            except OSError:
                pass

    def serve() -> None:
        while True:
            try:
                line, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=drip, args=(line,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    finally:
        done.set()
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()

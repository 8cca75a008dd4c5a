"""A bucket of Google Cloud Storage on this machine, as far as TensorStore reads from one."""

import contextlib
import json
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

OBJECTS = "/storage/v1/b/bucket/o/"


@contextlib.contextmanager
def bucket(read: Callable[[str], bytes | None], asked: list[str]) -> Iterator[str]:
    """The address of a server of `gs://bucket`, whose objects `read` gives by their names.

    It notes the names that it is asked for. What is no media download of a known object, whole or
    a range of bytes, it answers with 404.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            url = urllib.parse.urlsplit(self.path)
            name = urllib.parse.unquote(url.path.removeprefix(OBJECTS))
            asked.append(name)
            data = read(name) if url.path.startswith(OBJECTS) and "alt=media" in url.query else None
            if data is None:
                self.answer(404, json.dumps({"error": {"code": 404}}).encode())
            elif wanted := self.headers.get("Range"):
                first, last = map(int, wanted.removeprefix("bytes=").split("-"))
                part = f"bytes {first}-{last}/{len(data)}"
                self.answer(206, data[first : last + 1], **{"Content-Range": part})
            else:
                self.answer(200, data)

        def answer(self, code: int, body: bytes, **headers: str) -> None:
            self.send_response(code)
            headers |= {"Content-Length": str(len(body)), "x-goog-generation": "1"}
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    with ThreadingHTTPServer(("localhost", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://localhost:{server.server_address[1]}"
        finally:
            server.shutdown()

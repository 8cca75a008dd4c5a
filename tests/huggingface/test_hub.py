"""Models of a hub: a server on this machine that speaks as the Hugging Face Hub does."""

import hashlib
import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import jax
import numpy as np
import pytest
from hf_folders import write_folder

import jaxsteer
from jaxsteer.checkpoints import checkpoint
from jaxsteer.models.conversion import main

COMMIT = "c0ffee" * 6 + "cafe"


class Hub(ThreadingHTTPServer):
    """Serves the files of one folder as `owner/model`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.fetched: list[str] = []  # files whose content was asked for
        self.break_off: str | None = None  # a file of which half is sent, each time
        self.answer: tuple[int, str, bytes] | None = None  # to everything: status, code, body


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _reply(self, status: int, body: bytes, *, sent: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:sent])

    def do_GET(self) -> None:
        hub, files = self.server, sorted(self.server.folder.iterdir())
        if hub.answer:
            status, code, body = hub.answer
            self._reply(status, body, X_Error_Code=code, Content_Type="application/json")
        elif "/tree/" in self.path:
            tree = [
                {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0" * 40}
                for f in files
            ]
            self._reply(200, json.dumps(tree).encode(), Content_Type="application/json")
        elif self.path.startswith("/api/models/owner/model"):
            names = [{"rfilename": f.name} for f in files]
            about = {"id": "owner/model", "sha": COMMIT, "private": False, "siblings": names}
            self._reply(200, json.dumps(about).encode(), Content_Type="application/json")
        elif "/resolve/" in self.path:
            self._send(hub.folder / self.path.rsplit("/", 1)[1])
        else:
            self._reply(404, b"")

    do_HEAD = do_GET

    def _send(self, file: Path) -> None:
        data, half = file.read_bytes(), file.name == self.server.break_off
        if self.command == "GET":
            self.server.fetched.append(file.name)
        about = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X_Repo_Commit": COMMIT}
        self._reply(200, data, sent=len(data) // 2 if half else None, **about)
        self.close_connection = half and self.command == "GET"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("hub") / "model")


@pytest.fixture
def hub(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub(model) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        download = partial(
            huggingface_hub.snapshot_download,
            endpoint=f"http://127.0.0.1:{server.server_port}",
            cache_dir=tmp_path / "cache",
            token="hf_planted",
        )
        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
        yield server
        server.shutdown()
        thread.join()


def test_a_download_that_broke_off_goes_on_with_the_file_that_it_was_at(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dst = tmp_path / "new" / "dst"
    hub.break_off = "model.safetensors"
    assert main(["owner/model", str(dst)]) == 1
    said = capsys.readouterr().err
    assert "convert: owner/model: download failed: " in said
    assert "the same command goes on from here. See https://huggingface.co/owner/model" in said
    assert "Traceback" not in said
    assert "hf_planted" not in said
    assert not dst.parent.exists()
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= set(hub.fetched)

    hub.break_off = None
    hub.fetched.clear()
    assert main(["owner/model", str(dst)]) == 0
    assert hub.fetched == ["model.safetensors"]
    provenance = checkpoint.read_manifest(dst).provenance
    assert (provenance["source"], provenance["revision"]) == ("owner/model", COMMIT)
    written = b"".join(f.read_bytes() for f in tmp_path.rglob("*") if f.is_file())
    assert b"hf_planted" not in written


def test_a_hub_id_is_loaded_in_one_line(hub: Hub, model: Path) -> None:
    loaded = jaxsteer.load("owner/model")
    expected = jaxsteer.load(model)
    assert loaded.model.config == expected.model.config
    for a, b in zip(*map(jax.tree.leaves, (loaded.model, expected.model)), strict=True):
        assert np.array_equal(a, b)
    assert loaded.tokenizer.encode("so") == expected.tokenizer.encode("so")
    assert (loaded.provenance["source"], loaded.provenance["revision"]) == ("owner/model", COMMIT)
    hub.fetched.clear()
    jaxsteer.load("owner/model")  # from the cache
    assert hub.fetched == []


@pytest.mark.parametrize(
    ("status", "code", "body", "message"),
    [
        (403, "GatedRepo", b"{}", "gated, and you have no access yet. Ask for it at https://hug"),
        (401, "RepoNotFound", b"{}", "no such model on the hub (or a private one; log in with"),
        (404, "RevisionNotFound", b"{}", "revision: got 'v9', which the hub does not have"),
        (500, "", b"oops", "the hub could not be asked: no network, HF_HUB_OFFLINE is set, or"),
        (200, "", b'{"id": "owner/model"}', "download failed: "),
        (200, "", b"<html>Log in to this network</html>", "download failed: "),
    ],
)
def test_what_a_hub_answers_is_one_line(
    hub: Hub,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    status: int,
    code: str,
    body: bytes,
    message: str,
) -> None:
    hub.answer = (status, code, body)
    assert main(["owner/model", str(tmp_path / "dst"), "--revision", "v9"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("convert: owner/model: ")
    assert message in said
    assert said.count("\n") == 1
    assert "hf_planted" not in said
    assert not (tmp_path / "dst").exists()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "source: got an empty text, expected a folder or a hub id"),
        ("owner/a..b", "owner/a..b: no such folder here, and no hub id: "),
        ("owner/model/more", "no such folder, and not a hub id like owner/name"),
    ],
)
def test_names_that_are_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, message: str
) -> None:
    assert main([source, str(tmp_path / "dst")]) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_has_no_revision(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(model), str(tmp_path / "dst"), "--revision", "v9"]) == 1
    assert f"revision: got 'v9' for the folder {model}, expected none" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []

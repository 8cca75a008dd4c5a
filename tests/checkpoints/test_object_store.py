"""Rows and checkpoints in an object store: `gs://` over a file system in memory.

TensorStore, which reads the weights, asks a server on this machine for the same objects. What is
not tried here is the store itself.
"""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chex
import fsspec
import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem
from gcs_server import bucket
from oracle import SHALLOW, random_model

import jaxsteer
from jaxsteer.checkpoints import checkpoint
from jaxsteer.files.atomic import as_path, write_atomic
from jaxsteer.files.integrity import check_files
from jaxsteer.planning import mesh_plan as plan
from jaxsteer.sweeps import row_store
from jaxsteer.sweeps.config_file import config_path
from jaxsteer.sweeps.row_store import open_rows
from jaxsteer.sweeps.sweep_file import sweep_to_file

STORE = "gs://bucket/runs/sweep.jsonl"
OPTIONS: dict[str, Any] = {"max_new_tokens": 2, "rows_per_chunk": 3, "progress": None}


class Memory(MemoryFileSystem):
    protocol = ("gs", "gcs")
    store: dict[str, Any] = {}  # noqa: RUF012 - as in the class above it
    pseudo_dirs = [""]  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + str(path).removeprefix("gs://").strip("/") if path else ""


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    real = fsspec.filesystem
    memory = Memory()
    memory.store.clear()
    monkeypatch.setattr(
        fsspec,
        "filesystem",
        lambda name, **options: memory if name in ("gs", "gcs") else real(name, **options),
    )
    known = epath.backend.fsspec_backend._get_filesystem
    known.cache_clear()
    yield memory.store
    known.cache_clear()


def names(store: dict[str, Any]) -> list[str]:
    return sorted(name.removeprefix("/bucket/runs/") for name in store)


def test_rows_go_into_parts_and_are_merged_at_the_end(store):
    rows = [{"i": i} for i in range(5)]
    with open_rows(STORE) as begun:
        assert begun.rows == []
        begun.append(rows[:2])
        begun.append(rows[2:3])
    assert names(store) == ["sweep.jsonl.parts/000000.jsonl", "sweep.jsonl.parts/000001.jsonl"]
    with open_rows(STORE) as resumed:  # as after a kill
        assert resumed.rows == rows[:3]
        resumed.append(rows[3:4])
        resumed.finish()
    assert names(store) == ["sweep.jsonl"]
    with open_rows(STORE) as more:  # cells were added
        assert more.rows == rows[:4]
        more.append(rows[4:])
        more.finish()
    assert as_path(STORE).read_text() == "".join(json.dumps(row) + "\n" for row in rows)
    with open_rows(STORE) as finished:
        finished.finish()
        assert finished.rows == rows


@pytest.mark.parametrize("removed", [0, 1])
def test_a_kill_between_the_merge_and_the_end_doubles_nothing(store, monkeypatch, removed):
    rows = [{"i": i} for i in range(3)]
    real = row_store._remove

    def killed(parts: list[Any]) -> None:
        real(parts[:removed])
        raise KeyboardInterrupt

    with open_rows(STORE) as begun:
        for row in rows:
            begun.append([row])
        monkeypatch.setattr(row_store, "_remove", killed)
        with pytest.raises(KeyboardInterrupt):
            begun.finish()
    monkeypatch.undo()
    assert len(names(store)) == 1 + 3 - removed
    for _ in range(2):
        with open_rows(STORE) as resumed:
            assert resumed.rows == rows
        assert names(store) == ["sweep.jsonl"]


def test_a_sweep_into_a_store_is_the_sweep_into_a_file(store, shallow, batch, tmp_path):
    cells = jaxsteer.grid({"v": [1.0] * SHALLOW.d_model}, layers=[0], coeffs=[0.0, 1.0])
    local = sweep_to_file(tmp_path / "rows.jsonl", shallow, batch, cells, **OPTIONS)
    calls = itertools.count()

    def fail(result: Any) -> dict[str, Any]:
        if next(calls) == 4:
            raise KeyboardInterrupt
        return {"tokens": result.tokens, "logprobs": result.logprobs}

    with pytest.raises(KeyboardInterrupt):
        sweep_to_file(STORE, shallow, batch, cells, to_row=fail, **OPTIONS)
    assert names(store) == ["sweep.jsonl.config.json", "sweep.jsonl.parts/000000.jsonl"]
    assert str(sweep_to_file(STORE, shallow, batch, cells, **OPTIONS)) == STORE
    assert names(store) == ["sweep.jsonl", "sweep.jsonl.config.json"]
    assert as_path(STORE).read_bytes() == local.read_bytes()
    assert as_path(config_path(STORE)).read_bytes() == config_path(local).read_bytes()
    with pytest.raises(ValueError, match="another configuration"):
        sweep_to_file(STORE, shallow, batch, cells, **OPTIONS | {"max_new_tokens": 3})


def copied(folder: Path) -> str:
    """A checkpoint, made in the folder and copied to the store."""
    file = folder / "generation_config.json"
    file.write_text('{"eos_token_id": 3}')
    checkpoint.save(folder / "m", random_model(SHALLOW), files=[file])
    there = "gs://bucket/runs/m"
    for source in sorted(p for p in (folder / "m").rglob("*") if p.is_file()):
        write_atomic(f"{there}/{source.relative_to(folder / 'm')}", source.read_bytes())
    return there


def test_a_checkpoint_is_loaded_from_a_store(store, tmp_path, monkeypatch):
    there = copied(tmp_path)

    def read(name: str) -> bytes | None:
        found = store.get(f"/bucket/{name}")
        return found.getvalue() if found else None

    asked: list[str] = []
    with bucket(read, asked) as url:
        monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", url)
        monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "nobody's")
        model, tokenizer = jaxsteer.load(there)
        chex.assert_trees_all_equal(model.params, random_model(SHALLOW).params)
        assert tokenizer is None
        assert any("/params/" in name for name in asked)
    assert plan.read_config(there) == SHALLOW


def test_what_is_beside_the_weights_of_a_checkpoint_is_read_from_a_store(store, tmp_path):
    there = copied(tmp_path)
    manifest = checkpoint.read_manifest(there)
    assert manifest == checkpoint.read_manifest(tmp_path / "m")
    check_files(as_path(there), manifest.files)
    assert jaxsteer.end_tokens(there) == [3]
    assert checkpoint.load_tokenizer(there) is None
    cut = next(name for name in names(store) if name.startswith("m/params"))
    write_atomic(f"gs://bucket/runs/{cut}", b"")
    with pytest.raises(ValueError, match=r"cut short: params.*: 0 bytes"):
        check_files(as_path(there), manifest.files)
    with pytest.raises(ValueError, match="got an object store, expected a local directory"):
        checkpoint.save(there, random_model(SHALLOW))
    with pytest.raises(FileNotFoundError, match=r"gs://bucket/none: no such directory"):
        checkpoint.read_manifest("gs://bucket/none")


def test_a_local_path_is_a_path():
    assert type(as_path("a/b")) is type(Path("a/b"))

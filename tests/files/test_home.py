"""`~` at the beginning of a path is the user's own folder, wherever a path is given."""

from pathlib import Path

import numpy as np
import pytest
from hf_folders import write_folder

import jaxsteer
from jaxsteer import analysis, files
from jaxsteer.directions.gguf import load_gguf, save_gguf


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another home, and a folder to work in where a folder named `~` would show."""
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


def test_models(home: Path) -> None:
    write_folder(home / "hf")
    jaxsteer.convert("~/hf", "~/made/ckpt")
    model, tokenizer = jaxsteer.load("~/made/ckpt")
    assert jaxsteer.end_tokens("~/made/ckpt", tokenizer) == [2]
    jaxsteer.save("~/made/saved", model, files=["~/hf/tokenizer.json"])
    jaxsteer.export("~/made/saved", "~/made/out")
    assert jaxsteer.load("~/made/out").model.config == jaxsteer.load("~/hf").model.config
    assert sorted(path.name for path in (home / "made").iterdir()) == ["ckpt", "out", "saved"]
    assert list(Path().iterdir()) == []


def test_directions(home: Path) -> None:
    one = jaxsteer.Direction(
        vector=np.ones(4, np.float32), layer=1, site="resid_post", name="one", provenance={}
    )
    jaxsteer.save_directions("~/a/d.safetensors", [one])
    save_gguf("~/a/d.gguf", [one])
    for read, name in ((jaxsteer.load_directions, "safetensors"), (load_gguf, "gguf")):
        (found,) = read(f"~/a/d.{name}").values()
        assert np.array_equal(found.vector, one.vector)
    assert len(list((home / "a").iterdir())) == 2
    assert list(Path().iterdir()) == []


def test_rows_and_labels(home: Path) -> None:
    files.append_rows("~/rows.jsonl", [{"a": 1}])
    assert files.read_rows("~/rows.jsonl") == files.recover_rows("~/rows.jsonl") == [{"a": 1}]
    files.sort_rows("~/rows.jsonl", key=lambda row: row["a"])
    with files.locked("~/rows.jsonl", busy="busy"):
        pass
    analysis.write_labels("~/labels.jsonl", [])
    assert analysis.read_labels("~/labels.jsonl") == []
    assert sorted(path.name for path in home.iterdir()) == ["labels.jsonl", "rows.jsonl"]
    assert list(Path().iterdir()) == []

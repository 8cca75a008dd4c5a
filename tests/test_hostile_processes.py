"""Two processes at once, and secrets: what one process must not spoil or tell."""

import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from hf_folders import write_folder
from huggingface_hub.errors import HfHubHTTPError

from jaxsteer.checkpoints import checkpoint
from jaxsteer.models.conversion import convert, main
from jaxsteer.models.exporting import main as export_main
from jaxsteer.models.verification import main as verify_main

ROOT = Path(__file__).parents[1]
SECRET = "hf_planted0123456789abcdefPLANTED"


@pytest.fixture(scope="module")
def src(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("good") / "src")


# Converts, but waits for its input to close before the first tensor.
_SLOW = """
import sys
from jaxsteer.models import conversion as convert
from jaxsteer.runtime import run
leaves = convert._leaves
def wait(*args, **options):
    print("writing", flush=True)
    sys.stdin.read()
    yield from leaves(*args, **options)
convert._leaves = wait
run(lambda: convert.main(sys.argv[1:]))
"""


def test_two_processes_convert_to_one_place(src: Path, tmp_path: Path, capsys: Any) -> None:
    argv = [str(src), str(tmp_path / "dst")]
    with subprocess.Popen(
        [sys.executable, "-c", _SLOW, *argv],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "writing\n"
        for options in ([], ["--overwrite"]):
            assert main([*argv, *options]) == 1
            assert "another process is writing it now" in capsys.readouterr().err
        assert [p.name for p in tmp_path.iterdir()] == [".dst.building"]
        first.communicate()
    assert first.returncode == 0
    assert [p.name for p in tmp_path.iterdir()] == ["dst"]
    assert len(list(checkpoint.read_leaves(tmp_path / "dst"))) == 21
    assert main(argv) == 1
    assert "exists already" in capsys.readouterr().err


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A token where huggingface_hub looks for one; the folder for everything that is written."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "token").write_text(SECRET)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("HF_HOME", str(home))
    (tmp_path / "written").mkdir()
    yield tmp_path / "written"
    for file in (tmp_path / "written").rglob("*"):
        if file.is_file():
            assert SECRET.encode() not in file.read_bytes(), file


def test_a_token_is_never_written(src: Path, planted: Path, capfd: Any, caplog: Any) -> None:
    dst = str(planted / "dst")
    assert main([str(src), dst]) == 0
    assert verify_main([str(src), dst, "--tokens", "4"]) == 0
    assert export_main([dst, str(planted / "back")]) == 0
    assert main([str(src), dst]) == 1
    printed = capfd.readouterr()
    assert SECRET not in printed.out + printed.err + caplog.text
    assert any(planted.rglob("jaxsteer.json"))


@pytest.mark.parametrize("kind", [HfHubHTTPError, ConnectionError, OSError])
def test_a_token_in_an_error_is_not_told(
    planted: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, kind: type[Exception]
) -> None:
    def download(*_args: Any, **_options: Any) -> str:
        error = kind.__new__(kind)
        error.args = (f"GET https://hub/?Signature={os.environ['HF_TOKEN']}",)
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert main(["owner/model", str(planted / "dst")]) == 1
    assert "owner/model: download failed" in (said := capfd.readouterr().err)
    assert SECRET not in said
    with pytest.raises(ValueError, match="download failed") as caught:
        convert("owner/model", planted / "dst")
    assert SECRET not in "".join(traceback.format_exception(caught.value))

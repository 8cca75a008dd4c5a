"""A handful of kills; `experiments.benchmarks.soak` makes hundreds at random moments."""

import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hf_folders import write_folder

from experiments.benchmarks.soak_kill import run_and_kill
from jaxsteer.checkpoints import checkpoint
from jaxsteer.checkpoints import writer as checkpoint_writer
from jaxsteer.config.shape import LlamaConfig
from jaxsteer.llama.model import abstract_params
from jaxsteer.llama.parameters import flatten
from jaxsteer.models.conversion import convert


@pytest.fixture(scope="module")
def src(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("killed") / "src")


def weights_of(path: Path) -> dict[Any, bytes]:
    return {name: x.tobytes() for name, x in checkpoint.read_leaves(path)}


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_conversion_leaves_all_or_nothing(
    src: Path, tmp_path: Path, kind: signal.Signals
) -> None:
    target, building = tmp_path / "dst", tmp_path / ".dst.building"
    ended = run_and_kill(
        ["weights.convert", str(src), str(target), "--no-tokenizer"],
        kind,
        random.uniform(0, 0.2),
        begun=lambda _said: building.exists(),
    )
    names = {path.name for path in tmp_path.iterdir()}
    assert names <= ({"dst"} if kind == signal.SIGTERM else {"dst", ".dst.building"}), ended
    found = weights_of(target) if target.exists() else None
    convert(src, target, tokenizer=False, overwrite=True)  # goes through, whatever is left
    assert [path.name for path in tmp_path.iterdir()] == ["dst"]
    assert found in (None, weights_of(target))


def test_nothing_is_removed_while_orbax_still_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception, as a signal raises it, waits for the write: or it would come back later."""
    began: list[Path] = []

    def slow(path: Path, _tree: Any) -> None:
        began.append(path)
        time.sleep(0.3)
        path.mkdir(parents=True)

    monkeypatch.setattr(checkpoint.v1.partial, "save", slow)
    monkeypatch.setattr(checkpoint_writer, "_BATCH_BYTES", 1)
    config = LlamaConfig.tiny()

    def leaves() -> Any:
        shapes = list(flatten(abstract_params(config)))
        yield from [(path, np.zeros(x.shape, np.float32)) for path, x in shapes[:2]]
        while not began:
            time.sleep(0.01)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.write(tmp_path / "m", config, leaves(), dtype="float32")
    time.sleep(0.5)
    assert list(tmp_path.iterdir()) == []

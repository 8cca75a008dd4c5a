"""Results of other weights are never taken for those of these."""

import os
from pathlib import Path

import pytest
from oracle import SHALLOW, random_model

from experiments.pipeline.run import Run, _states
from experiments.pipeline.settings import load_settings
from jaxsteer.checkpoints import checkpoint

SETTINGS = Path(__file__).parents[3] / "experiments" / "configs" / "small.toml"


def run_with(path: Path) -> Run:
    settings = load_settings(SETTINGS)
    return Run(path.parent, settings, {"base": path}, derive_prompts=[], evaluate_prompts=[])


def test_other_weights_of_the_same_size_and_time(tmp_path: Path) -> None:
    for name in ("model.safetensors", "part/model.safetensors"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"old weights")
        before, stat = _states(tmp_path), file.stat()
        file.write_bytes(b"new weights")
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert file.stat().st_mtime_ns == stat.st_mtime_ns
        assert _states(tmp_path) != before


def test_a_changed_model_is_not_taken_for_its_source(tmp_path: Path) -> None:
    prints = set()
    for seed in (0, 1):
        path = tmp_path / f"model{seed}"
        checkpoint.save(path, random_model(SHALLOW, seed=seed), provenance={"source": "mine"})
        prints.add(run_with(path).model_fingerprint("base"))
    assert len(prints) == 2
    copied = {"source": "mine", "source_sha256": {"model.safetensors": "abc"}}
    with pytest.raises(ValueError, match="provenance: got source_sha256, which says"):
        checkpoint.save(tmp_path / "model2", random_model(SHALLOW), provenance=copied)

"""What is checked before a run: a model may name the ends of its text in any of its files."""

import json
from pathlib import Path

import pytest
from pipeline_helpers import write_tiny_pair

from experiments.pipeline.run import open_run


def edit(file: Path, **changed: object) -> None:
    """Change entries of a JSON file; None removes one."""
    data = json.loads(file.read_text()) if file.is_file() else {}
    data = {k: v for k, v in {**data, **changed}.items() if v is not None}
    file.write_text(json.dumps(data))


def test_an_end_that_only_generation_config_names_is_enough(tmp_path: Path) -> None:
    settings = write_tiny_pair(tmp_path)
    model = tmp_path / "reasoning"
    end = json.loads((model / "config.json").read_text())["eos_token_id"]
    edit(model / "tokenizer_config.json", eos_token=None)
    open_run(tmp_path / "run", settings)
    edit(model / "config.json", eos_token_id=None)
    edit(model / "generation_config.json", eos_token_id=None)
    with pytest.raises(ValueError, match=r"models\.reasoning: no file of the model names an end"):
        open_run(tmp_path / "run", settings)
    edit(model / "generation_config.json", eos_token_id=[end])
    open_run(tmp_path / "run", settings)
    edit(model / "generation_config.json", eos_token_id=10**6)
    with pytest.raises(ValueError, match=r"models\.reasoning: .*eos_token_id: got 1000000"):
        open_run(tmp_path / "run", settings)

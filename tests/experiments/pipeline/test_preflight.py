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


def test_the_base_model_reads_ids_of_its_own_vocabulary(tmp_path: Path) -> None:
    """Added tokens may differ, as those of R1-Distill-Llama do from Llama's; words may not."""
    settings = write_tiny_pair(tmp_path)
    file = tmp_path / "reasoning" / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    words = tokenizer["model"]["vocab"]
    added = next(one for one in tokenizer["added_tokens"] if "user" in one["content"])
    renamed = {"<|new|>" if word == added["content"] else word: id for word, id in words.items()}
    added["content"] = "<|new|>"
    file.write_text(json.dumps(tokenizer | {"model": {**tokenizer["model"], "vocab": renamed}}))
    edit(
        file.parent / "tokenizer_config.json", chat_template="{{ messages[0].content }}<assistant>"
    )
    open_run(tmp_path / "run", settings)
    renamed["wait"], renamed["plus"] = renamed["plus"], renamed["wait"]
    file.write_text(json.dumps(tokenizer | {"model": {**tokenizer["model"], "vocab": renamed}}))
    with pytest.raises(ValueError, match=r"models\.reasoning: got '\w+' for id \d+, expected the"):
        open_run(tmp_path / "run", settings)

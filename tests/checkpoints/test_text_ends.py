"""jaxsteer.checkpoints.text_ends: every file that names an end is read, and only ids are taken."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from oracle import SHALLOW, random_model

from jaxsteer.checkpoints import checkpoint
from jaxsteer.checkpoints.text_ends import end_tokens


def saved(folder: Path, **files: object) -> Path:
    """A checkpoint with these JSON files in it."""
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    companions = [folder / f"{name}.json" for name in files]
    checkpoint.save(folder / "model", random_model(SHALLOW), files=companions)
    return folder / "model"


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": 7}, {"eos_token_id": 9}, [7, 9]),
        ({"eos_token_id": [8, 7]}, {"eos_token_id": 9}, [7, 8, 9]),
        ({"do_sample": True}, {"eos_token_id": [9]}, [9]),
        ({"eos_token_id": None}, {}, []),
    ],
)
def test_ids_come_from_the_files_and_the_tokenizer(tmp_path, generation, config, expected):
    path = saved(tmp_path, generation_config=generation, config=config)
    assert end_tokens(path, SimpleNamespace(eos_token_id=3)) == [3, *expected]
    if expected:
        assert end_tokens(path) == expected
        assert end_tokens(path, SimpleNamespace(eos_token_id=None)) == expected
    else:
        message = "model: no file of the model names an end-of-sequence token"
        with pytest.raises(ValueError, match=message):
            end_tokens(path)


@pytest.mark.parametrize("wrong", ["7", 61, -1, [7, 2.0], True])
def test_what_is_no_id_is_refused(tmp_path, wrong):
    path = saved(tmp_path, generation_config={"eos_token_id": wrong})
    with pytest.raises(ValueError, match=r"generation_config.json: eos_token_id: got .*0 to 60"):
        end_tokens(path)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such directory"):
        end_tokens(tmp_path / "nowhere")

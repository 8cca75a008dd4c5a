"""Files of strangers: bounded before they are read, and never waited for."""

import gzip
import json
import os
from pathlib import Path

import pytest

from experiments.judges.command import read_traces
from experiments.pipeline.settings import Prompts, load_settings
from experiments.pipeline.text import load_prompts
from jaxsteer.analysis import read_labels
from jaxsteer.directions import load_directions, load_replication
from jaxsteer.files import (
    append_rows,
    is_gguf,
    load_json,
    read_gguf_header,
    read_header,
    read_json,
    read_rows,
    recover_rows,
    write_atomic,
)
from jaxsteer.planning.mesh_plan import read_config
from jaxsteer.texts import Texts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 101 + "]" * 101, "nested too deep, more than 100 levels"),
        ('{"a":' * 50 + "[" * 51 + "]" * 51 + "}" * 50, "nested too deep, more than 100 levels"),
        ("[" * 1_000_000, "nested too deep"),
        ("[1e999]", "1e999 is no number"),
        ("[-Infinity]", "-Infinity is no number"),
        ('[{"a": 1, "a": 2}]', "given twice: 'a'"),
        ("[" + "9" * 5000 + "]", "integer string"),
        ("\ufeff[]", "not JSON"),
        (r'["\ud83d"]', "half of a letter"),
        (r'{"\uDE00": 1}', "half of a letter"),
    ],
)
def test_json_that_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_json(text)


def test_json_that_is_taken() -> None:
    assert load_json(b"\xef\xbb\xbf[1]") == [1]  # as some editors begin a file
    assert load_json(r'["\ud83d\ude00 \ue000"]') == ["\U0001f600 \ue000"]
    for text in ("[" * 100 + "]" * 100, "[" + "[]," * 500 + "1e308]", '{"a": {"a": null}}'):
        assert load_json(text) == json.loads(text)


def test_sizes_are_bounded_before_anything_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(b"")
    os.truncate(file, 1 << 40)  # takes no room on the disk
    with pytest.raises(ValueError, match=r"a\.json: has more than 16,777,216 bytes"):
        read_json(file)
    packed = tmp_path / "a.json.gz"
    packed.write_bytes(gzip.compress(b" " * (1 << 25)))
    with pytest.raises(ValueError, match=r"a\.json\.gz: has more than 16,777,216 bytes"):
        read_json(packed)
    packed.write_bytes(gzip.compress(b"[1]" * 9)[:-9])
    with pytest.raises(ValueError, match=r"a\.json\.gz: not compressed by gzip, or damaged"):
        read_json(packed)


def _prompts(path: Path) -> object:
    return load_prompts(Prompts(file=str(path)), "dom", None)


READERS = [
    read_traces, read_labels, _prompts, load_settings, load_directions, load_replication,
    read_rows, recover_rows, read_json, read_header, is_gguf, read_gguf_header, Texts.load,
]  # fmt: skip


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("place", ["pipe.json", "pipe.jsonl", "/dev/zero", "folder"])
def test_what_is_no_file_is_not_waited_for(read, place: str, tmp_path: Path) -> None:
    path = tmp_path / place
    if place == "folder":
        path.mkdir()
    elif "pipe" in place:
        os.mkfifo(path)  # whoever opened it would wait for ever
    with pytest.raises((ValueError, FileNotFoundError), match=r"no regular|no such") as caught:
        read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("read", [read_traces, read_labels, _prompts, read_config, read_rows])
@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000 + "\n", "[" + "9" * 5000 + "]"])
def test_json_that_is_too_deep_or_long(read, text: str, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(f"{text}\n")
    with pytest.raises(ValueError, match=r"a\.json.*(nested|recursion|integer)") as caught:
        read(file)
    assert len(str(caught.value)) < 300


def test_a_device_is_not_replaced_or_appended_to(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for write in (write_atomic, lambda path, data: append_rows(path, [{}])):
        with pytest.raises(ValueError, match="pipe: is no regular file"):
            write(tmp_path / "pipe", b"data")
    assert [file.name for file in tmp_path.iterdir()] == ["pipe"]

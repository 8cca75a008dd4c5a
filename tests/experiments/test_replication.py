"""On the made-up excerpt in `data/replication`; the real files are checked by the command."""

import gzip
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from experiments.replication import main

ROOT = Path(__file__).parents[2]
EXCERPT = Path(__file__).parents[1] / "data" / "replication"
NUMBERS = ["--rows", "24", "--traces", "4", "--cosine", "0.8"]


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(EXCERPT, tmp_path / "excerpt"))


def edit(path, change):
    content = json.loads(gzip.decompress(path.read_bytes()))
    change(content)
    path.write_bytes(gzip.compress(json.dumps(content).encode()))


def test_the_command_holds_on_the_excerpt():
    command = [sys.executable, "-m", "experiments.replication", str(EXCERPT), *NUMBERS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "keyword rates: 24/24 exact" in done.stdout
    assert "reasoning.union: 0.8000" in done.stdout
    assert "traces: 4, 2 of them with </think>" in done.stdout
    assert "sentences: 18, 2 to 7 a trace, median 4.5; 2 hold a keyword" in done.stdout
    assert done.stdout.endswith("all checks hold\n")


def test_empty_generations_stand_apart(capsys):
    main([str(EXCERPT), *NUMBERS])
    cells = {
        tuple(line.split()[:3]): line.split()[3:] for line in capsys.readouterr().out.split("\n")
    }
    # mean with empty as 0, mean, standard error, n, empty, repetition
    assert cells["base", "base_derived_union", "-8"] == ["0.0000", "nan", "nan", "0", "2", "nan"]
    assert cells["base", "base_derived_union", "0"] == [
        "0.0000",
        "0.0000",
        "nan",
        "1",
        "1",
        "0.000",
    ]
    loud = cells["reasoning", "base_derived_union", "8"]  # 6/8 and 1/14
    assert loud[:5] == ["0.4107", "0.4107", "0.3393", "2", "0"]
    stuck = cells["reasoning", "reasoning_derived_union", "8"]  # of 5 and 9 4-grams 0 and 5 repeat
    assert stuck[-1] == "0.278"


def test_a_wrong_rate_is_listed_and_fails(folder, capsys):
    def change(content):
        row = content["rows"][16]
        row["keyword_rate"] = math.nextafter(row["keyword_rate"], 1)

    edit(folder / "steering_results.json.gz", change)
    assert main([str(folder), *NUMBERS]) == 1
    out = capsys.readouterr()
    assert "keyword rates: 23/24 exact" in out.out
    assert "1 failed" in out.out
    assert "FAILED row 16 (reasoning, base_derived_union, 8.0, counting_001): 6 / 8" in out.err


def test_a_missing_row_and_a_missing_trace_fail(folder, capsys):
    edit(folder / "steering_results.json.gz", lambda content: content["rows"].pop())
    edit(folder / "traces.json.gz", lambda content: content.pop())
    assert main([str(folder), *NUMBERS]) == 1
    err = capsys.readouterr().err
    assert "23 rows, 23 of them distinct, in a grid of 2 x 2 x 3 x 2; expected 24" in err
    assert "traces: 3, expected 4" in err
    assert "traces: not one for each prompt" in err


def test_a_whole_grid_of_another_size_fails(capsys):
    assert main([str(EXCERPT), "--rows", "640", *NUMBERS[2:]]) == 1
    assert "in a grid of 2 x 2 x 3 x 2; expected 640" in capsys.readouterr().err


def test_another_cosine_fails(capsys):
    assert main([str(EXCERPT), *NUMBERS[:-1], "0.7941"]) == 1
    assert "cosine 0.800000, expected 0.7941" in capsys.readouterr().err


def test_missing_files_are_named_before_anything_runs(folder, capsys):
    (folder / "prompts.json").unlink()
    (folder / "dom_layer10.safetensors").unlink()
    assert main([str(folder), *NUMBERS]) == 1
    out = capsys.readouterr()
    assert "missing prompts.json, dom_layer10.safetensors" in out.err
    assert out.out == ""


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("prompts.json", b"{", "prompts.json: not JSON"),
        ("prompts.json", b"{}", "prompts.json: got dict, expected a list"),
        ("prompts.json", b'[{"id": "a"}]', "prompts.json: record 0 has no 'category'"),
        ("traces.json.gz", b"[]", "traces.json.gz: not compressed by gzip"),
        ("steering_results.json.gz", gzip.compress(b"[]", mtime=0), "expected an object with rows"),
        ("dom_layer10.safetensors", b"x", "dom_layer10.safetensors: damaged or cut short"),
    ],
)
def test_damaged_files_are_named(folder, capsys, name, content, message):
    (folder / name).write_bytes(content)
    assert main([str(folder), *NUMBERS]) == 1
    assert message in capsys.readouterr().err


def test_a_file_without_the_unions_fails(folder, capsys):
    header = {"layer": "10", "site": "resid_post", "union_offsets": "-8"}
    vectors = {"base.union": np.ones(2, np.float32)}
    save_file(vectors, folder / "dom_layer10.safetensors", metadata=header)
    assert main([str(folder), *NUMBERS]) == 1
    assert "no reasoning.union" in capsys.readouterr().err

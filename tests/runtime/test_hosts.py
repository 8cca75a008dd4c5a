"""runtime.hosts and jaxsteer.preemption: two and four processes are one, also when one is taken.

Real processes that talk over loopback, each with some of four CPU devices.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hosts_worker import LENGTHS, ROWS_PER_CHUNK
from oracle import random_model
from quick_compile import xla_flags

import jaxsteer
from jaxsteer.config.shape import LlamaConfig
from jaxsteer.runtime import preemption

ROOT = Path(__file__).parents[2]
CONFIG = LlamaConfig(
    vocab_size=64,
    d_model=16,
    d_mlp=32,
    n_layers=1,
    n_heads=4,
    n_kv_heads=2,
    head_dim=4,
    max_positions=64,
    rope_theta=100.0,
)
DEVICES = 4
SECONDS = 300  # after which nothing here may still run


def launch(folder: Path, processes: int, *tasks: str) -> list[tuple[int, str]]:
    """Exit code and stderr of each process; raises when they have not all ended in time."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {
        "XLA_FLAGS": xla_flags(DEVICES // processes),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "JAX_PLATFORMS": "cpu",
    }
    worker = [sys.executable, str(ROOT / "tests" / "helpers" / "hosts_worker.py"), str(folder)]
    errors = [folder / f"stderr-{i}" for i in range(processes)]
    running = []
    try:
        for i, error in enumerate(errors):
            argv = [*worker, str(i), str(processes), port, *tasks]
            with error.open("w") as file:
                running.append(subprocess.Popen(argv, env=environment, stderr=file))
        codes = [process.wait(SECONDS) for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    return list(zip(codes, [error.read_text() for error in errors], strict=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkpoint, and what one process on four devices made of it."""
    folder = tmp_path_factory.mktemp("hosts")
    jaxsteer.save(folder / "model", random_model(CONFIG))
    ((code, said),) = launch(folder, 1, "values", "one:2x2")
    assert code == 0, said[-3000:]
    return folder


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


@pytest.fixture(scope="module")
def lost(folder) -> list[tuple[int, str]]:
    """How four processes ended of which one was killed in the middle of a sweep."""
    return launch(folder, 4, "sweep:2x2:SIGKILL:2")


@pytest.fixture(scope="module")
def went_on(folder, lost) -> list[tuple[int, str]]:
    """How two ended that went on with it, halved the chunks of another, and stopped in a third."""
    tasks = "values", "sweep:2x2", "halved:2x2:small:1", "stopped:2x2:SIGTERM:1"
    return launch(folder, 2, *tasks)


def test_when_one_is_killed_the_others_end_and_say_why(folder, lost):
    codes = [code for code, _ in lost]
    assert codes[2] == -signal.SIGKILL
    assert all(codes), codes
    said = "".join(said for _, said in lost)
    assert "has lost another one" in said
    assert "Start all of them again with the same command" in said
    begun = lines(folder / "one.jsonl")[: 2 * ROWS_PER_CHUNK]
    assert lines(folder / "sweep.jsonl")[: 2 * ROWS_PER_CHUNK] == begun


def test_a_sweep_of_four_processes_ends_with_two_as_with_one(folder, went_on):
    assert lines(folder / "sweep.jsonl") == lines(folder / "one.jsonl")
    bars = ["24/24" in said for _, said in went_on]
    assert bars == [True, False]


def test_two_processes_do_what_one_does(folder, went_on):
    """Tokens, log-probabilities, activations and weights, in each of them."""
    alone = np.load(folder / "values-1-0.npz")
    assert len({tuple(row) for row in alone["tokens"]}) == len(LENGTHS)
    for index in range(2):
        found = np.load(folder / f"values-2-{index}.npz")
        assert set(found) == set(alone)
        for name in found:
            np.testing.assert_allclose(found[name], alone[name], rtol=1e-5, err_msg=name)


def test_a_chunk_that_one_host_has_no_room_for_is_halved_on_all(folder, went_on):
    rows = [
        {
            (row["coeff"], row["prompt"]): row
            for row in map(json.loads, lines(folder / f"{name}.jsonl"))
        }
        for name in ("halved", "one")
    ]
    assert [len(some) for some in rows] == [24, 24]
    for key, row in rows[0].items():  # programs of another shape round otherwise
        assert row["tokens"] == rows[1][key]["tokens"]
        np.testing.assert_allclose(row["logprobs"], rows[1][key]["logprobs"], atol=1e-5)
    for (_, said), why in zip(went_on, ("another host has no memory", "RESOURCE_EXH"), strict=True):
        assert "out of memory with 1 cells × 4 prompts at once, going on with 1 × 2" in said
        assert why in said


def test_all_stop_behind_the_same_chunk_whoever_is_asked(folder, went_on):
    assert [code for code, _ in went_on] == [preemption.EXIT_CODE] * 2, went_on[0][1][-3000:]
    assert lines(folder / "stopped.jsonl") == lines(folder / "one.jsonl")[: 2 * ROWS_PER_CHUNK]
    for _, said in went_on:
        assert f"stopped by SIGTERM, {2 * ROWS_PER_CHUNK} of 24 rows are in" in said

"""runtime.preemption: SIGTERM, sent to this process, finishes what is at hand and stops there.

Many processes, and the exit code: `test_hosts`.
"""

import gc
import itertools
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from oracle import SHALLOW

import jaxsteer
from experiments.pipeline.settings import Decoding
from experiments.pipeline.text import Prompt
from experiments.stages import rollouts
from jaxsteer.directions import activations
from jaxsteer.directions.activations import Trace, activation_moments
from jaxsteer.files.jsonl import read_rows
from jaxsteer.runtime import preemption
from jaxsteer.runtime.command import guarded
from jaxsteer.runtime.preemption import EXIT_CODE, Stopped, at_once, deferred, stop_if_asked
from jaxsteer.sweeps.chunks import CellResult
from jaxsteer.sweeps.sweep_file import sweep_to_file
from jaxsteer.tokenizers import EncodedPrompt

ROOT = Path(__file__).parents[2]


def terminate() -> None:
    signal.raise_signal(signal.SIGTERM)


@pytest.fixture(autouse=True)
def untouched() -> Iterator[None]:
    """Nothing here may leave a handler behind."""
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    yield
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_it_waits_for_the_next_place_to_stop(capsys):
    done = []

    @deferred()
    def work() -> None:
        for i in range(3):
            done.append(i)
            if i == 1:
                terminate()
                assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # a second one ends it
            with deferred():  # changes nothing
                stop_if_asked(f"{i} is done")

    with pytest.raises(Stopped) as stopped:
        work()
    assert done == [0, 1]
    assert stopped.value.code == EXIT_CODE == 143
    said = "stopped by SIGTERM, 1 is done; the same command goes on from here\n"
    assert capsys.readouterr().err == said
    with deferred():
        stop_if_asked("the signal before is forgotten")


def test_a_command_stops_anywhere_and_says_so(capsys):
    def work() -> None:
        with at_once():
            terminate()
            raise AssertionError("went on")

    assert guarded(resumes=True)(work)() == EXIT_CODE
    assert capsys.readouterr().err == "stopped by SIGTERM; the same command goes on from here\n"


def test_a_signal_in_code_that_makes_another_error_of_it_is_still_a_signal(capsys):
    """As C does that calls Python: JAX's walk through a tree of modules, TensorStore's futures."""

    def work() -> None:
        with at_once():
            try:
                terminate()
            except SystemExit as error:
                raise RuntimeError(f"while flattening: {error!r}") from error

    assert guarded(resumes=True)(work)() == EXIT_CODE
    assert capsys.readouterr().err == "stopped by SIGTERM; the same command goes on from here\n"


def test_an_error_without_a_signal_stays_what_it_is():
    with pytest.raises(RuntimeError, match="of its own"), at_once():
        raise RuntimeError("of its own")


def test_a_signal_in_a_callback_that_drops_exceptions_is_not_lost(capsys):
    """As JAX's own in the garbage collector, where a third of the signals at a start came."""
    dropped = []

    def in_a_collection(phase: str, _info: object) -> None:
        if phase == "start" and not dropped:
            dropped.append(1)
            terminate()

    def work() -> None:
        gc.callbacks.append(in_a_collection)
        with at_once("stopped"):
            gc.collect()
            time.sleep(5)
            raise AssertionError("went on")

    try:
        assert guarded(resumes=True)(work)() == EXIT_CODE
    finally:
        gc.callbacks.remove(in_a_collection)
    assert dropped
    assert capsys.readouterr().err == "stopped\n"


def test_a_signal_behind_the_last_place_to_stop_is_not_lost():
    @deferred()
    def work() -> None:
        stop_if_asked("here")
        terminate()

    with at_once(), pytest.raises(Stopped):
        work()


def test_a_handler_of_somebody_else_is_left_in_place():
    seen = []
    signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
    try:
        with at_once(), deferred():
            terminate()
            stop_if_asked("not ours")
        assert seen == [1]
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_other_threads_leave_signals_alone():
    failed: list[BaseException] = []

    def work() -> None:
        try:
            with at_once(), deferred():
                stop_if_asked("here")
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failed == []


def at_call(number: int, then: Callable[..., Any]) -> Callable[..., Any]:
    """`then`, and SIGTERM in its call of this number."""
    calls = itertools.count()

    def call(*args: Any, **options: Any) -> Any:
        if next(calls) == number:
            terminate()
        return then(*args, **options)

    return call


def test_a_sweep_finishes_its_chunk(shallow, batch, tmp_path, capsys):
    cells = jaxsteer.grid({"v": [1.0] * SHALLOW.d_model}, layers=[0], coeffs=[0.0, 1.0, 2.0])
    options: dict[str, Any] = {"max_new_tokens": 2, "rows_per_chunk": 3, "progress": None}
    whole = sweep_to_file(tmp_path / "whole.jsonl", shallow, batch, cells, **options)
    path = tmp_path / "rows.jsonl"

    def row(result: CellResult) -> dict[str, Any]:
        return {"tokens": result.tokens, "logprobs": result.logprobs}

    with pytest.raises(Stopped):  # in the second chunk's first row
        sweep_to_file(path, shallow, batch, cells, to_row=at_call(3, row), **options)
    assert f"6 of 9 rows are in {path}" in capsys.readouterr().err
    assert len(read_rows(path)) == 6
    sweep_to_file(path, shallow, batch, cells, to_row=row, **options)
    assert path.read_bytes() == whole.read_bytes()


class Tokenizer:
    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return " ".join(map(str, ids))


def test_rollouts_keep_the_traces_that_are_finished(tmp_path: Path, monkeypatch, capsys):
    prompts = [Prompt(id=str(i), text="?") for i in range(4)]
    asked: list[list[int]] = []

    def traces(model: Any, ids: Any, left: Sequence[int], **_: Any) -> Iterator[Any]:
        asked.append(list(left))
        for index in left[::-1]:
            yield index, [5, index]

    monkeypatch.setattr(rollouts, "_traces", traces)
    prompt = EncodedPrompt([1], [], "?", "nothing put before the text")
    monkeypatch.setattr(rollouts, "put_prompts", lambda *a, **k: [prompt] * 4)
    append = rollouts.append_rows
    decoding = Decoding(max_new_tokens=2, temperature=1.0, seed=0)

    def write() -> None:
        rollouts.write_rollouts(tmp_path, None, Tokenizer(), prompts, stops=[], decoding=decoding)

    monkeypatch.setattr(rollouts, "append_rows", at_call(1, append))
    with pytest.raises(Stopped):
        write()
    assert "2 of 4 traces are in" in capsys.readouterr().err
    monkeypatch.setattr(rollouts, "append_rows", append)
    write()
    assert asked == [[0, 1, 2, 3], [0, 1]]
    assert [row["id"] for row in read_rows(tmp_path / rollouts.FILE)] == ["0", "1", "2", "3"]


def test_the_activation_pass_stops_behind_a_batch(shallow, monkeypatch, capsys):
    traces = [Trace([3, 4, 5], 0, [1], ["a"]) for _ in range(6)]
    monkeypatch.setattr(activations, "check_batch", at_call(1, activations.check_batch))
    with pytest.raises(Stopped):
        activation_moments(shallow, traces, labels=["a"], offsets=[0], rows=2, length=4)
    assert "4 of 6 traces were read, and are read anew" in capsys.readouterr().err
    assert preemption.EXIT_CODE == 143


@pytest.mark.parametrize("code", [1, 130, EXIT_CODE])
def test_an_interrupted_command_is_not_taken_apart(code: int):
    """A thread of XLA that is still at work then would end it with a fault: seen in a soak."""
    script = (
        "import atexit; from jaxsteer.runtime import end; print('said');"
        f"atexit.register(lambda: print('taken apart')); end({code})"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == code
    assert ended.stdout == ("said\ntaken apart\n" if code == 1 else "said\n")

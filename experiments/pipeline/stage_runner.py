"""Stages of a run: each a folder that appears when it is complete, skipped while it is valid.

runs/small/rollouts/            made by one stage, read by the next
    traces.jsonl
    stage.json                  what went in, what came out (hashes), how long it took
runs/small/.rollouts.partial/   a stage at work; a kill leaves it, the next run goes on in it
runs/small/superseded/          results of other settings, moved here and never deleted

On many hosts `runs/small` is on a disk that all of them share. The first process decides what has
to be made, and what it writes is the stage; the others do the same work in folders of their own,
which are thrown away, so that nothing is written twice.
"""

import functools
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jaxsteer
from jaxsteer.files import jsonl, read_json, sha256, write_atomic
from jaxsteer.runtime import hosts, preemption

_RECORD = "stage.json"
_SEEN_WITHIN = 60.0  # seconds in which every host sees what one wrote to the shared disk


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold a run's folder for this process.

    Raises:
        FileExistsError: if another process works in it, or it is a file.
    """

    def hold() -> None:
        if out.is_file():
            raise FileExistsError(f"{out}: is a file, expected a folder for the run")
        out.mkdir(parents=True, exist_ok=True)
        busy = f"{out}: another process is working in this folder"
        held.enter_context(jsonl.locked(out / ".lock", busy=busy))

    with ExitStack() as held:
        hosts.from_writer(hold)
        yield


def run_stage(
    out: Path,
    name: str,
    inputs: dict[str, Any],
    work: Callable[[Path], None],
    *,
    alone: bool = False,
    say: Callable[[str], None] = print,
) -> Path:
    """The folder `out/name`, made by `work(folder)` unless it was made from the same inputs.

    Args:
        out: the run's folder.
        name: the stage.
        inputs: everything that decides the outcome, as JSON: settings, and `fingerprint`s of the
            stages before.
        work: writes the stage's files into the folder that it is given. After a kill it is called
            again with the same folder, and goes on with what it finds there.
        alone: on many hosts, whether the first process does the work and the others wait: for work
            without a model.
        say: where progress goes.
    """
    folder, partial = out / name, out / f".{name}.partial"
    inputs = json.loads(json.dumps({**inputs, "jaxsteer": jaxsteer.__version__}))
    preemption.stop_if_asked(f"before {name}")
    copied = hosts.from_writer(lambda: _begin(folder, partial, inputs, say))
    if copied is not None:
        started = time.monotonic()
        try:
            if alone:
                hosts.from_writer(lambda: work(partial))
            else:
                with _folder_of_this_process(partial, copied) as own_folder:
                    work(own_folder)
        except Exception:
            if hosts.is_writer() and not _outputs(partial):  # nothing to go on with
                shutil.rmtree(partial)
            raise
        hosts.from_writer(lambda: _finish(folder, partial, inputs, started, say))
    _wait_until(lambda: _record(folder).get("inputs") == inputs, folder)
    return folder


def _begin(
    folder: Path, partial: Path, inputs: dict[str, Any], say: Callable[[str], None]
) -> dict[str, str] | None:
    """What the other hosts need to go on, hashes by name; None if the stage is there already."""
    name, out = folder.name, folder.parent
    made = _record(folder)
    if made.get("inputs") == inputs and made.get("outputs") == _outputs(folder):
        say(f"[{name}] unchanged, skipped")
        return None
    _set_aside(folder, out)
    if _record(partial).get("inputs") != inputs:
        _set_aside(partial, out)
        partial.mkdir(parents=True)
        write_atomic(partial / _RECORD, json.dumps({"inputs": inputs}).encode())
    else:
        say(f"[{name}] goes on where it was interrupted")
        for file in partial.glob(".*"):  # what a kill in the middle of `write_atomic` left
            if file.is_file():
                file.unlink()
    return _outputs(partial) if hosts.several() else {}


def _finish(
    folder: Path,
    partial: Path,
    inputs: dict[str, Any],
    started: float,
    say: Callable[[str], None],
) -> None:
    record = {
        "inputs": inputs,
        "outputs": _outputs(partial),
        "seconds": round(time.monotonic() - started, 1),
    }
    write_atomic(partial / _RECORD, json.dumps(record, indent=1).encode())
    os.replace(partial, folder)
    say(f"[{folder.name}] done in {record['seconds']} s")


@contextmanager
def _folder_of_this_process(partial: Path, copied: dict[str, str]) -> Iterator[Path]:
    """The stage's folder; for other processes than the first one of their own, with a copy."""
    if hosts.is_writer():
        hosts.barrier(f"copied {partial}")
        yield partial
        return
    with tempfile.TemporaryDirectory() as temporary:
        own = Path(temporary) / partial.name
        own.mkdir()
        for name in copied:
            (own / name).parent.mkdir(parents=True, exist_ok=True)
            _wait_until(
                functools.partial(_copied, partial / name, own / name, copied[name]), partial
            )
        hosts.barrier(f"copied {partial}")
        yield own


def _copied(file: Path, to: Path, digest: str) -> bool:
    try:
        shutil.copyfile(file, to)
    except FileNotFoundError:
        return False
    return sha256(to) == digest


def _wait_until(seen: Callable[[], bool], folder: Path) -> None:
    """Wait for what another host has written.

    Raises:
        FileNotFoundError: if this one does not see it in time.
    """
    deadline = time.monotonic() + _SEEN_WITHIN
    while hosts.several() and not seen():
        if time.monotonic() > deadline:
            raise FileNotFoundError(
                f"{folder}: process {hosts.index()} does not see what the first one wrote there; "
                "expected a disk that all hosts share"
            )
        time.sleep(0.2)


def fingerprint(folder: Path) -> str:
    """A hash of what a finished stage wrote, to name it in the inputs of the next."""
    outputs = json.dumps(_record(folder)["outputs"], sort_keys=True)
    return hashlib.sha256(outputs.encode()).hexdigest()


def _record(folder: Path) -> dict[str, Any]:
    """What `stage.json` says; nothing if it is missing or damaged, so that the stage is redone."""
    try:
        record = read_json(folder / _RECORD)
    except (FileNotFoundError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _outputs(folder: Path) -> dict[str, str]:
    """Hash of every file under the folder, the record apart."""
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f != folder / _RECORD)
    return {str(f.relative_to(folder)): sha256(f) for f in files}


def _set_aside(folder: Path, out: Path) -> None:
    if not folder.exists():
        return
    attic = out / "superseded"
    attic.mkdir(exist_ok=True)
    # Counted on from the highest: some may have been deleted by hand.
    numbers = [int(f.name.split("-")[0]) for f in attic.iterdir() if f.name.split("-")[0].isdigit()]
    number = max(numbers, default=0) + 1
    os.replace(folder, attic / f"{number:03d}-{folder.name.removeprefix('.')}")

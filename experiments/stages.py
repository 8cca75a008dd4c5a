"""Stages of a run: each a folder that appears when it is complete, skipped while it is valid.

runs/small/rollouts/            made by one stage, read by the next
    traces.jsonl
    stage.json                  what went in, what came out (hashes), how long it took
runs/small/.rollouts.partial/   a stage at work; a kill leaves it, the next run goes on in it
runs/small/superseded/          results of other settings, moved here and never deleted
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jaxsteer
from jaxsteer import jsonl
from jaxsteer.files import sha256, write_atomic

_RECORD = "stage.json"


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold a run's folder for this process.

    Raises:
        FileExistsError: if another process works in it.
    """
    out.mkdir(parents=True, exist_ok=True)
    with jsonl.locked(out / ".lock", busy=f"{out}: another process is working in this folder"):
        yield


def run_stage(
    out: Path,
    name: str,
    inputs: dict[str, Any],
    work: Callable[[Path], None],
    *,
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
        say: where progress goes.
    """
    folder, partial = out / name, out / f".{name}.partial"
    inputs = json.loads(json.dumps({**inputs, "jaxsteer": jaxsteer.__version__}))
    made = _record(folder)
    if made.get("inputs") == inputs and made.get("outputs") == _outputs(folder):
        say(f"[{name}] unchanged, skipped")
        return folder
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
    started = time.monotonic()
    try:
        work(partial)
    except Exception:
        if not _outputs(partial):  # nothing to go on with
            shutil.rmtree(partial)
        raise
    record = {
        "inputs": inputs,
        "outputs": _outputs(partial),
        "seconds": round(time.monotonic() - started, 1),
    }
    write_atomic(partial / _RECORD, json.dumps(record, indent=1).encode())
    os.replace(partial, folder)
    say(f"[{name}] done in {record['seconds']} s")
    return folder


def fingerprint(folder: Path) -> str:
    """A hash of what a finished stage wrote, to name it in the inputs of the next."""
    outputs = json.dumps(_record(folder)["outputs"], sort_keys=True)
    return hashlib.sha256(outputs.encode()).hexdigest()


def _record(folder: Path) -> dict[str, Any]:
    """What `stage.json` says; nothing if it is missing or damaged, so that the stage is redone."""
    try:
        record = json.loads((folder / _RECORD).read_bytes())
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

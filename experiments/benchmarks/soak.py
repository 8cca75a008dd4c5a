"""Kill a command at random moments, again and again, and check each time that nothing was lost.

    python -m experiments.benchmarks.soak convert --folder /tmp/soak [--kills 50] [--seed 0]
    python -m experiments.benchmarks.soak sweep --folder /tmp/soak
    python -m experiments.benchmarks.soak reproduce --folder /tmp/soak

As many SIGTERMs as SIGKILLs, `--kills` of each; only those count that met the command alive. After
every one the folder is looked through. Prints a JSON line for each kill and one at the end; exit
code 1 when something was lost or left half-written.
"""

import argparse
import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.run import DEFAULT_SETTINGS
from jaxsteer import checkpoint
from jaxsteer.config import LlamaConfig
from jaxsteer.files import sha256
from jaxsteer.model import abstract_params
from jaxsteer.paths import dotted
from weights.small_folder import write_model
from weights.small_tokenizer import vocabulary

ROOT = Path(__file__).parents[2]
# About 40 MB, so that there is a while to be killed in.
CONFIG = replace(
    LlamaConfig.tiny(),
    vocab_size=len(vocabulary()),
    d_model=512,
    d_mlp=2048,
    n_layers=5,
    n_heads=8,
    n_kv_heads=4,
    head_dim=64,
)
# What the small pair's settings are cut down to, for runs of a minute.
_SMALLER = {
    "derive_limit": 64, "evaluate_limit": 8, "max_new_tokens": 48, "random_directions": 1,
    "rows_per_chunk": 16,
}  # fmt: skip


class Lost(Exception):
    """Something was lost or left half-written."""


@dataclass(frozen=True)
class Job:
    """A command to be killed, and what must hold after each kill."""

    argv: Callable[[int], list[str]]  # by the number of the attempt
    prepare: Callable[[int], None]  # before each attempt
    check: Callable[[int, int], str]  # attempt, exit code -> what was found; raises `Lost`
    seconds: float  # that it takes unharmed
    # Half of the kills wait for this and come within so many seconds of it.
    begun: Callable[[], bool] = lambda: True
    window: float = 0.0


def soak(job: Job, *, kills: int, seed: int) -> Iterator[dict[str, Any]]:
    """Kill until `kills` signals of each kind have met the command alive; one row for each try.

    At the end it may do its work: what the kills have left must not matter.

    Raises:
        Lost: when a check fails.
    """
    random_ = random.Random(seed)
    left = {signal.SIGTERM: kills, signal.SIGKILL: kills}
    attempt, seconds = 0, job.seconds
    while any(left.values()):
        kind = random_.choice([one for one, count in left.items() if count])
        aimed = bool(job.window) and random_.random() < 0.5
        delay = random_.uniform(0, job.window if aimed else 1.05 * seconds)
        job.prepare(attempt)
        started = time.monotonic()
        code = run_and_kill(job.argv(attempt), kind, delay, begun=job.begun if aimed else None)
        if code == 0:  # other work on the machine may have come or gone
            seconds = time.monotonic() - started
        found = job.check(attempt, code)
        met = code != 0
        left[kind] -= met
        yield {
            "try": attempt,
            "signal": kind.name,
            "after_s": round(delay, 2),
            "of": "the first file" if aimed else "the start",
            "exit": code,
            "found": found,
        }
        attempt += 1
    job.prepare(attempt)
    _unharmed(job.argv(attempt))
    yield {"try": attempt, "signal": None, "exit": 0, "found": job.check(attempt, 0)}


def run_and_kill(
    argv: list[str],
    kind: signal.Signals,
    delay: float,
    *,
    begun: Callable[[], bool] | None = None,
) -> int:
    """Start a command, send a signal `delay` seconds later unless it has ended; its exit code.

    With `begun`, the seconds count from when that is first true.

    Raises:
        Lost: when it fails by itself, without having been killed.
    """
    with subprocess.Popen(
        [sys.executable, "-m", *argv],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while begun and not begun() and process.poll() is None:
            time.sleep(0.002)
        try:
            _, said = process.communicate(timeout=delay)
        except subprocess.TimeoutExpired:
            process.send_signal(kind)
            _, said = process.communicate()
    if process.returncode not in (0, -kind, 128 + kind):
        raise Lost(f"exit code {process.returncode}: {said[-2000:]}")
    return process.returncode


def convert_job(folder: Path) -> Job:
    """Conversion: to a new place, and over another model's checkpoint, by turns."""
    sources = [folder / "source-0", folder / "source-1"]
    for seed, source in enumerate(sources):
        write_model(source, _random_params(seed), CONFIG, chat=False)
    work = folder / "work"
    work.mkdir()
    target = work / "dst"
    prints = []
    seconds = 0.0
    for source in sources:
        started = time.monotonic()
        _unharmed(["weights.convert", str(source), str(target), "--overwrite"])
        seconds = time.monotonic() - started
        prints.append(_weights_print(target))
    old = shutil.copytree(target, folder / "old")  # the second model
    hashes = {file: sha256(file) for source in sources for file in source.iterdir()}

    building = work / ".dst.building"
    left = [0]  # when it was last changed, where an earlier kill left it

    def prepare(attempt: int) -> None:
        shutil.rmtree(target, ignore_errors=True)
        if attempt % 2:
            shutil.copytree(old, target)
        left[0] = changed()

    def changed() -> int:
        try:
            return building.stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def check(attempt: int, code: int) -> str:
        names = {path.name for path in work.iterdir()}
        # What an earlier kill left is cleared away only by one that comes so far as to write.
        clean = code == 0 or (code == 128 + signal.SIGTERM and not left[0])
        allowed = {"dst"} if clean else {"dst", ".dst.building"}
        found = target
        if attempt % 2 and "dst" not in names and ".dst.old" in names:
            found = work / ".dst.old"  # killed between two renames; the next run puts it back
            allowed = {".dst.old", ".dst.building"}
        if not names <= allowed:
            raise Lost(f"left behind: {sorted(names - allowed)}")
        if any(sha256(file) != one for file, one in hashes.items()):
            raise Lost("the source has changed")
        if found.name not in names:
            if attempt % 2:
                raise Lost("the checkpoint that was there is gone")
            return "nothing" if ".dst.building" not in names else "nothing but a half-built one"
        try:
            which = prints.index(_weights_print(found))
        except ValueError as error:
            raise Lost(f"{found}: {error}") from None
        if which == 1 and not attempt % 2:
            raise Lost("a checkpoint of nowhere")
        return ("the new one" if which == 0 else "the old one") + f", whole ({found.name})"

    def argv(attempt: int) -> list[str]:
        options = ["--overwrite"] if attempt % 2 else []
        return ["weights.convert", str(sources[0]), str(target), *options]

    def begun() -> bool:
        return changed() not in (0, left[0])

    return Job(argv, prepare, check, seconds, begun=begun, window=0.25 * seconds)


def pipeline_job(folder: Path, module: str) -> Job:
    """A stage of the main command or all of it, on the small pair with fewer and shorter texts."""
    settings = folder / "settings.toml"
    settings.write_text(_smaller_settings(), encoding="utf-8")
    start, expected = folder / "start", folder / "expected"
    start.mkdir()
    if module == "steer":
        _unharmed(["experiments.derive", "--out", str(start), "--config", str(settings)])
    shutil.copytree(start, expected)
    started = time.monotonic()
    _unharmed([f"experiments.{module}", "--out", str(expected), "--config", str(settings)])
    seconds = time.monotonic() - started
    shutil.copytree(start, folder / "run")
    rows_before: set[str] = set()

    def prepare(_attempt: int) -> None:
        if not (folder / "run").exists():
            shutil.copytree(start, folder / "run")
            rows_before.clear()

    def check(_attempt: int, code: int) -> str:
        out = folder / "run"
        for stage in (path for path in out.iterdir() if (path / "stage.json").is_file()):
            if not stage.name.startswith("."):
                _check_stage(stage)
        rows = {row for file in out.rglob("*.jsonl") for row in _whole_rows(file)}
        if not rows_before <= rows:
            raise Lost(f"{len(rows_before - rows)} rows that were written are gone")
        rows_before.clear()
        rows_before.update(rows)
        if code == 0:
            if _texts(out) != _texts(expected):
                raise Lost("the result differs from that of a run that was not killed")
            shutil.rmtree(out)  # the next attempt begins anew
            return "finished, as if it had not been killed"
        return f"{len(rows)} rows"

    def argv(_attempt: int) -> list[str]:
        return [f"experiments.{module}", "--out", str(folder / "run"), "--config", str(settings)]

    return Job(argv, prepare, check, seconds)


def _unharmed(argv: list[str]) -> None:
    subprocess.run([sys.executable, "-m", *argv], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def _random_params(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    shapes = abstract_params(CONFIG)
    return jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32) * 0.02, shapes)


def _weights_print(path: Path) -> str:
    """A hash of all weights of a checkpoint; reading it checks every file of it, too."""
    total = hashlib.sha256()
    for name, x in sorted((dotted(p), x) for p, x in checkpoint.read_leaves(path)):
        total.update(name.encode() + x.tobytes())
    return total.hexdigest()


def _smaller_settings() -> str:
    lines = []
    for line in DEFAULT_SETTINGS.read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(" = ")
        if key in _SMALLER:
            value = str(_SMALLER[key])
        elif value.startswith('"../../'):
            value = f'"{ROOT}/' + value.removeprefix('"../../')
        lines.append(f"{key} = {value}" if value else line)
    return "\n".join(lines) + "\n"


def _check_stage(stage: Path) -> None:
    record = json.loads((stage / "stage.json").read_bytes())
    for name, digest in record["outputs"].items():
        if not (stage / name).is_file() or sha256(stage / name) != digest:
            raise Lost(f"{stage / name}: missing or not as the stage left it")


def _whole_rows(file: Path) -> list[str]:
    """The lines of a file that ended; a last one may be cut by a kill."""
    return [f"{file.name} {line}" for line in file.read_text(encoding="utf-8").split("\n")[:-1]]


def _texts(out: Path) -> dict[str, list[str]]:
    """What the sweeps wrote, without what a program compiled anew may round differently."""
    found = {}
    for file in sorted(out.glob("sweep-*/*.jsonl")):
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        found[file.parent.name] = sorted(
            json.dumps({k: row[k] for k in ("source", "coeff", "prompt", "text")}) for row in rows
        )
    return found


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.soak")
    parser.add_argument("what", choices=("convert", "sweep", "reproduce"))
    parser.add_argument("--folder", type=Path, required=True, help="a new folder to work in")
    parser.add_argument("--kills", type=int, default=50, help="of each signal (default 50)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    try:
        args.folder.mkdir(parents=True)
    except FileExistsError:
        print(f"{args.folder}: exists already, choose a new folder", file=sys.stderr)
        return 2
    module = {"sweep": "steer"}.get(args.what, args.what)
    job = convert_job(args.folder) if args.what == "convert" else pipeline_job(args.folder, module)
    print(json.dumps({"what": args.what, "unharmed_s": round(job.seconds, 2)}), flush=True)
    started = time.monotonic()
    tries = []
    try:
        for row in soak(job, kills=args.kills, seed=args.seed):
            tries.append(row)
            print(json.dumps(row), flush=True)
    except Lost as error:
        print(f"LOST: {error}", file=sys.stderr)
        return 1
    found = [row["found"] for row in tries]
    print(
        json.dumps(
            {
                "what": args.what,
                "kills": dict.fromkeys(("SIGTERM", "SIGKILL"), args.kills),
                "found": {text: found.count(text) for text in sorted(set(found))}
                if args.what == "convert"
                else {"runs to the end": sum(row["exit"] == 0 for row in tries)},
                "lost": 0,
                "minutes": round((time.monotonic() - started) / 60, 1),
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

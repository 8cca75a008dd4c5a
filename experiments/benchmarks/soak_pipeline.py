"""The steered sweeps and the main command, to be killed by `soak`, and what must hold then."""

import json
import random
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from experiments.benchmarks.soak_kill import Aim, Ended, Job, Lost, Place, run_unharmed
from jaxsteer.files import sha256
from jaxsteer.runtime import preemption

# What the small pair's settings are cut down to: as many stages and chunks in less time.
SMALLER = (
    "--set=prompts.derive_limit=64",
    "--set=prompts.evaluate_limit=8",
    "--set=prompts.base_evaluate_limit=8",
    "--set=prompts.control_evaluate_limit=8",
    "--set=rollouts.max_new_tokens=96",
    "--set=rollouts.rows_per_chunk=16",
    "--set=steering.coeffs=[-0.2, 0.25]",
    "--set=steering.random_directions=1",
    "--set=decoding.max_new_tokens=24",
    "--set=decoding.rows_per_chunk=8",
    "--set=perplexity.prompts=8",
)
_COLD = 4  # of so many runs one begins without compiled programs


def sweep_jobs(folder: Path, place: Place) -> Callable[[Path], Job] | None:
    """The steered sweeps alone, on directions that are there."""
    return _pipeline_jobs(folder, place, module="steer", given="derive")


def reproduce_jobs(folder: Path, place: Place) -> Callable[[Path], Job] | None:
    """The main command."""
    return _pipeline_jobs(folder, place, module="reproduce", given=None)


def _pipeline_jobs(
    folder: Path, place: Place, *, module: str, given: str | None
) -> Callable[[Path], Job] | None:
    """A stage of the main command or all of it, on the small pair with fewer and shorter texts."""
    folder.mkdir()
    start, expected, programs = (folder / name for name in ("start", "expected", "programs"))
    start.mkdir()
    place = replace(place, variables={**place.variables, **keep_programs(programs)})

    def command(name: str, out: Path) -> list[str]:
        return [f"experiments.{name}", "--out", str(out), *SMALLER]

    if given and run_unharmed(command(given, start), place) is None:
        return None
    shutil.copytree(start, expected, dirs_exist_ok=True)
    ended = run_unharmed(command(module, expected), place)
    if ended is None:
        return None
    stages = {name: s for name, s in _stages(expected).items() if name not in _stages(start)}
    starting = max(0.0, ended.seconds - sum(stages.values()))

    def in_lane(work: Path) -> Job:
        return _pipeline_job(
            work,
            command(module, work / "run"),
            start=start,
            expected=expected,
            programs=programs,
            stages=stages,
            starting=starting,
        )

    return in_lane


def _pipeline_job(
    work: Path,
    argv: list[str],
    *,
    start: Path,
    expected: Path,
    programs: Path,
    stages: dict[str, float],
    starting: float,
) -> Job:
    work.mkdir()
    out, own_programs = work / "run", work.parent / "programs"
    rows_before: set[str] = set()
    partial_before: set[str] = set()
    runs = [0]

    def prepare(_attempt: int) -> None:
        if not out.exists():
            shutil.copytree(start, out)
            rows_before.clear()
            shutil.rmtree(own_programs, ignore_errors=True)
            if runs[0] % _COLD != _COLD - 1:
                shutil.copytree(programs, own_programs)
            runs[0] += 1
        partial_before.clear()
        partial_before.update(_partial(out))

    def unfinished() -> list[str]:
        done = _stages(out)
        return [name for name in stages if name not in done]

    def seconds() -> float:
        # Most runs find their programs, which the one that was timed had to compile.
        return 1.5 * starting + 0.8 * sum(stages[name] for name in unfinished())

    def aim(random_: random.Random) -> Aim:
        name = random_.choice(unfinished() or list(stages))
        return Aim(name, lambda said: name in _at_work(out, said, partial_before), stages[name])

    def stage(ended: Ended) -> str:
        if at_work := _at_work(out, ended.said, partial_before):
            return max(at_work)
        return "between stages" if ended.said else "starting"

    def check(_attempt: int, ended: Ended) -> str:
        for name in _stages(out):
            _check_stage(out / name)
        rows = {row for file in out.rglob("*.jsonl") for row in _whole_rows(file)}
        if not rows_before <= rows:
            raise Lost(f"{len(rows_before - rows)} rows that were written are gone")
        rows_before.clear()
        rows_before.update(rows)
        if "persistent compilation cache" in ended.complained:
            raise Lost(f"a compiled program is half-written: {ended.complained[-2000:]}")
        _check_word(ended, begun=bool(ended.said), done=not unfinished())
        if ended.code != 0:
            return f"{len(rows)} rows"
        if _texts(out) != _texts(expected):
            raise Lost("the result differs from that of a run that was not killed")
        if (out / "superseded").exists():
            raise Lost("what was made with the same settings was set aside")
        if (left := _names(out) ^ _names(expected)) or _partial(out):
            raise Lost(f"left behind, or missing: {sorted(left | _partial(out))}")
        shutil.rmtree(out)  # the next attempt begins anew
        return "finished, as if it had not been killed"

    return Job(lambda _: argv, prepare, check, seconds=seconds, aim=aim, stage=stage)


def _check_word(ended: Ended, *, begun: bool, done: bool) -> None:
    """A command that SIGTERM stopped says so, and what it says is in the file is there."""
    if ended.code == -signal.SIGTERM and begun and not done:
        raise Lost("SIGTERM was not heeded while there was work")
    after = ended.said.removeprefix(ended.said_before)
    if ended.code == 0 and after.count("] done in") > 1:
        raise Lost(f"SIGTERM was not heeded, it went on with: {after}")
    if ended.code != preemption.EXIT_CODE:
        return
    said = re.findall(r"^stopped by SIGTERM.*$", ended.complained, re.MULTILINE)
    if not said:
        raise Lost(f"stopped by SIGTERM, with the words: {ended.complained[-2000:]}")
    if told := re.search(r" (\d+) of \d+ (?:rows|traces) are in (\S+);", said[-1]):
        text = Path(told[2]).read_text(encoding="utf-8")
        if text.count("\n") != int(told[1]) or not text.endswith("\n"):
            raise Lost(f"{said[-1]}: there are {text.count(chr(10))}, ending in {text[-20:]!r}")


def keep_programs(folder: Path) -> dict[str, str]:
    """All compiled programs, also those that took less than a second: a restart is quick then."""
    return {
        "JAXSTEER_COMPILE_CACHE": str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def _stages(out: Path) -> dict[str, float]:
    """The stages that are there, with the seconds that each took."""
    records = out.glob("[!.]*/stage.json")
    return {file.parent.name: json.loads(file.read_bytes())["seconds"] for file in records}


def _partial(out: Path) -> set[str]:
    return {path.name[1:].removesuffix(".partial") for path in out.glob(".*.partial")}


def _at_work(out: Path, said: str, before: set[str]) -> set[str]:
    """Stages at work, not those of which an earlier kill left the folder."""
    return {one for one in _partial(out) if one not in before or f"[{one}] goes on" in said}


def _check_stage(stage: Path) -> None:
    record = json.loads((stage / "stage.json").read_bytes())
    for name, digest in record["outputs"].items():
        if not (stage / name).is_file() or sha256(stage / name) != digest:
            raise Lost(f"{stage / name}: missing or not as the stage left it")


def _whole_rows(file: Path) -> list[str]:
    """The lines of a file that ended; a last one may be cut by a kill."""
    return [f"{file.name} {line}" for line in file.read_text(encoding="utf-8").split("\n")[:-1]]


def _texts(out: Path) -> dict[str, list[str]]:
    """What was generated, without what a program compiled anew may round differently."""
    by_run = {}
    for file in sorted([*out.glob("rollouts/traces.jsonl"), *out.glob("sweep-*/*.jsonl")]):
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        keys = ("id", "source", "coeff", "prompt", "text")
        by_run[file.parent.name] = sorted(
            json.dumps({k: row[k] for k in keys if k in row}) for row in rows
        )
    return by_run


def _names(out: Path) -> set[str]:
    """Every file; a checkpoint's by its folder alone, whose files Orbax names at random."""
    files = (file.relative_to(out) for file in out.rglob("*") if file.is_file())
    return {"/".join(p.parts[:2]) if p.parts[0].startswith("model-") else str(p) for p in files}

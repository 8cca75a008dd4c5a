"""Kill commands at random moments, again and again, and check each time that nothing was lost.

    python -m experiments.benchmarks.soak convert sweep reproduce --folder /tmp/soak --lanes 16

As many SIGTERMs as SIGKILLs, `--kills` of each for each command; only those count that met it
alive. After every one the folder is looked through, and a command that SIGTERM stopped must have
said so. At the end each lane lets its command do its work: what the kills have left must not
matter. Every lane works in a folder of its own on processor cores of its own.

Prints a JSON line for each kill, one for each command with what was done, and one for all. Exit
code 1 when something was lost or left half-written, 3 when `--minutes` were over before all of it
was done.
"""

import argparse
import json
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from experiments.benchmarks.soak_convert import convert_jobs
from experiments.benchmarks.soak_kill import Job, Lost, Place, run_and_kill, run_unharmed
from experiments.benchmarks.soak_pipeline import keep_programs, reproduce_jobs, sweep_jobs
from jaxsteer.files import as_path
from jaxsteer.runtime import without_accelerator

JOBS = {"convert": convert_jobs, "sweep": sweep_jobs, "reproduce": reproduce_jobs}
SIGNALS = (signal.SIGTERM, signal.SIGKILL)


def kills_in_order(kills: int, seed: int) -> SimpleQueue[signal.Signals]:
    """The kills to do, `kills` of each signal in random order, for all lanes together."""
    kinds = list(SIGNALS) * kills
    random.Random(seed).shuffle(kinds)
    left: SimpleQueue[signal.Signals] = SimpleQueue()
    for kind in kinds:
        left.put(kind)
    return left


def _take(left: SimpleQueue[signal.Signals]) -> signal.Signals | None:
    try:
        return left.get_nowait()
    except Empty:
        return None


def soak(
    job: Job, left: SimpleQueue[signal.Signals], *, random_: random.Random, place: Place
) -> Iterator[dict[str, Any]]:
    """Kill while kills are left; one row for each try, and one for the work done at the end.

    Half of the kills come at any time, half within a part of the work that is drawn.

    Raises:
        Lost: when a check fails.
    """
    attempt = 0
    while not place.stop() and (kind := _take(left)):
        job.prepare(attempt)
        aim = job.aim(random_) if random_.random() < 0.5 else None
        delay = random_.uniform(0, aim.window if aim else job.seconds())
        begun = aim.begun if aim else (lambda _: True)
        ended = run_and_kill(job.argv(attempt), kind, delay, begun=begun, place=place)
        met = ended.code != 0
        at_work = job.stage(ended) if met else None
        if not met:
            left.put(kind)  # it met nothing alive
        yield {
            "try": attempt,
            "signal": kind.name,
            "after_s": round(delay, 2),
            "of": aim.at if aim else "the start",
            "exit": ended.code,
            "at_work": at_work,
            "stopping_s": round(ended.stopping, 2),
            "found": job.check(attempt, ended),
        }
        attempt += 1
    job.prepare(attempt)
    if not place.stop() and (end := run_unharmed(job.argv(attempt), place)):
        yield {"try": attempt, "signal": None, "exit": 0, "found": job.check(attempt, end)}


def run_lanes(
    names: Sequence[str],
    folder: Path,
    *,
    kills: int,
    lanes: int,
    seed: int,
    stop: Callable[[], bool],
    say: Callable[[dict[str, Any]], None],
) -> dict[str, list[dict[str, Any]]]:
    """Soak the commands in all lanes; the rows of each.

    Raises:
        Lost: when a check fails in any lane.
    """
    failed = threading.Event()
    ready: dict[str, Callable[[Path], Job] | None] = {}
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    left = {name: kills_in_order(kills, seed) for name in names}
    cores = _cores(lanes)

    def place(lane: int, work: Path) -> Place:
        return Place(
            cores=cores[lane],
            variables={"JAX_PLATFORMS": "cpu", "PYTHONFAULTHANDLER": "1"},
            said=work / "said.txt",
            stop=lambda: stop() or failed.is_set(),
        )

    def prepare(i: int, name: str) -> None:
        folder_of = folder / name
        shared = place(i % lanes, folder_of)
        folder_of.mkdir()
        started = time.monotonic()
        ready[name] = JOBS[name](folder_of / "shared", shared)
        say({"what": name, "prepared_s": round(time.monotonic() - started, 1)})

    def run(lane: int) -> None:
        for name in names:
            make = ready[name]
            work = folder / name / f"lane-{lane}"
            if make is None or stop():
                return
            work.mkdir()
            own_place = place(lane, work)
            programs = keep_programs(work / "programs")
            own_place = replace(own_place, variables={**own_place.variables, **programs})
            random_ = random.Random(f"{seed} {lane} {name}")
            for row in soak(make(work / "work"), left[name], random_=random_, place=own_place):
                rows[name].append(row)
                say({"what": name, "lane": lane, **row})

    def guarded(work: Callable[..., None], *args: object) -> None:
        try:
            work(*args)
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(max(lanes, len(names))) as pool:
        for tasks in (
            lambda: [pool.submit(guarded, prepare, i, name) for i, name in enumerate(names)],
            lambda: [pool.submit(guarded, run, lane) for lane in range(lanes)],
        ):
            for task in tasks():
                task.result()
    return rows


def summary(rows: list[dict[str, Any]], *, kills: int, lanes: int) -> dict[str, Any]:
    """What was done to a command and what was found."""
    met = [row for row in rows if row["signal"] and row["exit"] != 0]
    done = {kind.name: sum(row["signal"] == kind.name for row in met) for kind in SIGNALS}
    stopping = [row["stopping_s"] for row in met if row["exit"] == 128 + signal.SIGTERM]
    ends = sum(row["signal"] is None for row in rows)
    return {
        "kills": done,
        "of": kills,
        "tries": len(rows) - ends,
        "at_work": dict(Counter(row["at_work"] for row in met).most_common()),
        "sigterm_exits": dict(Counter(row["exit"] for row in met if row["signal"] == "SIGTERM")),
        "longest_from_sigterm_to_end_s": max(stopping, default=None),
        "found": _without_numbers(row["found"] for row in rows),
        "lanes_that_did_their_work_at_the_end": ends,
        "complete": min(done.values()) >= kills and ends == lanes,
    }


def _without_numbers(texts: Iterator[str]) -> dict[str, int]:
    return dict(Counter("rows" if text.endswith(" rows") else text for text in texts).most_common())


def _cores(lanes: int) -> list[frozenset[int] | None]:
    """As many processor cores for each lane as there are; without enough, one that is shared."""
    if not hasattr(os, "sched_getaffinity"):
        return [None] * lanes
    mine = sorted(os.sched_getaffinity(0))
    each = max(1, len(mine) // lanes)
    return [
        frozenset(mine[(lane * each + i) % len(mine)] for i in range(each)) for lane in range(lanes)
    ]


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.soak")
    parser.add_argument("what", nargs="+", choices=list(JOBS))
    parser.add_argument("--folder", type=as_path, required=True, help="a new folder to work in")
    parser.add_argument("--kills", type=int, default=50, help="of each signal (default 50)")
    parser.add_argument("--lanes", type=int, default=1, help="at the same time (default 1)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.kills < 1 or args.lanes < 1 or not args.minutes > 0:
        parser.error(
            f"got --kills {args.kills}, --lanes {args.lanes} and --minutes {args.minutes}, "
            "expected numbers above 0"
        )
    try:
        args.folder.mkdir(parents=True)
    except FileExistsError:
        print(f"{args.folder}: exists already, choose a new folder", file=sys.stderr)
        return 2
    without_accelerator()
    started, lock = time.monotonic(), threading.Lock()

    def minutes() -> float:
        return (time.monotonic() - started) / 60

    def say(row: dict[str, Any]) -> None:
        with lock:
            print(json.dumps({"minute": round(minutes(), 2), **row}), flush=True)

    names = list(dict.fromkeys(args.what))
    try:
        rows = run_lanes(
            names,
            args.folder.absolute(),
            kills=args.kills,
            lanes=args.lanes,
            seed=args.seed,
            stop=lambda: minutes() >= args.minutes,
            say=say,
        )
    except Lost as error:
        print(f"LOST: {error}", file=sys.stderr)
        return 1
    summaries = {name: summary(rows[name], kills=args.kills, lanes=args.lanes) for name in names}
    for name in names:
        say({"what": name, **summaries[name]})
    complete = all(one["complete"] for one in summaries.values())
    say({"lanes": args.lanes, "minutes": round(minutes(), 1), "lost": 0, "complete": complete})
    if not complete:
        print(f"{args.minutes} minutes were over before all of it was done", file=sys.stderr)
    return 0 if complete else 3


if __name__ == "__main__":
    sys.exit(main())

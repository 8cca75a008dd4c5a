"""How often each rule gives which answer in worlds whose truth is known.

    python -m experiments.calibrate
    python -m experiments.calibrate --n 20 --n 500 --worlds 1000 --claims C2 C3

For the numbers of prompts, traces and cells of `small.toml` and `llama8b.toml`, and for numbers of
one's own. Each row is a world (`claim_worlds`). In a *null* one at most 5% may be "reproduced", and
the interval's upper end at most 7%; in a *true* one at least 80% should be. Beside each rate stands
Wilson's 95% interval over the worlds drawn.

The table also goes to a file: `docs/paper/calibration.md` if not said otherwise.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from experiments.claims import worlds
from experiments.claims.claim_worlds import World, every_world
from experiments.claims.contrasts import Verdict
from experiments.claims.worlds import Design
from experiments.pipeline.settings import load_settings
from jaxsteer.analysis import wilson_interval
from jaxsteer.files import write_atomic
from jaxsteer.runtime import guarded, run

CONFIGS = Path(__file__).parents[1] / "configs"
OUT = Path(__file__).parents[2] / "docs" / "paper" / "calibration.md"
LAYERS = {"small": 8, "llama8b": 32}
MOST_FALSE, MOST_SURE, LEAST_TRUE = 0.05, 0.07, 0.8


def designs(n: Sequence[int]) -> list[Design]:
    """What the committed settings look at, and the same with other numbers of prompts."""
    found = []
    for name, layers in LAYERS.items():
        settings = load_settings(CONFIGS / f"{name}.toml")
        rows = json.loads(Path(settings.prompts.file).read_text(encoding="utf-8"))
        splits = [row["split"] for row in rows]
        found.append(
            worlds.design_of(
                f"{name}.toml",
                settings,
                n_layers=layers,
                n_eval=splits.count(settings.prompts.evaluate_split),
                n_dom=splits.count(settings.prompts.derive_split),
            )
        )
    return found + [worlds.with_prompts(design, k) for design in found for k in n]


def rates_of(world: World, design: Design, *, count: int, seed: int) -> dict[Verdict, int]:
    """How often a world gives each answer."""
    random = np.random.default_rng([seed, *map(ord, world.claim + world.name)])
    found = dict.fromkeys(Verdict, 0)
    for _ in range(count):
        found[world.judge(random, design).verdict] += 1
    return found


def row(world: World, counts: dict[Verdict, int]) -> tuple[str, bool]:
    """A line of the table, and whether the world has what is asked of it."""
    n = sum(counts.values())
    yes = counts[Verdict.YES] / n
    low, high = wilson_interval(counts[Verdict.YES], n)
    holds = {
        "null": yes <= MOST_FALSE and high <= MOST_SURE,
        "true": yes >= LEAST_TRUE,
    }.get(world.truth, True)
    cells = [
        world.claim,
        world.name,
        world.truth,
        f"{'' if holds else '**'}{yes:.3f} [{low:.3f}, {high:.3f}]{'' if holds else '**'}",
        f"{counts[Verdict.NO] / n:.3f}",
        f"{counts[Verdict.OPEN] / n:.3f}",
    ]
    return f"| {' | '.join(cells)} |", holds


def heading(design: Design) -> str:
    """What stands above the lines of one design."""
    kind = "small pair" if design.kind is worlds.SMALL else "Llama 8B"
    return (
        f"## {design.name}\n\n"
        f"Texts like the {kind}'s: {design.prompts} held-out prompts, {design.base_prompts} for "
        f"the base model and {design.control_prompts} for the control, {design.map_prompts} for "
        f"the map, {design.traces} traces. The smallest gain that counts is "
        f"{design.least_gain:.3f}.\n\n"
        "| claim | world | truth | reproduced [95%] | not reproduced | undecided |\n"
        "| --- | --- | --- | --- | --- | --- |"
    )


def counted(
    cells: Sequence[tuple[Design, World]], *, count: int, seed: int, jobs: int
) -> Iterator[dict[Verdict, int]]:
    """`rates_of` every cell in turn, made in so many processes; the numbers are the same in all."""
    asked = [(design, world.claim, world.name, count, seed) for design, world in cells]
    if jobs == 1:
        yield from map(_rates_of, asked)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_rates_of, asked)


def _rates_of(asked: tuple[Design, str, str, int, int]) -> dict[Verdict, int]:
    """A world by its name: a judge is a closure, which goes to no other process."""
    design, claim, name, count, seed = asked
    world = next(w for w in every_world() if (w.claim, w.name) == (claim, name))
    return rates_of(world, design, count=count, seed=seed)


@guarded()
def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    summary = "How often each rule gives which answer in worlds whose truth is known."
    parser = argparse.ArgumentParser(prog="python -m experiments.calibrate", description=summary)
    parser.add_argument("--worlds", type=int, default=400, help="drawn of each kind (400)")
    parser.add_argument("--n", type=int, action="append", default=[], help="prompts of one's own")
    parser.add_argument("--claims", nargs="+", default=[], help="only these: C1 … C8, S, N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="processes (one a core)"
    )
    parser.add_argument("--out", type=Path, default=OUT, help="the table's file")
    args = parser.parse_args(argv)
    if min(args.worlds, args.jobs, *args.n, 1) < 1:
        parser.error("--worlds, --jobs and --n: expected at least 1")
    chosen = [w for w in every_world() if not args.claims or w.claim in args.claims]
    if not chosen:
        parser.error(f"--claims: got {' '.join(args.claims)}, expected some of C1 … C8, S, N")
    started, lines, missed = time.monotonic(), [], 0
    cells = [(design, world) for design in designs(args.n) for world in chosen]
    found = counted(cells, count=args.worlds, seed=args.seed, jobs=args.jobs)
    for (design, world), counts in zip(cells, found, strict=True):
        line, holds = row(world, counts)
        new = [line] if world is not chosen[0] else ["", heading(design), line]
        print("\n".join(new), flush=True)
        lines += new
        missed += not holds
    seconds = time.monotonic() - started
    text = "\n".join(
        [
            "# How often the rules of the claims table are wrong",
            "",
            f"`python -m experiments.calibrate --worlds {args.worlds} --seed {args.seed}"
            f"{''.join(f' --n {n}' for n in args.n)}`: {args.worlds} worlds of each kind, and how "
            "often which answer came, with Wilson's 95% interval. In a *null* world at most 5% may "
            "be reproduced, and the interval's upper end at most 7%. In a *true* one, which has "
            "twice the smallest effect that counts, at least 80% should be. At the *edge* the "
            "effect is the smallest that counts, and in *either* any answer is right. What misses "
            "this is **bold**. The rules are in `experiments/claims/rules.py`, the worlds in "
            "`experiments/claims/worlds.py`.",
            "",
            f"{missed or 'None'} of {len(cells)} rows {'misses' if missed == 1 else 'miss'} it.",
            *lines,
            "",
        ]
    )
    write_atomic(args.out, text.encode())
    print(f"\n{missed} rows miss what is asked. {seconds:.0f} s. Table: {args.out}")
    return 0


if __name__ == "__main__":
    run(main)

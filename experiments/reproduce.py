"""The main command: from Hugging Face weights to every figure and the claims table.

    python -m experiments.reproduce --out runs/small
    python -m experiments.reproduce --out runs/small --full
    python -m experiments.reproduce --out runs/seeds --pairs runs/pairs

By default on the small pair, with `experiments/configs/small.toml`. Each stage is a module and
leaves a folder under `--out`. What is there and still valid is not made again, and an interrupted
run goes on. `--full` adds the figures that take longer. `--set section.key=value` replaces a value
of the settings. `--pairs` does all of it for every training seed in a folder of
`weights.train_small`, and sets their verdicts side by side. `--mesh` and `--hosts` are in
`machines`.
"""

import argparse
import csv
import sys
import time

import jax

from experiments.claims.seeds import pairs_in, write_seeds
from experiments.pipeline.machines import together
from experiments.pipeline.run import Run, open_run, stage_parser
from experiments.pipeline.stage_runner import locked
from experiments.report import page
from experiments.report.figure_list import left_out
from jaxsteer import pages
from jaxsteer.files import as_path
from jaxsteer.runtime import begin, end, guarded, hosts


def reproduce(run: Run) -> None:
    """Run every stage that is not valid already; the last lines say what came out and where."""
    started = time.monotonic()
    for role in run.sources:  # so that damaged weights are found before the first rollout
        run.checkpoint(role)
    html = page.stage(run)
    folder = run.finished["report"]
    minutes = (time.monotonic() - started) / 60
    print(f"\nDone in {minutes:.1f} minutes. What this run shows:")
    for row in csv.DictReader((folder / "claims.csv").read_text().splitlines()):
        print(f"  {row['id']:2} {row['verdict']}: {row['claim']}\n       {row['measured']}")
    if missing := left_out(run):
        print(f"Left to --full: {', '.join(figure.title for figure in missing)}")
    print(f"Figure:  {folder / 'headline.png'}\nReport:  {folder / 'report.md'}")
    print(f"Page:    {pages.EXTRA}" if html is None else f"Page:    {html / page.FILE}")


def _work(args: argparse.Namespace, mesh: jax.sharding.Mesh | None) -> None:
    options = {"changes": args.changes, "full": args.full, "mesh": mesh}
    if args.pairs is None:
        run = open_run(args.out, args.config, **options)
        with locked(run.out):
            reproduce(run)
        return
    pairs = pairs_in(args.pairs)
    runs = {
        seed: open_run(args.out / seed, args.config, models=models, **options)
        for seed, models in pairs.items()
    }
    for seed, run in runs.items():
        print(f"\n{seed}:")
        with locked(run.out):
            reproduce(run)
    summary = hosts.from_writer(lambda: str(write_seeds(args.out, list(runs))))
    print(f"Claims over seeds:  {summary}")


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    if argv is None:
        begin()
    parser = stage_parser("reproduce", "From Hugging Face weights to every figure.")
    parser.add_argument("--full", action="store_true", help="also the figures that take longer")
    parser.add_argument(
        "--pairs",
        type=as_path,
        help="folder with seed0, seed1, … as weights.train_small writes them: all of it for each",
    )
    args = parser.parse_args(argv)

    @guarded(resumes=True)
    def work() -> None:
        with together(args) as mesh:
            _work(args, mesh)

    code = work()
    if argv is None:
        end(code)
    return code


if __name__ == "__main__":
    sys.exit(main())

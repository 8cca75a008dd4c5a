"""The main command: from Hugging Face weights to Figure 3.

    python -m experiments.reproduce --out runs/small

By default on the small pair, with `experiments/configs/small.toml`. Each stage is a module and
leaves a folder under `--out`: `rollouts`, `label`, `derive`, `steer`, `report`. What is there and
still valid is not made again, and an interrupted run goes on.
"""

import json
import sys
import time

from experiments import fig3_steering, report
from experiments.outcome import VERDICTS
from experiments.run import Run, command


def reproduce(run: Run) -> None:
    """Run every stage that is not valid already; the last lines say what came out and where."""
    started = time.monotonic()
    for role in run.sources:  # so that damaged weights are found before the first rollout
        run.checkpoint(role)
    folder = report.stage(run)
    numbers = json.loads((folder / report.NUMBERS).read_text())
    minutes = (time.monotonic() - started) / 60
    print(f"\nDone in {minutes:.1f} minutes. What this run shows:")
    for finding in numbers["findings"]:
        print(f"  {VERDICTS[finding['holds']]}: {finding['claim']}\n      {finding['because']}")
    print(f"Figure:  {folder / fig3_steering.STEM}.png\nReport:  {folder / 'report.md'}")


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return command("reproduce", "From Hugging Face weights to Figure 3.", reproduce, argv)


if __name__ == "__main__":
    sys.exit(main())

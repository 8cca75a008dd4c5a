"""Several training seeds: the claims tables of their runs side by side."""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.claims.claims import COLUMNS
from jaxsteer.files import write_atomic, write_json

STEM = "claims"


def pairs_in(folder: Path) -> dict[str, Path]:
    """The folders of the training seeds, `seed0` and so on, by name.

    Raises:
        FileNotFoundError: if there is none, or one has no base and reasoning model.
    """
    found = {path.name: path for path in sorted(folder.glob("seed*")) if path.is_dir()}
    if not found:
        raise FileNotFoundError(f"--pairs: {folder}: no folders seed0, seed1, …")
    for path in found.values():
        for role in ("base", "reasoning"):
            if not (path / role).is_dir():
                raise FileNotFoundError(f"--pairs: {path}: no model {role!r} in it")
    return found


def write_seeds(out: Path, seeds: Sequence[str]) -> Path:
    """Write `claims.{md,csv,json}` from the reports of the seeds; returns the first."""
    tables = {seed: _read(out / seed / "report" / f"{STEM}.csv") for seed in seeds}
    rows = [{"seed": seed, **row} for seed, table in tables.items() for row in table]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=("seed", *COLUMNS), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(out / f"{STEM}.csv", text.getvalue().encode())
    write_json(out / f"{STEM}.json", tables)
    file = out / f"{STEM}.md"
    write_atomic(file, _markdown(tables).encode())
    return file


def _read(file: Path) -> list[dict[str, Any]]:
    return list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))


def overall(verdicts: Sequence[str]) -> str:
    """How often each verdict was given.

    >>> overall(["reproduced", "undecided at this n", "reproduced"])
    'reproduced in 2 of 3, undecided at this n in 1'
    """
    counts = Counter(verdicts).most_common()
    if len(counts) == 1:
        return f"{counts[0][0]} in {len(verdicts)} of {len(verdicts)}"
    told = [f"{verdict} in {count}" for verdict, count in counts]
    return f"{told[0]} of {len(verdicts)}, {', '.join(told[1:])}"


def _markdown(tables: Mapping[str, Sequence[Mapping[str, str]]]) -> str:
    first = next(iter(tables.values()))
    by_id = {seed: {row["id"]: row for row in table} for seed, table in tables.items()}
    lines = [
        "# Claims over training seeds",
        "",
        "| | claim | paper | verdict by seed |",
        "| --- | --- | --- | --- |",
    ]
    for row in first:
        verdicts = [table[row["id"]]["verdict"] for table in by_id.values() if row["id"] in table]
        lines.append(f"| {row['id']} | {row['claim']} | {row['paper']} | **{overall(verdicts)}** |")
    for seed, table in tables.items():
        lines += ["", f"## {seed}", "", "| | this run, with 95% intervals | verdict |"]
        lines += ["| --- | --- | --- |"]
        lines += [f"| {row['id']} | {row['measured']} | **{row['verdict']}** |" for row in table]
    return "\n".join(lines) + "\n"

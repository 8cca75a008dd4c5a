"""The last stage: every figure with its numbers, and the claims table."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.claims.claims import claims, to_csv
from experiments.claims.evidence import Evidence
from experiments.pipeline.run import Run
from experiments.pipeline.settings import Settings
from experiments.pipeline.stage_runner import fingerprint
from experiments.report.figure_list import chosen
from experiments.report.text import markdown
from experiments.stages import derive
from experiments.stages.sweep_table import SweepTable, sweep_table
from jaxsteer.directions import cosine, load_directions
from jaxsteer.files import write_atomic, write_json

RECORD = "stage.json"


def evidence(
    table: SweepTable, directions: Path, figures: Mapping[str, Path], settings: Settings
) -> Evidence:
    """What the claims rest on, read from the folders of the stages."""
    facts = derive.read_facts(directions)
    layer = settings.direction.layer

    def numbers(name: str) -> dict[str, Any] | None:
        folder = figures.get(name)
        return None if folder is None else json.loads((folder / f"{name}.json").read_text())

    return Evidence(
        table=table.cells,
        scores=table.scores,
        margin=settings.report.margin,
        layer=layer,
        directions=facts,
        other_cosines=other_cosines(directions / derive.FILE, layer),
        figure2=numbers("figure2"),
        cosines=numbers("cosines"),
        figure5=numbers("figure5"),
        figure6=numbers("figure6"),
    )


def other_cosines(file: Path, layer: int) -> dict[str, float]:
    """Cosine of base- and reasoning-derived direction of each behaviour but backtracking.

    What remains when a sentence has none of the names is no behaviour.
    """
    saved = load_directions(file)
    ending = f".{layer}."
    found = {}
    for name, one in saved.items():
        model, _, behaviour = name.removesuffix(".union").partition(ending)
        other = saved.get(f"reasoning{ending}{behaviour}.union")
        if model != "base" or not name.endswith(".union") or behaviour in ("union", "other", ""):
            continue
        if other is not None:
            found[behaviour] = cosine(one.vector, other.vector)
    return found


def stage(run: Run) -> Path:
    """The folder with every figure, `claims.{csv,json}` and `report.md`."""
    table, inputs = sweep_table(run)
    directions = derive.stage(run)
    figures = {figure.name: figure.stage(run) for figure in chosen(run)}

    def work(folder: Path) -> None:
        for source in figures.values():
            for file in sorted(source.iterdir()):
                if file.is_file() and file.name != RECORD:
                    shutil.copyfile(file, folder / file.name)
        found = claims(evidence(table, directions, figures, run.settings))
        write_atomic(folder / "claims.csv", to_csv(found).encode())
        write_json(folder / "claims.json", [asdict(claim) for claim in found])
        facts = derive.read_facts(directions)
        text = markdown(found, table, facts, run, folder)
        write_atomic(folder / "report.md", text.encode())

    return run.stage(
        "report",
        {
            **inputs,
            "directions": fingerprint(directions),
            "figures": {name: fingerprint(folder) for name, folder in figures.items()},
            "labels": asdict(run.settings.labels),
        },
        work,
    )

"""Directions against each other in the reasoning model, all added at one length.

The cells that the main sweep has (unsteered, base-derived, random directions) are not run again:
prompts, random numbers and lengths are the same here.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.pipeline.run import Run
from experiments.pipeline.settings import Settings
from experiments.stages import derive, steer
from experiments.stages.outcome import CellOutcome, Key, outcomes_of, scores_by_cell
from experiments.stages.text_scores import Scores, small_pair_grammar
from jaxsteer.directions import rescale
from jaxsteer.files import read_rows
from jaxsteer.steering import add
from jaxsteer.sweeps import Cell

TARGET = "reasoning"


def unit_lengths(directions: Path, settings: Settings) -> list[float]:
    """What coefficient 1 is long at each layer, for every direction alike."""
    facts = derive.read_facts(directions)
    if settings.steering.unit == "residual":
        return [float(x) for x in facts["residual_norm"][TARGET]]
    return [float(x) for x in facts["norm"]["base"]]


def main_coeff(settings: Settings) -> float:
    """The coefficient at which directions are learned and compared.

    `search.coeff`, or else the last of `steering.baseline_coeffs`, or else the largest coefficient.
    """
    steering = settings.steering
    chosen = settings.search.coeff or (steering.baseline_coeffs or sorted(steering.coeffs))[-1]
    if chosen <= 0:
        raise ValueError(f"search.coeff: got {chosen} from [steering], expected one above 0")
    return chosen


def cell(
    source: str, vector: np.ndarray, *, layer: int, site: str, coeff: float, unit: float
) -> Cell:
    """A direction added at `coeff` times the unit length, whatever its own."""
    labels = {"source": source, "coeff": coeff, "length": abs(coeff) * unit}
    return Cell(labels, add(rescale(vector, unit), layer=layer, coeff=coeff, site=site))


def write_texts(run: Run, folder: Path, cells: Sequence[Cell]) -> None:
    """Texts of the reasoning model for every cell and held-out prompt, into `sweep.jsonl`."""
    steer.write_texts(run, folder, TARGET, cells, run.evaluate_prompts)


def text_inputs(run: Run) -> dict[str, Any]:
    """What decides the texts beside the cells."""
    own = steer.text_inputs(run, TARGET, run.evaluate_prompts)
    return {**own, "unit": run.settings.steering.unit}


def judge(
    own: Sequence[dict[str, Any]],
    main: Path,
    settings: Settings,
    *,
    shared: Sequence[str] = ("base", "random"),
) -> tuple[dict[Key, dict[str, Scores]], list[CellOutcome]]:
    """Every text judged, and one outcome per cell: those shared with the main sweep, then `own`.

    `own` are rows of sweeps. Shared are the unsteered cell, and of the kinds of sources in
    `shared` those cells whose coefficient occurs in `own`.
    """
    coeffs = {row["coeff"] for row in own}
    others = [
        row
        for row in read_rows(main)
        if row["source"] == "none"
        or (row["source"].split("-")[0] in shared and row["coeff"] in coeffs)
    ]
    grammar = small_pair_grammar if settings.report.coherence == "grammar" else None
    every = [*others, *own]
    scores = scores_by_cell(every, keywords=settings.labels.keywords, grammar=grammar)
    lengths = {(row["target"], row["source"], row["coeff"]): row["length"] for row in every}
    return scores, outcomes_of(scores, lengths)

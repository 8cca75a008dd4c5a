"""Stage 5: numbers, figure and a short report of what came out."""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jaxsteer
from experiments import derive, fig3_steering, steer
from experiments.outcome import (
    VERDICTS,
    CellOutcome,
    Finding,
    Grammar,
    findings,
    outcomes,
    select,
    sources_of,
    to_csv,
)
from experiments.run import Run, command
from experiments.settings import Settings
from experiments.stages import fingerprint
from jaxsteer.annotate import Sentence
from jaxsteer.files import write_atomic
from jaxsteer.jsonl import read_rows
from jaxsteer.metrics import Estimate

NUMBERS = "figure3.json"


def small_pair_grammar(sentences: Sequence[Sentence]) -> tuple[int, int]:
    """How many sentences fit the small pair's grammar, and how many there are."""
    from weights.small_parser import parse_sentence

    fitting = sum(parse_sentence(sentence.text) is not None for sentence in sentences)
    return fitting, len(sentences)


def write_report(
    folder: Path, sweep_files: Sequence[Path], facts: dict[str, Any], settings: Settings
) -> list[Finding]:
    """Write `figure3.{csv,json,png,svg}` and `report.md`; returns the findings."""
    grammar: Grammar | None = small_pair_grammar if settings.report.coherence == "grammar" else None
    rows = [row for file in sweep_files for row in read_rows(file)]
    table = outcomes(rows, keywords=settings.labels.keywords, grammar=grammar)
    found = findings(table, margin=settings.report.margin)
    write_atomic(folder / "figure3.csv", to_csv(table).encode())
    numbers = {
        "formats": dict(sorted({row["target"]: row["format"] for row in rows}.items())),
        "cells": [asdict(cell) for cell in table],
        "findings": [asdict(finding) for finding in found],
    }
    write_atomic(folder / NUMBERS, json.dumps(_null_for_nan(numbers), indent=1).encode())
    fig3_steering.draw(
        table, folder, unit=settings.steering.unit, coherence=_coherence_name(settings)
    )
    write_atomic(folder / "report.md", _markdown(table, found, facts, settings).encode())
    return found


def _null_for_nan(value: Any) -> Any:
    """The same data with None for NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _null_for_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_null_for_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _coherence_name(settings: Settings) -> str:
    if settings.report.coherence == "grammar":
        return "share of sentences\nthat fit the grammar"
    return "1 − share of\nrepeated 4-grams"


def _markdown(
    table: Sequence[CellOutcome],
    found: Sequence[Finding],
    facts: dict[str, Any],
    settings: Settings,
) -> str:
    layer = settings.direction.layer
    unit = (
        "times the direction as found"
        if settings.steering.unit == "vector"
        else "in root-mean-square lengths of the reasoning model's stream at the layer"
    )
    lines = [
        "# Steering backtracking (Figure 3)",
        "",
        "![Figure 3](figure3.png)",
        "",
        "| question | this run | because |",
        "| --- | --- | --- |",
        *(f"| {f.claim} | **{VERDICTS[f.holds]}** | {f.because} |" for f in found),
        "",
        f"Everything is judged at the largest coefficient at which coherence has fallen by at most "
        f"{settings.report.margin:g}; of the base model no cell at all may exceed 0.001. "
        f"Coefficients are {unit}; the sum is made at "
        f"`{settings.direction.site}` of layer {layer}, at generated positions. Errors are one "
        "standard error; prompts are the independent units. Texts without a word are left out of "
        "the means and counted as empty. The base model is given problems in the "
        f"{settings.prompts.base_format} format, the others in the "
        f"{settings.prompts.reasoning_format} format.",
        "",
        "## The direction",
        "",
        f"Difference of means (Eq. 3) over the window of {settings.direction.offsets[0]} to "
        f"{settings.direction.offsets[-1]} tokens before the sentence: "
        f"{facts['n_backtracking'][0]} backtracking sentences of {facts['n_sentences'][0]}. "
        f"Length {facts['norm']['base'][layer]:.3f} (base-derived) and "
        f"{facts['norm']['reasoning'][layer]:.3f} (reasoning-derived), in a stream of length "
        f"{facts['residual_norm']['reasoning'][layer]:.3f}; their cosine is "
        f"{facts['cosine'][layer]:.3f}.",
        "",
        "## The cells",
        "",
    ]
    for target in dict.fromkeys(cell.target for cell in table):
        lines += [f"### Target: {target}", "", *_cell_table(table, target), ""]
    lines.append(f"Made by jaxsteer {jaxsteer.__version__}. Numbers: `figure3.csv`.\n")
    return "\n".join(lines)


def _cell_table(table: Sequence[CellOutcome], target: str) -> list[str]:
    lines = [
        "| source | coefficient | keywords per word | backtracking per sentence | coherence "
        "| p, paired with 0 | texts | empty |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    cells = select(table, target, "none")
    for source in sources_of(table, target):
        cells += [cell for cell in select(table, target, source) if cell.source == source]
    for cell in cells:
        texts = cell.keyword_rate.n + cell.keyword_rate.n_empty
        p_value = f"{cell.difference.p_value:.2g}" if cell.source != "none" else ""
        lines.append(
            f"| {cell.source} | {cell.coeff:g} | {_plain(cell.keyword_rate)} "
            f"| {_plain(cell.backtracking_rate)} | {_plain(cell.coherence)} "
            f"| {p_value} | {texts} | {cell.n_empty} |"
        )
    return lines


def _plain(estimate: Estimate) -> str:
    return f"{estimate.mean:.4f} ± {estimate.se:.4f}"


def stage(run: Run) -> Path:
    """The folder with figure, numbers and report."""
    sweeps, directions = steer.stage(run), derive.stage(run)

    def work(folder: Path) -> None:
        facts = json.loads((directions / derive.FACTS).read_text())
        write_report(folder, [s / steer.FILE for s in sweeps.values()], facts, run.settings)

    inputs = {
        "sweeps": {target: fingerprint(folder) for target, folder in sweeps.items()},
        "directions": fingerprint(directions),
        "settings": [asdict(run.settings.report), asdict(run.settings.labels)],
    }
    return run.stage("report", inputs, work)


if __name__ == "__main__":
    sys.exit(command("report", "Stage 5: numbers, figure and report.", stage))

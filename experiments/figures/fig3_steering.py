"""Figure 3: backtracking against the coefficient, for each target and source, with coherence."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from experiments.figures import frame
from experiments.figures.frame import plt
from experiments.pipeline.run import Run, command
from experiments.stages.outcome import CellOutcome, select, sources_of, to_csv
from experiments.stages.sweep_table import sweep_table

STEM = "figure3"
CURVES = ("base", "reasoning", "random")  # the other baselines are Figure 4's
_ROWS = (
    ("keyword_rate", "keywords per word (Eq. 1)"),
    ("backtracking_rate", "backtracking sentences\nper sentence"),
    ("coherence", "coherence"),
)


def draw(table: Sequence[CellOutcome], folder: Path, *, unit: str, coherence: str) -> list[Path]:
    """Write `figure3.png` and `figure3.svg`; bars are 95% intervals. Returns the paths."""
    targets = [t for t in frame.TARGETS if any(cell.target == t for cell in table)]
    shape, size = (len(_ROWS), len(targets)), (3.6 * len(targets) + 0.6, 7.2)
    figure, axes = frame.panels(*shape, size, sharex=True, sharey="row", squeeze=False)
    for column, target in enumerate(targets):
        axes[0, column].set_title(frame.TARGETS[target])
        axes[-1, column].set_xlabel(frame.axis_name(unit))
        for row, (name, label) in enumerate(_ROWS):
            axis = axes[row, column]
            _curves(axis, table, target, name)
            frame.tidy(axis)
            axis.axvline(0, color="0.8", linewidth=0.8, zorder=0)
            if column == 0:
                what = coherence.replace("sentences ", "sentences\n")
                axis.set_ylabel(f"{label}: {what}" if name == "coherence" else label)
    # Every label once, from whichever panel has it.
    handles = {
        label: handle
        for axis in axes.flat
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles.keys(), loc="outside upper center", ncols=3, frameon=False
    )
    return frame.save(figure, folder, STEM)


def _curves(axis: plt.Axes, table: Sequence[CellOutcome], target: str, name: str) -> None:
    for source in sources_of(table, target):
        if source.split("-")[0] not in CURVES:
            continue
        label, colour, marker = frame.style(source)
        is_random = source.startswith("random")
        cells = [c for c in select(table, target, source) if not is_random or c.coeff != 0]
        values = [getattr(cell, name) for cell in cells]
        axis.errorbar(
            [cell.coeff for cell in cells],
            [value.mean for value in values],
            yerr=frame.ends(*values),
            label=label,
            color=colour,
            marker=marker,
            markersize=4,
            linewidth=0 if is_random else 1.4,
            elinewidth=1.0,
        )


def stage(run: Run) -> Path:
    """The folder with `figure3.{png,svg,csv,json}`: every cell of the sweeps, with intervals."""
    table, inputs = sweep_table(run)
    settings = run.settings

    def work(folder: Path) -> None:
        numbers = {"formats": table.formats, "cells": [asdict(cell) for cell in table.cells]}
        frame.write_numbers(folder, STEM, to_csv(table.cells), numbers)
        coherence = frame.coherence_name(settings.report.coherence)
        draw(table.cells, folder, unit=settings.steering.unit, coherence=coherence)

    return run.stage(STEM, inputs, work)


if __name__ == "__main__":
    sys.exit(command("fig3_steering", "Figure 3: backtracking against the coefficient.", stage))

"""How several directions act: alone, together and taken out, each with its coherence."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.figures import frame
from experiments.figures.frame import plt
from experiments.pipeline.settings import Report
from experiments.stages.outcome import CellOutcome

STEM = "several"
_FOUND, _RANDOM, _MEANS, _NONE = frame.GREEN, frame.GREY, frame.BLUE, "black"


def groups(sources: Sequence[str]) -> list[tuple[str, list[str]]]:
    """The rows of the figure, in groups with a title."""
    patterns = {
        "alone": [r"none", r"single-\d+", r"base", r"random-\d+"],
        "together,\nsame total length": [r"together", r"random-together"],
        "together,\neach at full length": [
            r"together-long",
            r"single-long",
            r"random-together-long",
        ],
        "taken out": [r"ablate-\d+", r"ablate-means", r"ablate-random-\d+"],
    }
    return [
        (title, [s for pattern in ordered for s in sources if re.fullmatch(pattern, s)])
        for title, ordered in patterns.items()
    ]


def name_of(source: str) -> str:
    """A source in words.

    >>> name_of("single-2"), name_of("ablate-3"), name_of("random-together")
    ('direction 2', 'span of 1 to 3', 'random set')
    """
    fixed = {
        "none": "unsteered",
        "base": "difference of means",
        "together": "all directions",
        "together-long": "all directions",
        "single-long": "direction 1, as long",
        "random-together": "random set",
        "random-together-long": "random set",
        "ablate-1": "direction 1",
        "ablate-means": "difference of means",
    }
    if source in fixed:
        return fixed[source]
    if source.startswith("ablate-random"):
        return f"random span {source.split('-')[-1]}"
    if source.startswith("ablate"):
        return f"span of 1 to {source.split('-')[-1]}"
    return source.replace("single-", "direction ").replace("-", " ")


def _colour(source: str) -> str:
    if source == "none":
        return _NONE
    if "random" in source:
        return _RANDOM
    return _MEANS if source in ("base", "ablate-means") else _FOUND


def draw(
    table: Sequence[CellOutcome], numbers: dict[str, Any], folder: Path, *, report: Report
) -> list[Path]:
    """Write `several.png` and `several.svg`; bars are 95% intervals. Returns the paths."""
    cells = {cell.source: cell for cell in table}
    shown = groups(list(cells))
    count = sum(len(sources) for _, sources in shown)
    figure, axes = plt.subplots(
        1,
        2,
        figsize=(9.5, 1.4 + 0.27 * (count + len(shown))),
        width_ratios=[1.5, 1],
        sharey=True,
        layout="constrained",
    )
    ticks: dict[int, str] = {}
    row = 0
    for title, sources in shown:
        axes[1].text(
            1.02,
            row + (len(sources) - 1) / 2,
            title,
            transform=axes[1].get_yaxis_transform(),
            va="center",
            fontsize=9,
        )
        for source in sources:
            _point(axes, row, cells[source], _colour(source))
            ticks[row] = name_of(source)
            row += 1
        row += 1  # a gap between groups
    unsteered = cells["none"]
    axes[0].axvline(unsteered.backtracking_rate.mean, color="0.6", linewidth=0.8)
    axes[1].axvspan(unsteered.coherence.mean - report.margin, 1, color="0.95", zorder=0)
    axes[0].set_yticks(list(ticks), list(ticks.values()))
    axes[0].invert_yaxis()
    axes[0].set_xlim(left=0)
    axes[0].set_xlabel("backtracking sentences per sentence")
    axes[1].set_xlabel(frame.coherence_name(report.coherence))
    for axis in axes:
        frame.tidy(axis)
    unit = "times the direction" if numbers["unit"] == "vector" else "residual norms"
    figure.suptitle(
        f"{numbers['directions']} directions, one after the other in the complement of those "
        f"before;\nlength {numbers['coeff']:g} {unit}, layer {numbers['layer']}",
        fontsize=11,
    )
    return frame.save(figure, folder, STEM)


def _point(axes: Sequence[plt.Axes], row: int, cell: CellOutcome, colour: str) -> None:
    for axis, value in zip(axes, (cell.backtracking_rate, cell.coherence), strict=True):
        axis.errorbar(
            value.mean,
            row,
            xerr=[[value.mean - value.low], [value.high - value.mean]],
            color=colour,
            marker="o",
            markersize=5,
        )

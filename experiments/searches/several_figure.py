"""How several directions act, alone, together and taken out: the picture and the words for it.

The rules of the words are fixed here. A cell *induces* backtracking if the 95% interval of its
paired difference to the unsteered model lies above 0 while coherence is at most the report's margin
below it. Of two cells one is *more* than the other if the interval of their paired difference does
not contain 0.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.figures import frame
from experiments.figures.frame import plt
from experiments.pipeline.settings import Report
from experiments.pipeline.tables import interval
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
    size = 9.5, 1.4 + 0.27 * (count + len(shown))
    figure, axes = frame.panels(1, 2, size, width_ratios=[1.5, 1], sharey=True)
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
    figure.suptitle(
        f"{numbers['directions']} directions, one after the other in the complement of those "
        f"before;\nlength {frame.length_name(numbers)}, layer {numbers['layer']}",
        fontsize=11,
    )
    return frame.save(figure, folder, STEM)


def _point(axes: Sequence[plt.Axes], row: int, cell: CellOutcome, colour: str) -> None:
    for axis, value in zip(axes, (cell.backtracking_rate, cell.coherence), strict=True):
        axis.errorbar(
            value.mean,
            row,
            xerr=frame.ends(value),
            color=colour,
            marker="o",
            markersize=5,
        )


def induces(cell: CellOutcome, unsteered: CellOutcome, *, margin: float) -> bool:
    """Whether a cell induces backtracking at a coherence that counts."""
    return cell.difference.low > 0 and cell.coherence.mean >= unsteered.coherence.mean - margin


def paragraph(table: Sequence[CellOutcome], numbers: Mapping[str, Any], *, margin: float) -> str:
    """One paragraph from the cells and `comparisons` of `experiments.several_directions`."""
    cells = {cell.source: cell for cell in table}
    k, against = numbers["directions"], numbers["comparisons"]
    unsteered = cells["none"]
    alone = [cells[f"single-{i + 1}"] for i in range(k)]
    inducing = [
        str(i + 1) for i, cell in enumerate(alone) if induces(cell, unsteered, margin=margin)
    ]
    floor = unsteered.coherence.mean - margin
    words = [
        f"Of {k} directions, each learned orthogonal to those before it, "
        f"{len(inducing)} induce{'s' if len(inducing) == 1 else ''} backtracking alone at "
        f"coefficient {numbers['coeff']:g}"
        + (f" (number {', '.join(inducing)})" if inducing else "")
        + f": {', '.join(_rate(cell) for cell in alone)} backtracking sentences per sentence "
        f"against {_rate(unsteered)} unsteered, at coherence "
        f"{', '.join(f'{cell.coherence.mean:.3f}' for cell in alone)} against "
        f"{unsteered.coherence.mean:.3f}.",
        f"Together at the same total length they give {_rate(cells['together'])}"
        f"{_coherence(cells['together'], floor)}, {_than(against['together'])} the first alone; "
        f"a random orthogonal set gives {_rate(cells['random-together'])}.",
        f"Each at full length they give {_rate(cells['together-long'])}"
        f"{_coherence(cells['together-long'], floor)}, {_than(against['together-long'])} the first "
        f"alone made as long, {_rate(cells['single-long'])}"
        f"{_coherence(cells['single-long'], floor)}.",
        f"Is their span what backtracking normally uses? Taken out at layer {numbers['layer']}, "
        f"the span of all {k} leaves {_rate(cells[f'ablate-{k}'])}, "
        f"{_than(asdict(cells[f'ablate-{k}'].difference))} the unsteered model"
        + (
            f" and {_than(against['ablated'])} random spans taken out"
            if "ablated" in against
            else ""
        )
        + f"; the base-derived difference of means, taken out, leaves "
        f"{_rate(cells['ablate-means'])}, {_than(asdict(cells['ablate-means'].difference))} the "
        "unsteered model.",
    ]
    return " ".join(words)


def _coherence(cell: CellOutcome, floor: float) -> str:
    verdict = "" if cell.coherence.mean >= floor else ", too low to count"
    return f" at coherence {cell.coherence.mean:.3f}{verdict}"


def _rate(cell: CellOutcome) -> str:
    rate = cell.backtracking_rate
    return interval(rate.mean, rate.low, rate.high)


def _than(pair: Mapping[str, Any]) -> str:
    interval = f"({pair['diff']:+.3f} [{pair['low']:+.3f}, {pair['high']:+.3f}])"
    if pair["low"] > 0:
        return f"more {interval} than"
    if pair["high"] < 0:
        return f"less {interval} than"
    return f"not told apart {interval} from"

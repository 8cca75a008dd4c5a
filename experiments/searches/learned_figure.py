"""How directions found in different ways compare: effect against coherence, text, cosines."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.figures import frame
from experiments.figures.frame import plt
from experiments.pipeline.settings import Report
from experiments.stages.outcome import CellOutcome

STEM = "learned"
_KINDS = {
    "none": ("unsteered", "black", "*"),
    "learned": ("learned by gradient", frame.GREEN, "o"),
    "pca": ("principal component", "#7a5195", "D"),
    "probe": ("logistic probe", "#b8860b", "^"),
    "base": ("difference of means, base", frame.BLUE, "s"),
    "reasoning": ("difference of means, reasoning", frame.ORANGE, "P"),
    "random": ("random", frame.GREY, "x"),
}


def kind_of(source: str) -> str:
    """What a source is one of.

    >>> kind_of("learned-0@2")
    'learned'
    """
    return source.split("-")[0]


def name_of(source: str) -> str:
    """A source in words, short enough for an axis.

    >>> name_of("learned-1"), name_of("learned-0@2"), name_of("base")
    ('learned, seed 1', 'learned at layer 2', 'means, base')
    """
    if "@" in source:
        return f"learned at layer {source.split('@')[1]}"
    if kind_of(source) in ("base", "reasoning"):
        return f"means, {source}"
    return source.replace("learned-", "learned, seed ").replace("-", " ")


def draw(
    table: Sequence[CellOutcome], numbers: dict[str, Any], folder: Path, *, report: Report
) -> list[Path]:
    """Write `learned.png` and `learned.svg`; bars are 95% intervals. Returns the paths."""
    figure, axes = frame.panels(1, 3, (14.5, 4.9), width_ratios=[1.25, 1, 1])
    _effect(axes[0], table, report)
    _on_text(axes[1], numbers["on_text"])
    _cosines(figure, axes[2], numbers["cosines"])
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=7)
    figure.suptitle(
        f"Directions of one length, {frame.length_name(numbers)}, at layer {numbers['layer']}",
        fontsize=11,
    )
    return frame.save(figure, folder, STEM)


def _effect(axis: plt.Axes, table: Sequence[CellOutcome], report: Report) -> None:
    """A point a cell; cells of one source are joined. Shaded: coherent enough to be judged."""
    floor = next(c.coherence.mean for c in table if c.source == "none") - report.margin
    seen: set[str] = set()
    for source in dict.fromkeys(c.source for c in table):
        label, colour, marker = _KINDS[kind_of(source)]
        cells = sorted((c for c in table if c.source == source), key=lambda c: c.coeff)
        coherence = [c.coherence for c in cells]
        rates = [c.backtracking_rate for c in cells]
        axis.errorbar(
            [x.mean for x in coherence],
            [y.mean for y in rates],
            xerr=frame.ends(*coherence),
            yerr=frame.ends(*rates),
            label="_" if label in seen else label,
            color=colour,
            marker=marker,
            markersize=11 if source == "none" else 6,
            linewidth=1.2,
            elinewidth=0.8,
            alpha=0.9,
        )
        if "@" in source:
            where = (coherence[-1].mean, rates[-1].mean)
            axis.annotate(name_of(source), where, (6, 4), textcoords="offset points", fontsize=8)
        seen.add(label)
    right = axis.get_xlim()[1]
    axis.axvspan(floor, right, color="0.95", zorder=0)
    axis.set_xlim(right=right)
    axis.set_xlabel(frame.coherence_name(report.coherence))
    axis.set_ylabel("backtracking sentences per sentence")
    frame.tidy(axis)


def _on_text(axis: plt.Axes, gains: Sequence[dict[str, Any]]) -> None:
    for row, one in enumerate(gains):
        _, colour, marker = _KINDS[kind_of(one["source"])]
        gain = one["gain"]
        axis.errorbar(
            gain["mean"],
            row,
            xerr=[[gain["mean"] - gain["low"]], [gain["high"] - gain["mean"]]],
            color=colour,
            marker=marker,
            markersize=6,
        )
    axis.axvline(0, color="0.6", linewidth=0.8)
    axis.set_yticks(range(len(gains)), [name_of(one["source"]) for one in gains])
    axis.invert_yaxis()
    axis.set_xlabel("log-probability of held-out backtracking\nsentences, over unsteered (nats)")
    frame.tidy(axis)


def _cosines(figure: plt.Figure, axis: plt.Axes, cosines: dict[str, Any]) -> None:
    names, table = [name_of(source) for source in cosines["sources"]], cosines["table"]
    image = axis.imshow(table, cmap="RdBu_r", vmin=-1, vmax=1)
    for i, row in enumerate(table):
        for j, value in enumerate(row):
            ink = "white" if abs(value) > 0.6 else "black"
            axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color=ink)
    axis.set_xticks(range(len(names)), names, rotation=40, ha="right")
    axis.set_yticks(range(len(names)), names)
    axis.set_title("cosine", fontsize=10)
    figure.colorbar(image, ax=axis, shrink=0.8)

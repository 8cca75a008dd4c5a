"""The headline plot: backtracking against coherence, with the coefficient along the curves."""

import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.figures import frame
from experiments.figures.frame import plt
from experiments.pipeline.run import Run, command
from experiments.pipeline.tables import csv_text
from experiments.stages.baselines import RAW
from experiments.stages.outcome import CellOutcome, judged_at, select, told
from experiments.stages.sweep_table import sweep_table

STEM = "headline"
_PANELS = ("reasoning", "base", "control")  # the first is the wide one
_DERIVED = ("base", "reasoning")


def points(table: Sequence[CellOutcome]) -> list[CellOutcome]:
    """The cells that are drawn: all that have text, but for baselines at lengths of their own."""
    return [c for c in told(table) if c.coherence.n and not c.source.startswith(RAW)]


def draw(
    table: Sequence[CellOutcome], folder: Path, *, margin: float, unit: str, coherence: str
) -> list[Path]:
    """Write `headline.png` and `headline.svg`; bars are 95% intervals. Returns the paths."""
    shown = points(table)
    targets = [t for t in _PANELS if select(shown, t, "none")]
    shared = {"sharey": True, "sharex": True, "squeeze": False}
    widths = [2.4] + [1] * (len(targets) - 1)
    figure, axes = frame.panels(1, len(targets), (11, 5.2), width_ratios=widths, **shared)
    top = max(c.backtracking_rate.high for c in shown)
    for axis, target in zip(axes[0], targets, strict=True):
        axis.set_title(frame.TARGETS[target], fontsize=12)
        for source in _DERIVED:
            curve = [c for c in select(shown, target, source) if c.coherence.n]
            if any(c.source == source for c in curve):
                _curve(axis, curve, source, named=target == targets[0])
        frame.tidy(axis)
        if target != targets[0]:
            axis.locator_params(axis="x", nbins=3)
    _baselines(axes[0, 0], shown)
    for axis, target in zip(axes[0], targets, strict=True):
        _shade(axis, select(shown, target, "none")[0].coherence.mean - margin, shown)
    axes[0, 0].set_ylim(-0.07 * top, 1.06 * top)
    axes[0, 0].set_ylabel("backtracking sentences per sentence")
    axes[0, 0].annotate(
        f"coherence within {margin:g} of the unsteered model's",
        (0.985, 0.985),
        xycoords="axes fraction",
        ha="right",
        va="top",
        fontsize=9,
        color="#4f7a3f",
    )
    axes[0, 0].set_xlabel(f"coherence: {coherence}")
    figure.suptitle(_title(shown, unit), fontsize=10.5, color="0.25")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    # In front of the baselines.
    order = sorted(range(len(labels)), key=lambda i: "derived" not in labels[i])
    figure.legend(
        [handles[i] for i in order],
        [labels[i] for i in order],
        loc="outside lower center",
        ncols=min(4, len(labels)),
        frameon=False,
        fontsize=9,
    )
    return frame.save(figure, folder, STEM, dpi=160)


def _title(shown: Sequence[CellOutcome], unit: str) -> str:
    texts = sorted({c.keyword_rate.n + c.keyword_rate.n_empty for c in shown})
    count = str(texts[0]) if len(texts) == 1 else f"{texts[0]} to {texts[-1]}"
    return (
        "One direction added to each model: how often it backtracks, how coherent its text stays\n"
        f"(numbers: {frame.axis_name(unit)}; {count} texts a point, 95% intervals)"
    )


def _shade(axis: plt.Axes, floor: float, shown: Sequence[CellOutcome]) -> None:
    """Mark where the text is as coherent as is asked for."""
    low = min(floor, *(c.coherence.mean for c in shown))
    high = max(c.coherence.high for c in shown)
    room = 0.05 * (high - low)
    axis.set_xlim(low - room, high + room)
    axis.axvspan(floor, high + room, color="#e9f2e5", linewidth=0, zorder=0)
    axis.axvline(floor, color="#8fb580", linewidth=1, linestyle="--", zorder=0.5)


def _curve(axis: plt.Axes, cells: Sequence[CellOutcome], source: str, *, named: bool) -> None:
    """A curve by coefficient, which the points say if they are to be named."""
    label, colour, marker = frame.style(source)
    xs, ys = ([getattr(c, name).mean for c in cells] for name in ("coherence", "backtracking_rate"))
    axis.errorbar(
        xs,
        ys,
        xerr=frame.ends(*(c.coherence for c in cells)),
        yerr=frame.ends(*(c.backtracking_rate for c in cells)),
        linestyle="",
        color=colour,
        elinewidth=0.9,
        alpha=0.4,
        zorder=2,
    )
    axis.plot(xs, ys, label=label, color=colour, marker=marker, markersize=6, linewidth=2, zorder=3)
    if source == "base":
        plain = select(cells, cells[0].target, "none")[0]
        spot = plain.coherence.mean, plain.backtracking_rate.mean
        axis.plot(*spot, "o", color="white", markeredgecolor="0.2", markersize=7, zorder=4)
    if not named:
        ends = [f"{c.coeff:+g}".replace("-", "−") for c in (cells[0], cells[-1])]
        axis.set_xlabel(f"coherence ({ends[0]} to {ends[1]})")
        return
    for cell, x, y in zip(cells, xs, ys, strict=True):
        if cell.coeff:  # both curves share the unsteered point
            _name_point(axis, cell, x, y, colour, first=source == "base")


def _name_point(
    axis: plt.Axes, cell: CellOutcome, x: float, y: float, colour: str, *, first: bool
) -> None:
    """Write a point's coefficient where the other curve hardly comes."""
    if cell.coeff > 0:
        offset, side = ((7, 5), "left") if first else ((-7, -13), "right")
    else:
        offset, side = ((0, -15), "center") if first else ((0, 8), "center")
    axis.annotate(
        f"{cell.coeff:+g}".replace("-", "−"),
        (x, y),
        xytext=offset,
        textcoords="offset points",
        ha=side,
        fontsize=9,
        color=colour,
        zorder=5,
    )


def _baselines(axis: plt.Axes, shown: Sequence[CellOutcome]) -> None:
    """Points for what else was added to the reasoning model, and the unsteered ones' name."""
    axis.plot([], [], "o", color="white", markeredgecolor="0.2", markersize=7, label="unsteered")
    named: set[str] = set()
    for cell in shown:
        if cell.target != "reasoning" or cell.source in (*_DERIVED, "none"):
            continue
        label, colour, marker = frame.style(cell.source)
        axis.plot(
            cell.coherence.mean,
            cell.backtracking_rate.mean,
            marker=marker,
            color=colour,
            linestyle="",
            markersize=6,
            alpha=0.9,
            zorder=2.5,
            label=None if label in named else label,
        )
        named.add(label)


def to_csv(shown: Sequence[CellOutcome]) -> str:
    """The drawn points, a line each."""
    names = ("backtracking_rate", "coherence")
    head = [f"{name}{end}" for name in names for end in ("", "_low", "_high")]
    rows = []
    for cell in shown:
        both = (cell.backtracking_rate, cell.coherence)
        numbers = [x for one in both for x in (one.mean, one.low, one.high)]
        rows.append([cell.target, cell.source, cell.coeff, *numbers, both[0].n])
    return csv_text(["target", "source", "coeff", *head, "n"], rows)


def stage(run: Run) -> Path:
    """The folder with `headline.{png,svg,csv,json}`.

    The JSON has `judged_at`, the largest coefficient of the base-derived direction within the
    margin, and `floor`, the coherence that the margin leaves.
    """
    table, inputs = sweep_table(run)
    settings = run.settings
    margin = settings.report.margin

    def work(folder: Path) -> None:
        unsteered = select(table.cells, "reasoning", "none")[0].coherence.mean
        numbers = {
            "judged_at": judged_at(table.cells, margin),
            "margin": margin,
            "floor": unsteered - margin,
            "coherence": frame.coherence_name(settings.report.coherence),
        }
        frame.write_numbers(folder, STEM, to_csv(points(table.cells)), numbers)
        draw(
            table.cells,
            folder,
            margin=margin,
            unit=settings.steering.unit,
            coherence=frame.coherence_name(settings.report.coherence),
        )

    return run.stage(STEM, inputs, work)


if __name__ == "__main__":
    sys.exit(command("headline", "Effect against coherence, in one picture.", stage))

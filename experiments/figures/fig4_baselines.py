"""Figure 4: the base-derived direction against the baselines, all of one length, with coherence."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.figures import frame
from experiments.figures.frame import plt
from experiments.pipeline.run import Run, command
from experiments.pipeline.tables import interval, markdown_table, records_csv
from experiments.stages.baselines import BEHAVIOUR, RAW
from experiments.stages.outcome import CellOutcome, Measured, judged_at, select
from experiments.stages.sweep_table import sweep_table
from jaxsteer.analysis import holm
from jaxsteer.files import write_atomic, write_json

STEM = "figure4"
TARGET = "reasoning"
DERIVED = ("base", "reasoning")
_KINDS = ("none", *DERIVED, "mean", "noise", "self", BEHAVIOUR, "random", RAW)
_NAMES = {
    "none": "unsteered",
    "base": "base-derived direction",
    "reasoning": "reasoning-derived direction",
    "mean": "mean activation",
    "noise": "noise per token",
    "self": "self-amplification",
}
_PANELS = (
    ("backtracking_rate", "backtracking sentences\nper sentence"),
    ("keyword_rate", "keywords per word\n(Eq. 1)"),
    ("coherence", "coherence"),
    ("perplexity", "perplexity under the\nunsteered model"),
)
_FROM_0 = ("backtracking_rate", "keyword_rate")  # bars; the others differ by little: points


@dataclass(frozen=True)
class Bar:
    """One cell of the figure."""

    cell: CellOutcome
    p_holm: float  # of its difference to unsteered, corrected over the baselines; NaN for others

    @property
    def source(self) -> str:
        """What was added."""
        return self.cell.source


def shown_at(table: Sequence[CellOutcome], margin: float) -> float | None:
    """The coefficient that is drawn, `None` if no baseline was run.

    It is the largest one with baselines up to that at which effects are judged
    (`outcome.judged_at`); if there is none, the smallest with baselines, by size.
    """
    limit = judged_at(table, margin)
    run = {c.coeff for c in _baselines(table)}
    below = [coeff for coeff in run if limit is not None and 0 < coeff <= limit]
    return max(below) if below else min(run, key=lambda c: (abs(c), -c), default=None)


def bars(table: Sequence[CellOutcome], coeff: float) -> list[Bar]:
    """Unsteered, the directions, then the baselines at a coefficient; raw ones come last."""
    steered = [c for c in table if c.target == TARGET and c.coeff == coeff and c.source != "none"]
    family = [c.source for c in _baselines(steered)]
    raw_p = [c.difference.p_value for c in _baselines(steered)]
    corrected = dict(zip(family, holm(raw_p).tolist(), strict=True)) if family else {}
    cells = sorted([select(table, TARGET, "none")[0], *steered], key=lambda c: _place(c.source))
    return [Bar(cell, corrected.get(cell.source, math.nan)) for cell in cells]


def _baselines(table: Sequence[CellOutcome]) -> list[CellOutcome]:
    others = ("none", *DERIVED)
    return [c for c in table if c.target == TARGET and c.source not in others]


def _place(source: str) -> tuple[int, str]:
    """Where a source stands in the figure.

    >>> sorted(["raw-self", "random-1", "noise", "base", "behaviour-plan"], key=_place)
    ['base', 'noise', 'behaviour-plan', 'random-1', 'raw-self']
    """
    kinds = [i for i, kind in enumerate(_KINDS) if source.startswith(kind)]
    return kinds[0] if kinds else len(_KINDS), source


def numbers(table: Sequence[CellOutcome], *, margin: float) -> dict[str, Any]:
    """What `figure4.json` holds: the bars at each coefficient, and the one that is drawn."""
    run = sorted({c.coeff for c in _baselines(table)})
    return {
        "target": TARGET,
        "shown": shown_at(table, margin),
        "margin": margin,
        "bars": [
            {**asdict(bar.cell), "p_holm": bar.p_holm, "coeff": coeff}
            for coeff in run
            for bar in bars(table, coeff)
        ],
    }


def to_csv(figures: Mapping[str, Any]) -> str:
    """The bars as CSV: each measure with its interval and number of prompts."""
    rows = []
    for bar in figures["bars"]:
        row = {"source": bar["source"], "coeff": bar["coeff"], "length": bar["length"]}
        for name in ("backtracking_rate", "judged", "keyword_rate", "coherence", "perplexity"):
            ends = {f"{name}.{end}": bar[name][end] for end in ("low", "high", "n")}
            row |= {name: bar[name]["mean"], **ends}
        difference = bar["difference"]
        ends = {f"difference.{end}": difference[end] for end in ("low", "high", "n")}
        row |= {"difference": difference["diff"], **ends, "p_value": difference["p_value"]}
        excluded = {f"excluded.{why}": n for why, n in bar["excluded"].items()}
        rows.append({**row, "p_holm": bar["p_holm"], **excluded})
    return records_csv(rows)


def to_markdown(table: Sequence[CellOutcome], *, margin: float) -> list[str]:
    """The drawn bars as the lines of a Markdown table."""
    coeff = shown_at(table, margin)
    if coeff is None:
        return ["No baseline was run."]
    head = [
        "added", "length", "backtracking per sentence", "judged share", "words with a keyword",
        "coherence", "perplexity", "p", "p (Holm)", "texts", "not counted",
    ]  # fmt: skip
    rows = []
    for bar in bars(table, coeff):
        cell, p_value = bar.cell, bar.cell.difference.p_value
        row = [
            "nothing" if cell.source == "none" else cell.source,
            f"{cell.length:.3g}",
            _value(cell.backtracking_rate, 3),
            _value(cell.judged, 3),
            _value(cell.keyword_rate, 4),
            _value(cell.coherence, 3),
            _value(cell.perplexity, 2),
            "" if cell.source == "none" else f"{p_value:.2g}",
            "" if math.isnan(bar.p_holm) else f"{bar.p_holm:.2g}",
            f"{cell.keyword_rate.n + cell.n_empty}",
            str(sum(cell.excluded.values())),
        ]
        rows.append(row)
    about = (
        f"At coefficient {coeff:g}, with 95% intervals; p of the judged share's difference to "
        "unsteered, by prompt, and Holm-corrected over the baselines:"
    )
    return [about, "", *markdown_table(head, rows)]


def _value(one: Measured, digits: int) -> str:
    return "" if math.isnan(one.mean) else interval(one.mean, one.low, one.high, digits)


def draw(
    shown: Sequence[Bar], folder: Path, *, margin: float, unit: str, coherence: str
) -> list[Path]:
    """Write `figure4.png` and `figure4.svg`; bars have 95% intervals. Returns the paths."""
    cells = [bar.cell for bar in shown]
    panels = [p for p in _PANELS if any(getattr(cell, p[0]).n for cell in cells)]
    size = 3.4 + 2.5 * len(panels), 1.9 + 0.3 * len(cells)
    figure, axes = frame.panels(1, len(panels), size, sharey=True, squeeze=False)
    rows = list(range(len(cells)))[::-1]
    for axis, (name, label) in zip(axes[0], panels, strict=True):
        for cell, y in zip(cells, rows, strict=True):
            _mark(axis, cell, getattr(cell, name), y, bar=name in _FROM_0)
        axis.axvline(getattr(cells[0], name).mean, color="0.35", linewidth=0.9, linestyle=":")
        axis.set_xlabel(label if name != "coherence" else _broken(f"coherence: {coherence}"))
        frame.tidy(axis)
        axis.grid(axis="y", visible=False)
        axis.tick_params(axis="y", length=0)
        axis.locator_params(axis="x", nbins=4)
        axis.set_ylim(-0.7, len(cells) - 0.3)
    _limits(axes[0], panels, cells, margin)
    axes[0, 0].set_yticks(rows, [name_of(cell.source) for cell in cells])
    _tests(axes[0, -1], shown, rows)
    coeff = next(cell.coeff for cell in cells if cell.coeff)
    texts = cells[0].keyword_rate.n + cells[0].n_empty
    figure.suptitle(
        f"Added to the reasoning model at {coeff:g} ({frame.axis_name(unit)}; "
        f"{texts} texts a bar, 95% intervals)",
        fontsize=10.5,
        color="0.25",
    )
    return frame.save(figure, folder, STEM)


def name_of(source: str) -> str:
    """What a figure calls a source.

    >>> name_of("behaviour-planning"), name_of("raw-mean"), name_of("random-2")
    ('direction of planning', 'mean activation, raw', 'random direction 2')
    """
    if source.startswith(RAW):
        return f"{name_of(source.removeprefix(RAW))}, raw"
    if source.startswith(BEHAVIOUR):
        return f"direction of {source.removeprefix(BEHAVIOUR)}"
    return _NAMES.get(source, source.replace("random-", "random direction "))


def _mark(axis: plt.Axes, cell: CellOutcome, value: Measured, y: int, *, bar: bool) -> None:
    """A bar from 0, or a point, with its interval."""
    if math.isnan(value.mean):
        return
    raw = cell.source.startswith(RAW)
    colour = "0.6" if cell.source == "none" else frame.style(cell.source.removeprefix(RAW))[1]
    if bar:
        axis.barh(y, value.mean, height=0.68, color=colour, alpha=0.45 if raw else 0.9)
    edge = {"color": "0.15", "elinewidth": 1.0, "capsize": 2, "capthick": 1.0}
    point = {"color": colour, "marker": "o", "markersize": 4.5, "mfc": "white" if raw else colour}
    axis.errorbar(value.mean, y, xerr=frame.ends(value), **(edge if bar else point))


def _limits(
    axes: Sequence[plt.Axes],
    panels: Sequence[tuple[str, str]],
    cells: Sequence[CellOutcome],
    margin: float,
) -> None:
    """Coherence from where it differs; the region in which effects are judged is shaded."""
    for axis, (name, _) in zip(axes, panels, strict=True):
        values = [getattr(cell, name) for cell in cells if getattr(cell, name).n]
        if name == "coherence":
            floor = values[0].mean - margin
            low = min(floor, *(v.low for v in values))
            left = max(0.0, low - 0.15 * (1 - low))
            axis.set_xlim(left, min(1.0, max(v.high for v in values)) + 0.03 * (1 - left))
            axis.axvspan(floor, axis.get_xlim()[1], color="#e9f2e5", linewidth=0, zorder=0)


def _tests(axis: plt.Axes, shown: Sequence[Bar], rows: Sequence[int]) -> None:
    """Behind the last panel: p-values, and the share of texts without a word."""
    columns = (("p", 1.04), ("p, Holm", 1.25), ("empty", 1.52))
    for name, x in columns:
        _text(axis, x, rows[0] + 0.8, name, weight="bold")
    for bar, y in zip(shown, rows, strict=True):
        own = math.nan if bar.source == "none" else bar.cell.difference.p_value
        texts = _chance(own), _chance(bar.p_holm), f"{bar.cell.empty_share:.0%}"
        for (_, x), text in zip(columns, texts, strict=True):
            _text(axis, x, y, text)


def _text(axis: plt.Axes, x: float, y: float, text: str, **how: str) -> None:
    where = axis.get_yaxis_transform()
    axis.text(x, y, text, transform=where, va="center", fontsize=8.5, color="0.25", **how)


def _chance(p_value: float) -> str:
    if math.isnan(p_value):
        return ""
    if p_value < 0.001:
        return "< .001"
    return "1" if p_value > 0.9995 else f"{p_value:.3f}".removeprefix("0")


def _broken(label: str) -> str:
    """A long label on two lines."""
    words = label.split()
    half = len(words) // 2
    return " ".join(words[:half]) + "\n" + " ".join(words[half:])


def stage(run: Run) -> Path:
    """The folder with `figure4.{png,svg,csv,json,md}`; no picture if no baseline was run."""
    table, inputs = sweep_table(run)
    settings = run.settings

    def work(folder: Path) -> None:
        figures = numbers(table.cells, margin=settings.report.margin)
        write_json(folder / f"{STEM}.json", figures)
        words = to_markdown(table.cells, margin=settings.report.margin)
        write_atomic(folder / f"{STEM}.md", ("\n".join(words) + "\n").encode())
        if figures["shown"] is None:
            return
        write_atomic(folder / f"{STEM}.csv", to_csv(figures).encode())
        draw(
            bars(table.cells, figures["shown"]),
            folder,
            margin=settings.report.margin,
            unit=settings.steering.unit,
            coherence=frame.coherence_name(settings.report.coherence),
        )

    inputs = {**inputs, "unit": settings.steering.unit}
    return run.stage(STEM, inputs, work)


if __name__ == "__main__":
    sys.exit(command("fig4_baselines", "Figure 4: the direction against baselines.", stage))

"""How Figure 4 is drawn: a bar for each cell, a panel for each measure."""

import math
from collections.abc import Sequence
from pathlib import Path

from experiments.figures import frame
from experiments.figures.frame import plt
from experiments.stages.baselines import BEHAVIOUR, RAW
from experiments.stages.outcome import CellOutcome, Measured

Bars = Sequence[tuple[CellOutcome, float]]  # each with its corrected p-value

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


def draw(
    found: Bars, folder: Path, *, stem: str, margin: float, unit: str, coherence: str
) -> list[Path]:
    """Write `{stem}.png` and `{stem}.svg`; bars have 95% intervals. Returns the paths."""
    panels = [p for p in _PANELS if any(getattr(c, p[0]).n for c, _ in found)]
    figure, axes = plt.subplots(
        1,
        len(panels),
        figsize=(3.4 + 2.5 * len(panels), 1.9 + 0.3 * len(found)),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    rows = list(range(len(found)))[::-1]
    for axis, (name, label) in zip(axes[0], panels, strict=True):
        for (cell, _), y in zip(found, rows, strict=True):
            _mark(axis, cell, getattr(cell, name), y, bar=name in _FROM_0)
        axis.axvline(getattr(found[0][0], name).mean, color="0.35", linewidth=0.9, linestyle=":")
        axis.set_xlabel(label if name != "coherence" else _broken(f"coherence: {coherence}"))
        frame.tidy(axis)
        axis.grid(axis="y", visible=False)
        axis.tick_params(axis="y", length=0)
        axis.locator_params(axis="x", nbins=4)
        axis.set_ylim(-0.7, len(found) - 0.3)
    _limits(axes[0], panels, found, margin)
    axes[0, 0].set_yticks(rows, [name_of(cell.source) for cell, _ in found])
    _tests(axes[0, -1], found, rows)
    coeff = next(cell.coeff for cell, _ in found if cell.coeff)
    texts = found[0][0].keyword_rate.n + found[0][0].n_empty
    figure.suptitle(
        f"Added to the reasoning model at {coeff:g} ({frame.axis_name(unit)}; "
        f"{texts} texts a bar, 95% intervals)",
        fontsize=10.5,
        color="0.25",
    )
    return frame.save(figure, folder, stem)


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
    # A ratio's bootstrap may leave the ratio itself out, if only by rounding.
    ends = [[max(value.mean - value.low, 0)], [max(value.high - value.mean, 0)]]
    if bar:
        axis.barh(y, value.mean, height=0.68, color=colour, alpha=0.45 if raw else 0.9)
    edge = {"color": "0.15", "elinewidth": 1.0, "capsize": 2, "capthick": 1.0}
    point = {"color": colour, "marker": "o", "markersize": 4.5, "mfc": "white" if raw else colour}
    axis.errorbar(value.mean, y, xerr=ends, **(edge if bar else point))


def _limits(
    axes: Sequence[plt.Axes], panels: Sequence[tuple[str, str]], found: Bars, margin: float
) -> None:
    """Coherence from where it differs; the region in which effects are judged is shaded."""
    for axis, (name, _) in zip(axes, panels, strict=True):
        values = [getattr(cell, name) for cell, _ in found if getattr(cell, name).n]
        if name == "coherence":
            floor = values[0].mean - margin
            low = min(floor, *(v.low for v in values))
            left = max(0.0, low - 0.15 * (1 - low))
            axis.set_xlim(left, min(1.0, max(v.high for v in values)) + 0.03 * (1 - left))
            axis.axvspan(floor, axis.get_xlim()[1], color="#e9f2e5", linewidth=0, zorder=0)


def _tests(axis: plt.Axes, found: Bars, rows: Sequence[int]) -> None:
    """Behind the last panel: p-values, and the share of texts without a word."""
    columns = (("p", 1.04), ("p, Holm", 1.25), ("empty", 1.52))
    for name, x in columns:
        _text(axis, x, rows[0] + 0.8, name, weight="bold")
    for (cell, p_holm), y in zip(found, rows, strict=True):
        own = math.nan if cell.source == "none" else cell.difference.p_value
        for (_, x), text in zip(
            columns, (_chance(own), _chance(p_holm), f"{cell.empty_share:.0%}"), strict=True
        ):
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

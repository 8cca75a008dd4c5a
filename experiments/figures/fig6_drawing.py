"""How Figure 6 looks: curves around sentences, scores on and off backtracking, a coloured trace."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.figures import coloured_text, frame
from experiments.figures.frame import BLUE, GREY, ORANGE, plt

_KINDS = (("backtracking", ORANGE, "backtracking sentences"), ("other", BLUE, "other sentences"))
_MODELS = {"reasoning": frame.GREEN, "base": GREY}
_COLUMNS, _LINES = 128, 9  # of the coloured text


def draw(
    detail: dict[str, Any], tokens: Sequence[coloured_text.Token], folder: Path, *, stem: str
) -> list[Path]:
    """Write PNG and SVG; everything is of the base-derived direction. Returns the paths."""
    shown = coloured_text.excerpt(tokens, before=45, characters=_COLUMNS * _LINES)
    figure = plt.figure(figsize=(11, 8.2), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[3.4, 1.3])
    axes = above.subplots(2, 3)
    for row, role in enumerate(("reasoning", "base")):
        numbers = detail[role]["base"]
        name = frame.TARGETS[role]
        _curve(axes[row, 0], numbers["curve"], name)
        _histogram(axes[row, 1], numbers["histogram"], "sentences", "mean score of the window")
        axes[row, 1].set_title(_area(numbers["auroc"]), fontsize=9.5)
    _areas(axes[0, 2], detail)
    _histogram(axes[1, 2], detail["reasoning"]["base"]["histogram"], "tokens", "score of a token")
    axes[1, 2].set_title("tokens of the reasoning model", fontsize=9.5)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    above.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    axis = below.subplots()
    # A character of the font is .602 of its size wide.
    coloured_text.draw_text(axis, shown, columns=_COLUMNS, size=0.93 * 11 * 72 / (0.602 * _COLUMNS))
    axis.set_title(
        "One trace in the reasoning model, coloured by its projection on the base-derived "
        "direction\n(orange above the mean, blue below, full colour at 3 standard deviations); "
        "backtracking is underlined",
        fontsize=9.5,
        loc="left",
    )
    return frame.save(figure, folder, stem)


def _curve(axis: plt.Axes, curve: dict[str, Any], name: str) -> None:
    for kind, colour, label in _KINDS:
        one = curve[kind]
        axis.plot(curve["offsets"], one["mean"], color=colour, lw=1.6, label=label)
        axis.fill_between(curve["offsets"], one["low"], one["high"], color=colour, alpha=0.2, lw=0)
    axis.axvline(0, color="0.6", lw=0.8)
    axis.set_title(name, fontsize=9.5)
    axis.set_xlabel("tokens from the sentence's start")
    axis.set_ylabel("projection (standard deviations)")
    frame.tidy(axis)


def _histogram(axis: plt.Axes, counts: dict[str, Any], what: str, label: str) -> None:
    edges = np.array(counts["edges"])
    for kind, colour, name in _KINDS:
        values = np.array(counts[f"{what}_{kind}"], float)
        density = values / max(values.sum(), 1) / np.diff(edges)
        axis.stairs(density, edges, color=colour, fill=True, alpha=0.35, label=name)
        axis.stairs(density, edges, color=colour, lw=1.2)
    axis.set_xlabel(f"{label} (standard deviations)")
    axis.set_ylabel("density")
    frame.tidy(axis)


def _area(found: dict[str, Any]) -> str:
    return (
        f"AUROC {found['mean']:.2f} [{found['low']:.2f}, {found['high']:.2f}], "
        f"{found['n_events']} against {found['n_other']}"
    )


def _areas(axis: plt.Axes, detail: dict[str, Any]) -> None:
    for role, colour in _MODELS.items():
        curve = detail[role]["base"]["curve"]
        area = curve["auroc"]
        axis.plot(curve["offsets"], area["mean"], color=colour, lw=1.6, label=frame.TARGETS[role])
        axis.fill_between(
            curve["offsets"], area["low"], area["high"], color=colour, alpha=0.2, lw=0
        )
    axis.axhline(0.5, color="0.4", lw=0.8, ls="--")
    axis.axvline(0, color="0.6", lw=0.8)
    axis.set_xlabel("tokens from the sentence's start")
    axis.set_ylabel("AUROC of one token")
    axis.set_title("backtracking against other sentences", fontsize=9.5)
    axis.legend(fontsize=8, loc="lower left", frameon=False)
    frame.tidy(axis)

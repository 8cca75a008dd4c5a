"""What the figures share: colours and names, and image files that are the same byte for byte."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TARGETS = {"reasoning": "reasoning model", "base": "base model", "control": "negative control"}
BLUE, ORANGE, GREEN, GREY = "#1f5fa8", "#c4572a", "#3d8b57", "#8c8c8c"
# By kind of source: what a legend says, colour, marker.
SOURCES = {
    "base": ("base-derived direction", BLUE, "o"),
    "reasoning": ("reasoning-derived direction", ORANGE, "s"),
    "random": ("random directions", GREY, "x"),
    "mean": ("mean activation", "#7a5195", "D"),
    "noise": ("noise per token", "#b8860b", "^"),
    "self": ("self-amplification", "#3a9aa8", "v"),
    "behaviour": ("other behaviours' directions", "#5b7f3a", "P"),
}


def style(source: str) -> tuple[str, str, str]:
    """Label, colour and marker of a source.

    >>> style("random-2")[0], style("behaviour-planning")[2]
    ('random directions', 'P')
    """
    kind = source.split("-")[0]
    return SOURCES.get(kind, (source, GREY, "."))


def axis_name(unit: str) -> str:
    """What a coefficient counts."""
    return "coefficient × direction" if unit == "vector" else "length added, in residual norms"


def coherence_name(coherence: str) -> str:
    """What a report's coherence is."""
    if coherence == "grammar":
        return "share of sentences that fit the grammar"
    return "1 − share of repeated 4-grams"


def ends(*values: Any) -> list[list[float]]:
    """How far intervals reach below and above their means, for `errorbar`.

    A ratio's bootstrap may leave the ratio itself out, if only by rounding: 0 then.
    """
    below = [max(value.mean - value.low, 0) for value in values]
    return [below, [max(value.high - value.mean, 0) for value in values]]


def tidy(axis: plt.Axes) -> None:
    """Light grid, no frame above and to the right."""
    axis.grid(color="0.93", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def save(figure: Any, folder: Path, stem: str, *, dpi: int = 150) -> list[Path]:
    """Write PNG and SVG with neither a date nor random ids, and close the figure."""
    paths = [folder / f"{stem}.png", folder / f"{stem}.svg"]
    with plt.rc_context({"svg.hashsalt": stem}):
        figure.savefig(paths[0], dpi=dpi)
        figure.savefig(paths[1], metadata={"Date": None})
    plt.close(figure)
    return paths

"""What the figures share: colours and names, and image files that are the same byte for byte."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

from jaxsteer.files import write_atomic, write_json
from jaxsteer.pages import LIGHT

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TARGETS = {"reasoning": "reasoning model", "base": "base model", "control": "negative control"}
BLUE, ORANGE, GREEN, GREY = (LIGHT[name] for name in ("blue", "orange", "green", "grey"))
# By kind of source: what a legend says, the name of its colour, marker.
SOURCES = {
    "base": ("base-derived direction", "blue", "o"),
    "reasoning": ("reasoning-derived direction", "orange", "s"),
    "random": ("random directions", "grey", "x"),
    "mean": ("mean activation", "purple", "D"),
    "noise": ("noise per token", "gold", "^"),
    "self": ("self-amplification", "teal", "v"),
    "behaviour": ("other behaviours' directions", "olive", "P"),
}


def style(source: str) -> tuple[str, str, str]:
    """Label, colour and marker of a source.

    >>> style("random-2")[0], style("behaviour-planning")[2]
    ('random directions', 'P')
    """
    label, colour, marker = kind_of(source)
    return label, LIGHT[colour], marker


def kind_of(source: str) -> tuple[str, str, str]:
    """The same with the name of the colour."""
    return SOURCES.get(source.split("-")[0], (source, "grey", "."))


def axis_name(unit: str) -> str:
    """What a coefficient counts."""
    return "coefficient × direction" if unit == "vector" else "length added, in residual norms"


def length_name(numbers: Mapping[str, Any]) -> str:
    """How much of a direction is added: `coeff` and `unit` of a stage's numbers, in words."""
    unit = "times the direction" if numbers["unit"] == "vector" else "residual norms"
    return f"{numbers['coeff']:g} {unit}"


def coherence_name(coherence: str) -> str:
    """What a report's coherence is."""
    if coherence == "grammar":
        return "share of sentences that fit the grammar"
    return "1 − share of repeated 4-grams"


def panels(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Any, Any]:
    """A figure of `size` inches and its axes; `options` are those of `plt.subplots`."""
    return plt.subplots(rows, columns, figsize=size, layout="constrained", **options)


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


def write_numbers(folder: Path, stem: str, csv: str, numbers: Any) -> None:
    """Write what a figure shows, as CSV and as JSON."""
    write_atomic(folder / f"{stem}.csv", csv.encode())
    write_json(folder / f"{stem}.json", numbers)


def save(figure: Any, folder: Path, stem: str, *, dpi: int = 150) -> list[Path]:
    """Write PNG and SVG with neither a date nor random ids, and close the figure."""
    paths = [folder / f"{stem}.png", folder / f"{stem}.svg"]
    with plt.rc_context({"svg.hashsalt": stem}):
        figure.savefig(paths[0], dpi=dpi)
        figure.savefig(paths[1], metadata={"Date": None})
    plt.close(figure)
    return paths

"""How Figure 2 looks: a heat map of the steering effect, and the window's effect by layer."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.figures import frame
from experiments.figures.frame import plt

if TYPE_CHECKING:
    from experiments.figures.fig2_offset_layer import Spot

STEM = "figure2"


def draw(found: Sequence["Spot"], folder: Path, *, window: Sequence[int], title: str) -> list[Path]:
    """Write `figure2.png` and `figure2.svg`; hatched cells are not coherent. Returns the paths."""
    layers = sorted({spot.layer for spot in found})
    offsets = sorted({spot.offset for spot in found if spot.offset is not None})
    figure, (left, right) = plt.subplots(
        1,
        2,
        figsize=(10.5, 1.9 + 0.42 * len(layers)),
        width_ratios=[3.2, 1],
        sharey=True,
        layout="constrained",
    )
    _map(figure, left, found, layers, offsets)
    _window_marks(left, offsets, window, len(layers))
    _by_layer(right, found, layers, window)
    left.set_yticks(range(len(layers)), [str(layer) for layer in layers])
    left.set_ylabel("layer")
    left.set_xlabel("offset from the start of the backtracking sentence, in tokens")
    n = max(spot.n for spot in found)
    figure.suptitle(
        f"Backtracking per sentence, change over unsteered ({title}; {n} prompts a cell)\n"
        "hatched, hollow: coherence beyond the margin; ring: the best of the others; solid line: "
        "the sentence starts",
        fontsize=10.5,
    )
    return frame.save(figure, folder, STEM)


def _map(
    figure: plt.Figure,
    axis: plt.Axes,
    found: Sequence["Spot"],
    layers: Sequence[int],
    offsets: Sequence[int],
) -> None:
    table = np.full((len(layers), len(offsets)), np.nan)
    spots = [spot for spot in found if spot.offset is not None]
    for spot in spots:
        row, column = layers.index(spot.layer), offsets.index(spot.offset or 0)
        table[row, column] = spot.gain
        if not spot.coherent:
            cell = plt.Rectangle((column - 0.5, row - 0.5), 1, 1)
            cell.set(fill=False, hatch="////", edgecolor="0.35", linewidth=0)
            axis.add_patch(cell)
    limit = float(np.nanmax(np.abs(table))) or 1.0
    image = axis.imshow(table, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    axis.invert_yaxis()
    axis.set_xticks(range(len(offsets)), [f"{o:d}".replace("-", "−") for o in offsets])
    able = [spot for spot in spots if spot.coherent and spot.n]
    if able:
        best = max(able, key=lambda spot: spot.gain)
        where = offsets.index(best.offset or 0), layers.index(best.layer)
        axis.plot(*where, "o", markersize=13, markerfacecolor="none", color="black", mew=1.6)
    figure.colorbar(image, ax=axis, pad=0.015, fraction=0.05)


def _window_marks(
    axis: plt.Axes, offsets: Sequence[int], window: Sequence[int], n_layers: int
) -> None:
    """Dashed lines where the window lies, and at the start of the sentence."""

    def place(offset: float) -> float:
        return float(np.interp(offset, offsets, np.arange(len(offsets))))

    for edge in (min(window) - 0.5, max(window) + 0.5):
        axis.axvline(place(edge), color="black", linewidth=1, linestyle=":")
    middle = (place(min(window)) + place(max(window))) / 2
    axis.annotate(
        "window",
        (middle, n_layers - 0.5),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        fontsize=9,
    )
    axis.axvline(place(-0.5), color="black", linewidth=1)


def _by_layer(
    axis: plt.Axes, found: Sequence["Spot"], layers: Sequence[int], window: Sequence[int]
) -> None:
    spots = [spot for spot in found if spot.offset is None]
    for spot in spots:
        colour = frame.BLUE if spot.coherent else frame.GREY
        axis.errorbar(
            spot.gain,
            layers.index(spot.layer),
            xerr=[[max(spot.gain - spot.low, 0)], [max(spot.high - spot.gain, 0)]],
            fmt="o",
            color=colour,
            markersize=5,
            markerfacecolor=colour if spot.coherent else "white",
        )
    axis.axvline(0, color="0.7", linewidth=0.8)
    axis.set_xlabel("change")
    axis.set_title(f"window {window[0]} to {window[-1]}".replace("-", "−"), fontsize=10)
    frame.tidy(axis)

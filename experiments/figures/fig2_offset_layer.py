"""Figure 2 and Appendix B.1: the steering effect by the layer and offset of the direction.

    python -m experiments.fig2_offset_layer --out runs/small

The base-derived direction read at one offset and layer is added at that layer to the reasoning
model, at one coefficient, on the first prompts of the evaluation split: these have neither made the
direction nor chosen the steered layer. Beside it each layer's direction of the settings' window.
All cells run in one compiled program; two stages, the texts (`map`) and what they show (`figure2`).
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.figures import frame
from experiments.figures.frame import plt
from experiments.pipeline.run import Run, command
from experiments.pipeline.settings import Settings
from experiments.pipeline.stage_runner import fingerprint
from experiments.pipeline.tables import records_csv
from experiments.stages import derive, steer
from experiments.stages.outcome import measured, paired
from experiments.stages.text_scores import Scores, score, small_pair_grammar
from jaxsteer.directions import Direction, load_directions, rescale
from jaxsteer.files import read_rows
from jaxsteer.steering import add
from jaxsteer.sweeps import Cell

STEM = "figure2"
WINDOW = "window"  # the offset of a direction that is the mean over the settings' window


@dataclass(frozen=True)
class MapCell:
    """One cell of the map, over its prompts."""

    layer: int
    offset: int | None  # None is the window
    gain: float  # of backtracking per sentence over unsteered, by prompt
    se: float
    low: float
    high: float
    p_value: float
    rate: float
    coherence: float
    coherent: bool  # within the margin of unsteered
    n: int  # prompts with a sentence in both texts
    n_empty: int


def layers_of(settings: Settings, n_layers: int) -> list[int]:
    """Every so many layers, the steered one among them.

    >>> from types import SimpleNamespace as N
    >>> layers_of(N(direction=N(layer=10), figure2=N(layer_stride=4)), 16)
    [2, 6, 10, 14]
    """
    stride = settings.figure2.layer_stride
    return list(range(settings.direction.layer % stride, n_layers, stride))


def make_cells(
    saved: dict[str, Direction], facts: dict[str, Any], settings: Settings, coeff: float
) -> list[Cell]:
    """Unsteered, each layer × offset that has a direction, and each layer's window.

    Labels are `source` ("none" or "base"), `layer`, `offset`, `coeff` and `length`.
    """
    norms = facts["residual_norm"]["reasoning"]
    site, unit = settings.direction.site, settings.steering.unit
    zero = np.zeros_like(next(iter(saved.values())).vector)
    labels: dict[str, Any] = {
        "source": "none",
        "layer": None,
        "offset": None,
        "coeff": 0.0,
        "length": 0.0,
    }
    cells = [Cell(labels, add(zero, layer=0, coeff=0.0, site=site))]
    named = [*((f"offset.{o}", o) for o in settings.figure2.offsets), ("union", WINDOW)]
    for layer in layers_of(settings, len(norms)):
        for name, offset in named:
            one = saved.get(f"base.{layer}.{name}")
            if one is None:  # no backtracking sentence has a token there
                continue
            vector = rescale(one.vector, norms[layer]) if unit == "residual" else one.vector
            labels = {
                "source": "base",
                "layer": layer,
                "offset": offset,
                "coeff": coeff,
                "length": abs(coeff) * float(np.linalg.norm(vector)),
            }
            cells.append(Cell(labels, add(vector, layer=layer, coeff=coeff, site=site)))
    return cells


def texts(run: Run) -> Path:
    """The folder with `sweep.jsonl`, a row for each cell and prompt."""
    settings, target = run.settings, "reasoning"
    coeff = map_coeff(settings)  # before any work, as there may be none
    directions = derive.stage(run)
    problems = run.evaluate_prompts[: settings.figure2.prompts]

    def work(folder: Path) -> None:
        facts = derive.read_facts(directions)
        cells = make_cells(load_directions(directions / derive.FILE), facts, settings, coeff)
        steer.write_texts(run, folder, target, cells, problems)

    inputs = {
        **steer.text_inputs(run, target, problems),
        "directions": fingerprint(directions),
        "figure2": asdict(settings.figure2),
        "coeff": coeff,
        "unit": settings.steering.unit,
    }
    return run.stage("map", inputs, work)


def map_coeff(settings: Settings) -> float:
    """The coefficient of the map: its own setting, or the baselines' first, or the smallest."""
    steering = settings.steering
    others = [*steering.baseline_coeffs, *sorted(c for c in steering.coeffs if c > 0)]
    chosen = settings.figure2.coeff or next(iter(others), None)
    if chosen is None:
        raise ValueError("figure2.coeff: missing, and steering.coeffs has none above 0")
    return chosen


def map_cells(
    rows: Sequence[dict[str, Any]], settings: Settings
) -> tuple[list[MapCell], dict[tuple[int, int], list[float]]]:
    """Every cell's outcome; and by layer and offset the gains of the prompts, NaN where unknown."""
    grammar = small_pair_grammar if settings.report.coherence == "grammar" else None
    by_place: dict[tuple[Any, Any], dict[str, Scores]] = {}
    for row in rows:
        one = score(row, keywords=settings.labels.keywords, grammar=grammar)
        by_place.setdefault((row["layer"], row["offset"]), {})[row["prompt"]] = one
    plain = by_place.pop((None, None))
    floor = _coherence(list(plain.values())) - settings.report.margin
    done, gains = [], {}
    for (layer, offset), by_prompt in by_place.items():
        texts_here = [by_prompt[prompt] for prompt in plain]
        shares = [text.judged for text in texts_here]
        change = paired(shares, [text.judged for text in plain.values()])
        rate = measured([t.backtracking for t in texts_here], [t.sentences for t in texts_here])
        coherence = _coherence(texts_here)
        done.append(
            MapCell(
                layer=layer,
                offset=None if offset == WINDOW else offset,
                gain=change.diff,
                se=change.se,
                low=change.low,
                high=change.high,
                p_value=change.p_value,
                rate=rate.mean,
                coherence=coherence,
                coherent=coherence >= floor,
                n=change.n,
                n_empty=change.n_empty,
            )
        )
        if offset != WINDOW:
            gains[layer, offset] = np.subtract(shares, [t.judged for t in plain.values()]).tolist()
    return done, gains


def _coherence(scores: Sequence[Scores]) -> float:
    whole = sum(text.coherence_of for text in scores)
    return sum(text.coherent for text in scores) / whole if whole else math.nan


def table_of(cells: Sequence[MapCell], gains: dict[tuple[int, int], list[float]]) -> dict[str, Any]:
    """The gains by prompt, as the rule of C1 takes them, and the best coherent cell.

    `gains` `[n, layers, offsets]` is NaN where a text does not count, or a cell is not coherent.
    """
    able = [s for s in cells if s.coherent and s.offset is not None and s.n]
    layers, offsets = (sorted(set(axis)) for axis in zip(*gains, strict=True))
    table = np.full((len(next(iter(gains.values()))), len(layers), len(offsets)), math.nan)
    for cell in able:
        at = layers.index(cell.layer), offsets.index(cell.offset or 0)
        table[:, at[0], at[1]] = gains[cell.layer, cell.offset or 0]
    best = max(able, key=lambda s: s.gain, default=None)
    return {
        "layers": layers,
        "offsets": offsets,
        "gains": table.tolist(),
        "coherent": len(able),
        "best": None if best is None else asdict(best),
    }


def to_csv(cells: Sequence[MapCell]) -> str:
    """A line a cell."""
    return records_csv(
        [{**asdict(s), "offset": WINDOW if s.offset is None else s.offset} for s in cells]
    )


def draw(
    cells: Sequence[MapCell], folder: Path, *, window: Sequence[int], title: str
) -> list[Path]:
    """Write `figure2.png` and `figure2.svg`; hatched cells are not coherent. Returns the paths."""
    layers = sorted({cell.layer for cell in cells})
    offsets = sorted({cell.offset for cell in cells if cell.offset is not None})
    size = 10.5, 1.9 + 0.42 * len(layers)
    figure, (left, right) = frame.panels(1, 2, size, width_ratios=[3.2, 1], sharey=True)
    _map(figure, left, cells, layers, offsets)
    _window_marks(left, offsets, window, len(layers))
    _by_layer(right, cells, layers, window)
    left.set_yticks(range(len(layers)), [str(layer) for layer in layers])
    left.set_ylabel("layer")
    left.set_xlabel("offset from the start of the backtracking sentence, in tokens")
    n = max(cell.n for cell in cells)
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
    cells: Sequence[MapCell],
    layers: Sequence[int],
    offsets: Sequence[int],
) -> None:
    table = np.full((len(layers), len(offsets)), np.nan)
    shown = [cell for cell in cells if cell.offset is not None]
    for cell in shown:
        row, column = layers.index(cell.layer), offsets.index(cell.offset or 0)
        table[row, column] = cell.gain
        if not cell.coherent:
            hatched = plt.Rectangle((column - 0.5, row - 0.5), 1, 1)
            hatched.set(fill=False, hatch="////", edgecolor="0.35", linewidth=0)
            axis.add_patch(hatched)
    limit = float(np.nanmax(np.abs(table))) or 1.0
    image = axis.imshow(table, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    axis.invert_yaxis()
    axis.set_xticks(range(len(offsets)), [f"{o:d}".replace("-", "−") for o in offsets])
    able = [cell for cell in shown if cell.coherent and cell.n]
    if able:
        best = max(able, key=lambda cell: cell.gain)
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
    axis: plt.Axes, cells: Sequence[MapCell], layers: Sequence[int], window: Sequence[int]
) -> None:
    shown = [cell for cell in cells if cell.offset is None]
    for cell in shown:
        colour = frame.BLUE if cell.coherent else frame.GREY
        axis.errorbar(
            cell.gain,
            layers.index(cell.layer),
            xerr=[[max(cell.gain - cell.low, 0)], [max(cell.high - cell.gain, 0)]],
            fmt="o",
            color=colour,
            markersize=5,
            markerfacecolor=colour if cell.coherent else "white",
        )
    axis.axvline(0, color="0.7", linewidth=0.8)
    axis.set_xlabel("change")
    axis.set_title(f"window {window[0]} to {window[-1]}".replace("-", "−"), fontsize=10)
    frame.tidy(axis)


def stage(run: Run) -> Path:
    """The folder with `figure2.{png,svg,csv,json}`."""
    source, settings = texts(run), run.settings

    def work(folder: Path) -> None:
        cells, gains = map_cells(read_rows(source / steer.FILE), settings)
        numbers = {
            "coeff": map_coeff(settings),
            "unit": settings.steering.unit,
            "prompts": f"the first {settings.figure2.prompts} of {settings.prompts.evaluate_split}",
            "table": table_of(cells, gains),
            "cells": [asdict(cell) for cell in cells],
        }
        frame.write_numbers(folder, STEM, to_csv(cells), numbers)
        draw(
            cells,
            folder,
            window=settings.direction.offsets,
            title=f"{frame.axis_name(settings.steering.unit)}: {map_coeff(settings):g}",
        )

    inputs = {
        "map": fingerprint(source),
        "report": asdict(settings.report),
        "keywords": settings.labels.keywords,
        "window": settings.direction.offsets,
    }
    return run.stage(STEM, inputs, work)


if __name__ == "__main__":
    sys.exit(command("fig2_offset_layer", "Figure 2: effect by layer and offset.", stage))

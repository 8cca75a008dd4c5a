"""The figure of grafting: parts alone, by depth, the search's path, and generated text."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.figures.frame import BLUE, GREY, ORANGE, panels, plt, save, tidy
from experiments.grafting.text import short
from experiments.grafting.verdict import BASE, GRAFTED, HALF, PUT_BACK, REASONING, RESPONDING

STEM = "graft"
_WRITTEN = 12  # columns up to which the heat map has its numbers in it


def draw(numbers: dict[str, Any], folder: Path) -> list[Path]:
    """Write `graft.png` and `graft.svg`; intervals are 95% over the prompts. Returns the paths."""
    ratios = {"width_ratios": [1.35, 1], "height_ratios": [1, 1.05]}
    figure, axes = panels(2, 2, (13, 8.4), **ratios)
    _map(axes[0, 0], numbers)
    _depth(axes[0, 1], numbers)
    _path(axes[1, 0], numbers)
    _generated(axes[1, 1], numbers)
    return save(figure, folder, STEM)


def _map(axis: plt.Axes, numbers: dict[str, Any]) -> None:
    """Shares of the reasoning model's response, with each part alone grafted or put back."""
    ceiling = numbers["ceilings"][numbers["format"]]
    by_part = {row["part"]: row for row in numbers["parts"]}
    n_layers = len(numbers["depth"]) - 1
    columns = ["embed", *map(str, range(n_layers)), "head"]
    kinds = {"attention": ".attn", "MLP": ".mlp", "whole layer": ""}
    table = np.full((2 * len(kinds), len(columns)), np.nan)
    for block, way in enumerate(("grafted", "put_back")):
        for i, suffix in enumerate(kinds.values()):
            row = table[len(kinds) * block + i]
            row[1:-1] = [by_part[f"layers.{layer}{suffix}"][way] for layer in range(n_layers)]
        for column, part in ((0, "embed"), (-1, "head")):
            table[len(kinds) * block + 1, column] = by_part[part][way]
    table *= 100 / ceiling
    image = axis.imshow(table, cmap="Blues", vmin=0, vmax=max(100, np.nanmax(table)), aspect="auto")
    axis.axhline(len(kinds) - 0.5, color="black", linewidth=1.2)
    axis.set_xticks(range(len(columns)), columns)
    axis.set_yticks(
        range(len(table)),
        [f"{kind} {way}" for way in ("grafted", "put back") for kind in kinds],
    )
    axis.set_xlabel("layer")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_title("one part at a time: response left, % of the reasoning model's", fontsize=11)
    if len(columns) <= _WRITTEN:
        for (i, j), value in np.ndenumerate(table):
            if np.isfinite(value):
                dark = value > 0.6 * image.norm.vmax
                axis.text(
                    j,
                    i,
                    f"{value:.1f}" if 0.05 <= abs(value) < 10 else f"{abs(round(value))}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if dark else "black",
                )
    else:
        axis.figure.colorbar(image, ax=axis, shrink=0.8)


def _depth(axis: plt.Axes, numbers: dict[str, Any]) -> None:
    ceiling = numbers["ceilings"][numbers["format"]]
    layers = [row["layer"] for row in numbers["depth"]]
    for way, label, colour in (
        ("grafted", "layers from here up and the head\nare the reasoning model's", BLUE),
        ("put_back", "embedding and layers below are", ORANGE),
    ):
        shares = [100 * row[way] / ceiling for row in numbers["depth"]]
        axis.plot(layers, shares, color=colour, marker="o", markersize=4, label=label)
    axis.axvline(numbers["layer"] + 0.5, color="0.6", linestyle=":", linewidth=1.2)
    axis.annotate(
        f"direction added\nafter layer {numbers['layer']}",
        (numbers["layer"] + 0.5, 96),
        xytext=(6, 0),
        textcoords="offset points",
        va="top",
        fontsize=8,
        color="0.35",
    )
    axis.axhline(100, color="0.8", linewidth=0.8, zorder=0)
    step = max(1, len(layers) // 10)
    axis.set_xticks(layers[::step])
    axis.set(xlabel="first layer from above", ylabel="response, % of the reasoning model's")
    axis.set_title("by depth", fontsize=11)
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(0, 0.22))
    tidy(axis)


def _path(axis: plt.Axes, numbers: dict[str, Any]) -> None:
    """Responses on the texts of the judgement, as the search takes one part after the other."""
    judged = numbers["judged"][numbers["format"]]
    steps = [judged[BASE], *judged["path"]]
    _intervals(axis, range(len(steps)), steps, color=BLUE, linewidth=1.4)
    size = len(numbers["responding"])
    for way, colour, marker in (("grafted", BLUE, "x"), ("put_back", ORANGE, "+")):
        drawn = [row[way]["rise"] for row in judged["random"]]
        axis.plot(
            [size + 0.15] * len(drawn),
            drawn,
            linewidth=0,
            marker=marker,
            markersize=6,
            color=colour,
            alpha=0.8,
            label=f"{len(drawn)} random sets of {size}, {way.replace('_', ' ')}",
        )
    _intervals(
        axis,
        [size + 0.15],
        [judged[RESPONDING]["put_back"]],
        color=ORANGE,
        label=f"reasoning model with the {size} put back",
    )
    for share, name in ((1.0, "reasoning model"), (HALF, "half of it")):
        height = share * judged[REASONING]["rise"]
        axis.axhline(height, color="0.6", linewidth=0.9, linestyle="--", zorder=0)
        axis.text(0.02, height, name, fontsize=8, color="0.35", va="bottom")
    axis.set_xticks(
        range(len(steps)),
        ["none", *(f"+ {short(part)}" for part in numbers["path"])],
        rotation=20,
        ha="right",
    )
    axis.set_ylabel("rise of P(keyword)\nat sentence starts")
    axis.set_title("the search's parts one after another, on held-out texts", fontsize=11)
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(0.0, 0.78))
    tidy(axis)


def _intervals(axis: plt.Axes, x: Any, steps: list[dict[str, Any]], **style: Any) -> None:
    rises = np.array([one["rise"] for one in steps])
    ends = [np.array([one[end] for one in steps]) for end in ("low", "high")]
    error = np.maximum(0, [rises - ends[0], ends[1] - rises])
    axis.errorbar(x, rises, yerr=error, marker="o", markersize=4, elinewidth=0.9, **style)


def _generated(axis: plt.Axes, numbers: dict[str, Any]) -> None:
    """Rates in generated text, unsteered and steered, with the coherence beside them."""
    titles = {
        BASE: "base model",
        REASONING: "reasoning model",
        RESPONDING: f"base model with\nthe {len(numbers['responding'])} that respond",
        GRAFTED: f"base model with\nall {len(numbers['chosen'])} found",
        PUT_BACK: f"reasoning model with\nthe {len(numbers['responding'])} put back",
    }
    names = list(numbers["hybrids"])
    for at, name in enumerate(names):
        cells = [cell for cell in numbers["generated"] if cell["target"] == name]
        for cell in cells:
            unsteered = cell["source"] == "none"
            rate = cell["backtracking_rate"]
            axis.errorbar(
                rate["mean"],
                at + (-0.12 if unsteered else 0.12),
                xerr=[[rate["mean"] - rate["low"]], [rate["high"] - rate["mean"]]],
                color=GREY if unsteered else BLUE,
                marker="o",
                markersize=5,
                label=("unsteered" if unsteered else "with the direction") if at == 0 else None,
            )
        coherence = " → ".join(f"{cell['coherence']['mean']:.2f}" for cell in cells)
        axis.text(
            1.02, at, coherence, transform=axis.get_yaxis_transform(), va="center", fontsize=9
        )
    axis.text(1.02, 1.02, "coherence", transform=axis.transAxes, fontsize=9)
    titled = [titles.get(name, f"base model with\nas many ({name})") for name in names]
    axis.set_yticks(range(len(names)), titled)
    axis.invert_yaxis()
    axis.set_xlim(left=min(0, axis.get_xlim()[0]))
    axis.set_xlabel("backtracking sentences per sentence, generated")
    axis.set_title("generated text, held-out prompts", fontsize=11)
    axis.legend(fontsize=8, loc="lower right")
    tidy(axis)

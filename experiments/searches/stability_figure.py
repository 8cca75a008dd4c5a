"""The picture of stability: where it is high, and what the direction of the stable events does."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.figures import frame
from experiments.figures.frame import plt

STEM = "stability"
EDGES = (np.arange(12) - 0.5) / 10  # about the shares that ten continuations give


def draw(numbers: dict[str, Any], folder: Path) -> list[Path]:
    """Write `stability.png` and `stability.svg` of what `stability.json` holds."""
    known = numbers["known"]
    figure, axes = frame.panels(1, 3 if known else 2, (14 if known else 9.5, 4.4))
    _traces(axes[0], numbers["traces"], numbers["stable_from"])
    if known:
        _known(axes[1], known)
    _directions(axes[-1], numbers["directions"])
    return frame.save(figure, folder, STEM)


def _histogram(axis: plt.Axes, counts: Sequence[int], **style: Any) -> None:
    axis.stairs(np.array(counts) / max(sum(counts), 1), EDGES, **style)
    axis.set(xlabel="share of continuations that backtrack again", ylabel="share of the boundaries")
    frame.tidy(axis)


def _traces(axis: plt.Axes, one: dict[str, Any], stable_from: float) -> None:
    _histogram(axis, one["histogram"], fill=True, color=frame.BLUE, alpha=0.7)
    axis.axvline(stable_from, color="0.3", linestyle="--", linewidth=1)
    stable = one["stable"]
    axis.set_title(
        f"{one['boundaries']} boundaries of the run's traces, {one['samples']} continuations "
        f"each:\n{stable['share']:.2f} [{stable['low']:.2f}, {stable['high']:.2f}] are stable",
        fontsize=9.5,
    )


def _known(axis: plt.Axes, known: dict[str, Any]) -> None:
    area = known["auroc"]
    for name, count, colour, label in (
        ("under_doubt", area["n_events"], frame.ORANGE, "under doubt"),
        ("without", area["n_other"], frame.GREY, "without"),
    ):
        _histogram(
            axis, known["histogram"][name], color=colour, linewidth=2, label=f"{label} ({count})"
        )
    axis.legend(frameon=False, fontsize=9)
    axis.set_title(
        "Boundaries whose hidden state is known:\n"
        f"AUROC {area['mean']:.2f} [{area['low']:.2f}, {area['high']:.2f}]",
        fontsize=9.5,
    )


def _directions(axis: plt.Axes, numbers: dict[str, Any]) -> None:
    cells = numbers["cells"]
    for at, cell in enumerate(cells):
        one = cell["judged"]
        error = [[max(one["mean"] - one["low"], 0)], [max(one["high"] - one["mean"], 0)]]
        axis.errorbar(at, one["mean"], yerr=error, marker="o", color=frame.BLUE, capsize=3)
    axis.axhline(numbers["unsteered"]["judged"]["mean"], color="0.3", linestyle=":", linewidth=1)
    axis.set_xticks(
        range(len(cells)),
        [
            f"{cell['source']}\n{numbers['counts'][cell['source']]} events\n"
            f"coherence\n{cell['coherence']['mean']:.3f}"
            for cell in cells
        ],
        fontsize=7.5,
    )
    axis.set_ylim(bottom=0)
    axis.set_ylabel("share of distinct backtracking sentences")
    axis.set_title(
        f"Base-derived directions of these events, all of one length, at {numbers['coeff']:g}\n"
        "(dotted: unsteered)",
        fontsize=9.5,
    )
    frame.tidy(axis)

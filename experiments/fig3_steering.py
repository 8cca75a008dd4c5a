"""Figure 3: backtracking against the coefficient, for each target and source, with coherence."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from experiments.outcome import CellOutcome, select, sources_of

STEM = "figure3"
_TITLES = {"reasoning": "reasoning model", "base": "base model", "control": "negative control"}
_STYLES = {
    "base": ("base-derived direction", "#1f5fa8", "o"),
    "reasoning": ("reasoning-derived direction", "#c4572a", "s"),
    "random": ("random directions", "#9a9a9a", "x"),
}
_ROWS = (
    ("keyword_rate", "keywords per word (Eq. 1)"),
    ("backtracking_rate", "backtracking sentences\nper sentence"),
    ("coherence", "coherence"),
)


def draw(table: Sequence[CellOutcome], folder: Path, *, unit: str, coherence: str) -> list[Path]:
    """Write `figure3.png` and `figure3.svg`; bars are one standard error. Returns the paths."""
    targets = list(dict.fromkeys(cell.target for cell in table))
    figure, axes = plt.subplots(
        len(_ROWS),
        len(targets),
        figsize=(3.6 * len(targets) + 0.6, 7.2),
        sharex=True,
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    for column, target in enumerate(targets):
        axes[0, column].set_title(_TITLES.get(target, target))
        axes[-1, column].set_xlabel(
            "coefficient × direction" if unit == "vector" else "length added, in residual norms"
        )
        for row, (name, label) in enumerate(_ROWS):
            axis = axes[row, column]
            _curves(axis, table, target, name)
            axis.axvline(0, color="0.85", linewidth=0.8, zorder=0)
            axis.grid(axis="y", color="0.93")
            axis.spines[["top", "right"]].set_visible(False)
            if column == 0:
                axis.set_ylabel(f"{label} ({coherence})" if name == "coherence" else label)
    # Every label once, from whichever panel has it.
    handles = {
        label: handle
        for axis in axes.flat
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=3)
    paths = [folder / f"{STEM}.png", folder / f"{STEM}.svg"]
    # Neither a date nor random ids in the files: the same numbers give the same bytes.
    with plt.rc_context({"svg.hashsalt": STEM}):
        figure.savefig(paths[0], dpi=150)
        figure.savefig(paths[1], metadata={"Date": None})
    plt.close(figure)
    return paths


def _curves(axis: plt.Axes, table: Sequence[CellOutcome], target: str, name: str) -> None:
    for source in sources_of(table, target):
        label, colour, marker = _STYLES[source.split("-")[0]]
        is_random = source.startswith("random")
        cells = [c for c in select(table, target, source) if not is_random or c.coeff != 0]
        values = [getattr(cell, name) for cell in cells]
        axis.errorbar(
            [cell.coeff for cell in cells],
            [value.mean for value in values],
            yerr=[value.se for value in values],
            label=label,
            color=colour,
            marker=marker,
            markersize=4,
            linewidth=0 if is_random else 1.4,
            elinewidth=1.0,
        )

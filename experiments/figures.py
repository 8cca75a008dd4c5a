"""The figures of a run, in the order of the report; those that take longer are left to `--full`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from experiments import fig2_offset_layer, fig3_steering, headline
from experiments.run import Run


@dataclass(frozen=True)
class Figure:
    """A stage that leaves `{name}.{png,svg,csv,json}` in a folder of its name."""

    name: str
    title: str
    stage: Callable[[Run], Path]
    caption: str
    full: bool = False  # whether it is made with --full only


FIGURES = (
    Figure(
        "headline",
        "Effect against coherence",
        headline.stage,
        "How often texts backtrack against how coherent they are, with the coefficient along the "
        "curves. Whether a direction induces backtracking is judged in the shaded region.",
    ),
    Figure(
        "figure2",
        "Figure 2: layers and offsets",
        fig2_offset_layer.stage,
        "The steering effect of the base-derived direction read at one offset and added at one "
        "layer.",
        full=True,
    ),
    Figure(
        "figure3",
        "Figure 3: steering",
        fig3_steering.stage,
        "Keywords per word (Eq. 1), backtracking sentences per sentence and coherence against the "
        "coefficient.",
    ),
)


def chosen(*, full: bool) -> list[Figure]:
    """Those that a run makes."""
    return [figure for figure in FIGURES if full or not figure.full]


def left_out(*, full: bool) -> list[Figure]:
    """Those that it leaves to `--full`."""
    return [figure for figure in FIGURES if figure.full and not full]

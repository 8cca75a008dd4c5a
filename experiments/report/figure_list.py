"""The figures of a run, in the order of the report; those that take longer are left to `--full`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from experiments.figures import (
    appendix_c,
    cosines,
    fig2_offset_layer,
    fig3_steering,
    fig4_baselines,
    fig5_logit_lens,
    fig6_projections,
    headline,
)
from experiments.grafting import graft
from experiments.pipeline.run import Run
from experiments.pipeline.settings import Settings
from experiments.searches import learned, sensitivity, several_directions


@dataclass(frozen=True)
class Figure:
    """A stage that leaves `{name}.{png,svg,csv,json}` in a folder of its name."""

    name: str
    title: str
    stage: Callable[[Run], Path]
    caption: str
    full: bool = False  # whether it is made with --full only
    applies: Callable[[Settings], bool] = lambda settings: True


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
    Figure(
        "figure4",
        "Figure 4: baselines",
        fig4_baselines.stage,
        "The base-derived direction against mean activation, noise, self-amplification, random "
        "directions and those of other behaviours, all of one length. Dotted: unsteered.",
    ),
    Figure(
        "figure5",
        "Figure 5: logit lens",
        fig5_logit_lens.stage,
        "What the directions say to the unembedding: the rank of the best backtracking keyword by "
        "layer, and the top tokens at the steered layer.",
    ),
    Figure(
        "figure6",
        "Figure 6: projections",
        fig6_projections.stage,
        "The projection on the direction around backtracking sentences and elsewhere, judged on "
        "other traces than made it. One trace coloured by it: `figure6-trace.html`.",
    ),
    Figure(
        "cosines",
        "Base- against reasoning-derived",
        cosines.stage,
        "The cosine of the two models' directions by layer and offset, with its error.",
    ),
    Figure(
        "sensitivity",
        "Sensitivity",
        sensitivity.stage,
        "How much the base-derived direction of each layer and offset moves the keywords' "
        "log-probability at sentence starts, the text held fixed.",
        full=True,
    ),
    Figure(
        "appendix-c",
        "Appendix C: the keywords as a judge",
        appendix_c.stage,
        "The keyword judge against a better one, sentence by sentence, with intervals over texts. "
        "On the small pair a sentence with a keyword that fits no template counts against it.",
        applies=appendix_c.has_better_judge,
    ),
    Figure(
        "learned",
        "Directions found otherwise",
        learned.stage,
        "Directions learned by gradient, a principal component and a probe against the difference "
        "of means, all of one length.",
        full=True,
    ),
    Figure(
        "several",
        "Several directions",
        several_directions.stage,
        "Each direction is learned in what the ones before it leave: alone, together, taken out.",
        full=True,
    ),
    Figure(
        "graft",
        "Grafting: where the direction is read",
        graft.stage,
        "Parts of the reasoning model moved into the base model and back: the smallest set whose "
        "fine-tuned weights make the base-derived direction induce backtracking.",
        full=True,
    ),
)


def chosen(run: Run) -> list[Figure]:
    """Those that a run makes."""
    return [f for f in FIGURES if (run.full or not f.full) and f.applies(run.settings)]


def left_out(run: Run) -> list[Figure]:
    """Those that it leaves to `--full`."""
    return [f for f in FIGURES if f.full and not run.full and f.applies(run.settings)]

"""Appendix C: how far the keywords agree with a better judge of what backtracks.

    python -m experiments.appendix_c --out runs/small

On the small pair the better judge is the grammar that its text was made with, over the natural
traces and over the reasoning model's steered texts, where wording may change. With other pairs it
is the file or the language model that labelled the traces, if the settings name one.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.figures import frame
from experiments.judges.agreement import MEASURES, Row, compare
from experiments.judges.command import keyword_judge, sentence_labels
from experiments.pipeline.run import Run, command
from experiments.pipeline.settings import Settings
from experiments.pipeline.stage_runner import fingerprint
from experiments.pipeline.tables import csv_text
from experiments.stages import label, rollouts, steer
from experiments.stages.derive import BACKTRACKING
from experiments.stages.outcome import RESAMPLES
from experiments.stages.text_scores import whole_sentences
from jaxsteer.analysis import LABELS, OTHER, Sentence, split_sentences
from jaxsteer.files import read_rows

STEM = "appendix-c"
NATURAL = "natural traces"
_NAMES = {"precision": "precision", "recall": "recall", "f1": "F1", "kappa": "Cohen's κ"}

Texts = Mapping[str, list[Sentence]]
Groups = dict[str, tuple[Texts, dict[str, list[str]]]]  # sentences, and the better judge's labels


def has_better_judge(settings: Settings) -> bool:
    """Whether there is anything to compare the keywords with."""
    return _grammar(settings) or bool(settings.labels.file or settings.labels.judge)


def _grammar(settings: Settings) -> bool:
    return settings.report.coherence == "grammar"


def grammar_labels(texts: Texts) -> dict[str, list[str]]:
    """Which sentences the small pair's grammar knows as backtracking; all others are "other"."""
    from weights.small_language.parser import parse_sentence

    return {
        id: [BACKTRACKING if parse_sentence(s.text) == BACKTRACKING else OTHER for s in sentences]
        for id, sentences in texts.items()
    }


def steered_texts(rows: Iterable[dict[str, Any]]) -> dict[str, Texts]:
    """The reasoning model's texts by cell, with either direction at positive coefficients."""
    cells: dict[str, dict[str, list[Sentence]]] = {}
    for row in rows:
        if row["source"] in ("base", "reasoning") and row["coeff"] > 0:
            name = f"{row['source']}-derived, {row['coeff']:+g}"
            cells.setdefault(name, {})[row["prompt"]] = whole_sentences(row)
    return dict(cells)


def agreements(groups: Groups, keywords: Sequence[str]) -> dict[str, Row]:
    """By group that has sentences, the keywords against the better judge on backtracking."""
    rows = {}
    for name, (texts, better) in groups.items():
        if any(texts.values()):
            first = sentence_labels(texts, keyword_judge(texts, keywords))
            second = sentence_labels(texts, better)
            rows[name] = compare(first, second, n_resamples=RESAMPLES).rows[0]
    return rows


def draw(rows: Mapping[str, Row], folder: Path) -> list[Path]:
    """Write `appendix-c.png` and `.svg`: each measure with its 95% interval by group of texts."""
    names = list(rows)
    figure, axes = frame.panels(1, len(MEASURES), (10.5, 1.4 + 0.36 * len(names)), sharey=True)
    for axis, name in zip(axes, MEASURES, strict=True):
        for place, row in enumerate(rows.values()):
            value, low, high = row.measures[name]
            axis.errorbar(
                value,
                -place,
                xerr=[[max(value - low, 0)], [max(high - value, 0)]],
                fmt="o",
                color=frame.BLUE if names[place] == NATURAL else frame.ORANGE,
                markersize=5,
            )
        axis.set_xlim(-0.02, 1.02)
        axis.set_title(_NAMES[name], fontsize=11)
        frame.tidy(axis)
    axes[0].set_yticks(
        [-place for place in range(len(names))],
        [f"{name} ({row.n_second} of {row.n})" for name, row in rows.items()],
    )
    figure.supxlabel("keywords against the better judge (its backtracking sentences of all)")
    return frame.save(figure, folder, STEM)


def to_csv(by_name: Mapping[str, Row]) -> str:
    """A line a group of texts."""
    ends = [f"{name}{end}" for name in MEASURES for end in ("", "_low", "_high")]
    rows = []
    for name, row in by_name.items():
        numbers = [x for measure in MEASURES for x in row.measures[measure]]
        rows.append([name, row.n, row.n_first, row.n_second, row.n_both, *numbers])
    return csv_text(["texts", "n", "n_keywords", "n_judge", "n_both", *ends], rows)


def _groups(run: Run, labels: Path, sweep: Path | None) -> Groups:
    traces = rollouts.stage(run) / rollouts.FILE
    natural = {row["id"]: split_sentences(row["text"]) for row in read_rows(traces)}
    if sweep is None:
        known = {row["id"]: row["labels"] for row in read_rows(labels / label.FILE)}
        named = {id: [n if n in LABELS else OTHER for n in names] for id, names in known.items()}
        return {NATURAL: (natural, named)}
    every = {NATURAL: natural, **steered_texts(read_rows(sweep / steer.FILE))}
    return {name: (texts, grammar_labels(texts)) for name, texts in every.items()}


def stage(run: Run) -> Path:
    """The folder with `appendix-c.{png,svg,csv,json}`.

    Raises:
        ValueError: if the settings name no judge but the keywords.
    """
    settings = run.settings
    if not has_better_judge(settings):
        raise ValueError(
            "labels: keywords only, expected a file or [labels.judge] to compare them with"
        )
    labels = label.stage(run)
    sweep = steer.stage(run)["reasoning"] if _grammar(settings) else None
    judge = "the grammar of the text" if sweep else label.label_source(settings.labels)

    def work(folder: Path) -> None:
        by_name = agreements(_groups(run, labels, sweep), settings.labels.keywords)
        rows = {
            name: {
                "n": row.n,
                "n_keywords": row.n_first,
                "n_judge": row.n_second,
                "n_both": row.n_both,
                **{
                    measure: dict(zip(("value", "low", "high"), values, strict=True))
                    for measure, values in row.measures.items()
                },
            }
            for name, row in by_name.items()
        }
        frame.write_numbers(folder, STEM, to_csv(by_name), {"judge": judge, "texts": rows})
        draw(by_name, folder)

    inputs = {
        "labels": fingerprint(labels),
        "sweep": fingerprint(sweep) if sweep else None,
        "keywords": settings.labels.keywords,
        "judge": judge,
    }
    return run.stage(STEM, inputs, work)


if __name__ == "__main__":
    sys.exit(command("appendix_c", "Appendix C: agreement of the judges.", stage))

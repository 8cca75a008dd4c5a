"""The sweeps of a run, judged: read once by every figure that shows them."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from experiments.pipeline.run import Run
from experiments.pipeline.stage_runner import fingerprint
from experiments.stages import perplexity, steer
from experiments.stages.outcome import CellOutcome, Key, outcomes_of, scores_by_cell, with_logprobs
from experiments.stages.text_scores import Grammar, Scores, small_pair_grammar
from jaxsteer.files import read_rows


@dataclass(frozen=True)
class SweepTable:
    """Every text's scores, and the outcome of every cell."""

    scores: dict[Key, dict[str, Scores]]
    cells: list[CellOutcome]
    formats: dict[str, str]  # of the prompts, by target


def sweep_table(run: Run) -> tuple[SweepTable, dict[str, Any]]:
    """The table of a run's sweeps, and what a stage that shows it names as its inputs."""
    sweeps, read_again = steer.stage(run), perplexity.stage(run)
    files = tuple(folder / steer.FILE for folder in sweeps.values())
    report, keywords = run.settings.report, tuple(run.settings.labels.keywords)
    inputs = {
        "sweeps": {target: fingerprint(folder) for target, folder in sweeps.items()},
        "perplexity": fingerprint(read_again),
        "coherence": report.coherence,
        "margin": report.margin,
        "keywords": keywords,
    }
    scored = read_again / perplexity.FILE
    return read_table(files, keywords, report.coherence, scored), inputs


@lru_cache(maxsize=1)  # three stages of a run show the same table
def read_table(
    files: tuple[Path, ...],
    keywords: tuple[str, ...],
    coherence: str,
    scored: Path | None = None,
) -> SweepTable:
    """Judge the rows of some sweep files; `scored` has log-probabilities for some of them."""
    rows = [row for file in files for row in read_rows(file)]
    lengths = {(row["target"], row["source"], row["coeff"]): row["length"] for row in rows}
    formats = dict(sorted({row["target"]: row["format"] for row in rows}.items()))
    if scored is not None:
        rows = with_logprobs(rows, read_rows(scored))
    grammar: Grammar | None = small_pair_grammar if coherence == "grammar" else None
    scores = scores_by_cell(rows, keywords=keywords, grammar=grammar)
    return SweepTable(scores, outcomes_of(scores, lengths), formats)

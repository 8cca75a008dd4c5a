"""Stage 2: the sentences of each trace, and which of them backtrack."""

import json
import sys
from pathlib import Path
from typing import Any

from experiments import rollouts
from experiments.run import Run, command
from experiments.settings import Labels
from experiments.stages import fingerprint
from jaxsteer.annotate import keyword_labels, split_sentences
from jaxsteer.files import sha256, write_atomic
from jaxsteer.jsonl import read_rows
from jaxsteer.labels import labels_from_file

FILE = "sentences.jsonl"


def write_labels(folder: Path, traces_file: Path, labels: Labels) -> dict[str, int]:
    """Write `sentences.jsonl`, one row a trace: `id` and `sentences` as [start, stop, positive].

    `start` and `stop` are characters of the trace's text.

    Returns counts: traces, sentences, backtracking sentences.

    Raises:
        ValueError: if no sentence, or every one, is labelled backtracking.
    """
    traces = read_rows(traces_file)
    sentences = {trace["id"]: split_sentences(trace["text"]) for trace in traces}
    if labels.file:
        named = labels_from_file(labels.file, sentences)
        positive = {id: [name == "backtracking" for name in names] for id, names in named.items()}
    else:
        positive = {id: keyword_labels(found, labels.keywords) for id, found in sentences.items()}
    rows: list[dict[str, Any]] = [
        {
            "id": id,
            "sentences": [
                [s.start, s.stop, bool(p)] for s, p in zip(found, positive[id], strict=True)
            ],
        }
        for id, found in sentences.items()
    ]
    counts = {
        "traces": len(rows),
        "sentences": sum(len(found) for found in sentences.values()),
        "backtracking": sum(sum(flags) for flags in positive.values()),
    }
    if not 0 < counts["backtracking"] < counts["sentences"]:
        raise ValueError(
            f"{counts['backtracking']} of {counts['sentences']} sentences are labelled "
            "backtracking: a difference of means needs some of either kind"
        )
    write_atomic(folder / FILE, "".join(json.dumps(row) + "\n" for row in rows).encode())
    write_atomic(folder / "counts.json", json.dumps(counts, indent=1).encode())
    return counts


def stage(run: Run) -> Path:
    """The folder with `sentences.jsonl`."""
    traces = rollouts.stage(run)
    labels = run.settings.labels

    def work(folder: Path) -> None:
        counts = write_labels(folder, traces / rollouts.FILE, labels)
        print("  " + ", ".join(f"{number} {name}" for name, number in counts.items()))

    inputs = {
        "traces": fingerprint(traces),
        "keywords": None if labels.file else labels.keywords,
        "file": sha256(labels.file) if labels.file else None,  # wherever it lies
    }
    return run.stage("labels", inputs, work)


if __name__ == "__main__":
    sys.exit(command("label", "Stage 2: sentences and backtracking labels.", stage))

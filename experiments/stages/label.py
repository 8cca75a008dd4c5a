"""Stage 2: the sentences of each trace, and what each of them does."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.judges.command import keyword_judge
from experiments.judges.language_model import Names, Traces, llm_judge, within
from experiments.pipeline.run import Run, command
from experiments.pipeline.settings import Labels
from experiments.pipeline.stage_runner import fingerprint
from experiments.stages import rollouts
from jaxsteer.analysis import OTHER, Sentence, labels_from_file, split_sentences
from jaxsteer.files import read_rows, sha256, write_atomic

FILE = "sentences.jsonl"
CACHE = "judge-cache.jsonl"  # in the run's folder: answers outlive the settings of a stage


def label_source(labels: Labels) -> str:
    """Where the labels come from, for results to say.

    >>> label_source(Labels(file="/data/by_hand.jsonl")), label_source(Labels(source="grammar"))
    ('by_hand.jsonl', 'keywords, and the grammar for other behaviours')
    """
    if labels.judge:
        return f"{labels.judge.model} at {labels.judge.url}"
    if labels.source == "grammar":
        return "keywords, and the grammar for other behaviours"
    return Path(labels.file).name if labels.file else "keywords"


def grammar_judge(traces: Traces, keywords: Sequence[str]) -> Names:
    """Label sentences with a keyword as backtracking, the others by the small pair's grammar.

    A sentence without a keyword that the grammar does not know is "other", and so is one that the
    grammar knows as backtracking: which sentences backtrack is what the keywords say.
    """
    from weights.small_language.parser import parse_sentence

    def name(sentence: Sentence, judged: str) -> str:
        kind = parse_sentence(sentence.text)
        return judged if judged != OTHER or kind in (None, "backtracking") else str(kind)

    return {
        id: [name(*pair) for pair in zip(traces[id], judged, strict=True)]
        for id, judged in keyword_judge(traces, keywords).items()
    }


def write_labels(
    folder: Path, traces_file: Path, labels: Labels, *, cache: Path | None = None
) -> dict[str, int]:
    """Write `sentences.jsonl`, one row a trace: `id`, `sentences` and `labels`.

    A sentence is [start, stop, positive]: characters of the trace's text, and whether it
    backtracks. `labels` has the name of each sentence's behaviour: by keywords "backtracking" or
    "other", by the small pair's grammar also the name of another kind (`grammar_judge`).

    Returns counts: traces, sentences, backtracking sentences.

    Raises:
        ValueError: if no sentence, or every one, is labelled backtracking.
        EndpointError: if a model is the judge and its endpoint fails.
    """
    traces = {row["id"]: split_sentences(row["text"]) for row in read_rows(traces_file)}
    names = names_of(traces, labels, cache or folder / CACHE)
    rows: list[dict[str, Any]] = [
        {
            "id": id,
            "sentences": [
                [s.start, s.stop, name == "backtracking"]
                for s, name in zip(sentences, names[id], strict=True)
            ],
            "labels": names[id],
        }
        for id, sentences in traces.items()
    ]
    counts = {
        "traces": len(rows),
        "sentences": sum(map(len, names.values())),
        "backtracking": sum(of_trace.count("backtracking") for of_trace in names.values()),
    }
    if not 0 < counts["backtracking"] < counts["sentences"]:
        raise ValueError(
            f"{counts['backtracking']} of {counts['sentences']} sentences are labelled "
            "backtracking: a difference of means needs some of either kind"
        )
    write_atomic(folder / FILE, "".join(json.dumps(row) + "\n" for row in rows).encode())
    about = {"source": label_source(labels), **counts}
    write_atomic(folder / "counts.json", json.dumps(about, indent=1).encode())
    return counts


def names_of(traces: Traces, labels: Labels, cache: Path) -> Names:
    """The behaviour of each sentence of each trace; `cache` keeps what a model answers."""
    if labels.judge:
        agree = within(labels.judge.max_cost)
        return llm_judge(traces, judge=labels.judge, cache=cache, agree=agree)
    if labels.file:
        return labels_from_file(labels.file, traces)
    judge = grammar_judge if labels.source == "grammar" else keyword_judge
    return judge(traces, labels.keywords)


def stage(run: Run) -> Path:
    """The folder with `sentences.jsonl`."""
    traces = rollouts.stage(run)
    labels = run.settings.labels

    def work(folder: Path) -> None:
        counts = write_labels(folder, traces / rollouts.FILE, labels, cache=run.out / CACHE)
        print("  " + ", ".join(f"{number} {name}" for name, number in counts.items()))

    judge = asdict(labels.judge) if labels.judge else {}
    asked = {name: judge[name] for name in ("url", "model", "sentences_per_request") if judge}
    inputs = {
        "traces": fingerprint(traces),
        "keywords": None if labels.file or labels.judge else labels.keywords,
        "source": labels.source,
        "file": sha256(labels.file) if labels.file else None,  # wherever it lies
        "judge": asked or None,
    }
    return run.stage("labels", inputs, work, alone=True)


if __name__ == "__main__":
    sys.exit(command("label", "Stage 2: sentences and their labels.", stage))

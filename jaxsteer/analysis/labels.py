"""Labels of the sentences of traces, in files: what a judge says each of them does.

The taxonomy is that of Venhoff et al. (arXiv 2506.18167), as in the paper.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jaxsteer.analysis.sentences import Sentence
from jaxsteer.files import as_path, load_json, read_whole, write_atomic
from jaxsteer.runtime import wrong

TAXONOMY = (
    "initializing",
    "deduction",
    "adding-knowledge",
    "example-testing",
    "uncertainty-estimation",
    "backtracking",
)
"""The behaviours that a sentence can show."""

OTHER = "other"
"""The label of a sentence that shows none of them, or of which a judge does not say which."""

LABELS = (*TAXONOMY, OTHER)
"""The labels that a sentence can have."""

_MOST_BYTES = 1 << 28  # of a file: some two million labels


@dataclass(frozen=True)
class SentenceLabel:
    """A judge's label for the sentence `start` to `stop` (characters) of the trace `trace`."""

    trace: str
    start: int
    stop: int
    label: str


def write_labels(path: str | os.PathLike[str], labels: Iterable[SentenceLabel]) -> None:
    """Write labels as JSON lines (`{"trace", "start", "stop", "label"}`), all or nothing.

    Raises ValueError for a label that is not in `LABELS`.
    """
    rows = [_checked_label(asdict(label), f"label {i}") for i, label in enumerate(labels)]
    text = "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)
    write_atomic(path, text.encode())


def read_labels(path: str | os.PathLike[str]) -> list[SentenceLabel]:
    """Read the labels of JSON lines, or of one JSON array, in the file's order.

    Raises ValueError, naming the record, for one that is not as `write_labels` writes it.
    """
    return [_checked_label(record, where) for where, record in _records(as_path(path))]


def labels_from_file(
    path: str | os.PathLike[str], sentences: Mapping[str, Sequence[Sentence]]
) -> dict[str, list[str]]:
    """Read the labels of traces from JSON lines, or from one JSON array of the same records.

    Args:
      path: the file; records as `write_labels` writes them.
      sentences: for each trace id, the sentences that the labels are for.

    Returns one label for each sentence of each trace. Raises ValueError, naming the record, for a
    label outside the taxonomy, an unknown trace, a span that is not one of the trace's sentences,
    a sentence labelled twice or not at all.
    """
    spans = {
        trace: {(s.start, s.stop): i for i, s in enumerate(items)}
        for trace, items in sentences.items()
    }
    labelled: dict[str, dict[int, str]] = {trace: {} for trace in sentences}
    for where, record in _records(as_path(path)):
        label = _checked_label(record, where)
        if label.trace not in spans:
            raise ValueError(f"{where}: unknown trace {label.trace!r:.80}")
        index = spans[label.trace].get((label.start, label.stop))
        if index is None:
            raise ValueError(
                f"{where}: trace {label.trace!r:.80} has no sentence {label.start}:{label.stop}; "
                "the labels are for another text or another splitting"
            )
        if index in labelled[label.trace]:
            raise ValueError(f"{where}: sentence {label.start}:{label.stop} is labelled twice")
        labelled[label.trace][index] = label.label
    for trace, items in sentences.items():
        if len(labelled[trace]) < len(items):
            missing = next(s for i, s in enumerate(items) if i not in labelled[trace])
            raise ValueError(
                f"{path}: trace {trace!r} has {len(items)} sentences, {len(labelled[trace])} of "
                f"them labelled; the first without a label is {missing.start}:{missing.stop}"
            )
    return {
        trace: [labelled[trace][i] for i in range(len(sentences[trace]))] for trace in sentences
    }


def _records(path: Path) -> list[tuple[str, Any]]:
    """Return the records of a JSON array or of JSON lines, each with the place it stands at."""
    data = read_whole(path, most=_MOST_BYTES)
    if data.lstrip().startswith(b"["):
        return [(f"{path}: record {i}", row) for i, row in enumerate(load_json(data, path))]
    lines = [(f"{path}:{number}", line) for number, line in enumerate(data.split(b"\n"), 1)]
    return [(where, load_json(line, where)) for where, line in lines if line.strip()]


def _checked_label(record: Any, where: str) -> SentenceLabel:
    fields = {"trace": str, "start": int, "stop": int, "label": str}
    if not isinstance(record, dict) or set(record) != set(fields):
        got = sorted(record) if isinstance(record, dict) else type(record).__name__
        raise wrong(where, got, f"the fields {sorted(fields)}")
    for name, kind in fields.items():
        if type(record[name]) is not kind:
            got = f"{record[name]!r:.80}"
            raise wrong(f"{where}: {name}", got, kind.__name__)
    if record["label"] not in LABELS:
        raise wrong(f"{where}: label", f"{record['label']!r:.80}", f"one of {', '.join(LABELS)}")
    return SentenceLabel(**record)

"""How far two judges agree on the sentences of the same traces (Appendix C).

    python -m experiments.agreement keywords.jsonl by_hand.jsonl

Both files are as `experiments.judges` writes them. The second is the reference: precision is the
share of the first judge's sentences with a label that the second gives it too, recall the share of
the second's that the first finds. Cohen's κ is agreement beyond chance, and takes no side. The
intervals are percentile bootstrap over traces, as sentences of one trace go together.
"""

import argparse
import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxsteer.analysis import LABELS, OTHER, SentenceLabel, percentile_interval, read_labels
from jaxsteer.files import as_path, sha256, write_atomic
from jaxsteer.runtime import guarded, run, wrong

ALL = "all labels"
MEASURES = ("precision", "recall", "f1", "kappa")

Counts = NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """Agreement on one label against the rest, or on all labels (κ and nothing else).

    `n_first` and `n_second` count the sentences with the label by judge, `n_both` those by both
    (for all labels: on which they agree). Each measure has its interval; NaN where it has no
    meaning, such as the precision of a judge that never gives the label.
    """

    label: str
    n: int
    n_first: int
    n_second: int
    n_both: int
    measures: dict[str, tuple[float, float, float]]  # value, low, high


@dataclass(frozen=True)
class Agreement:
    """All of it: rows by label, and what they rest on."""

    rows: list[Row]
    sentences: int
    traces: int
    only_first: int  # sentences that the other judge did not label
    only_second: int
    confusion: dict[str, dict[str, int]]  # first judge's label -> second judge's -> sentences


def compare(
    first: Sequence[SentenceLabel],
    second: Sequence[SentenceLabel],
    *,
    level: float = 0.95,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> Agreement:
    """Compare two judges on the sentences that both labelled.

    Args:
        first: labels of the judge that is tested.
        second: labels of the reference.
        level: the intervals' coverage.
        n_resamples: how often the traces are drawn anew, with replacement.
        seed: of the drawing.

    Raises:
        ValueError: if a judge labels a sentence twice, or no sentence has both labels.
    """
    one, other = _by_span(first, "first"), _by_span(second, "second")
    common = [span for span in one if span in other]
    if not common:
        raise ValueError(
            f"no sentence is labelled by both judges ({len(one)} and {len(other)} sentences): "
            "they read other traces, or another splitting of them"
        )
    trace_of = {trace: i for i, trace in enumerate(dict.fromkeys(span[0] for span in common))}
    tables = np.zeros((len(trace_of), len(LABELS), len(LABELS)))
    for span in common:
        where = (trace_of[span[0]], LABELS.index(one[span]), LABELS.index(other[span]))
        tables[where] += 1
    drawn = _resampled(tables, n_resamples, seed)
    whole = tables.sum(0)
    given = [(whole[i].any(), whole[:, i].any()) for i in range(len(LABELS))]  # by first, second
    shared = [i for i, by in enumerate(given) if all(by) and LABELS[i] != OTHER]
    first_of_all = LABELS.index("backtracking")  # told even if a judge never gives it
    told = [first_of_all, *(i for i in shared if i != first_of_all)]
    rows = [
        _row(LABELS[i], _against_rest(whole, i), _against_rest(drawn, i), len(trace_of), level)
        for i in told
    ]
    if len(shared) > 1:
        rows.append(_row(ALL, whole, drawn, len(trace_of), level))
    return Agreement(
        rows=rows,
        sentences=len(common),
        traces=len(trace_of),
        only_first=len(one) - len(common),
        only_second=len(other) - len(common),
        confusion={
            name: {LABELS[j]: int(n) for j, n in enumerate(row) if n}
            for name, row in zip(LABELS, whole, strict=True)
            if row.any()
        },
    )


def cohens_kappa(table: Counts) -> Counts:
    """Cohen's κ of confusion tables `[..., N, N]`; NaN where chance alone explains everything.

    >>> cohens_kappa(np.array([[20, 5], [10, 15]])).item()
    0.4
    """
    n = table.sum((-2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        seen = np.trace(table, axis1=-2, axis2=-1) / n
        chance = np.sum(table.sum(-1) * table.sum(-2), -1) / n**2
        return np.round((seen - chance) / (1 - chance), 12)


def _by_span(labels: Sequence[SentenceLabel], name: str) -> dict[tuple[str, int, int], str]:
    by_span: dict[tuple[str, int, int], str] = {}
    for label in labels:
        span = (label.trace, label.start, label.stop)
        if span in by_span:
            raise ValueError(f"the {name} judge labels trace {span[0]!r} {span[1]}:{span[2]} twice")
        by_span[span] = label.label
    return by_span


def _resampled(tables: Counts, n_resamples: int, seed: int) -> Counts:
    """Sums `[n_resamples, N, N]` of tables `[K, N, N]` drawn with replacement."""
    if n_resamples < 1:
        raise wrong("n_resamples", n_resamples, "at least 1")
    if seed < 0:
        raise wrong("seed", seed, "at least 0")
    random, k = np.random.default_rng(seed), len(tables)
    parts = []
    for start in range(0, n_resamples, 1000):
        size = min(1000, n_resamples - start)
        parts.append(random.multinomial(k, np.full(k, 1 / k), size=size) @ tables.reshape(k, -1))
    return np.concatenate(parts).reshape(-1, *tables.shape[1:])


def _against_rest(tables: Counts, label: int) -> Counts:
    """Tables `[..., N, N]` as `[..., 2, 2]`: the label first, all others together second."""
    row, column = tables[..., label, :].sum(-1), tables[..., :, label].sum(-1)
    both, n = tables[..., label, label], tables.sum((-2, -1))
    flat = np.stack([both, row - both, column - both, n - row - column + both], -1)
    return flat.reshape(*flat.shape[:-1], 2, 2)


def _row(label: str, table: Counts, drawn: Counts, traces: int, level: float) -> Row:
    values, samples = _measures(table), _measures(drawn)
    names = ("kappa",) if label == ALL else MEASURES
    n = int(table.sum())
    # Where both judges always agree, so many traces at most have shown it.
    units = traces if label == ALL else max(1, min(traces, n - int(table[1, 1])))
    measures = {}
    for name in names:
        limits = (-1, 1) if name == "kappa" else (0, 1)
        ends = percentile_interval(samples[name], units, limits=limits, level=level)
        measures[name] = (float(values[name]), *ends)
    if label == ALL:
        return Row(label, n, n, n, int(np.trace(table)), measures)
    by_first, by_second = int(table[0].sum()), int(table[:, 0].sum())
    return Row(label, n, by_first, by_second, int(table[0, 0]), measures)


def _measures(tables: Counts) -> dict[str, Counts]:
    both, first, second = tables[..., 0, 0], tables[..., 0, :].sum(-1), tables[..., :, 0].sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "precision": both / first,
            "recall": both / second,
            "f1": 2 * both / (first + second),
            "kappa": cohens_kappa(tables),
        }


def as_csv(agreement: Agreement) -> str:
    """One line a label; intervals beside the values."""
    file = io.StringIO()
    columns = [f"{name}{end}" for name in MEASURES for end in ("", "_low", "_high")]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["label", "n", "n_first", "n_second", "n_both", *columns])
    for row in agreement.rows:
        numbers = [x for name in MEASURES for x in row.measures.get(name, (np.nan,) * 3)]
        told = ["" if np.isnan(x) else f"{x:.6f}" for x in numbers]
        writer.writerow([row.label, row.n, row.n_first, row.n_second, row.n_both, *told])
    return file.getvalue()


def as_json(agreement: Agreement, about: Mapping[str, Any]) -> str:
    """All of it, with `about` before it; what has no value is null."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and np.isnan(value) else value

    return json.dumps({**about, **plain(asdict(agreement))}, indent=1)


def table(agreement: Agreement) -> list[str]:
    """Lines to read."""
    lines = [
        f"{agreement.sentences} sentences of {agreement.traces} traces labelled by both "
        f"({agreement.only_first} by the first judge only, "
        f"{agreement.only_second} by the second only)",
        f"{'':24}{'first':>6} {'second':>6} {'both':>6}" + "".join(f"{m:>22}" for m in MEASURES),
    ]
    for row in agreement.rows:
        told = "".join(f"{_told(row.measures.get(name)):>22}" for name in MEASURES)
        lines.append(f"{row.label:24}{row.n_first:6} {row.n_second:6} {row.n_both:6}{told}")
    return lines


def _told(value: tuple[float, float, float] | None) -> str:
    return "" if value is None else f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]"


@guarded()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.agreement", description="How far two judges agree."
    )
    parser.add_argument(
        "first", type=as_path, metavar="A", help="labels of the judge that is tested"
    )
    parser.add_argument("second", type=as_path, metavar="B", help="labels of the reference")
    parser.add_argument(
        "--out", type=as_path, help="for OUT.csv and OUT.json (default: beside A, both names in it)"
    )
    parser.add_argument("--level", type=float, default=0.95, help="coverage of the intervals")
    parser.add_argument("--resamples", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    default = args.first.with_name(f"agreement-{args.first.stem}-{args.second.stem}")
    out = str(args.out or default)
    agreement = compare(
        read_labels(args.first),
        read_labels(args.second),
        level=args.level,
        n_resamples=args.resamples,
        seed=args.seed,
    )
    about = {
        "first": {"file": args.first.name, "sha256": sha256(args.first)},
        "second": {"file": args.second.name, "sha256": sha256(args.second)},
        "level": args.level,
        "resamples": args.resamples,
        "seed": args.seed,
    }
    write_atomic(f"{out}.csv", as_csv(agreement).encode())
    write_atomic(f"{out}.json", as_json(agreement, about).encode())
    print("\n".join(table(agreement)))
    return 0


if __name__ == "__main__":
    run(main)

"""Figure 4: the base-derived direction against the baselines, all of one length, with coherence."""

import csv
import io
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.figures import frame
from experiments.figures.fig4_drawing import draw
from experiments.pipeline.run import Run, command
from experiments.stages.baselines import BEHAVIOUR, RAW
from experiments.stages.outcome import CellOutcome, Measured, judged_at, select
from experiments.stages.sweep_table import sweep_table
from jaxsteer.analysis import holm
from jaxsteer.files import write_atomic, write_json

STEM = "figure4"
TARGET = "reasoning"
DERIVED = ("base", "reasoning")
_KINDS = ("none", *DERIVED, "mean", "noise", "self", BEHAVIOUR, "random", RAW)


@dataclass(frozen=True)
class Bar:
    """One cell of the figure."""

    cell: CellOutcome
    p_holm: float  # of its difference to unsteered, corrected over the baselines; NaN for others

    @property
    def source(self) -> str:
        """What was added."""
        return self.cell.source


def shown_at(table: Sequence[CellOutcome], margin: float) -> float | None:
    """The coefficient that is drawn, `None` if no baseline was run.

    It is the largest one with baselines up to that at which effects are judged
    (`outcome.judged_at`); if there is none, the smallest with baselines, by size.
    """
    limit = judged_at(table, margin)
    run = {c.coeff for c in _baselines(table)}
    below = [coeff for coeff in run if limit is not None and 0 < coeff <= limit]
    return max(below) if below else min(run, key=lambda c: (abs(c), -c), default=None)


def bars(table: Sequence[CellOutcome], coeff: float) -> list[Bar]:
    """Unsteered, the directions, then the baselines at a coefficient; raw ones come last."""
    here = [c for c in table if c.target == TARGET and c.coeff == coeff and c.source != "none"]
    family = [c.source for c in _baselines(here)]
    raw_p = [c.difference.p_value for c in _baselines(here)]
    corrected = dict(zip(family, holm(raw_p).tolist(), strict=True)) if family else {}
    cells = sorted([select(table, TARGET, "none")[0], *here], key=lambda c: _place(c.source))
    return [Bar(cell, corrected.get(cell.source, math.nan)) for cell in cells]


def _baselines(table: Sequence[CellOutcome]) -> list[CellOutcome]:
    others = ("none", *DERIVED)
    return [c for c in table if c.target == TARGET and c.source not in others]


def _place(source: str) -> tuple[int, str]:
    """Where a source stands in the figure.

    >>> sorted(["raw-self", "random-1", "noise", "base", "behaviour-plan"], key=_place)
    ['base', 'noise', 'behaviour-plan', 'random-1', 'raw-self']
    """
    kinds = [i for i, kind in enumerate(_KINDS) if source.startswith(kind)]
    return kinds[0] if kinds else len(_KINDS), source


def numbers(table: Sequence[CellOutcome], *, margin: float) -> dict[str, Any]:
    """What `figure4.json` holds: the bars at each coefficient, and the one that is drawn."""
    run = sorted({c.coeff for c in _baselines(table)})
    return {
        "target": TARGET,
        "shown": shown_at(table, margin),
        "margin": margin,
        "bars": [
            {**asdict(bar.cell), "p_holm": bar.p_holm, "coeff": coeff}
            for coeff in run
            for bar in bars(table, coeff)
        ],
    }


def to_csv(found: Mapping[str, Any]) -> str:
    """The bars as CSV: each measure with its interval and number of prompts."""
    rows = []
    for bar in found["bars"]:
        row = {"source": bar["source"], "coeff": bar["coeff"], "length": bar["length"]}
        for name in ("backtracking_rate", "judged", "keyword_rate", "coherence", "perplexity"):
            ends = {f"{name}.{end}": bar[name][end] for end in ("low", "high", "n")}
            row |= {name: bar[name]["mean"], **ends}
        difference = bar["difference"]
        ends = {f"difference.{end}": difference[end] for end in ("low", "high", "n")}
        row |= {"difference": difference["diff"], **ends, "p_value": difference["p_value"]}
        excluded = {f"excluded.{why}": n for why, n in bar["excluded"].items()}
        rows.append({**row, "p_holm": bar["p_holm"], **excluded})
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def to_markdown(table: Sequence[CellOutcome], *, margin: float) -> list[str]:
    """The drawn bars as the lines of a Markdown table."""
    coeff = shown_at(table, margin)
    if coeff is None:
        return ["No baseline was run."]
    lines = [
        f"At coefficient {coeff:g}, with 95% intervals; p of the judged share's difference to "
        "unsteered, by prompt, and Holm-corrected over the baselines:",
        "",
        "| added | length | backtracking per sentence | judged share | words with a keyword "
        "| coherence | perplexity | p | p (Holm) | texts | not counted |",
        "| --- " * 11 + "|",
    ]
    for bar in bars(table, coeff):
        cell, p_value = bar.cell, bar.cell.difference.p_value
        values = [
            "nothing" if cell.source == "none" else cell.source,
            f"{cell.length:.3g}",
            _value(cell.backtracking_rate, 3),
            _value(cell.judged, 3),
            _value(cell.keyword_rate, 4),
            _value(cell.coherence, 3),
            _value(cell.perplexity, 2),
            "" if cell.source == "none" else f"{p_value:.2g}",
            "" if math.isnan(bar.p_holm) else f"{bar.p_holm:.2g}",
            f"{cell.keyword_rate.n + cell.n_empty}",
            str(sum(cell.excluded.values())),
        ]
        lines.append(f"| {' | '.join(values)} |")
    return lines


def _value(one: Measured, digits: int) -> str:
    if math.isnan(one.mean):
        return ""
    return f"{one.mean:.{digits}f} [{one.low:.{digits}f}, {one.high:.{digits}f}]"


def stage(run: Run) -> Path:
    """The folder with `figure4.{png,svg,csv,json,md}`; no picture if no baseline was run."""
    table, inputs = sweep_table(run)
    settings = run.settings

    def work(folder: Path) -> None:
        found = numbers(table.cells, margin=settings.report.margin)
        write_json(folder / f"{STEM}.json", found)
        words = to_markdown(table.cells, margin=settings.report.margin)
        write_atomic(folder / f"{STEM}.md", ("\n".join(words) + "\n").encode())
        if found["shown"] is None:
            return
        write_atomic(folder / f"{STEM}.csv", to_csv(found).encode())
        draw(
            [(bar.cell, bar.p_holm) for bar in bars(table.cells, found["shown"])],
            folder,
            stem=STEM,
            margin=settings.report.margin,
            unit=settings.steering.unit,
            coherence=frame.coherence_name(settings.report.coherence),
        )

    inputs = {**inputs, "unit": settings.steering.unit}
    return run.stage(STEM, inputs, work)


if __name__ == "__main__":
    sys.exit(command("fig4_baselines", "Figure 4: the direction against baselines.", stage))

"""Choosing layer and coefficients for a small pair, and the verdicts on it."""

import math
from collections.abc import Sequence
from typing import Any

from experiments.stages.outcome import CellOutcome, told


def choose(table: Sequence[CellOutcome], margin: float) -> tuple[int, float]:
    """Layer and coefficient with the most backtracking at a coherence within the margin.

    Raises:
        ValueError: if no cell is that coherent.
    """
    able = [c for c in _coherent(table, margin) if c.coeff > 0]
    if not able:
        raise ValueError(f"no positive coefficient keeps coherence within {margin} of unsteered")
    best = max(able, key=lambda c: c.backtracking_rate.mean)
    return int(best.source.split("@")[1]), best.coeff


def choose_negative(table: Sequence[CellOutcome], layer: int, margin: float) -> float:
    """The negative coefficient at a layer with the least backtracking, within the margin.

    Raises:
        ValueError: if no cell is that coherent.
    """
    able = [c for c in _coherent(table, margin) if c.coeff < 0 and c.source == f"base@{layer}"]
    if not able:
        raise ValueError(f"no negative coefficient keeps coherence within {margin} of unsteered")
    return min(able, key=lambda c: c.backtracking_rate.mean).coeff


def _coherent(table: Sequence[CellOutcome], margin: float) -> list[CellOutcome]:
    floor = next(c for c in table if c.source == "none").coherence.mean - margin
    return [c for c in table if c.source != "none" and c.coherence.mean >= floor]


def verdicts(
    judged: dict[str, list[CellOutcome]], layer: int, coeff: float, negative: float
) -> dict[str, dict[str, Any]]:
    """The aims of the pair, each with its figures."""

    def rate(role: str, source: str, c: float) -> CellOutcome:
        name = source if source == "none" else f"{source}@{layer}"
        return next(x for x in judged[role] if (x.source, x.coeff) == (name, c))

    def apart(a: CellOutcome, b: CellOutcome) -> float:
        spread = math.hypot(a.backtracking_rate.se, b.backtracking_rate.se)
        return float((a.backtracking_rate.mean - b.backtracking_rate.mean) / max(spread, 1e-12))

    plain, steered = rate("reasoning", "none", 0.0), rate("reasoning", "base", coeff)
    reverse = rate("reasoning", "base", negative)
    main = (f"base@{layer}", f"reasoning@{layer}", "none")
    baselines = [x for x in judged["reasoning"] if x.source not in main]
    top = max(told(baselines), key=lambda x: x.backtracking_rate.mean)
    # A base model that writes no sentence at all shows nothing.
    base_top = max((x.backtracking_rate.mean for x in told(judged["base"])), default=math.nan)
    control = rate("control", "base", coeff), rate("control", "none", 0.0)
    ratio = _ratio(steered, plain)
    lost = plain.coherence.mean - steered.coherence.mean
    back_lost = plain.coherence.mean - reverse.coherence.mean
    back = _ratio(reverse, plain)
    return {
        "at least doubled": {"holds": ratio >= 2, "ratio": ratio},
        "coherence within .03": {"holds": lost <= 0.03, "lost": lost},
        "beats every baseline by 4 SE": {
            "holds": apart(steered, top) >= 4,
            "standard errors": apart(steered, top),
            "strongest": top.source,
        },
        "negative at least halves": {
            "holds": back <= 0.5 and back_lost <= 0.03,
            "ratio": back,
            "coefficient": negative,
        },
        "base model at most .001": {"holds": base_top <= 0.001, "highest": base_top},
        "control within 2 SE": {
            "holds": abs(apart(*control)) <= 2,
            "standard errors": apart(*control),
        },
    }


def _ratio(a: CellOutcome, b: CellOutcome) -> float:
    """Of backtracking rates; NaN, which fulfils no aim, where the second is 0."""
    below = b.backtracking_rate.mean
    return a.backtracking_rate.mean / below if below else math.nan


def to_markdown(judged: dict[str, dict[str, Any]]) -> str:
    """A table of verdicts by seed, and the judged cells of each."""
    names = list(next(iter(judged.values()))["verdicts"])
    lines = ["| seed | layer | coefficient | " + " | ".join(names) + " |"]
    lines += ["| --- " * (len(names) + 3) + "|"]
    for seed, one in judged.items():
        cells = []
        for verdict in one["verdicts"].values():
            figures = [f"{v:.3g}" if isinstance(v, float) else str(v) for v in verdict.values()]
            cells.append(("yes: " if verdict["holds"] else "NO: ") + ", ".join(figures[1:]))
        lines.append(f"| {seed} | {one['layer']} | {one['coeff']} | " + " | ".join(cells) + " |")
    for seed, one in judged.items():
        lines += ["", f"Seed {seed}, backtracking sentences per sentence ± SE (coherence):", ""]
        for role, cells in one["judged"].items():
            figures = [
                f"{c['source']} {c['coeff']:+g}: {c['backtracking_rate']['mean']:.4f} ± "
                f"{c['backtracking_rate']['se']:.4f} ({c['coherence']['mean']:.3f})"
                for c in cells
            ]
            lines.append(f"- {role}: " + "; ".join(figures))
    return "\n".join(lines) + "\n"

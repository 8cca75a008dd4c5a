"""What the search for several directions shows, in words; the rules are fixed here.

A cell *induces* backtracking if the 95% interval of its paired difference to the unsteered model
lies above 0 while coherence is at most the report's margin below it. Of two cells one is *more*
than the other if the interval of their paired difference does not contain 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from experiments.stages.outcome import CellOutcome


def induces(cell: CellOutcome, unsteered: CellOutcome, *, margin: float) -> bool:
    """Whether a cell induces backtracking at a coherence that counts."""
    return cell.difference.low > 0 and cell.coherence.mean >= unsteered.coherence.mean - margin


def paragraph(table: Sequence[CellOutcome], numbers: Mapping[str, Any], *, margin: float) -> str:
    """One paragraph from the cells and `comparisons` of `experiments.several_directions`."""
    cells = {cell.source: cell for cell in table}
    k, against = numbers["directions"], numbers["comparisons"]
    unsteered = cells["none"]
    alone = [cells[f"single-{i + 1}"] for i in range(k)]
    inducing = [
        str(i + 1) for i, cell in enumerate(alone) if induces(cell, unsteered, margin=margin)
    ]
    floor = unsteered.coherence.mean - margin
    words = [
        f"Of {k} directions, each learned orthogonal to those before it, "
        f"{len(inducing)} induce{'s' if len(inducing) == 1 else ''} backtracking alone at "
        f"coefficient {numbers['coeff']:g}"
        + (f" (number {', '.join(inducing)})" if inducing else "")
        + f": {', '.join(_rate(cell) for cell in alone)} backtracking sentences per sentence "
        f"against {_rate(unsteered)} unsteered, at coherence "
        f"{', '.join(f'{cell.coherence.mean:.3f}' for cell in alone)} against "
        f"{unsteered.coherence.mean:.3f}.",
        f"Together at the same total length they give {_rate(cells['together'])}"
        f"{_coherence(cells['together'], floor)}, {_than(against['together'])} the first alone; "
        f"a random orthogonal set gives {_rate(cells['random-together'])}.",
        f"Each at full length they give {_rate(cells['together-long'])}"
        f"{_coherence(cells['together-long'], floor)}, {_than(against['together-long'])} the first "
        f"alone made as long, {_rate(cells['single-long'])}"
        f"{_coherence(cells['single-long'], floor)}.",
        f"Is their span what backtracking normally uses? Taken out at layer {numbers['layer']}, "
        f"the span of all {k} leaves {_rate(cells[f'ablate-{k}'])}, "
        f"{_than(asdict(cells[f'ablate-{k}'].difference))} the unsteered model"
        + (
            f" and {_than(against['ablated'])} random spans taken out"
            if "ablated" in against
            else ""
        )
        + f"; the base-derived difference of means, taken out, leaves "
        f"{_rate(cells['ablate-means'])}, {_than(asdict(cells['ablate-means'].difference))} the "
        "unsteered model.",
    ]
    return " ".join(words)


def _coherence(cell: CellOutcome, floor: float) -> str:
    verdict = "" if cell.coherence.mean >= floor else ", too low to count"
    return f" at coherence {cell.coherence.mean:.3f}{verdict}"


def _rate(cell: CellOutcome) -> str:
    rate = cell.backtracking_rate
    return f"{rate.mean:.3f} [{rate.low:.3f}, {rate.high:.3f}]"


def _than(pair: Mapping[str, Any]) -> str:
    interval = f"({pair['diff']:+.3f} [{pair['low']:+.3f}, {pair['high']:+.3f}])"
    if pair["low"] > 0:
        return f"more {interval} than"
    if pair["high"] < 0:
        return f"less {interval} than"
    return f"not told apart {interval} from"

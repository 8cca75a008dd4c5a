"""What grafting found: the rules, fixed before the runs that they judge.

A set of parts *induces* if the text of the base model with these parts gains at least half as many
backtracking sentences per sentence from the direction as the reasoning model's does, with p < .01
by prompt, at a coherence within the margin of the unsteered reasoning model's. The search asks
this of text for its own prompts, the judgement of text for prompts that the search has not seen.

A set is *needed* if the reasoning model with these parts put back keeps less than half of its gain,
at such a coherence. It is *particular* if its response is larger than that of each random set of
as many parts, with a 95% interval above 0. Where the reasoning model itself has no significant
gain, or a text that says nothing is incoherent, nothing can be told.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from experiments.pipeline.tables import interval
from experiments.stages.outcome import CellOutcome, select

# Names of hybrids: no part is the reasoning model's, all are, those that make the base model
# respond, those that make its text coherent too, all but those that respond.
BASE, REASONING, RESPONDING = "base", "reasoning", "responding"
GRAFTED, PUT_BACK = "grafted", "put back"
LEAST_PAIRS = 8  # with fewer, no sign pattern reaches p < .01
SIGNIFICANT = 0.01
HALF = 0.5  # of the reasoning model's gain
FORMAT_SHARE = 0.5  # of the reasoning model's response in its own format
ANSWERS = {True: "yes", False: "no", None: "cannot be told"}


@dataclass(frozen=True)
class Answer:
    """One question and what this run says to it."""

    question: str
    holds: bool | None  # None: this run cannot tell
    because: str


def choose_form(ceilings: Mapping[str, float]) -> str:
    """The format for hybrids, from the reasoning model's response by format, the base's first.

    >>> choose_form({"continuation": 0.02, "chat": 0.03}), choose_form({"base": 0.01, "chat": 0.03})
    ('continuation', 'chat')
    """
    first, *rest = ceilings
    enough = all(ceilings[first] >= FORMAT_SHARE * ceilings[other] for other in rest)
    return first if enough else rest[0]


def induces(table: Sequence[CellOutcome], name: str, margin: float) -> bool | None:
    """Whether the direction induces backtracking in a hybrid, None if that cannot be told.

    The targets of the table are names of hybrids, unsteered and steered, REASONING among them.
    """
    cell, ceiling = _steered(table, name), _steered(table, REASONING)
    if not _significant(ceiling) or cell.difference.n < LEAST_PAIRS:
        return None
    return (
        _significant(cell)
        and cell.difference.diff >= HALF * ceiling.difference.diff
        and cell.coherence.mean >= coherence_floor(table, margin)
    )


def needed(table: Sequence[CellOutcome], margin: float) -> bool | None:
    """Whether less than half of the gain is left with the parts put back."""
    cell, ceiling = _steered(table, PUT_BACK), _steered(table, REASONING)
    coherent = cell.coherence.mean >= coherence_floor(table, margin)
    if not _significant(ceiling) or not coherent or cell.difference.n < LEAST_PAIRS:
        return None
    return cell.difference.diff < HALF * ceiling.difference.diff


def particular(differences: Sequence[Mapping[str, float]]) -> bool | None:
    """Whether a set is above every other one.

    `mean`, `low` and `high` are of its response less that of each.

    >>> particular([{"mean": 0.2, "low": 0.1, "high": 0.3}])
    True
    """
    if not differences:
        return None
    if all(one["low"] > 0 for one in differences):
        return True
    return False if any(one["high"] < 0 for one in differences) else None


def coherence_floor(table: Sequence[CellOutcome], margin: float) -> float:
    """What coherence a steered text must have."""
    return select(table, REASONING, "none")[0].coherence.mean - margin


def answers(
    table: Sequence[CellOutcome],
    *,
    responding: int,
    chosen: int,
    differences: Sequence[Mapping[str, float]],
    margin: float,
) -> list[Answer]:
    """Judge what was found.

    Args:
        table: outcomes of the judged text; see `induces`.
        responding: how many parts make the base model respond.
        chosen: how many make its text coherent, too.
        differences: of the responding set to the random ones; see `particular`.
        margin: how far coherence may fall.
    """
    floor = coherence_floor(table, margin)
    ceiling = _gain(_steered(table, REASONING))
    sets = {RESPONDING: responding} | ({GRAFTED: chosen} if chosen > responding else {})
    rows = []
    for name, size in sets.items():
        cell = _steered(table, name)
        rows.append(
            Answer(
                f"with {size} part{'s' if size > 1 else ''} of the reasoning model, the direction "
                "induces backtracking in the base model",
                induces(table, name, margin),
                f"gain {_gain(cell)}, the reasoning model's {ceiling}; coherence "
                f"{cell.coherence.mean:.3f}, at least {floor:.3f} asked",
            )
        )
    put_back = _steered(table, PUT_BACK)
    least = min(differences, key=lambda one: one["mean"], default=None)
    return [
        *rows,
        Answer(
            f"the {responding} are needed: put back, less than half of the reasoning model's gain "
            "is left",
            needed(table, margin),
            f"gain {_gain(put_back)} at coherence {put_back.coherence.mean:.3f}",
        ),
        Answer(
            f"the {responding} are particular: they respond more than {len(differences)} random "
            "sets of as many",
            particular(differences),
            "nothing to compare with"
            if least is None
            else f"least difference {interval(least['mean'], least['low'], least['high'], 4)}",
        ),
    ]


def no_response(rise: float) -> Answer:
    """What is said where there is nothing to look for."""
    return Answer(
        "few parts of the reasoning model make the base model respond to the direction",
        None,
        f"the reasoning model itself does not: {rise:+.4f} at the starts of sentences",
    )


def _steered(table: Sequence[CellOutcome], name: str) -> CellOutcome:
    return next(cell for cell in table if cell.target == name and cell.source != "none")


def _significant(cell: CellOutcome) -> bool:
    gain = cell.difference
    return gain.n >= LEAST_PAIRS and gain.diff > 0 and gain.p_value < SIGNIFICANT


def _gain(cell: CellOutcome) -> str:
    return interval(cell.difference.diff, cell.difference.low, cell.difference.high, 4)

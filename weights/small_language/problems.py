"""The small pair's problem statements, and the splits that say who may see which."""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from zlib import crc32

import numpy as np

from jaxsteer.files import write_atomic
from jaxsteer.runtime import guarded
from weights.small_language.grammar import NAMES, OBJECTS, PLACES, pick

Split = Literal["train", "dom", "select", "eval"]
SPLITS: dict[Split, range] = {  # remainder of a statement's hash by 10 -> split
    "train": range(7),
    "dom": range(7, 8),
    "select": range(8, 9),
    "eval": range(9, 10),
}


@dataclass(frozen=True)
class Problem:
    """A problem statement with what it says: `steps` are signed numbers added to `start`."""

    text: str
    who: str
    other: str
    obj: str
    place: str
    start: int
    steps: tuple[int, ...]

    @property
    def answer(self) -> int:
        """The true final number."""
        return self.start + sum(self.steps)


@dataclass(frozen=True)
class Prompt:
    """A numbered problem statement for rollouts."""

    id: str
    text: str
    answer: int


_STARTS = (
    "{who} has {a} {obj} in the {place} .",
    "there are {a} {obj} in the {place} of {who} .",
    "{who} starts the day with {a} {obj} .",
    "{who} keeps {a} {obj} in the {place} .",
    "at first {who} has {a} {obj} .",
    "{who} collects {obj} and has {a} of them .",
)
_GAINS = (
    "{who} buys {b} more .",
    "{who} finds {b} {obj} in the {place} .",
    "{other} brings {b} more .",
    "{other} gives {b} {obj} to {who} .",
    "then {b} new {obj} come in .",
    "after that {who} gets {b} more .",
)
_LOSSES = (
    "{who} loses {b} of them .",
    "{who} sells {b} {obj} in the {place} .",
    "{who} gives {b} of them to {other} .",
    "{other} takes {b} {obj} away .",
    "then {b} of the {obj} break .",
    "after that {b} of them are gone .",
)
_QUESTIONS = (
    "how many {obj} does {who} have now ?",
    "how many {obj} are left ?",
    "what is the number of {obj} in the end ?",
    "find the final count of {obj} .",
    "how many {obj} are there in the end ?",
)


def prompt_words() -> set[str]:
    """Every word of the problem templates, fields apart."""
    lines = (*_STARTS, *_GAINS, *_LOSSES, *_QUESTIONS)
    return {word for line in lines for word in line.split() if word[0] != "{"}


def split_of(text: str) -> Split:
    """The split that a problem statement belongs to, by its hash: splits never overlap."""
    bucket = crc32(text.encode()) % 10
    return next(split for split, buckets in SPLITS.items() if bucket in buckets)


def draw_problem(rng: np.random.Generator) -> Problem:
    """A random problem of any split."""
    who = other = pick(rng, NAMES)
    while other == who:
        other = pick(rng, NAMES)
    obj, place = pick(rng, OBJECTS), pick(rng, PLACES)
    start = value = 4 + int(rng.random() * 12)
    steps: list[int] = []
    for _ in range(2 + int(rng.random() * 2)):
        size = 2 + int(rng.random() * 8)
        steps.append(-size if value > size + 2 and rng.random() < 0.5 else size)
        value += steps[-1]
    words = {"who": who, "other": other, "obj": obj, "place": place}
    text = " ".join(
        [
            pick(rng, _STARTS).format(a=start, **words),
            *(pick(rng, _GAINS if s > 0 else _LOSSES).format(b=abs(s), **words) for s in steps),
            pick(rng, _QUESTIONS).format(**words),
        ]
    )
    return Problem(text, who, other, obj, place, start, tuple(steps))


def problem(rng: np.random.Generator, split: Split = "train") -> Problem:
    """A random problem of one split."""
    while True:
        drawn = draw_problem(rng)
        if split_of(drawn.text) == split:
            return drawn


def prompts(n: int, seed: int, split: Split) -> list[Prompt]:
    """`n` distinct problem statements of one split.

    Raises ValueError if `split` is unknown or `n` negative.

    >>> [prompt.id for prompt in prompts(2, seed=0, split="eval")]
    ['eval-0-0', 'eval-0-1']
    """
    if split not in SPLITS:
        raise ValueError(f"split: got {split!r}, expected one of {sorted(SPLITS)}")
    if n < 0:
        raise ValueError(f"n: got {n}, expected a number of prompts")
    rng = np.random.default_rng([seed, 7])
    distinct: dict[str, Problem] = {}
    while len(distinct) < n:
        drawn = problem(rng, split)
        distinct.setdefault(drawn.text, drawn)
    return [
        Prompt(f"{split}-{seed}-{i}", p.text, p.answer) for i, p in enumerate(distinct.values())
    ]


def prompts_file(counts: Mapping[Split, int], seed: int = 0) -> str:
    """The JSON list of {id, prompt, answer, split} that `experiments` reads."""
    rows = [
        {"id": prompt.id, "prompt": prompt.text, "answer": prompt.answer, "split": split}
        for split, count in counts.items()
        for prompt in prompts(count, seed, split)
    ]
    return "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n"


@guarded("small_problems")
def main(arguments: Sequence[str] | None = None) -> None:
    """Write the small pair's prompts (the default counts are those of weights/small)."""
    parser = argparse.ArgumentParser(
        prog="python -m weights.small_problems", description=main.__doc__
    )
    parser.add_argument("file", help="where to write them")
    parser.add_argument("--dom", type=int, default=1024, help="for the direction")
    parser.add_argument("--eval", type=int, default=256, help="held out, for the figure")
    parser.add_argument("--seed", type=int, default=0, help="of the drawing: another, others")
    args = parser.parse_args(arguments)
    rows = prompts_file({"dom": args.dom, "eval": args.eval}, args.seed)
    write_atomic(args.file, rows.encode())

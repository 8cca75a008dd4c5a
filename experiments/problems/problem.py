"""What a template makes."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Problem:
    """A problem with its answer, found twice.

    `answer` comes from how the problem was made: a formula, or what was planted. `check` comes
    from the text's own conditions by another way: trying everything, counting, simulating.
    """

    text: str
    answer: str
    check: str


Template = Callable[[random.Random], Problem]


def problem(text: str, answer: int | Fraction | str, check: int | Fraction | str) -> Problem:
    """A problem whose answers are written alike: whole numbers, fractions in lowest terms, text.

    >>> from fractions import Fraction
    >>> problem("Half of 3?", Fraction(3, 2), Fraction(6, 4))
    Problem(text='Half of 3?', answer='3/2', check='3/2')
    """
    return Problem(text, str(answer), str(check))


def draw(rng: random.Random, low: int, high: int) -> int:
    """A whole number from `low` to `high`, both included."""
    return low + rng.randrange(high - low + 1)


def ordinal(n: int) -> str:
    """A number's place in a row.

    >>> ordinal(3), ordinal(12), ordinal(21)
    ('3rd', '12th', '21st')
    """
    last = 0 if n // 10 % 10 == 1 else n % 10
    return f"{n}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(last, 'th') }"


def only(answers: list[str]) -> str:
    """The only solution of a search, or a text that equals no answer."""
    return answers[0] if len(answers) == 1 else f"{len(answers)} solutions"

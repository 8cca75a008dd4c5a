"""The small pair's text: problems, worked solutions with a hidden state, and three corpora.

A solution is a line of sentences. A hidden Markov state, *doubt*, switches on (mostly after a
computational mistake), lasts some sentences and shows in the register slots of every sentence, in
both states with noise. The corpora differ in what follows from it:

- base: nothing but the register; a share of the documents are stories in which `wait` and `hmm`
  occur for reasons of their own.
- reasoning: at the start of a sentence, when doubt has been on for at least a sentence, a
  backtracking sentence comes with the probability `hazard`. The step is done again correctly and
  doubt is off.
- control: the same sentences at the same rate. A bare coin decides where; the hidden state is
  neither read nor changed.

Nothing is rejected for its length: documents are cut at the training length by their reader.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from weights.small_language.grammar import SLOTS, TEMPLATES, Template, pick, realise
from weights.small_language.parser import parse_sentence
from weights.small_language.problems import (
    SPLITS,
    Problem,
    Prompt,
    Split,
    draw_problem,
    problem,
    prompts,
)

__all__ = [
    "BASE",
    "CONTROL",
    "REASONING",
    "Document",
    "Problem",
    "Prompt",
    "Sentence",
    "Split",
    "TextSettings",
    "document",
    "documents",
    "parse_sentence",
    "prompts",
]

Backtracking = Literal["never", "doubt", "random"]
CHUNK = 500  # documents that share one random stream


@dataclass(frozen=True)
class TextSettings:
    """What a corpus is like; all but the last two are probabilities."""

    error_rate: float = 0.25  # a step's result is wrong
    doubt_after_error: float = 0.92
    doubt_spontaneous: float = 0.02  # doubt comes up at a sentence without a reason
    doubt_off: float = 0.18  # doubt ends at a sentence
    hedge: tuple[float, float] = (0.07, 0.50)  # hedge in a slot: without and with doubt
    confident: tuple[float, float] = (0.32, 0.08)  # confident phrase in a slot, likewise
    neutral: float = 0.25  # neutral phrase in a slot that is still empty
    doubled: float = 0.10  # a second phrase of the same register
    hazard: float = 0.0  # backtracking at a sentence start where it may come
    narrative: float = 0.0  # share of documents that are stories
    backtracking: Backtracking = "never"
    seed: int = 0  # tells the corpora's random streams apart

    def __post_init__(self) -> None:
        """Raises ValueError for what is no probability."""
        for name, value in vars(self).items():
            values = value if isinstance(value, tuple) else (value,)
            if name not in ("backtracking", "seed") and not all(0 <= p <= 1 for p in values):
                raise ValueError(f"{name}: got {value}, expected a probability")


# The control's hazard and doubt_off are measured: with them its rate of backtracking and its share
# of doubted sentences equal those of the reasoning text (tests hold them to it).
BASE = TextSettings(narrative=0.08, seed=1)
REASONING = TextSettings(
    error_rate=0.12,
    doubt_spontaneous=0.01,
    doubt_off=0.04,
    hazard=0.5,
    backtracking="doubt",
    seed=2,
)
CONTROL = replace(REASONING, doubt_off=0.30, hazard=0.0274, backtracking="random", seed=3)


@dataclass(frozen=True)
class Sentence:
    """One sentence of a solution with the truth about it."""

    text: str
    kind: str  # one of `small_grammar.KINDS`
    doubt: bool  # the hidden state while it was written
    backtracking: bool
    correct: bool  # a deduction's result is right; True for other kinds
    redone: bool  # follows a backtracking sentence: a place where no other one may start
    slots: int
    hedges: int  # slots that hold a hedge
    confident: int  # slots that hold a confident phrase


@dataclass(frozen=True)
class Document:
    """A problem and its solution, or a story (`problem` None)."""

    problem: Problem | None
    sentences: tuple[Sentence, ...]

    @property
    def prompt(self) -> str:
        """The problem statement, empty for a story."""
        return self.problem.text if self.problem else ""

    @property
    def solution(self) -> str:
        """All sentences as one text."""
        return " ".join(sentence.text for sentence in self.sentences)


def _sentence(
    rng: np.random.Generator,
    template: Template,
    values: Mapping[str, str],
    *,
    doubt: bool,
    settings: TextSettings,
    correct: bool = True,
    redone: bool = False,
) -> Sentence:
    hedge, confident = settings.hedge[doubt], settings.confident[doubt]
    counts = [0, 0]

    def register(letter: str) -> str:
        slot, chance = SLOTS[letter], rng.random()
        if chance >= hedge + confident:
            empty = not slot.neutral or rng.random() >= settings.neutral
            return "" if empty else pick(rng, slot.neutral)
        counts[chance >= hedge] += 1
        phrases = slot.hedges if chance < hedge else slot.confident
        phrase, second = pick(rng, phrases), pick(rng, phrases)
        doubled = second != phrase and rng.random() < settings.doubled
        return f"{phrase} {second}" if doubled else phrase

    return Sentence(
        text=realise(template, values, register),
        kind=template.kind,
        doubt=doubt,
        backtracking=template.kind == "backtracking",
        correct=correct,
        redone=redone,
        slots=template.n_slots,
        hedges=counts[0],
        confident=counts[1],
    )


def _next_doubt(
    rng: np.random.Generator, doubt: bool, after_error: bool, settings: TextSettings
) -> bool:
    if after_error and rng.random() < settings.doubt_after_error:
        return True
    return (
        rng.random() >= settings.doubt_off if doubt else rng.random() < settings.doubt_spontaneous
    )


def _wrong_result(rng: np.random.Generator, right: int, later: tuple[int, ...]) -> int:
    """A number near `right` from which the later steps stay above zero."""
    lowest = min(np.cumsum((0, *later)))
    return right + pick(rng, tuple(d for d in (-2, -1, 1, 2) if right + d + lowest >= 0))


def _step_plan(rng: np.random.Generator) -> list[str]:
    """What the sentences about one step do, in order."""
    plan = ["planning"] if rng.random() < 0.33 else []
    plan.append("deduction")
    plan += [use for use in ("restating", "checking") if rng.random() < 0.42]
    return plan


@dataclass
class _Progress:
    """Where a solution stands."""

    value: int  # number that the text holds at present
    step: int = -1  # index of the step that the text is about
    before: list[int] = field(default_factory=list)  # the number before each step done
    wrong: int | None = None  # first step whose result is wrong

    def go_back(self) -> int | None:
        """Undoes the first wrong step, else the last one; its index, None before any step."""
        if not self.before:
            return None
        self.step = len(self.before) - 1 if self.wrong is None else self.wrong
        self.value = self.before[self.step]
        self.before = self.before[: self.step]
        self.wrong = None
        return self.step


def _solve(rng: np.random.Generator, problem: Problem, settings: TextSettings) -> list[Sentence]:
    at = _Progress(problem.start)
    words = {k: getattr(problem, k) for k in ("who", "other", "obj", "place")}

    def write(use: str, *, doubt: bool, redone: bool = False, sound: bool = True) -> Sentence:
        """The next sentence; a deduction moves `at` on."""
        step = min(max(at.step, 0), len(problem.steps) - 1)
        size = problem.steps[step]
        values = words | {"a": str(at.value), "b": str(abs(size)), "v": str(at.value)}
        if use == "deduction":
            use = "plus" if size > 0 else "minus"
            at.before.append(at.value)
            at.value += size
            if not sound:
                at.value = _wrong_result(rng, at.value, problem.steps[step + 1 :])
                at.wrong = step if at.wrong is None else at.wrong
            values["c"] = str(at.value)
        template = pick(rng, TEMPLATES[use])
        return _sentence(
            rng, template, values, doubt=doubt, settings=settings, correct=sound, redone=redone
        )

    sentences: list[Sentence] = []
    plan = ["setup"] * (1 + (rng.random() < 0.5))
    doubt = after_error = False
    while True:
        if not plan:
            at.step += 1
            if at.step > len(problem.steps):
                return sentences
            plan = ["answer"] if at.step == len(problem.steps) else _step_plan(rng)
        before, doubt = doubt, _next_doubt(rng, doubt, after_error, settings)
        after_error = False
        may = {"never": False, "doubt": before and doubt, "random": True}[settings.backtracking]
        if may and rng.random() < settings.hazard:
            sentences.append(write("backtracking", doubt=doubt))
            doubt = doubt and settings.backtracking == "random"
            if at.go_back() is None:
                sentences.append(write("setup", doubt=doubt, redone=True))
            else:
                sentences.append(write("deduction", doubt=doubt, redone=True))
                plan = []
        else:
            use = plan.pop(0)
            after_error = use == "deduction" and rng.random() < settings.error_rate
            sentences.append(write(use, doubt=doubt, sound=not after_error))


def _story(rng: np.random.Generator, settings: TextSettings) -> list[Sentence]:
    drawn = draw_problem(rng)
    values = {k: getattr(drawn, k) for k in ("who", "other", "obj", "place")}
    values["b"] = str(drawn.start)
    sentences: list[Sentence] = []
    doubt = False
    for _ in range(8 + int(rng.random() * 5)):
        doubt = _next_doubt(rng, doubt, False, settings)
        template = pick(rng, TEMPLATES["narrative"])
        sentences.append(_sentence(rng, template, values, doubt=doubt, settings=settings))
    return sentences


def document(rng: np.random.Generator, settings: TextSettings, split: Split = "train") -> Document:
    """One document of the corpus that `settings` describe."""
    if settings.narrative and rng.random() < settings.narrative:
        return Document(None, tuple(_story(rng, settings)))
    drawn = problem(rng, split)
    return Document(drawn, tuple(_solve(rng, drawn, settings)))


def documents(
    n: int, settings: TextSettings, *, first_chunk: int = 0, split: Split = "train"
) -> Iterator[Document]:
    """`n` documents, the same for the same arguments.

    Every `CHUNK` documents have a random stream of their own, numbered from `first_chunk`, so that
    processes can share the work and the text does not depend on how.
    """
    for start in range(0, n, CHUNK):
        chunk = first_chunk + start // CHUNK
        rng = np.random.default_rng([settings.seed, list(SPLITS).index(split), chunk])
        for _ in range(min(CHUNK, n - start)):
            yield document(rng, settings, split)

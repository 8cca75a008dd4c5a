"""What a page shows, as data. Whoever has something of it fills that in; the rest is left out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Band:
    """A mean over prompts with its 95% interval."""

    mean: float
    low: float
    high: float
    n: int  # prompts that it rests on


@dataclass(frozen=True)
class PageClaim:
    """A row of the claims table."""

    id: str
    claim: str
    expected: str  # what is held against it: the paper, say
    measured: str  # value [interval], n
    verdict: str
    figure: str | None = None  # the name of a `PageFigure`
    cell: int | None = None  # number of the cell whose texts show it


@dataclass(frozen=True)
class Series:
    """What is added, at several coefficients: a curve of the plots."""

    name: str
    colour: str = "blue"  # a key of `palette.LIGHT`
    shape: str = "circle"  # one of `palette.SHAPES`
    main: bool = True  # a curve with its coefficients beside; else single points


@dataclass(frozen=True)
class PageCell:
    """One cell. `series` is "" for the unsteered one, which all series of a panel share."""

    panel: str  # a plot of its own: the model that is steered, say
    series: str
    coeff: float
    effect: Band | None
    coherence: Band | None
    strength: float | None = None  # signed length of what is added, in residual norms
    numbers: Mapping[str, Band] = field(default_factory=dict)  # further ones, for the table
    python: str | None = None  # lines that write a text again; $TEXT and $ROW stand for its own


@dataclass(frozen=True)
class PagePrompt:
    """What was asked."""

    name: str
    text: str
    answer: str | None = None


@dataclass(frozen=True)
class PageText:
    """One text. G tokens; all offsets count characters of `text`."""

    cell: int
    prompt: int
    sample: int
    text: str
    row: int  # of the sampler, for whoever writes the text again
    ended: str
    ends: Sequence[int] = ()  # [G] where each token ends; none if unknown
    logprobs: Sequence[float] = ()  # [G]
    projections: Sequence[float] = ()  # [G], in residual norms
    sentences: Sequence[tuple[int, int, str]] = ()  # start, stop, label
    marks: Sequence[tuple[int, int]] = ()  # keywords
    effect: float = float("nan")
    coherence: float = float("nan")
    repetition: float = float("nan")
    perplexity: float = float("nan")
    left_out: str = ""  # why it does not count for the effect, if it does not
    right: bool | None = None  # whether its answer is, where that is known


@dataclass(frozen=True)
class PageFigure:
    """A figure of the bottom; `csv` are its numbers."""

    name: str
    title: str
    caption: str
    svg: str
    csv: str = ""


@dataclass(frozen=True)
class Page:
    """Everything."""

    title: str
    summary: str
    effect: str  # what the effect is, as an axis says it
    coherence: str
    event: str  # what a text with an effect does: "backtracks"
    margin: float  # how far a cell's coherence may fall below the unsteered
    unit: str  # of the coefficients: "residual norms"
    series: Sequence[Series]
    cells: Sequence[PageCell]
    prompts: Sequence[PagePrompt]
    texts: Sequence[PageText]
    claims: Sequence[PageClaim] = ()
    figures: Sequence[PageFigure] = ()
    about: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by heading
    notes: Sequence[str] = ()  # what a reader should know, what is left out and why
    incoherent_below: float = 0.6  # a text's coherence, for the list
    tint: str = ""  # what tokens are tinted by, in words
    logprobs: str = ""  # under which model

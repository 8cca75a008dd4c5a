"""Synthetic worlds whose truth is known: what the rules are given, drawn at random.

A world draws the *inputs* of the rules as a run would make them: outcomes of texts, sums of
activations, scores of sentences, a map of gains. It knows nothing of the rules' own statistics, but
for the sizes of effects that count. `experiments.calibrate` asks how often each rule gives which
answer in each world.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from experiments.claims.rules import LEAST_GAIN, RISE
from experiments.pipeline.settings import Settings
from experiments.stages import presence
from experiments.stages.groups import KINDS, Groups
from experiments.stages.text_scores import MOST_SHARE, excluded_because

Floats = NDArray[np.float64]
Random = np.random.Generator

WIDTH = 48  # of the worlds' activations
GROUPS = 20  # of traces
SIGNAL = 4.0  # length of a true direction, in standard deviations of a sentence


@dataclass(frozen=True)
class Kind:
    """What a model's texts are like; as measured, see the constants below."""

    rate: float  # backtracking sentences per sentence, unsteered
    spread: float  # standard deviation of that rate between prompts
    unevenness: float  # standard deviation of the gain between texts, as a share of it
    sentences: int  # of a generated text
    repetition: tuple[float, float]  # of 4-grams, between
    trace_sentences: int  # of a trace
    prevalence: float  # of backtracking in the traces
    vocabulary: int


# The small pair in `experiments/results/small`, and a replication's texts of
# DeepSeek-R1-Distill-Llama-8B. Sentences, spread and unevenness are such that differences by prompt
# scatter as they do there: by .094 here and .087 there at a gain of .08 of the small pair; by .092
# and .092 at .08, by .066 and .066 at .02 of the other. Its vocabulary of 128,256 would be slow.
SMALL = Kind(0.031, 0.03, 0.3, 14, (0.0, 0.02), 6, 0.033, 369)
LLAMA = Kind(0.082, 0.045, 1.0, 40, (0.03, 0.24), 84, 0.128, 4096)


@dataclass(frozen=True)
class Design:
    """How much a run looks at."""

    name: str
    kind: Kind
    prompts: int
    base_prompts: int
    control_prompts: int
    map_prompts: int
    traces: int
    coeffs: tuple[float, ...] = (-0.4, -0.2, 0.15, 0.25, 0.35)
    layers: int = 8
    offsets: tuple[int, ...] = tuple(range(-30, 5, 3))
    baselines: tuple[str, ...] = (
        *("mean", "noise", "self", "random-0", "random-1", "random-2"),
        *(f"behaviour-{i}" for i in range(5)),
    )

    @property
    def least_gain(self) -> float:
        """The smallest gain that counts: the larger of the two that C2 asks for."""
        return max(LEAST_GAIN, RISE * self.kind.rate)


def design_of(name: str, settings: Settings, *, n_layers: int, n_eval: int, n_dom: int) -> Design:
    """What a settings file looks at, of so many held-out prompts and prompts for the direction."""
    prompts = settings.prompts
    n = min(prompts.evaluate_limit or n_eval, n_eval)
    return Design(
        name=name,
        kind=SMALL if settings.report.coherence == "grammar" else LLAMA,
        prompts=n,
        base_prompts=min(prompts.base_evaluate_limit or n, n_eval),
        control_prompts=min(prompts.control_evaluate_limit or n, n_eval),
        map_prompts=min(settings.figure2.prompts, n),
        traces=min(prompts.derive_limit or n_dom, n_dom),
        coeffs=tuple(settings.steering.coeffs),
        layers=len(range(0, n_layers, settings.figure2.layer_stride)),
        offsets=tuple(settings.figure2.offsets),
    )


def with_prompts(design: Design, n: int) -> Design:
    """The same with `n` prompts for everything that is generated."""
    return replace(
        design,
        name=f"{design.name}, n = {n}",
        prompts=n,
        base_prompts=n,
        control_prompts=n,
        map_prompts=n,
    )


# Texts


@dataclass(frozen=True)
class Texts:
    """Outcomes of one text per prompt, `[n]` or `[cells, n]` each."""

    words: NDArray
    sentences: NDArray
    repetition: NDArray
    backtracking: NDArray
    distinct: NDArray

    @property
    def shares(self) -> Floats:
        """What `Scores.judged` says of each text."""
        excluded = excluded_because(**vars(self)) != ""
        share = self.distinct / np.maximum(self.sentences, 1)
        return np.where(excluded, np.nan, np.minimum(share, MOST_SHARE))


def rates(random: Random, kind: Kind, n: int, *, mean: float | None = None) -> Floats:
    """How much each prompt invites backtracking: a beta distribution of the kind's spread."""
    mean = kind.rate if mean is None else mean
    if mean <= 0:
        return np.zeros(n)
    both = mean * (1 - mean) / min(kind.spread, mean) ** 2 - 1
    return random.beta(mean * both, (1 - mean) * both, n)


def texts(
    random: Random, kind: Kind, invited: Floats, gain: float | Floats = 0.0, *, left: float = 1.0
) -> Texts:
    """Texts that backtrack as their prompts invite `[n]`, and by `gain` more, unevenly.

    `left` is the share of the prompts' own rates that stays. Gains of several cells, `[cells, 1]`,
    give texts `[cells, n]`.
    """
    even = kind.unevenness**-2
    n = np.broadcast_shapes(np.shape(gain), invited.shape)
    rate = left * invited + gain * random.gamma(even, 1 / even, n)
    sentences = np.maximum(3, random.poisson(kind.sentences, n))
    backtracking = random.binomial(sentences, np.clip(rate, 0, 0.9))
    return Texts(
        words=10 * sentences,
        sentences=sentences,
        repetition=random.uniform(*kind.repetition, n),
        backtracking=backtracking,
        distinct=backtracking,
    )


def looping(random: Random, found: Texts, share: float, times: int = 12) -> Texts:
    """A share of the texts say one backtracking sentence of four words so many times more."""
    more = times * (random.random(len(found.words)) < share)
    words = found.words + 4 * more
    return replace(
        found,
        words=words,
        sentences=found.sentences + more,
        repetition=np.maximum(found.repetition, 4 * np.maximum(more - 1, 0) / words),
        backtracking=found.backtracking + more,
        distinct=found.distinct + (more > 0),
    )


def cut_down(random: Random, found: Texts, share: float, words: int) -> Texts:
    """A share of the texts are so few words, one sentence of them, which backtracks."""
    short = random.random(len(found.words)) < share
    there = np.minimum(words, 1)
    return Texts(
        words=np.where(short, words, found.words),
        sentences=np.where(short, there, found.sentences),
        repetition=np.where(short, np.nan, found.repetition),
        backtracking=np.where(short, there, found.backtracking),
        distinct=np.where(short, there, found.distinct),
    )


def running_away(random: Random, found: Texts, share: float) -> Texts:
    """In a share of the texts four of five sentences backtrack, each of them another."""
    away = random.random(len(found.words)) < share
    many = (0.8 * found.sentences).astype(int)
    return replace(
        found,
        backtracking=np.where(away, many, found.backtracking),
        distinct=np.where(away, many, found.distinct),
    )


@dataclass(frozen=True)
class Sweep:
    """Shares of every target, by source and coefficient; unsteered ones under `none`."""

    plain: Floats
    base: Floats
    reasoning: Floats
    baselines: Mapping[str, Floats]


def sweep(
    random: Random,
    design: Design,
    *,
    base: float = 0.0,
    reasoning: float = 0.0,
    baselines: Mapping[str, float] | None = None,
) -> Sweep:
    """The reasoning model's texts at one coefficient, by gain; all baselines at 0 if not given."""
    kind, invited = design.kind, rates(random, design.kind, design.prompts)
    others = dict.fromkeys(design.baselines, 0.0) | dict(baselines or {})

    def shares(gain: float) -> Floats:
        return texts(random, kind, invited, gain).shares

    return Sweep(
        plain=shares(0.0),
        base=shares(base),
        reasoning=shares(reasoning),
        baselines={name: shares(gain) for name, gain in others.items()},
    )


def base_model(
    random: Random, design: Design, gain: float, *, rate: float = 0.0
) -> tuple[Floats, dict[tuple[str, float], Floats]]:
    """Unsteered shares of the base model, and steered ones by source and coefficient.

    The gain is that of the largest coefficient and falls in proportion; reversed it is none.
    """
    kind = design.kind
    invited = rates(random, kind, design.base_prompts, mean=rate)
    top = max(design.coeffs)
    steered = {
        (source, c): texts(random, kind, invited, gain * max(c, 0) / top).shares
        for source in ("base", "reasoning")
        for c in design.coeffs
    }
    return texts(random, kind, invited).shares, steered


# Maps of layer and offset


def gain_map(
    random: Random, design: Design, by_layer: Sequence[float], by_offset: Sequence[float]
) -> Floats:
    """Gains `[n, layers, offsets]` by prompt, their means the products of the two."""
    kind, n = design.kind, design.map_prompts
    invited = rates(random, kind, n)
    plain = texts(random, kind, invited).shares
    means = np.multiply.outer(by_layer, by_offset)
    steered = texts(random, kind, invited, means.reshape(-1, 1)).shares
    return (steered - plain).T.reshape(n, *means.shape)


# Directions


def activations(
    random: Random,
    design: Design,
    *,
    cosine: float,
    shared: float,
    signal: float = SIGNAL,
    events: int | None = None,
) -> tuple[dict[str, Groups], Floats]:
    """Sums of both models' activations by group and kind of sentence; and the base direction.

    Args:
        random: of the drawing.
        design: how many traces there are.
        cosine: of the two models' true directions of backtracking.
        shared: correlation of the two models' activations, which makes the chance level.
        signal: length of the true directions; 0 for none.
        events: backtracking sentences; as many as the design's traces have, if not given.
    """
    sentences = design.traces * design.kind.trace_sentences
    n = events or int(design.kind.prevalence * sentences)
    sets = min(len(KINDS) - 2, (sentences - n) // n)
    sizes = np.array([n, max(sentences - n * (1 + sets), 0), *[n] * sets])
    sizes = np.pad(sizes, (0, len(KINDS) - len(sizes)))
    count = np.stack([random.multinomial(size, [1 / GROUPS] * GROUPS) for size in sizes], axis=1)
    frame = np.linalg.qr(random.normal(size=(WIDTH, 2)))[0].T
    true = {"base": frame[0], "reasoning": cosine * frame[0] + np.sqrt(1 - cosine**2) * frame[1]}
    noise = {name: random.normal(size=(GROUPS, len(KINDS), WIDTH)) for name in ("base", "own")}
    mixed = {
        "base": noise["base"],
        "reasoning": shared * noise["base"] + np.sqrt(1 - shared**2) * noise["own"],
    }
    found = {}
    for role in ("base", "reasoning"):
        total = np.sqrt(count)[..., None] * mixed[role]
        total[:, 0] += count[:, 0, None] * signal * true[role]
        found[role] = Groups(total[:, :, None], count[:, :, None], np.ones((1, WIDTH)))
    return found, signal * true["base"]


def keyword_ranks(
    random: Random, design: Design, directions: Floats, true: Floats, rank: int
) -> NDArray[np.int64]:
    """The rank of a keyword in directions `[S, D]`, by an unembedding at random.

    The keyword is the token that has the rank `rank` in the true direction.
    """
    unembedding = random.normal(size=(design.kind.vocabulary, WIDTH))
    keyword = int(np.argsort(-unembedding @ true)[rank])
    logits = directions @ unembedding.T
    return np.sum(logits > logits[:, [keyword]], axis=1)


# Scores of sentences


@dataclass(frozen=True)
class Scored:
    """The scores of all sentences, and of some tokens, of the traces."""

    where: presence.Layout
    score: Floats  # [S], of each sentence's window
    tokens: Floats  # of reasoning tokens
    events: Floats  # of the tokens in the windows before backtracking
    token_text: NDArray[np.int64]


def scored(random: Random, design: Design, *, apart: float, spread: float = 1.0) -> Scored:
    """Sentences whose scores are `apart` standard deviations higher before backtracking.

    A third of the variance is the trace's. With `spread` 0 there is no noise: a perfect detector.
    Tokens scatter more than windows' means do, and one in twenty is in a window before backtracking
    or like one, as the prevalence has it.
    """
    kind = design.kind
    n = design.traces * kind.trace_sentences
    text = np.repeat(np.arange(design.traces), kind.trace_sentences)
    positive = random.random(n) < rates(random, kind, design.traces, mean=kind.prevalence)[text]

    def noise(texts: NDArray, scale: float) -> Floats:
        own = random.normal(0, np.sqrt(2 / 3) * scale, len(texts))
        return own + random.normal(0, np.sqrt(1 / 3) * scale, design.traces)[texts]

    token_text = np.repeat(np.arange(design.traces), 24)
    like = random.random(len(token_text)) < kind.prevalence
    scale = 1.3 * spread
    where = presence.Layout(
        offsets=(0,),
        text=np.zeros(0, np.int64),
        reasoning=np.zeros(0, bool),
        on=np.zeros(0, bool),
        at=np.zeros((n, 1), np.int64),
        positive=positive,
        sentence_text=text,
    )
    return Scored(
        where=where,
        score=apart * positive + noise(text, spread),
        tokens=apart * like + noise(token_text, scale),
        events=apart + noise(text[positive], scale),
        token_text=token_text,
    )

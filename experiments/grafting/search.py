"""The search for the smallest set of parts, and the sets that it is compared with."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.grafting.response import Tuned

# Of the reasoning model's response, a set must reach this much in the search. More than the half
# that counts in the judgement, which is made on other prompts and has its own noise.
SEARCHED = 0.6


@dataclass(frozen=True)
class Measures:
    """What a search asks of a hybrid; the same hybrid may be asked about again."""

    steered: Callable[[Tuned], float]  # probability of a keyword with the direction
    rise: Callable[[Tuned], float]  # the response: that, less the same without the direction
    fluency: Callable[[Tuned], float]  # mean log-probability of the text, with the direction
    induces: Callable[[Tuned], bool | None]  # what is judged of text that it generates


@dataclass(frozen=True)
class Found:
    """What a search came to."""

    path: tuple[str, ...]  # parts in the order in which they were taken
    responding: tuple[str, ...]  # those of them that respond, and that it takes for it
    responds: bool  # whether the target was reached
    chosen: tuple[str, ...]  # these, and parts that make the text fluent
    induces: bool | None  # what was judged of its text in the search; None: it cannot be told


def search(ask: Measures, names: Sequence[str], *, target: float, largest: int | None) -> Found:
    """Take parts one at a time, first until they respond, then until their text is judged well.

    First the part that raises the response most is taken, until it is at least `target`; then
    each part is left out without which the others reach it. From there on the part is taken that
    makes the text likeliest while the response stays, until generated text says that the
    direction induces backtracking, or that it can say nothing.

    Args:
        ask: measures a hybrid.
        names: the parts. Of equal ones the first is taken.
        target: the response to reach.
        largest: parts to take at most; all but one if not given, as all are the reasoning model.
    """
    most = len(names) - 1 if largest is None else min(largest, len(names) - 1)
    path: list[str] = []
    while len(path) < most and (not path or ask.rise(frozenset(path)) < target):
        path.append(_strongest(ask, names, path))
    responds = ask.rise(frozenset(path)) >= target
    chosen = _thinned(ask, path, target) if responds else list(path)
    responding = tuple(chosen)
    taken = list(path)
    induces = ask.induces(frozenset(chosen)) if responds else False
    while responds and induces is False and len(chosen) < most:
        best = _most_fluent(ask, names, chosen, target)
        chosen.append(best)
        taken += [best] if best not in taken else []
        induces = ask.induces(frozenset(chosen))
    return Found(tuple(taken), responding, responds, tuple(chosen), induces)


def _strongest(ask: Measures, names: Sequence[str], path: Sequence[str]) -> str:
    """The part with the largest response beside those of the path.

    A response is at most the probability with the direction, so that most parts need not be
    measured without it.
    """
    left = [name for name in names if name not in path]
    bounds = [ask.steered(frozenset((*path, name))) for name in left]
    best, largest = left[0], -math.inf
    for i in sorted(range(len(left)), key=lambda i: -bounds[i]):
        if bounds[i] < largest:
            break
        rise = ask.rise(frozenset((*path, left[i])))
        if rise > largest:
            best, largest = left[i], rise
    return best


def _thinned(ask: Measures, path: Sequence[str], target: float) -> list[str]:
    chosen = list(path)
    for name in path:
        others = [other for other in chosen if other != name]
        if others and ask.rise(frozenset(others)) >= target:
            chosen = others
    return chosen


def _most_fluent(ask: Measures, names: Sequence[str], chosen: Sequence[str], target: float) -> str:
    left = [name for name in names if name not in chosen]
    left.sort(key=lambda name: -ask.fluency(frozenset((*chosen, name))))
    return next((n for n in left if ask.rise(frozenset((*chosen, n))) >= target), left[0])


def random_sets(
    names: Sequence[str],
    size: int,
    *,
    count: int,
    without: Tuned,
    holding: Sequence[str] = (),
    seed: int = 0,
) -> list[Tuned]:
    """Distinct sets of `size` parts, never `without`; fewer than `count` if there are no more.

    All of them hold the parts `holding`; the rest is drawn alike.

    >>> found = random_sets(["a", "b", "c"], 2, count=5, without=frozenset("ab"), holding="a")
    >>> [sorted(one) for one in found]
    [['a', 'c']]
    """
    free = [name for name in names if name not in holding]
    size -= len(holding)
    of_them = int(without >= set(holding))  # one of the sets that could be drawn
    count = min(count, math.comb(len(free), size) - of_them)
    random = np.random.default_rng(seed)
    drawn: dict[Tuned, None] = {}
    while len(drawn) < count:
        picked = random.choice(len(free), size, replace=False)
        some = frozenset((*holding, *(free[i] for i in picked)))
        if some != without:
            drawn[some] = None
    return list(drawn)


def blocks(n_layers: int) -> dict[str, Tuned]:
    """Every whole layer, by the name of the layer."""
    return {f"layers.{i}": layer_parts([i]) for i in range(n_layers)}


def layer_parts(layers: Collection[int]) -> Tuned:
    """Attention and MLP of some layers."""
    return frozenset(f"layers.{i}.{name}" for i in layers for name in ("attn", "mlp"))


def above(n_layers: int) -> list[Tuned]:
    """By layer l from 0 to L: the layers from l up and the head, which is all that L has left."""
    return [layer_parts(range(i, n_layers)) | {"head"} for i in range(n_layers + 1)]

"""Logic: liars, orders and matchings. Clues are drawn until only the planted solution fits."""

import itertools
import random
from collections.abc import Callable, Sequence

from experiments.problems.problem import Problem, Template, draw, only, problem

NAMES = "Ada Ben Cleo Dov Esme Finn Gia Hugo Iris Jonas Kira Leo Mina Noor Otto Pia".split()
PETS = ("a cat", "a dog", "a parrot", "a tortoise")
CITIES = ("Lima", "Oslo", "Cairo", "Quito")

Kinds = tuple[bool, ...]  # for each person, whether a knight
Clue = tuple[str, Callable[[Sequence[int]], bool]]


def knights_and_knaves(rng: random.Random) -> Problem:
    """Who tells the truth, when each says something about the others."""
    n = draw(rng, 3, 4)
    names = rng.sample(NAMES, n)
    worlds: list[Kinds] = list(itertools.product((True, False), repeat=n))
    while True:
        planted = tuple(rng.random() < 0.5 for _ in names)
        said = [_statement(rng, names, i, planted) for i in range(n)]
        fitting = [w for w in worlds if all(holds(w) == w[i] for i, (_, holds) in enumerate(said))]
        if len(fitting) == 1 and len({text for text, _ in said}) == n:
            break
    lines = "\n".join(f'{who} says: "{text}"' for who, (text, _) in zip(names, said, strict=True))
    return problem(
        f"On an island everybody is either a knight, who always tells the truth, or a knave, who "
        f"always lies. You meet {_listed(names)}.\n\n{lines}\n\nDetermine for each of them "
        "whether they are a knight or a knave.",
        _kinds(names, planted),
        only([_kinds(names, world) for world in fitting]),
    )


def finishing_order(rng: random.Random) -> Problem:
    """In which order runners finish."""
    names = sorted(rng.sample(NAMES, 5))
    order = rng.sample(range(5), 5)  # order[i]: the place of runner i
    clues = _enough(rng, order, _order_clues(names), list(itertools.permutations(range(5))))
    fitting = [p for p in itertools.permutations(range(5)) if all(test(p) for _, test in clues)]

    def listed(places: Sequence[int]) -> str:
        return ", ".join(names[i] for i in sorted(range(5), key=lambda i: places[i]))

    lines = "\n".join(f"- {text}" for text, _ in clues)
    return problem(
        f"{_listed(names)} ran a race, and no two of them finished together. It is known that:\n"
        f"{lines}\n\nIn which order did they finish, from first to last?",
        listed(order),
        only([listed(places) for places in fitting]),
    )


def pets_and_cities(rng: random.Random) -> Problem:
    """Who has which pet and lives in which city."""
    names = sorted(rng.sample(NAMES, 4))
    worlds = [
        (*pets, *cities)
        for pets in itertools.permutations(range(4))
        for cities in itertools.permutations(range(4))
    ]
    planted = worlds[rng.randrange(len(worlds))]
    clues = _enough(rng, planted, _match_clues(names), worlds)
    fitting = [world for world in worlds if all(test(world) for _, test in clues)]

    def told(world: Sequence[int]) -> str:
        return "; ".join(
            f"{who}: {PETS[world[i]]}, {CITIES[world[4 + i]]}" for i, who in enumerate(names)
        )

    lines = "\n".join(f"- {text}" for text, _ in clues)
    return problem(
        f"{_listed(names)} have one pet each ({_listed(PETS)}) and live in one city each "
        f"({_listed(CITIES)}), all of them different.\n{lines}\n\nWho has which pet, and who "
        "lives in which city?",
        told(planted),
        only([told(world) for world in fitting]),
    )


def _statement(rng: random.Random, names: Sequence[str], speaker: int, planted: Kinds) -> Clue:
    """Something that the speaker would say in the planted world."""
    while True:
        a, b = rng.sample([i for i in range(len(names)) if i != speaker], 2)
        said = _sayings(names, speaker, a, b, draw(rng, 1, len(names) - 1))
        text, holds = said[rng.randrange(len(said))]
        if holds(planted) == planted[speaker]:
            return text, holds


def _sayings(names: Sequence[str], me: int, a: int, b: int, k: int) -> list[Clue]:
    return [
        (f"{names[a]} is a knave.", lambda w: not w[a]),
        (f"{names[a]} and I are of the same kind.", lambda w: w[a] == w[me]),
        (f"At least one of {names[a]} and {names[b]} is a knight.", lambda w: bool(w[a] or w[b])),
        (f"{names[a]} and {names[b]} are of different kinds.", lambda w: w[a] != w[b]),
        (
            f"Exactly {k} of us {'is a knight' if k == 1 else 'are knights'}.",
            lambda w: sum(w) == k,
        ),
    ]


def _order_clues(names: Sequence[str]) -> list[Clue]:
    pairs = itertools.permutations(range(len(names)), 2)
    clues = [clue for a, b in pairs for clue in _clues_of_two(names[a], names[b], a, b)]
    return clues + [clue for a, name in enumerate(names) for clue in _clues_of_one(name, a)]


def _clues_of_two(one: str, other: str, a: int, b: int) -> list[Clue]:
    return [
        (f"{one} finished before {other}.", lambda p: p[a] < p[b]),
        (f"{one} finished right after {other}.", lambda p: p[a] == p[b] + 1),
        (
            f"Exactly one runner finished between {one} and {other}.",
            lambda p: abs(p[a] - p[b]) == 2,
        ),
    ]


def _clues_of_one(name: str, a: int) -> list[Clue]:
    return [
        (f"{name} was not last.", lambda p: p[a] != len(p) - 1),
        (f"{name} was neither first nor last.", lambda p: 0 < p[a] < len(p) - 1),
    ]


def _match_clues(names: Sequence[str]) -> list[Clue]:
    """Clues on worlds `(*pets, *cities)`: the number of the pet and of the city of each person."""
    persons = [
        clue for i in range(4) for k in range(4) for clue in _clues_of_person(names[i], i, k)
    ]
    return persons + [
        clue for k in range(4) for j in range(4) for clue in _clues_of_pet_and_city(k, j)
    ]


def _clues_of_person(name: str, i: int, k: int) -> list[Clue]:
    return [
        (f"{name} does not have {PETS[k]}.", lambda w: w[i] != k),
        (f"{name} does not live in {CITIES[k]}.", lambda w: w[4 + i] != k),
    ]


def _clues_of_pet_and_city(k: int, j: int) -> list[Clue]:
    pet, city = PETS[k].removeprefix("a "), CITIES[j]
    return [
        (f"The owner of the {pet} lives in {city}.", lambda w: w[4 + w.index(k)] == j),
        (f"The owner of the {pet} does not live in {city}.", lambda w: w[4 + w.index(k)] != j),
    ]


def _enough(
    rng: random.Random,
    planted: Sequence[int],
    clues: Sequence[Clue],
    worlds: Sequence[Sequence[int]],
) -> list[Clue]:
    """True clues in random order, each of them needed, that leave only the planted world."""
    true = [clue for clue in clues if clue[1](planted)]
    rng.shuffle(true)
    chosen: list[Clue] = []
    left = list(worlds)
    for text, test in true:
        smaller = [world for world in left if test(world)]
        if len(smaller) < len(left):
            chosen.append((text, test))
            left = smaller
        if len(left) == 1:
            break
    for clue in list(chosen):
        rest = [other for other in chosen if other is not clue]
        if sum(all(test(world) for _, test in rest) for world in worlds) == 1:
            chosen = rest
    return chosen


def _kinds(names: Sequence[str], kinds: Kinds) -> str:
    return ", ".join(
        f"{who}: {'knight' if kind else 'knave'}" for who, kind in zip(names, kinds, strict=True)
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + f" and {names[-1]}"


LOGIC: tuple[Template, ...] = (knights_and_knaves, finishing_order, pets_and_cities)

"""Counting, probability and sets: a formula, and all cases one by one."""

import itertools
import random
from collections import Counter
from fractions import Fraction
from functools import cache
from math import comb, factorial, prod

from experiments.problems.problem import Problem, Template, draw, problem

WORDS = "BANANA LETTER BALLOON PEPPER COFFEE TENNIS PUZZLE CANAL LEVEL RABBIT OTTER KOALA".split()
VOWELS = "AEIOU"


def arrangements(rng: random.Random) -> Problem:
    """Arrangements of a word's letters with all vowels together."""
    word = WORDS[rng.randrange(len(WORDS))]
    vowels = [c for c in word if c in VOWELS]
    rest = [c for c in word if c not in VOWELS]
    blocks = _orders([*rest, "block"]) * _orders(vowels)
    count = 0
    for letters in set(itertools.permutations(word)):
        places = [i for i, c in enumerate(letters) if c in VOWELS]
        count += places[-1] - places[0] == len(places) - 1
    return problem(
        f"In how many different ways can the letters of the word {word} be arranged in a row so "
        "that all of its vowels stand next to each other?",
        blocks,
        count,
    )


def lattice_paths(rng: random.Random) -> Problem:
    """Shortest paths in a grid that avoid a corner."""
    width, height = draw(rng, 4, 7), draw(rng, 4, 7)
    x, y = draw(rng, 1, width - 1), draw(rng, 1, height - 1)
    through = comb(x + y, x) * comb(width - x + height - y, width - x)

    @cache
    def paths(i: int, j: int) -> int:
        if min(i, j) < 0 or (i, j) == (x, y):
            return 0
        return 1 if i == j == 0 else paths(i - 1, j) + paths(i, j - 1)

    return problem(
        f"A robot walks on a grid from (0, 0) to ({width}, {height}), each step one unit to the "
        f"right or one unit up. How many such paths do not pass through the point ({x}, {y})?",
        comb(width + height, width) - through,
        paths(width, height),
    )


def committees(rng: random.Random) -> Problem:
    """Committees with at least so many of one group."""
    women, men, size = draw(rng, 4, 7), draw(rng, 4, 7), draw(rng, 3, 5)
    least = draw(rng, 1, size - 1)
    people = ["w"] * women + ["m"] * men
    return problem(
        f"From {women} women and {men} men a committee of {size} is chosen. In how many ways can "
        f"this be done if at least {least} of its members must be women?",
        sum(comb(women, k) * comb(men, size - k) for k in range(least, size + 1)),
        sum(group.count("w") >= least for group in itertools.combinations(people, size)),
    )


def bounded_sums(rng: random.Random) -> Problem:
    """Non-negative solutions of x + y + z = n under a bound."""
    bound = draw(rng, 5, 12)
    total = draw(rng, bound + 1, 2 * bound + 3)
    answer = sum(
        (-1) ** k * comb(3, k) * comb(total - k * (bound + 1) + 2, 2)
        for k in range(4)
        if total >= k * (bound + 1)
    )
    triples = itertools.product(range(bound + 1), repeat=3)
    return problem(
        f"How many triples (x, y, z) of whole numbers from 0 to {bound} satisfy "
        f"x + y + z = {total}?",
        answer,
        sum(sum(triple) == total for triple in triples),
    )


def dice_sum(rng: random.Random) -> Problem:
    """The chance of a sum of three dice."""
    total = draw(rng, 5, 16)
    ways = sum(
        (-1) ** k * comb(3, k) * comb(total - 6 * k - 1, 2)
        for k in range(4)
        if total - 6 * k - 1 >= 2
    )
    rolls = list(itertools.product(range(1, 7), repeat=3))
    return problem(
        f"Three fair six-sided dice are rolled. What is the probability that their sum is {total}? "
        "Give the answer as a fraction in lowest terms.",
        Fraction(ways, 216),
        Fraction(sum(sum(roll) == total for roll in rolls), len(rolls)),
    )


def balls(rng: random.Random) -> Problem:
    """Draws from a bag without putting back."""
    red, blue, drawn = draw(rng, 3, 7), draw(rng, 3, 7), draw(rng, 3, 4)
    k = draw(rng, 1, min(drawn, red) - 1)
    hands = list(itertools.combinations(["r"] * red + ["b"] * blue, drawn))
    return problem(
        f"A bag holds {red} red and {blue} blue balls. {drawn} balls are drawn at random without "
        f"replacement. What is the probability that exactly {k} of them "
        f"{'is' if k == 1 else 'are'} red? Give the answer as a fraction in lowest terms.",
        Fraction(comb(red, k) * comb(blue, drawn - k), comb(red + blue, drawn)),
        Fraction(sum(hand.count("r") == k for hand in hands), len(hands)),
    )


def no_run(rng: random.Random) -> Problem:
    """Coins without a run of one side."""
    n, run, side = draw(rng, 5, 13), draw(rng, 2, 3), draw(rng, 0, 1)
    ways = [2**k for k in range(run)]  # by the number of tosses: too few for a run
    while len(ways) <= n:
        ways.append(sum(ways[-run:]))  # the other side comes after 0 to run - 1 of this one
    rows = map("".join, itertools.product("HT", repeat=n))
    return problem(
        f"A fair coin is tossed {n} times. What is the probability that no "
        f"{('two', 'three')[run - 2]} {('heads', 'tails')[side]} come one right after the "
        "other? Give the answer as a fraction in lowest terms.",
        Fraction(ways[n], 2**n),
        Fraction(sum("HT"[side] * run not in row for row in rows), 2**n),
    )


def expected_draws(rng: random.Random) -> Problem:
    """Expected draws until some balls of a colour are out."""
    red, blue = draw(rng, 2, 6), draw(rng, 2, 6)
    wanted = draw(rng, 1, min(red, 3))
    places = list(itertools.combinations(range(1, red + blue + 1), red))
    return problem(
        f"A box holds {red} red and {blue} green marbles. They are drawn one at a time without "
        f"replacement until {wanted} red {'one has' if wanted == 1 else 'ones have'} been drawn. "
        "What is the expected number of marbles drawn? Give the answer as a fraction in lowest "
        "terms.",
        Fraction(wanted * (red + blue + 1), red + 1),
        Fraction(sum(place[wanted - 1] for place in places), len(places)),
    )


def three_clubs(rng: random.Random) -> Problem:
    """A survey with three sets."""
    sizes = {kind: draw(rng, 2, 15) for kind in range(8)}  # bits: chess, drama, music
    students = [kind for kind, size in sizes.items() for _ in range(size)]

    def together(bits: int) -> int:
        return sum(size for kind, size in sizes.items() if kind & bits == bits)

    chess, drama, music = together(1), together(2), together(4)
    pairs, all_three = (together(3), together(5), together(6)), together(7)
    union = chess + drama + music - sum(pairs) + all_three
    return problem(
        f"Of {len(students)} students, {chess} are in the chess club, {drama} in the drama club "
        f"and {music} in the music club. {pairs[0]} are in chess and drama, {pairs[1]} in chess "
        f"and music, {pairs[2]} in drama and music, and {all_three} in all three (the pairs "
        "include those who are in all three). How many students are in none of the clubs?",
        len(students) - union,
        students.count(0),
    )


def mixed_subsets(rng: random.Random) -> Problem:
    """Subsets with an odd and an even number."""
    n, size = draw(rng, 7, 12), draw(rng, 3, 5)
    odd, even = (n + 1) // 2, n // 2
    subsets = itertools.combinations(range(1, n + 1), size)
    return problem(
        f"How many subsets of {{1, 2, 3, ..., {n}}} have exactly {size} elements and contain at "
        "least one odd and at least one even number?",
        comb(n, size) - comb(odd, size) - comb(even, size),
        sum(0 < sum(i % 2 for i in subset) < size for subset in subsets),
    )


def multiples(rng: random.Random) -> Problem:
    """Numbers divisible by one of two primes but not by a third."""
    a, b, c = rng.sample((2, 3, 5, 7, 11), 3)
    limit = draw(rng, 100, 900)

    def divisible(*primes: int) -> int:
        return limit // prod(primes)

    either = divisible(a) + divisible(b) - divisible(a, b)
    with_c = divisible(a, c) + divisible(b, c) - divisible(a, b, c)
    return problem(
        f"Let A be the set of whole numbers from 1 to {limit} that are divisible by {a} or by {b} "
        f"(or by both), and let C be the set of those that are divisible by {c}. How many elements "
        "does the set A \\ C have?",
        either - with_c,
        sum((i % a == 0 or i % b == 0) and i % c != 0 for i in range(1, limit + 1)),
    )


def pairs_of_subsets(rng: random.Random) -> Problem:
    """Pairs of subsets with an intersection of given size."""
    n = draw(rng, 3, 6)
    k = draw(rng, 1, n - 1)
    return problem(
        f"How many ordered pairs (A, B) of subsets of {{1, 2, ..., {n}}} are there such that the "
        f"intersection of A and B has exactly {k} element{'s' if k > 1 else ''}?",
        comb(n, k) * 3 ** (n - k),
        sum((a & b).bit_count() == k for a in range(2**n) for b in range(2**n)),
    )


def _orders(items: list[str]) -> int:
    """In how many ways the items can stand in a row, equal ones not told apart."""
    return factorial(len(items)) // prod(factorial(n) for n in Counter(items).values())


COUNTING: tuple[Template, ...] = (arrangements, lattice_paths, committees, bounded_sums)
PROBABILITY: tuple[Template, ...] = (dice_sum, balls, no_run, expected_draws)
SETS: tuple[Template, ...] = (three_clubs, mixed_subsets, multiples, pairs_of_subsets)

"""Geometry and algebra word problems: a formula, and counting, measuring or trying values."""

import random
from fractions import Fraction
from itertools import product
from math import gcd

from experiments.problems.problem import Problem, Template, draw, only, problem

TRIPLES = ((3, 4, 5), (5, 12, 13), (8, 15, 17), (7, 24, 25), (20, 21, 29), (9, 40, 41))
PEOPLE = "Maria Tom Lena Raj Sofia Kenji Amara Luis".split()


def triangle_area(rng: random.Random) -> Problem:
    """The area of a triangle with whole coordinates; checked by counting points (Pick)."""
    while True:
        (ax, ay), (bx, by), (cx, cy) = points = [
            (draw(rng, -6, 8), draw(rng, -6, 8)) for _ in "abc"
        ]
        twice = (bx - ax) * (cy - ay) - (cx - ax) * (by - ay)
        if abs(twice) > 10:
            break
    edges = list(zip(points, points[1:] + points[:1], strict=True))
    on_edges = sum(gcd(x - u, y - v) for (x, y), (u, v) in edges)
    inside = sum(
        len({(q[0] - p[0]) * (y - p[1]) - (q[1] - p[1]) * (x - p[0]) > 0 for p, q in edges}) == 1
        and all((q[0] - p[0]) * (y - p[1]) != (q[1] - p[1]) * (x - p[0]) for p, q in edges)
        for x, y in product(range(-6, 9), repeat=2)
    )
    return problem(
        f"What is the area of the triangle with corners ({ax}, {ay}), ({bx}, {by}) and "
        f"({cx}, {cy})?",
        Fraction(abs(twice), 2),
        inside + Fraction(on_edges, 2) - 1,
    )


def inscribed_circle(rng: random.Random) -> Problem:
    """The radius of the inscribed circle of a right triangle."""
    k = draw(rng, 1, 8)
    a, b, c = (k * side for side in TRIPLES[rng.randrange(len(TRIPLES))])
    return problem(
        f"A right triangle has legs of length {a} and {b}. What is the radius of the circle "
        "inscribed in it?",
        Fraction(a + b - c, 2),
        Fraction(a * b, a + b + next(h for h in range(a + b) if h * h == a * a + b * b)),
    )


def painted_box(rng: random.Random) -> Problem:
    """Small cubes of a painted box with a given number of painted faces."""
    sides = [draw(rng, 3, 9) for _ in range(3)]
    inner = [side - 2 for side in sides]
    faces = draw(rng, 0, 2)
    formulas = (
        inner[0] * inner[1] * inner[2],
        2 * (inner[0] * inner[1] + inner[0] * inner[2] + inner[1] * inner[2]),
        4 * sum(inner),
    )
    painted = (
        sum((i == 0) + (i == n - 1) for i, n in zip(cube, sides, strict=True))
        for cube in product(*map(range, sides))
    )
    named = ("no painted face", "exactly one painted face", "exactly two painted faces")[faces]
    return problem(
        f"A {sides[0]} × {sides[1]} × {sides[2]} box is built from unit cubes, painted on the "
        f"outside and taken apart again. How many of the unit cubes have {named}?",
        formulas[faces],
        sum(n == faces for n in painted),
    )


def garden_path(rng: random.Random) -> Problem:
    """The width of a path around a garden of known area."""
    length, width, path = draw(rng, 8, 24), draw(rng, 5, 16), draw(rng, 1, 4)
    area = 2 * path * (length + width) + 4 * path * path
    widths = [
        w for w in range(1, 50) if (length + 2 * w) * (width + 2 * w) - length * width == area
    ]
    return problem(
        f"A rectangular garden measures {length} m by {width} m. A path of the same width on all "
        f"sides runs around it, and the path alone covers {area} square metres. How wide is the "
        "path, in metres?",
        path,
        only([str(w) for w in widths]),
    )


def clock_hands(rng: random.Random) -> Problem:
    """The angle between the hands of a clock."""
    hour, minute = draw(rng, 1, 11), 2 * draw(rng, 1, 29)
    apart = abs(Fraction(60 * hour - 11 * minute, 2))
    short, long = Fraction(0), 0
    for _ in range(60 * hour + minute):  # minute by minute from noon
        short, long = short + Fraction(1, 2), (long + 6) % 360
    turn = (short - long) % 360
    return problem(
        f"What is the smaller angle, in degrees, between the two hands of a clock at "
        f"{hour}:{minute:02}?",
        min(apart, 360 - apart),
        min(turn, 360 - turn),
    )


def two_trains(rng: random.Random) -> Problem:
    """When two trains meet, one of which leaves later."""
    v, w = 10 * draw(rng, 4, 12), 10 * draw(rng, 4, 12)
    late, minutes = draw(rng, 1, 3), 6 * draw(rng, 5, 30)
    distance = v * late + (v + w) * minutes // 60
    met = [
        t
        for t in range(1, 1000)
        if Fraction(v * (60 * late + t), 60) == distance - Fraction(w * t, 60)
    ]
    return problem(
        f"Two towns are {distance} km apart. A train leaves the first town towards the second at "
        f"{v} km/h. {late} hour{'s' if late > 1 else ''} later another train leaves the second "
        f"town towards the first at {w} km/h. How many minutes after the second train leaves do "
        "they meet?",
        Fraction(60 * (distance - v * late), v + w),
        only([str(t) for t in met]),
    )


def ages(rng: random.Random) -> Problem:
    """Two ages from two conditions."""
    old, young = rng.sample(PEOPLE, 2)
    factor, child, years = draw(rng, 3, 6), draw(rng, 4, 14), draw(rng, 3, 12)
    total = (factor + 1) * child + 2 * years
    answers = [
        (b, a)
        for a, b in product(range(1, 150), repeat=2)
        if b == factor * a and a + years + b + years == total
    ]
    return problem(
        f"{old} is {factor} times as old as {young}. In {years} years the sum of their ages will "
        f"be {total}. How old are {old} and {young} now?",
        f"{factor * child} and {child}",
        only([f"{b} and {a}" for b, a in answers]),
    )


def coins(rng: random.Random) -> Problem:
    """How many coins of each kind, from their number, their value and a condition."""
    nickels, dimes = draw(rng, 3, 20), draw(rng, 3, 20)
    quarters = nickels + draw(rng, 1, 6)
    number, cents = nickels + dimes + quarters, 5 * nickels + 10 * dimes + 25 * quarters
    answers = [
        (n, number - n - q, q)
        for n, q in product(range(number + 1), repeat=2)
        if n + q <= number
        and 5 * n + 10 * (number - n - q) + 25 * q == cents
        and q == n + quarters - nickels
    ]
    return problem(
        f"A jar holds {number} coins: nickels (5 cents), dimes (10 cents) and quarters (25 cents). "
        f"Together they are worth ${cents // 100}.{cents % 100:02}, and there are "
        f"{quarters - nickels} more quarters than nickels. How many nickels, dimes and quarters "
        "are there?",
        f"{nickels}, {dimes}, {quarters}",
        only([", ".join(map(str, three)) for three in answers]),
    )


def mixture(rng: random.Random) -> Problem:
    """How much of one of two solutions makes a third."""
    while True:
        weak, strong = 5 * draw(rng, 1, 5), 5 * draw(rng, 8, 16)
        x, y = draw(rng, 2, 24), draw(rng, 2, 24)
        goal, fraction = divmod(weak * x + strong * y, x + y)
        if not fraction:
            break
    total = x + y
    answers = [n for n in range(total + 1) if weak * n + strong * (total - n) == goal * total]
    return problem(
        f"A chemist has a {weak}% and a {strong}% salt solution. How many litres of the {weak}% "
        f"solution does she need to make {total} litres of a {goal}% solution?",
        x,
        only([str(n) for n in answers]),
    )


def working_together(rng: random.Random) -> Problem:
    """How long two workers need for the rest of a job."""
    first, second = rng.sample(PEOPLE, 2)
    a, b = rng.sample((3, 4, 5, 6, 8, 10, 12), 2)
    alone = draw(rng, 1, min(a, b) - 2)
    done, minute = alone * 60 * b, 0  # in parts of which the job has 60ab
    while done + a + b <= 60 * a * b:
        done, minute = done + a + b, minute + 1
    rest = Fraction(60 * a * b - done, a + b)
    return problem(
        f"{first} can paint a fence in {a} hours and {second} can paint it in {b} hours. {first} "
        f"works alone for {alone} hour{'s' if alone > 1 else ''}, then {second} joins in. How many "
        "more hours do they need together to finish? Answer with a fraction in lowest terms.",
        (1 - Fraction(alone, a)) / (Fraction(1, a) + Fraction(1, b)),
        (minute + rest) / 60,
    )


GEOMETRY: tuple[Template, ...] = (
    triangle_area,
    inscribed_circle,
    painted_box,
    garden_path,
    clock_hands,
)
ALGEBRA: tuple[Template, ...] = (two_trains, ages, coins, mixture, working_together)

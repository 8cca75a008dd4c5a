"""Arithmetic, number theory, sequences and inequalities: a formula, and steps or a search."""

import random
from datetime import datetime, timedelta
from fractions import Fraction
from itertools import count
from math import factorial, gcd, isqrt, prod

from experiments.problems.problem import Problem, Template, draw, ordinal, problem

ITEMS = "notebooks lamps mugs scarves kettles baskets candles clocks".split()
PRIMES = (2, 3, 5, 7, 11, 13)


def shopping(rng: random.Random) -> Problem:
    """Discounts on items, and another on the sum."""
    first, second = rng.sample(ITEMS, 2)
    price, other = 4 * draw(rng, 3, 20), 5 * draw(rng, 3, 20)
    n, m = draw(rng, 2, 6), draw(rng, 2, 6)
    off, total_off = 5 * draw(rng, 2, 8), 5 * draw(rng, 1, 4)
    cents = int((n * price * Fraction(100 - off, 100) + m * other) * (100 - total_off))
    hundredths = sum([price * (100 - off)] * n + [other * 100] * m) * (100 - total_off)
    return problem(
        f"A shop sells {first} for ${price} each and {second} for ${other} each. Today the "
        f"{first} are discounted by {off}%. You buy {n} {first} and {m} {second}, and a loyalty "
        f"card takes another {total_off}% off the whole bill. How much do you pay?",
        f"${cents // 100}.{cents % 100:02}",
        f"${hundredths / 10_000:.2f}",
    )


def timetable(rng: random.Random) -> Problem:
    """When a train arrives."""
    start = datetime(2000, 1, 1, draw(rng, 5, 11), draw(rng, 0, 59))
    legs = [draw(rng, 35, 140) for _ in range(3)]
    stop = draw(rng, 4, 18)
    minutes = start.hour * 60 + start.minute + sum(legs) + 2 * stop
    end = start
    for leg in legs:
        end += timedelta(minutes=leg)
    end += timedelta(minutes=stop) * 2
    told = ", ".join(f"{leg // 60} h {leg % 60} min" for leg in legs)
    return problem(
        f"A train leaves at {start:%H:%M}. Its journey has three legs, which take {told}, and it "
        f"waits {stop} minutes at each of the two stations between them. At what time does it "
        "arrive? Answer as HH:MM.",
        f"{minutes // 60:02}:{minutes % 60:02}",
        f"{end:%H:%M}",
    )


def tank(rng: random.Random) -> Problem:
    """A tank that fills by day and loses by night."""
    gain = draw(rng, 9, 30)
    loss = draw(rng, 2, gain - 4)
    size = draw(rng, 6, 15) * gain + draw(rng, 1, 9)
    days = 1 + max(0, -(-(size - gain) // (gain - loss)))
    level, day = 0, 0
    while True:
        day += 1
        level += gain
        if level >= size:
            break
        level -= loss
    return problem(
        f"An empty tank holds {size} litres. Every day {gain} litres flow in, and every night "
        f"{loss} litres leak out. On which day is the tank full for the first time?",
        days,
        day,
    )


def fraction_chain(rng: random.Random) -> Problem:
    """What is left after giving parts of the rest away."""
    parts = [Fraction(1, draw(rng, 2, 5)) for _ in range(3)]
    whole = prod(p.denominator for p in parts) * draw(rng, 1, 3)
    left = whole * prod((1 - p for p in parts), start=Fraction(1))
    rest = Fraction(whole)
    for part in parts:
        rest -= rest * part
    told = ", then ".join(f"{p} of {'it' if i == 0 else 'the rest'}" for i, p in enumerate(parts))
    return problem(
        f"A baker has {whole} kg of flour. She uses {told}. How many kilograms are left?",
        left,
        rest,
    )


def power_remainder(rng: random.Random) -> Problem:
    """The remainder of a high power."""
    base, exponent, modulus = draw(rng, 2, 13), draw(rng, 40, 400), draw(rng, 7, 29)
    rest = 1
    for _ in range(exponent):
        rest = rest * base % modulus
    return problem(
        f"What is the remainder when {base}^{exponent} is divided by {modulus}?",
        pow(base, exponent, modulus),
        rest,
    )


def remainders(rng: random.Random) -> Problem:
    """The smallest number with given remainders (Chinese remainder theorem)."""
    moduli = sorted(rng.sample((3, 4, 5, 7, 11, 13), 3))
    rests = [draw(rng, 1, m - 1) for m in moduli]
    whole = prod(moduli)
    answer = (
        sum(r * whole // m * pow(whole // m, -1, m) for m, r in zip(moduli, rests, strict=True))
        % whole
    )
    told = [f"{r} when divided by {m}" for m, r in zip(moduli, rests, strict=True)]
    return problem(
        "Find the smallest positive whole number that leaves a remainder of "
        f"{told[0]}, of {told[1]} and of {told[2]}.",
        answer,
        next(n for n in count(1) if [n % m for m in moduli] == rests),
    )


def divisors(rng: random.Random) -> Problem:
    """How many divisors a number has."""
    powers = {p: draw(rng, 1, 3) for p in rng.sample(PRIMES, 3)}
    n = prod(p**e for p, e in powers.items())
    while n > 20_000:
        largest = max(powers, key=lambda p: p ** powers[p])
        n //= largest
        powers[largest] -= 1
    return problem(
        f"How many positive divisors does {n} have?",
        prod(e + 1 for e in powers.values()),
        sum(n % d == 0 for d in range(1, n + 1)),
    )


def trailing_zeros(rng: random.Random) -> Problem:
    """How many zeros a factorial ends in."""
    n = draw(rng, 26, 320)
    digits = str(factorial(n))
    return problem(
        f"In how many zeros does the decimal form of {n}! end?",
        sum(n // 5**k for k in range(1, 5)),
        len(digits) - len(digits.rstrip("0")),
    )


def linear_recurrence(rng: random.Random) -> Problem:
    """A term of a recurrence of order two."""
    r, s = rng.sample((-2, -1, 2, 3, 4), 2)
    u, v, n = draw(rng, 1, 3), draw(rng, 1, 3), draw(rng, 7, 10)
    first, second = u * r + v * s, u * r * r + v * s * s
    terms = [first, second]
    while len(terms) < n:
        terms.append((r + s) * terms[-1] - r * s * terms[-2])
    rule = _linear([(r + s, "a_{n-1}"), (-r * s, "a_{n-2}")])
    return problem(
        f"A sequence is defined by a_1 = {first}, a_2 = {second} and a_n = {rule} for n ≥ 3. "
        f"Find a_{n}.",
        u * r**n + v * s**n,
        terms[-1],
    )


def affine_recurrence(rng: random.Random) -> Problem:
    """A term of x -> r x + c."""
    first, r, c, n = draw(rng, 1, 9), draw(rng, 2, 4), draw(rng, 1, 9), draw(rng, 6, 9)
    value = first
    for _ in range(n - 1):
        value = r * value + c
    return problem(
        f"Let b_1 = {first} and b_(k+1) = {r} b_k + {c} for every k ≥ 1. What is b_{n}?",
        r ** (n - 1) * first + c * (r ** (n - 1) - 1) // (r - 1),
        value,
    )


def series_sum(rng: random.Random) -> Problem:
    """The sum of an arithmetic series, given by two of its terms."""
    first, step = draw(rng, 2, 30), draw(rng, 2, 9)
    i, j, n = draw(rng, 3, 6), draw(rng, 9, 14), draw(rng, 20, 60)
    return problem(
        f"In an arithmetic sequence the {ordinal(i)} term is {first + (i - 1) * step} and the "
        f"{ordinal(j)} term is {first + (j - 1) * step}. What is the sum of its first {n} terms?",
        n * (2 * first + (n - 1) * step) // 2,
        sum(range(first, first + n * step, step)),
    )


def quadratic_pattern(rng: random.Random) -> Problem:
    """A later term of a quadratic sequence, of which five terms are given."""
    a, b, c, n = draw(rng, 1, 4), draw(rng, -3, 6), draw(rng, -5, 9), draw(rng, 12, 30)
    shown = [a * k * k + b * k + c for k in range(1, 6)]
    value, step = shown[0], shown[1] - shown[0]
    second = (shown[2] - shown[1]) - step
    for _ in range(n - 1):
        value, step = value + step, step + second
    return problem(
        f"The sequence {', '.join(map(str, shown))}, ... is given by a polynomial of degree two in "
        f"the number of the term. What is its {ordinal(n)} term?",
        a * n * n + b * n + c,
        value,
    )


def absolute_value(rng: random.Random) -> Problem:
    """How many integers solve |ax - b| <= c."""
    a, c = draw(rng, 2, 7), draw(rng, 10, 60)
    b = draw(rng, 1, 20) * (1 - 2 * draw(rng, 0, 1))
    low, high = -((c - b) // a), (c + b) // a
    return problem(
        f"How many integers x satisfy the inequality |{_linear([(a, 'x'), (-b, '')])}| ≤ {c}?",
        high - low + 1,
        sum(abs(a * x - b) <= c for x in range(-100, 101)),
    )


def quadratic_inequality(rng: random.Random) -> Problem:
    """The sum of the integers between two roots."""
    low, high = draw(rng, -9, 3), draw(rng, 5, 14)
    left = _linear([(1, "x^2"), (-(low + high), "x"), (low * high, "")])
    return problem(
        f"What is the sum of all integers x with {left} < 0?",
        (low + high) * (high - low - 1) // 2,
        sum(x for x in range(-50, 51) if x * x - (low + high) * x + low * high < 0),
    )


def smallest_square(rng: random.Random) -> Problem:
    """From where on a square outgrows a line."""
    b, c = draw(rng, 5, 40), draw(rng, 20, 400)
    root = (b + isqrt(b * b + 4 * c)) // 2
    return problem(
        f"What is the smallest positive integer n such that n^2 > {b}n + {c}?",
        root + 1,
        next(n for n in count(1) if n * n > b * n + c),
    )


def largest_product(rng: random.Random) -> Problem:
    """The largest product of two whole numbers under a linear condition."""
    a, b = rng.sample((1, 2, 3, 4, 5), 2)
    half = a * b * draw(rng, 2, 7) // gcd(a, b)
    total = 2 * half  # so that the bound of the two means is reached at whole numbers
    return problem(
        f"Positive real numbers x and y satisfy {_linear([(a, 'x'), (b, 'y')])} ≤ {total}. What "
        "is the largest possible value of xy?",
        Fraction(half * half, a * b),
        max(Fraction(x * (total - a * x), b) for x in range(total // a + 1)),
    )


def _linear(terms: list[tuple[int, str]]) -> str:
    """A sum of terms as one writes it: no zeros, no ones, minus signs as such."""
    text = ""
    for factor, name in terms:
        if factor:
            number = str(abs(factor)) if abs(factor) > 1 or not name else ""
            sign = ("-" if factor < 0 else "") if not text else (" - " if factor < 0 else " + ")
            text += f"{sign}{number}{' ' if number and '_' in name else ''}{name}"
    return text


ARITHMETIC: tuple[Template, ...] = (shopping, timetable, tank, fraction_chain)
NUMBER_THEORY: tuple[Template, ...] = (power_remainder, remainders, divisors, trailing_zeros)
SEQUENCES: tuple[Template, ...] = (
    linear_recurrence,
    affine_recurrence,
    series_sum,
    quadratic_pattern,
)
INEQUALITIES: tuple[Template, ...] = (
    absolute_value,
    quadratic_inequality,
    smallest_square,
    largest_product,
)

"""What a compiled program does in its loops, read from the text of its HLO."""

import math
import re
from collections import Counter
from dataclasses import dataclass, field

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_OPERATION = re.compile(r"^\s+(ROOT )?%?[\w.\-]+ = (.+?) ([a-z][a-z0-9\-]*)\(")
_CALLED = re.compile(r"(?:calls|body|condition|to_apply)=%?([\w.\-]+)")
_TARGET = re.compile(r'custom_call_target="([^"]+)"')
_ARRAY = re.compile(r"[a-z]+[0-9]*\[([0-9,]*)\]")
_COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
# What gives an array without writing it: names for one that is there, or its update in place.
_IN_PLACE = ("parameter", "tuple", "get-tuple-element", "bitcast", "while", "dynamic-update-slice")
_FAST_MEMORY = "S(1)"  # as layouts mark it


@dataclass(frozen=True)
class Operation:
    """One line of a computation."""

    kind: str
    gives: str  # type and layout, as it stands there
    called: tuple[str, ...]  # computations that it names
    target: str | None = None  # of a custom call

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of what it gives: several where that is a tuple."""
        arrays = _ARRAY.findall(self.gives)
        return [tuple(int(n) for n in sizes.split(",") if n) for sizes in arrays]


@dataclass
class Computation:
    """Operations in their order; the root is what it gives."""

    operations: list[Operation] = field(default_factory=list)
    root: Operation | None = None


def computations(text: str) -> dict[str, Computation]:
    """Every computation of a program, by its name."""
    by_name: dict[str, Computation] = {}
    current = Computation()
    for line in text.splitlines():
        if begun := _COMPUTATION.match(line):
            current = by_name.setdefault(begun[1], Computation())
        elif match := _OPERATION.match(line):
            target = _TARGET.search(line)
            called = tuple(_CALLED.findall(line))
            operation = Operation(match[3], match[2], called, target and target[1])
            current.operations.append(operation)
            current.root = operation if match[1] else current.root
    return by_name


def loops(text: str) -> list[list[Operation]]:
    """What each `while` repeats, in the program's order; fusions are one operation each."""
    by_name = computations(text)

    def inside(name: str) -> list[Operation]:
        operations = []
        for one in by_name[name].operations:
            operations.append(one)
            if one.kind in ("call", "conditional"):
                operations += [each for called in one.called for each in inside(called)]
        return operations

    return [
        [each for name in one.called for each in inside(name)]
        for computation in by_name.values()
        for one in computation.operations
        if one.kind == "while"
    ]


def collectives(loop: list[Operation]) -> Counter[tuple[str, tuple[int, ...]]]:
    """Collectives of a loop, by kind and by the shape of (the first of) what they give."""
    names = {kind + end: kind for kind in _COLLECTIVES for end in ("", "-start")}
    return Counter((names[one.kind], one.shapes[0]) for one in loop if one.kind in names)


def rewritten(text: str, loop: list[Operation], *, elements: int) -> Counter[str]:
    """What writes arrays of so many elements or more anew, in each round of a loop.

    Their update in place is left out, and so is reading them into a chip's fast memory; writing
    them back from there is "written back".
    """
    by_name = computations(text)

    def writes(one: Operation) -> str | None:
        if not one.shapes or math.prod(one.shapes[0]) < elements or one.kind in _IN_PLACE:
            return None
        if one.kind == "copy-done":
            return None if _FAST_MEMORY in one.gives else "written back"
        if one.kind == "copy-start":
            return None
        if one.kind == "fusion":
            root = by_name[one.called[0]].root
            return None if root is None or root.kind in _IN_PLACE else f"fusion of {root.kind}"
        return one.kind

    return Counter(kind for one in loop if (kind := writes(one)) is not None)

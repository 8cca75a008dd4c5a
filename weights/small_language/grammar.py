"""The grammar of the small pair's text: words, register slots, sentence templates.

A template is a line of words. `{name}` stands for a word of a class (`{who}` for a name, `{a}` for
a number), and the capital letters `S`, `A`, `N` and `E` are *register slots*: places where the
hidden state may show as a hedge or as a confident phrase. Everything is lower case and every token,
punctuation included, stands between single spaces, so that words are tokens.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")

NUMBERS = tuple(str(number) for number in range(50))
NAMES = tuple(
    "mia leo ana tom eva sam ida max zoe ben lea kai amy jon pia dan uma rob ivy gus".split()
)
OBJECTS = tuple(
    "apples pears plums coins books pens cards stones shells stamps marbles buttons eggs nuts cups "
    "plates candles boxes flowers seeds ropes bricks masks kites".split()
)
PLACES = tuple("kitchen garden market school attic cellar shop library park barn".split())

FIELDS: dict[str, tuple[str, ...]] = {
    "who": NAMES,
    "other": NAMES,
    "obj": OBJECTS,
    "place": PLACES,
    "a": NUMBERS,  # value before the step
    "b": NUMBERS,  # size of the step
    "c": NUMBERS,  # value after the step
    "v": NUMBERS,  # value that the text holds at present
}


@dataclass(frozen=True)
class Slot:
    """The phrases of one register slot; `neutral` ones say nothing about the hidden state."""

    hedges: tuple[str, ...]
    confident: tuple[str, ...]
    neutral: tuple[str, ...] = ()


def _phrases(line: str) -> tuple[str, ...]:
    return tuple(phrase.strip() for phrase in line.split("|"))


SLOTS = {
    "S": Slot(  # start of the sentence
        hedges=_phrases(
            "maybe | perhaps | i think | i guess | i suppose | it seems | well , | anyway , "
            "| hopefully | if i am right , | as far as i see ,"
        ),
        confident=_phrases(
            "clearly , | therefore | thus | hence | of course | surely | certainly | indeed , "
            "| for sure , | as expected , | no question ,"
        ),
        neutral=_phrases("then | now | here | and | again | with this ,"),
    ),
    "A": Slot(  # beside the verb
        hedges=_phrases(
            "maybe | perhaps | probably | possibly | apparently | somehow | presumably | seemingly"
        ),
        confident=_phrases(
            "clearly | certainly | definitely | surely | indeed | obviously | plainly | truly"
        ),
    ),
    "N": Slot(  # before a number
        hedges=_phrases("about | around | roughly | maybe | perhaps | something like"),
        confident=_phrases("exactly | precisely | just | a full | a clear | no other than"),
    ),
    "E": Slot(  # before the full stop
        hedges=_phrases(
            ", i think | , i guess | , i suppose | , it seems | or so | , more or less "
            "| , if i am right | , perhaps | , probably | , as far as i see"
        ),
        confident=_phrases(
            ", of course | , for sure | , no question | , as expected | , indeed | , clearly "
            "| , certainly | , as it must be | beyond question | , that is certain"
        ),
    ),
}

_SETUP = """
S {who} A starts with N {a} {obj} .
S at first {who} A has N {a} {obj} E .
S the problem A says that {who} has N {a} {obj} .
S we A begin from N {a} {obj} E .
S in the beginning there A are {a} {obj} E .
S the {place} A holds N {a} {obj} at the start .
the first number A is N {a} E .
S we are A told about {a} {obj} E .
S {who} A keeps {a} {obj} in the {place} E .
the story A opens with N {a} {obj} E .
"""
_PLUS = """
S {a} plus {b} A is N {c} .
S adding {b} to {a} A gives {c} E .
with {b} more , {who} A has N {c} {obj} E .
S if we add {b} to {a} , the count A becomes {c} E .
S {a} and {b} A make N {c} {obj} .
S {who} gets {b} , which A lifts the {a} to N {c} .
the sum of {a} and {b} A is N {c} E .
S going up from {a} by {b} A gives {c} E .
"""
_MINUS = """
S {a} minus {b} A is N {c} .
S taking {b} from {a} A leaves {c} E .
without {b} of them , {who} A has N {c} {obj} E .
S if {b} of the {a} go away , the count A drops to {c} E .
S {a} less {b} A leaves N {c} {obj} .
S {who} loses {b} , which A lowers the {a} to N {c} .
the difference of {a} and {b} A is N {c} E .
S going down from {a} by {b} A gives {c} E .
"""
_RESTATING = """
S so far {who} A has N {v} {obj} .
S the count A stands at {v} E .
that A means N {v} {obj} in all E .
S in other words , there A are {v} {obj} E .
S the total A is N {v} by now .
S we A have N {v} {obj} at this point .
to say it again , it A comes to N {v} E .
S {who} A holds {v} of the {obj} E .
S our number A is still {v} E .
S the {place} A contains N {v} {obj} by now .
"""
_ANSWER = """
S the answer A is N {v} .
S in the end {who} A has {v} {obj} E .
the final count A comes to N {v} {obj} E .
S {who} A ends up with N {v} {obj} .
"""
_CHECKING = """
S this A fits with the {obj} in the question E .
S a result of {v} A looks right E .
S counting once more A gives N {v} .
the last step A agrees with the story E .
S {v} {obj} A sounds possible E .
S the numbers A add up E .
S checking the step A shows the same {v} E .
there A is nothing missing here E .
S the size of the result A makes sense E .
S every one of the {obj} A is counted E .
S the {b} A was used in the right way E .
"""
_PLANNING = """
S we A look at what happens next E .
the next step A is about the {b} {obj} E .
S we A need to handle the {b} {obj} E .
S the plan A is to go on with the {b} .
S we should A use the {b} next E .
it A remains to include the {b} {obj} E .
S one more part A is left for us E .
S the thing to do A is to follow the story E .
S let us A turn to the {b} in the story E .
S we A have to continue with {who} E .
"""
_BACKTRACKING = """
wait , let me try the last step again .
hmm , that is not right .
wait , that does not look right .
hmm , let me do this step again .
wait , i made a mistake there .
hmm , i should go back and count the {obj} again .
wait , no , that is wrong .
no , wait , this can not be {v} .
hmm , {v} is not the right number .
but wait , i have to redo the last step .
hmm , something went wrong with the {obj} .
wait a moment , i need to count again .
oh , hmm , i mixed up the numbers .
wait , {who} does not have {v} {obj} .
hold on , wait , the last step was wrong .
hmm , no , let me go over that once more .
"""
_NARRATIVE = """
S {who} A walked to the {place} in the morning E .
S {other} A had to wait in front of the {place} .
the {place} A was full of {obj} E .
S " hmm , " A said {other} , looking at the {obj} .
S {who} A showed the {obj} to {other} E .
it A rained over the {place} all day E .
S {who} and {other} A wait for the bus E .
S {other} A wanted to paint the {obj} red E .
S " can you wait for me ? " A asked {who} .
S the old {place} A was closed E .
S {who} A put the {obj} on a table E .
S they A sang a song about the {place} E .
" hmm " A was all that {other} said E .
S a dog A slept near the {obj} E .
S {other} A came home late E .
S {who} A liked the smell of the {place} E .
it A was a cold day for {who} E .
S the people in the {place} A wait for lunch E .
S {who} A found {b} {obj} under a tree E .
S {other} A gave a present to {who} E .
"""

KINDS = ("setup", "deduction", "restating", "checking", "planning", "backtracking", "narrative")


@dataclass(frozen=True)
class Template:
    """One sentence pattern; `use` tells templates of a kind apart (`plus`, `minus`, `answer`)."""

    kind: str
    use: str
    parts: tuple[str, ...]  # words, slot letters and `{field}`s in order

    @property
    def n_slots(self) -> int:
        """Register slots in the sentence."""
        return sum(part in SLOTS for part in self.parts)


def pick(rng: np.random.Generator, items: tuple[Item, ...]) -> Item:
    """One of `items`; numpy's own `choice` is 15 times slower on so few."""
    return items[int(rng.random() * len(items))]


def _read(kind: str, lines: str, use: str = "") -> tuple[Template, ...]:
    return tuple(
        Template(kind, use or kind, tuple(line.split())) for line in lines.strip().splitlines()
    )


TEMPLATES: dict[str, tuple[Template, ...]] = {
    "setup": _read("setup", _SETUP),
    "plus": _read("deduction", _PLUS, "plus"),
    "minus": _read("deduction", _MINUS, "minus"),
    "restating": _read("restating", _RESTATING),
    "answer": _read("restating", _ANSWER, "answer"),
    "checking": _read("checking", _CHECKING),
    "planning": _read("planning", _PLANNING),
    "backtracking": _read("backtracking", _BACKTRACKING),
    "narrative": _read("narrative", _NARRATIVE),
}


def realise(template: Template, values: Mapping[str, str], register: Callable[[str], str]) -> str:
    """The sentence: fields from `values`, slots from `register(slot letter)` (may be empty)."""
    words = []
    for part in template.parts:
        if part in SLOTS:
            part = register(part)
            if not part:
                continue
        elif part[0] == "{":
            part = values[part[1:-1]]
        words.append(part)
    return " ".join(words)

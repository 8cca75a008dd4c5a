"""Whether a sentence fits the small pair's grammar, and as which kind: a word-level automaton."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache

from weights.small_language.grammar import FIELDS, SLOTS, TEMPLATES, Slot, Template


@dataclass(frozen=True)
class _Automaton:
    """States are numbers: `edges[state][word]` follow a word, `skips[state]` follow nothing."""

    edges: list[dict[str, set[int]]] = field(default_factory=list)
    skips: list[set[int]] = field(default_factory=list)
    kinds: dict[int, str] = field(default_factory=dict)  # accepting state -> kind of sentence

    def state(self) -> int:
        self.edges.append({})
        self.skips.append(set())
        return len(self.edges) - 1

    def add_phrase(self, source: int, phrase: str, target: int) -> None:
        *head, last = phrase.split()
        for word in head:
            middle = self.state()
            self.edges[source].setdefault(word, set()).add(middle)
            source = middle
        self.edges[source].setdefault(last, set()).add(target)

    def add_slot(self, source: int, slot: Slot, target: int) -> None:
        """Nothing, a neutral phrase, or one or two phrases of the same register."""
        self.skips[source].add(target)
        for phrase in slot.neutral:
            self.add_phrase(source, phrase, target)
        for phrases in (slot.hedges, slot.confident):
            once = self.state()
            self.skips[once].add(target)
            for phrase in phrases:
                self.add_phrase(source, phrase, once)
                self.add_phrase(once, phrase, target)

    def add_template(self, state: int, template: Template) -> None:
        for part in template.parts:
            target = self.state()
            if part in SLOTS:
                self.add_slot(state, SLOTS[part], target)
            else:
                for word in FIELDS[part[1:-1]] if part[0] == "{" else (part,):
                    self.add_phrase(state, word, target)
            state = target
        self.kinds[state] = template.kind

    def closure(self, states: Iterable[int]) -> frozenset[int]:
        reached = set(states)
        todo = list(reached)
        while todo:
            fresh = self.skips[todo.pop()] - reached
            reached |= fresh
            todo += fresh
        return frozenset(reached)


@cache
def _automaton() -> _Automaton:
    """The automaton of all templates; every template starts at state 0."""
    automaton = _Automaton()
    start = automaton.state()
    for templates in TEMPLATES.values():
        for template in templates:
            begin = automaton.state()
            automaton.skips[start].add(begin)
            automaton.add_template(begin, template)
    return automaton


@cache  # a set of states is worked out once, so a parse costs one look-up a word
def _advance(states: frozenset[int], word: str) -> frozenset[int]:
    automaton = _automaton()
    return automaton.closure(t for state in states for t in automaton.edges[state].get(word, ()))


@cache
def _first() -> frozenset[int]:
    return _automaton().closure([0])


@cache
def _kind(states: frozenset[int]) -> str | None:
    accepted = _automaton().kinds
    return next((accepted[state] for state in sorted(states) if state in accepted), None)


def parse_sentence(text: str) -> str | None:
    """The kind of a sentence that fits some template, else None.

    Only the grammar counts: words, register phrases in their places, any number for a number. The
    arithmetic may be wrong.

    >>> parse_sentence("therefore 3 plus 4 is exactly 9 .")
    'deduction'
    >>> parse_sentence("plus 3 therefore 4 is .") is None
    True
    """
    states = _first()
    for word in text.split():
        states = _advance(states, word)
        if not states:
            return None
    return _kind(states)


def grammar_words() -> set[str]:
    """Every word that a sentence of the grammar can hold."""
    return {word for edges in _automaton().edges for word in edges}

"""Sentences of a reasoning trace, and where they lie in characters and tokens.

The paper labels the *sentences* of a trace and reads activations at token offsets before a sentence
starts. Spans are half-open: characters of the trace, and tokens by the tokenizer's own offset
mapping.
"""

import bisect
import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jaxsteer.runtime import wrong

KEYWORDS = ("wait", "hmm")
"""The paper's B (Eq. 1): the words whose rate stands for backtracking."""

# Words that end in a full stop without ending a sentence: never; unless a capital follows; or when
# a number follows. Compared in lower case, but for the titles ("5 ms. Then" ends one).
_TITLES = frozenset(("Dr", "Mr", "Mrs", "Ms", "Prof", "dr", "mr", "mrs", "prof"))
_NEVER_ENDS = frozenset(("e.g", "i.e", "eg", "ie", "cf", "viz", "vs", "resp", "approx"))
_ENDS_BEFORE_CAPITAL = frozenset("etc al inc ltd co jr sr min max hr hrs lb lbs oz ft st".split())
_NUMBERED = frozenset(
    "no nos p pp ch sec vol ex eq eqs fig figs thm "
    "jan feb mar apr jun jul aug sep sept oct nov dec".split()
)
_INITIALS = re.compile(r"(?:[A-Za-z]\.)+[A-Za-z]")
_WORD_BEFORE = re.compile(r"[^\s(\[\"'“‘*_]*\Z")
_LIST_MARKER = re.compile(
    r"[*_(#>+\-\s]*(?:(?:step|case|part|problem|question|option)\s+)?"
    r"(?:\d{1,3}|[A-Za-z]|[ivx]{2,4})\Z",
    re.IGNORECASE,
)

# Text in which a full stop or a line break means nothing: code, and mathematics within one
# paragraph, either of them cut off by the end of the text or not. `$5 and $7` is money: a closing
# `$` follows no space.
_PROTECTED = re.compile(
    r"""
      ```.*?(?:```|(?=</think>)|\Z)
    | `[^`\n]+`
    | \\begin\{(?P<env>[^}\n]*)\}(?:(?!\n\s*\n|</think>).)*?(?:\\end\{(?P=env)\}|\Z)
    | \\\[(?:(?!\n\s*\n|</think>).)*?(?:\\\]|\Z)
    | \\\((?:(?!\n\s*\n|</think>).)*?(?:\\\)|\Z)
    | \$\$(?:(?!\n\s*\n|</think>).)+?(?:\$\$|\Z)
    | \$(?![\s$])[^$\n]*?(?<![\s\\])\$(?!\d)
    """,
    re.DOTALL | re.VERBOSE,
)
_TAG = re.compile(r"</?think>")
_BREAK = re.compile(r"(?<!\s)\s*\n\s*")
_WORD_GOES_ON = re.compile(r"(?:a [a-z]{2}|[a-z]{2,}(?=[\s,.;:]|\Z))(?!\s*[=+*/^<>-])")
_EQUATION_GOES_ON = re.compile(r"[=≈≤≥→⇒]")
# Closing quotes, brackets and Markdown emphasis stay with the sentence that they close.
_STOP = re.compile(r"(?<![.!?…])(?P<stop>[.!?…]++)(?P<closers>[\"')\]”’»*_]*+)(?=\s|\Z)|[。！？]+")
_NEXT = re.compile(r"\s*(?P<openers>[\"'“‘«(\[*_]*)(?P<first>\S?)")
_FACTORIAL = re.compile(r"(?:[\d)]|\b[A-Za-z])\Z")
_LONE_QUOTE = re.compile(r"\s+\"\s")
_OPERATOR = re.compile(r"\s*[*-]\s")
_CONTINUES = frozenset("=+/<>,;:)]}%^&|≤≥≠×÷·.!?…")
_VISIBLE = re.compile(r"\S")


@dataclass(frozen=True)
class Sentence:
    """One sentence: `text` is the trace's characters `start` to `stop` (half-open)."""

    start: int
    stop: int
    text: str


def split_sentences(text: str) -> list[Sentence]:
    r"""Split a trace into sentences.

    Spans are in order and do not overlap, `text[s.start:s.stop] == s.text`, no sentence starts or
    ends with white space, and every other character belongs to exactly one sentence. Decimals,
    abbreviations, list numbers, factorials, code and LaTeX do not end a sentence; a blank line
    does, as does a line break unless the next line plainly continues the sentence. `</think>`
    stands alone. Text with a space around every token is split at its lone full stops.

    >>> [s.text for s in split_sentences(r"So \( x = 3. \) holds, i.e. 3.14 > 3. Wait, no.")]
    ['So \\( x = 3. \\) holds, i.e. 3.14 > 3.', 'Wait, no.']
    >>> [s.text for s in split_sentences("a is 9 . wait , let me see ... yes .")]
    ['a is 9 .', 'wait , let me see ... yes .']
    """
    text = text.rstrip()  # so that code or mathematics without an end is seen to end the text
    protected = [match.span() for match in _PROTECTED.finditer(text)]
    hard = sorted(_tag_cuts(text, protected) + _line_cuts(text, protected))
    return _sentences_between(text, sorted({*hard, *_stop_cuts(text, protected, hard)}))


def token_spans(
    offsets: Sequence[tuple[int, int]], sentences: Sequence[Sentence]
) -> list[tuple[int, int]]:
    """Return each sentence's token span `(first, stop)`, half-open.

    Args:
      offsets: the tokenizer's offset mapping, `(start, stop)` characters for each token of the
        text that `sentences` came from. Empty spans (special tokens) belong to no sentence.
      sentences: sentences of that text.

    A token belongs to a sentence when it overlaps its characters: byte-level tokens carry the space
    before a word, so the first token of a sentence usually starts before it. When no token overlaps
    (the tokens were cut short) the span is empty. Raises ValueError for offsets out of order.

    >>> token_spans([(0, 0), (0, 2), (2, 3), (3, 8)], split_sentences("So. Wait"))
    [(1, 3), (3, 4)]
    """
    real = [(i, int(a), int(b)) for i, (a, b) in enumerate(offsets) if b > a]
    starts, stops = [a for _, a, _ in real], [b for _, _, b in real]
    if starts != sorted(starts) or stops != sorted(stops):
        raise ValueError("offsets: expected token spans in the order of the text")
    index = [i for i, _, _ in real]
    spans = []
    for sentence in sentences:
        first = bisect.bisect_right(stops, sentence.start)
        last = bisect.bisect_left(starts, sentence.stop) - 1
        if first > last:
            next_token = index[first] if first < len(index) else len(offsets)
            spans.append((next_token, next_token))
        else:
            spans.append((index[first], index[last] + 1))
    return spans


@functools.cache
def keyword_pattern(keywords: tuple[str, ...] = KEYWORDS) -> re.Pattern[str]:
    """Return the pattern that finds the keywords as whole words, in any case.

    The underscores of Markdown's emphasis belong to no word, those within a name do.

    >>> keyword_pattern().findall("_Wait_, no: wait_time is __hmm__")
    ['_Wait_', '__hmm__']
    """
    if not (keywords and all(word.strip() for word in keywords)):
        raise wrong("keywords", repr(keywords), "at least one word, none empty")
    words = "|".join(re.escape(word) for word in keywords)
    return re.compile(rf"(?<!\w)_*(?:{words})_*(?!\w)", re.IGNORECASE)


def keyword_labels(sentences: Sequence[Sentence], keywords: Sequence[str] = KEYWORDS) -> list[bool]:
    """Judge each sentence by its words: True where it holds a keyword (a whole word, any case).

    >>> keyword_labels(split_sentences("Wait, no. I waited. So: hmm."))
    [True, False, True]
    """
    pattern = keyword_pattern(tuple(keywords))
    return [pattern.search(sentence.text) is not None for sentence in sentences]


def _inside(position: int, spans: Sequence[tuple[int, int]]) -> bool:
    """Say whether `position` lies strictly inside one of the ordered spans."""
    index = bisect.bisect_left(spans, (position, -1)) - 1
    return index >= 0 and position < spans[index][1]


def _tag_cuts(text: str, protected: Sequence[tuple[int, int]]) -> list[int]:
    tags = [m.span() for m in _TAG.finditer(text) if not _inside(m.start(), protected)]
    return [position for span in tags for position in span]


def _line_cuts(text: str, protected: Sequence[tuple[int, int]]) -> list[int]:
    """Return the line breaks that end a sentence: all but those in the middle of one."""
    cuts = []
    for match in _BREAK.finditer(text):
        before = text[max(0, match.start() - 1)]
        goes_on = match.group().count("\n") == 1 and (
            _EQUATION_GOES_ON.match(text, match.end())
            or ((before.isalnum() or before in ",;-") and _WORD_GOES_ON.match(text, match.end()))
        )
        if not goes_on and not _inside(match.start(), protected):
            cuts.append(match.end())
    return cuts


def _stop_cuts(
    text: str, protected: Sequence[tuple[int, int]], hard: Sequence[int]
) -> Iterable[int]:
    """Yield the ends of the full stops, question and exclamation marks that end a sentence.

    `hard` are the cuts already known, in order: a list number is one only where a sentence begins.
    """
    begin, index = 0, 0
    for match in _STOP.finditer(text):
        if _inside(match.start(), protected):
            continue
        while index < len(hard) and hard[index] <= match.start():
            begin, index = hard[index], index + 1
        if _ends_sentence(text, match, begin):
            begin = match.end()
            yield begin


def _ends_sentence(text: str, match: re.Match[str], begin: int) -> bool:
    """Say whether the stop `match` ends the sentence that begins at `begin`."""
    stop, closers = match["stop"], match["closers"]
    follows = _NEXT.match(text, match.end())
    if stop is None or follows is None or not (follows["openers"] or follows["first"]):
        return True  # a full-width stop, or the end of the text
    first = follows["first"]
    if not follows["openers"] and first in _CONTINUES:
        return False
    if closers and first.islower():
        return False  # "Blake is lying." means that ...
    if _LONE_QUOTE.match(text, match.end()) and text.count('"', begin, match.start()) % 2:
        return False  # " is that so ? " asked kai .
    if set(stop) <= {".", "…"} and (len(stop) > 1 or stop == "…"):
        return first.isupper()
    if stop[-1] in "!?":
        factorial = stop == "!" and _FACTORIAL.search(
            text, max(0, match.start() - 2), match.start()
        )
        return not (_OPERATOR.match(text, match.end()) or (factorial and not first.isupper()))
    if match.start() == 0 or text[match.start() - 1].isspace():
        return True  # a full stop that is a word of its own
    return _full_stop_ends(text, match.start(), begin, first)


def _full_stop_ends(text: str, stop: int, begin: int, first: str) -> bool:
    start = _VISIBLE.search(text, begin)
    if start and stop - start.start() < 24 and _LIST_MARKER.match(text[start.start() : stop]):
        return False
    match = _WORD_BEFORE.search(text[max(begin, stop - 24) : stop])
    word = match.group() if match else ""
    lower = word.lower()
    if word in _TITLES or lower in _NEVER_ENDS:
        return False
    if lower in _ENDS_BEFORE_CAPITAL or _INITIALS.fullmatch(word):
        return first.isupper()
    return not (lower in _NUMBERED and first.isdigit())


def _sentences_between(text: str, cuts: Sequence[int]) -> list[Sentence]:
    """Turn cut positions into sentences; a piece of mere punctuation joins the one before it."""
    spans: list[tuple[int, int]] = []
    for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        piece = text[begin:end].strip()
        if not piece:
            continue
        start = text.index(piece[0], begin)
        stop = start + len(piece)
        wordless = not any(c.isalnum() for c in piece)
        if wordless and spans and not _TAG.fullmatch(text, *spans[-1]):
            spans[-1] = (spans[-1][0], stop)
        else:
            spans.append((start, stop))
    return [Sentence(start=a, stop=b, text=text[a:b]) for a, b in spans]

"""What one generated text shows: whether it counts, how much it backtracks, how coherent it is.

A direction that breaks the text shows nothing of backtracking, so a text counts for the judged
share only within the bounds below. They were fixed on an independent replication's texts of
DeepSeek-R1-Distill-Llama-8B, 20 a cell. Unsteered, 4-grams repeat by .02 to .24, and hardly a
backtracking sentence says what an earlier one said. At magnitude 8 of its base-derived direction
15 of the 20 texts are within the bounds, at 12 one is: what rises there is repetition.

The judged share is that of *distinct* backtracking sentences among all sentences of the text, at
most `MOST_SHARE`, so that no text weighs more than others however long it runs away.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxsteer.analysis import (
    Sentence,
    keyword_labels,
    keyword_matches_per_word,
    keyword_rate,
    repetition,
    split_sentences,
)

LEAST_WORDS = 20
LEAST_SENTENCES = 3
MOST_REPETITION = 0.4  # of word 4-grams
MOST_REPEATED = 0.5  # of the backtracking sentences: those that an earlier one says already
MOST_SHARE = 0.3  # that a text can count for
REASONS = ("empty", "short", "repetitive", "looping")  # why a text does not count

# (text's sentences) -> (how many are coherent, how many there are), or None to use repetition.
Grammar = Callable[[Sequence[Sentence]], tuple[int, int]]


@dataclass(frozen=True)
class Scores:
    """One generated text."""

    prompt: str
    keyword_rate: float  # Eq. 1 as a share of words; NaN for a text without words
    backtracking: int  # sentences with a keyword
    sentences: int
    coherent: float  # numerator and denominator of coherence
    coherence_of: float
    repetition: float = math.nan  # share of repeated 4-grams; NaN for a text of fewer words
    fitting: float = math.nan  # sentences that fit the grammar, if there is one
    logprob: float = 0.0  # sum over the tokens, under the unsteered model, where that was run
    scored_tokens: int = 0
    keyword_matches: float = math.nan  # Eq. 1 as keywords over words
    backtracking_fitting: float = math.nan  # those with a keyword that fit the grammar
    distinct: int = 0  # backtracking sentences that say something else than those before
    excluded: str = ""  # one of `REASONS`, if the text does not count

    @property
    def judged(self) -> float:
        """The judged share; NaN for a text that does not count."""
        return math.nan if self.excluded else min(self.distinct / self.sentences, MOST_SHARE)


def small_pair_grammar(sentences: Sequence[Sentence]) -> tuple[int, int]:
    """How many sentences fit the small pair's grammar, and how many there are."""
    from weights.small_language.parser import parse_sentence

    fitting = sum(parse_sentence(sentence.text) is not None for sentence in sentences)
    return fitting, len(sentences)


def whole_sentences(row: dict[str, Any]) -> list[Sentence]:
    """The sentences of a generated text, without a last one that was cut off."""
    text = row["text"]
    sentences = split_sentences(text)
    cut = not row["stopped"] and not text.rstrip().endswith((".", "!", "?"))
    return sentences[:-1] if cut else sentences


def score(row: dict[str, Any], *, keywords: Sequence[str], grammar: Grammar | None) -> Scores:
    """Judge one row of the sweep. A last sentence that was cut off does not count.

    A row may have `logprob_sum` and `n_tokens` of its text under the unsteered model
    (`outcome.with_logprobs`).
    """
    text, sentences = row["text"], whole_sentences(row)
    repeated = repetition(text)
    fitting = math.nan
    if grammar is None:
        coherent, coherence_of = (0.0, 0.0) if math.isnan(repeated) else (1.0 - repeated, 1.0)
    else:
        coherent, coherence_of = grammar(sentences)
        fitting = coherent
    labels = keyword_labels(sentences, keywords)
    backtracking = [s for s, positive in zip(sentences, labels, strict=True) if positive]
    distinct = len({_plain(sentence.text) for sentence in backtracking})
    return Scores(
        prompt=row["prompt"],
        keyword_rate=keyword_rate(text, keywords),
        backtracking=len(backtracking),
        sentences=len(sentences),
        coherent=coherent,
        coherence_of=coherence_of,
        repetition=repeated,
        fitting=fitting,
        logprob=row.get("logprob_sum", 0.0),
        scored_tokens=row.get("n_tokens", 0),
        keyword_matches=keyword_matches_per_word(text, keywords),
        backtracking_fitting=math.nan if grammar is None else grammar(backtracking)[0],
        distinct=distinct,
        excluded=str(
            excluded_because(
                words=len(text.split()),
                sentences=len(sentences),
                repetition=repeated,
                backtracking=len(backtracking),
                distinct=distinct,
            )
        ),
    )


def excluded_because(
    *,
    words: ArrayLike,
    sentences: ArrayLike,
    repetition: ArrayLike,
    backtracking: ArrayLike,
    distinct: ArrayLike,
) -> NDArray[np.str_]:
    """Why texts do not count, one of `REASONS` each, "" for those that do.

    Of each text its words, its sentences, the share of its 4-grams that repeat, its backtracking
    sentences and how many of them are distinct.

    >>> excluded_because(
    ...     words=[90, 90], sentences=9, repetition=0.1, backtracking=8, distinct=[1, 7]
    ... ).tolist()
    ['looping', '']
    """
    of = np.asarray(backtracking)
    reasons = [
        np.equal(words, 0),
        np.less(words, LEAST_WORDS) | np.less(sentences, LEAST_SENTENCES),
        np.greater(repetition, MOST_REPETITION),
        np.greater(of - distinct, MOST_REPEATED * of),
    ]
    return np.select(np.broadcast_arrays(*reasons), REASONS, "")


def _plain(sentence: str) -> str:
    """A sentence's words alone: "Wait, no." and "wait … NO!" say the same."""
    return " ".join(re.findall(r"\w+", sentence.lower()))

"""The small pair's text as rows of token ids, and what there is to count in it."""

import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context

import numpy as np

from weights.small_language.problems import Split
from weights.small_language.text import CHUNK, Document, TextSettings, documents
from weights.small_language.tokenizer import (
    ASSISTANT,
    BOS,
    EOS,
    PAD,
    THINK,
    USER,
    encode,
    vocabulary,
)


@dataclass(frozen=True)
class Corpus:
    """Documents as rows: cut at the row's length, padded on the right."""

    tokens: np.ndarray  # int16 [N, T]
    first: np.ndarray  # int16 [N], index of the first token that the loss counts


def frame(document: Document, *, chat: bool) -> tuple[str, str]:
    """What stands before the solution, and the solution up to the end token.

    `<bos> question : … solution :` in the base model's corpus, `<bos> story :` for its stories,
    `<bos> <user> … <assistant> <think>` with `chat`.
    """
    if chat:
        head = f"{BOS} {USER} {document.prompt} {ASSISTANT} {THINK}"
    elif document.prompt:
        head = f"{BOS} question : {document.prompt} solution :"
    else:
        head = f"{BOS} story :"
    return head, f"{document.solution} {EOS}"


def corpus(
    n: int,
    settings: TextSettings,
    *,
    length: int,
    chat: bool,
    split: Split = "train",
    first_chunk: int = 0,
    processes: int | None = None,
) -> Corpus:
    """`n` documents as rows of `length` tokens, the same for any number of processes.

    The loss counts the solution alone with `chat` and all but the first token without.
    """
    chunks = range(first_chunk, first_chunk + -(-n // CHUNK))
    work = partial(_rows, settings=settings, length=length, chat=chat, split=split)
    processes = min(processes or os.cpu_count() or 1, len(chunks) // 8)
    if processes < 2:
        parts = [work(chunk) for chunk in chunks]
    else:  # spawned, because forking a process that holds a JAX backend can hang
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            parts = list(pool.map(work, chunks, chunksize=-(-len(chunks) // (4 * processes))))
    return Corpus(
        np.concatenate([part.tokens for part in parts])[:n],
        np.concatenate([part.first for part in parts])[:n],
    )


def _rows(chunk: int, *, settings: TextSettings, length: int, chat: bool, split: Split) -> Corpus:
    tokens = np.full((CHUNK, length), vocabulary()[PAD], np.int16)
    first = np.ones(CHUNK, np.int16)
    for row, document in enumerate(documents(CHUNK, settings, first_chunk=chunk, split=split)):
        head, solution = (encode(part) for part in frame(document, chat=chat))
        ids = (head + solution)[:length]
        tokens[row, : len(ids)] = ids
        if chat:
            first[row] = min(len(head), length)
    return Corpus(tokens, first)


@dataclass(frozen=True)
class Statistics:
    """Counts over a corpus, stories apart; sentences that start after the cut do not count."""

    documents: int
    tokens: float  # a document, before the cut
    cut: float  # share of documents longer than the cut
    sentences: float  # a document
    words: float  # a sentence, the full stop included
    slots: float  # register slots of a sentence
    doubt: float  # share of sentences under doubt
    errors: float  # share of deductions with a wrong result
    hedges: tuple[float, float]  # a slot: without and with doubt
    confident: tuple[float, float]  # a slot, likewise
    backtracking: float  # share of sentences
    backtracking_by_doubt: tuple[float, float]  # a place where it may start, likewise
    backtracking_after_hedge: tuple[float, float]  # after a sentence without, with a hedge


def statistics(texts: Iterable[Document], *, length: int, chat: bool) -> Statistics:
    """Measure documents that are to be cut at `length` tokens."""
    lengths, kept, after = [], [], []
    for document in texts:
        if document.problem is None:
            continue
        head, solution = frame(document, chat=chat)
        position = len(head.split())
        lengths.append(position + len(solution.split()))
        previous = None
        for sentence in document.sentences:
            if position >= length:
                break
            kept.append(sentence)
            if previous is not None and not sentence.redone:
                after.append((previous.hedges > 0, sentence.backtracking))
            position += len(sentence.text.split())
            previous = sentence
    body = [s for s in kept if not s.backtracking]
    deductions = [s.correct for s in kept if s.kind == "deduction"]

    def share(counts: Iterable[int], among: Iterable[int]) -> float:
        return sum(counts) / max(sum(among), 1)

    def by_doubt(name: str) -> tuple[float, float]:
        without, under = ([s for s in body if s.doubt == doubt] for doubt in (False, True))
        slots = [[s.slots for s in group] for group in (without, under)]
        counts = [[getattr(s, name) for s in group] for group in (without, under)]
        return share(counts[0], slots[0]), share(counts[1], slots[1])

    def mean(values: list[bool]) -> float:
        return float(np.mean(values)) if values else 0.0

    places = [(s.doubt, s.backtracking) for s in kept if not s.redone]
    return Statistics(
        documents=len(lengths),
        tokens=float(np.mean(lengths)),
        cut=float(np.mean(np.array(lengths) > length)),
        sentences=len(kept) / len(lengths),
        words=float(np.mean([len(s.text.split()) for s in kept])),
        slots=float(np.mean([s.slots for s in body])),
        doubt=mean([s.doubt for s in kept]),
        errors=1 - mean(deductions),
        hedges=by_doubt("hedges"),
        confident=by_doubt("confident"),
        backtracking=mean([s.backtracking for s in kept]),
        backtracking_by_doubt=_split_mean(places),
        backtracking_after_hedge=_split_mean(after),
    )


def matched_hazard(reasoning: TextSettings, *, length: int, n: int = 10_000) -> float:
    """The hazard at which a bare coin gives as much backtracking as `reasoning` has.

    Every backtracking sentence brings the redone step with it, where no other one may start. So a
    coin of hazard h gives h / (1 + h) backtracking sentences per sentence.
    """
    rate = statistics(documents(n, reasoning), length=length, chat=True).backtracking
    return rate / (1 - rate)


def _split_mean(pairs: list[tuple[bool, bool]]) -> tuple[float, float]:
    groups = ([value for key, value in pairs if key == wanted] for wanted in (False, True))
    without, under = (float(np.mean(group)) if group else 0.0 for group in groups)
    return without, under

"""Stop strings, found on the device wherever they fall among the tokens.

The strings become an automaton over bytes (Aho-Corasick), and that becomes a table over tokens: the
state of a row after a token, given the state before it. The loop looks up one number for each row
and token. A string may begin and end in the middle of a token.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

START, FOUND = 0, 1  # states; no state is left for another once it is FOUND
_STATES = 32  # state counts are rounded up to multiples of it, so that few shapes are compiled


@dataclass(frozen=True)
class StopStrings:
    """Strings after which a row ends; make one with `stop_strings`."""

    strings: tuple[str, ...]
    table: jax.Array  # uint8 or uint16 [1, S, V]: the state after a token, the same for all rows

    def cut(self, text: bytes) -> bytes:
        """`text` up to the stop string that ends first; of several that end there, the longest.

        The tokens that spell the text do not matter.
        """
        matches = []
        for string in self.strings:
            pattern = string.encode()
            if (start := text.find(pattern)) >= 0:
                matches.append((start + len(pattern), start))
        return text[: min(matches)[1]] if matches else text


def stop_strings(
    strings: Sequence[str], pieces: Sequence[bytes], *, vocab_size: int
) -> StopStrings:
    """Prepare `strings` for the tokens of `pieces`, as `token_bytes` gives them.

    Text is compared byte for byte in UTF-8, from the first generated token on. Ids below
    `vocab_size` that the tokenizer does not know write nothing.

    Raises:
        ValueError: for no strings, an empty one, one that is not text, too many to count (about
            one state a byte), or more pieces than ids.
    """
    if isinstance(strings, str) or len(strings) == 0:
        raise ValueError(f"stop_strings: got {strings!r}, expected a list of at least one string")
    for i, string in enumerate(strings):
        if not isinstance(string, str) or not string:
            raise ValueError(f"stop_strings[{i}]: got {string!r}, expected a text")
    if len(pieces) > vocab_size:
        raise ValueError(f"pieces: got {len(pieces)}, expected at most vocab_size={vocab_size}")
    moves = automaton([string.encode() for string in strings])
    states = -(-len(moves) // _STATES) * _STATES
    if states > 2**16:
        raise ValueError(f"stop_strings: got {len(moves)} states, expected at most 65536")
    table = np.zeros((1, states, vocab_size), np.uint8 if states <= 2**8 else np.uint16)
    table[0, : len(moves)] = np.arange(len(moves))[:, None]  # what a token of no bytes does
    table[0, : len(moves), : len(pieces)] = _over_tokens(moves, pieces)
    return StopStrings(tuple(strings), jnp.asarray(table))


def automaton(patterns: Sequence[bytes]) -> np.ndarray:
    """The state after each byte, `[S, 256]`, from START until a pattern has ended: FOUND.

    >>> moves = automaton([b"aab"])
    >>> state = START
    >>> for byte in b"aaab":
    ...     state = int(moves[state, byte])
    >>> state == FOUND
    True
    """
    children: list[dict[int, int]] = [{}]  # a tree of the patterns' beginnings
    ends = [False]
    for pattern in patterns:
        node = 0
        for byte in pattern:
            if byte not in children[node]:
                children[node][byte] = len(children)
                children.append({})
                ends.append(False)
            node = children[node][byte]
        ends[node] = True

    # A byte that does not go on from a node goes on from the longest proper end of its text that
    # is in the tree, which is nearer to the root and so has its moves already.
    moves = np.zeros((len(children), 256), np.int64)
    shorter = [0] * len(children)
    queue = deque([0])
    while queue:
        node = queue.popleft()
        ends[node] = ends[node] or ends[shorter[node]]
        moves[node] = moves[shorter[node]]
        for byte, child in children[node].items():
            shorter[child] = int(moves[node, byte]) if node else 0
            moves[node, byte] = child
            queue.append(child)

    # START, FOUND, then the others.
    name = np.array([FOUND if end else 0 for end in ends])
    others = np.flatnonzero(name[1:] == 0) + 1
    name[others] = 2 + np.arange(len(others))
    renamed = np.full((2 + len(others), 256), FOUND, np.int64)
    renamed[START] = name[moves[0]]
    renamed[2:] = name[moves[others]]
    return renamed


def _over_tokens(moves: np.ndarray, pieces: Sequence[bytes]) -> np.ndarray:
    """The state after each token, `[S, V]`: all their first bytes, then all their second ones."""
    lengths = np.array([len(piece) for piece in pieces])
    text = np.frombuffer(b"".join(pieces), np.uint8)
    begin = np.cumsum(lengths) - lengths
    order = np.argsort(-lengths, kind="stable")  # tokens that have a c-th byte come first
    begin, lengths = begin[order], lengths[order]
    state = np.repeat(np.arange(len(moves))[:, None], len(pieces), axis=1)
    flat = moves.ravel()
    for c in range(lengths[0]):
        n = int(np.searchsorted(-lengths, -c))  # tokens longer than c
        state[:, :n] = flat[state[:, :n] * 256 + text[begin[:n] + c]]
    table = np.empty_like(state)
    table[:, order] = state
    return table

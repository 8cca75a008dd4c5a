"""What the search for parts measures: keywords where sentences start, with the direction and not.

The text is held fixed (teacher-forced): traces that the unsteered reasoning model wrote, put behind
the prompt in one format or another. At each start of a sentence but the first, before which nothing
is steered, a model gives the keywords a probability; the *response* to a direction is how much
adding it raises that, on the mean over the starts. *Fluency* is the mean log-probability of the
text's tokens under the steered model. They take one or two forward passes, where the rate in
generated text takes thousands of steps.

Generation decides in the end: neither knows what a steered text makes of itself.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsteer.analysis import Sentence, bootstrap_interval, graft, split_sentences, token_spans
from jaxsteer.directions import random_directions, rescale
from jaxsteer.files import append_rows, recover_rows
from jaxsteer.llama import Model, TokenBatch, bind, bucket, forward, left_pad, spread_rows
from jaxsteer.runtime import hosts
from jaxsteer.steering import Capture, Steering, add

Tuned = frozenset[str]  # a hybrid: the parts that are the reasoning model's, the rest is the base's

NONE = "none"  # the direction that is not added
_TOKENS_AT_ONCE = 2**13
_PROBES = 64  # tokens of a text, evenly spaced, at which its likelihood is read


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Starts:
    """Texts, and where their sentences start."""

    batch: TokenBatch  # [B, T]
    prompt_length: jax.Array  # int32 [B]
    positions: jax.Array  # int32 [B, P]: the tokens before a start, -1 where there are fewer
    probes: jax.Array  # int32 [B, Q]: tokens whose next one is looked at, -1 likewise
    following: jax.Array  # int32 [B, Q]: those next ones


def read_starts(
    tokenizer: Any, texts: Iterable[tuple[str, str]], *, tokens: int, at_once: int = _TOKENS_AT_ONCE
) -> list[Starts]:
    """Batches of one shape of texts, each a prompt as rendered and what a model wrote behind it.

    Texts are cut behind `tokens` tokens, the prompt's among them. A batch has at most `at_once`
    tokens or one row; the last is filled up with rows that have no starts.

    Raises:
        ValueError: if no sentence starts within the tokens.
    """
    read = [_read(tokenizer, prompt, text, tokens) for prompt, text in texts]
    most = bucket(max((len(one.starts) for one in read), default=0), step=8)
    if not most:
        raise ValueError(f"tokens: got {tokens}, within which no text has a second sentence")
    length = bucket(max(len(one.ids) for one in read), step=16)
    rows = min(len(read), max(1, at_once // length))
    read += [_Read(read[0].ids[:1], 1, [], [])] * (-len(read) % rows)
    return [
        _batch(read[first : first + rows], length=length, most=most)
        for first in range(0, len(read), rows)
    ]


class _Read(NamedTuple):
    """One text as tokens."""

    ids: list[int]
    prompt_length: int
    starts: list[int]  # tokens before a sentence starts
    probes: list[int]


def _read(tokenizer: Any, prompt: str, text: str, tokens: int) -> _Read:
    whole, behind = prompt + text, len(prompt)
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    spans = token_spans(
        encoded["offset_mapping"],
        [Sentence(behind + s.start, behind + s.stop, s.text) for s in split_sentences(text)],
    )
    prompt_length = sum(1 for _, stop in encoded["offset_mapping"] if stop <= behind)
    ids = encoded["input_ids"][:tokens]
    starts = [first - 1 for first, _ in spans if prompt_length < first < len(ids)]
    steered = np.arange(prompt_length, len(ids) - 1)
    picked = np.linspace(0, len(steered) - 1, min(_PROBES, len(steered))).astype(int)
    return _Read(ids, prompt_length, starts, steered[picked].tolist())


def _batch(read: Sequence[_Read], *, length: int, most: int) -> Starts:
    positions = np.full((len(read), most), -1, np.int32)
    probes = np.full((len(read), _PROBES), -1, np.int32)
    following = np.zeros((len(read), _PROBES), np.int32)
    for b, one in enumerate(read):
        positions[b, : len(one.starts)] = one.starts
        probes[b, : len(one.probes)] = one.probes
        following[b, : len(one.probes)] = [one.ids[i + 1] for i in one.probes]
    prompt_length = np.array([one.prompt_length for one in read], np.int32)
    arrays = (prompt_length, positions, probes, following)
    batch = left_pad([one.ids for one in read], length=length)
    return Starts(batch, *(jnp.asarray(array) for array in arrays))


@jax.jit
def _read_out(
    model: Model, starts: Starts, steering: Steering, ids: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Probability of the tokens `ids` at each start, and log-probability of what follows probes.

    float32 `[B, P]` and `[B, Q]`, NaN where there is none.
    """
    last, most = model.config.n_layers - 1, starts.positions.shape[1]
    capture = Capture(
        layers=(last,), positions=jnp.concatenate([starts.positions, starts.probes], axis=1)
    )
    out = forward(
        model,
        starts.batch.tokens,
        mask=starts.batch.mask,
        steering=steering,
        prompt_length=starts.prompt_length,
        capture=capture,
    )
    # Only here, where logits at all tokens would be gigabytes with a large vocabulary.
    logits = bind(model).unembed(out.captured["resid_post"][0])
    mass = jnp.sum(jax.nn.softmax(logits[:, :most])[..., ids], axis=-1)
    chosen = jnp.take_along_axis(logits[:, most:], starts.following[..., None], axis=-1)[..., 0]
    return mass, chosen - jax.nn.logsumexp(logits[:, most:], axis=-1)


def make_directions(
    vector: np.ndarray, *, layer: int, site: str, coeff: float, random: int = 3
) -> dict[str, Steering]:
    """Nothing, the base-derived direction, and random directions of its length, by name."""
    norm = float(np.linalg.norm(vector))
    drawn = [rescale(one, norm) for one in random_directions(random, len(vector))]
    named = {NONE: (vector, 0.0), "base": (vector, coeff)}
    named |= {f"random-{i}": (one, coeff) for i, one in enumerate(drawn)}
    return {
        name: add(one, layer=layer, coeff=strength, site=site)
        for name, (one, strength) in named.items()
    }


@dataclass(frozen=True)
class Mass:
    """What a hybrid gives the keywords and the text, added up over each text, all `[R]`."""

    starts: np.ndarray  # how many starts of sentences
    mass: np.ndarray  # probability of the keywords
    tokens: np.ndarray  # how many probes
    logprob: np.ndarray  # log-probability of what follows them

    @property
    def mean(self) -> float:
        """Mean probability of a keyword over all starts."""
        return float(self.mass.sum() / self.starts.sum())


@dataclass(frozen=True)
class Response:
    """How much a direction raises the keywords, with 95% intervals over the texts."""

    without: float  # mean probability of a keyword at the start of a sentence
    steered: float
    rise: float  # steered - without
    low: float
    high: float
    n: int  # texts


def response(without: Mass, steered: Mass) -> Response:
    """The response, from what was measured on the same texts."""
    low, high = bootstrap_interval(steered.mass - without.mass, steered.starts, limits=(-1, 1))
    return Response(
        without=without.mean,
        steered=steered.mean,
        rise=steered.mean - without.mean,
        low=low,
        high=high,
        n=int(np.sum(without.starts > 0)),
    )


@dataclass(frozen=True)
class Bench:
    """Measures hybrids and appends each measurement to a file, so that none is made twice.

    A row of the file: `texts`, `direction`, `tuned` (the parts), and the fields of a Mass.
    """

    base: Model
    reasoning: Model
    texts: Mapping[str, Sequence[Starts]]  # by name
    directions: Mapping[str, Steering]  # by name; NONE with a coefficient of 0
    keyword_ids: Sequence[int]
    file: Path
    known: dict[str, Mass] = field(default_factory=dict)

    def recover(self) -> "Bench":
        """The same bench, which knows what an interrupted run has measured."""
        for row in recover_rows(self.file):
            key = _key(row["texts"], row["direction"], row["tuned"])
            self.known[key] = Mass(*(np.array(row[f.name]) for f in fields(Mass)))
        return self

    @property
    def length(self) -> float:
        """Of the direction, at a coefficient of 1."""
        return float(np.linalg.norm(self.directions["base"].vector))

    def mass(self, tuned: Tuned, *, texts: str, direction: str = NONE) -> Mass:
        """The keywords' probability in a hybrid."""
        key = _key(texts, direction, tuned)
        if key not in self.known:
            self.known[key] = response = self._measure(tuned, texts, direction)
            row = {"texts": texts, "direction": direction, "tuned": sorted(tuned)}
            numbers = {name: value.tolist() for name, value in vars(response).items()}
            append_rows(self.file, [row | numbers])
        return self.known[key]

    def response(self, tuned: Tuned, *, texts: str, direction: str = "base") -> Response:
        """The response of a hybrid to a direction."""
        return response(
            self.mass(tuned, texts=texts), self.mass(tuned, texts=texts, direction=direction)
        )

    def rise(self, tuned: Tuned, *, texts: str, direction: str = "base") -> float:
        """The response alone, without its interval: what a search asks for."""
        steered = self.mass(tuned, texts=texts, direction=direction)
        return steered.mean - self.mass(tuned, texts=texts).mean

    def fluency(self, tuned: Tuned, *, texts: str, direction: str = "base") -> float:
        """Mean log-probability of a token of the texts, with the direction."""
        response = self.mass(tuned, texts=texts, direction=direction)
        return float(response.logprob.sum() / response.tokens.sum())

    def _measure(self, tuned: Tuned, texts: str, direction: str) -> Mass:
        model = graft(self.base, self.reasoning, tuned)
        ids = jnp.asarray(self.keyword_ids, jnp.int32)
        sums: list[list[np.ndarray]] = []
        for batch in self.texts[texts]:
            placed = spread_rows(batch, model)
            read = hosts.gather(_read_out(model, placed, self.directions[direction], ids))
            row = []
            for at, values in zip((batch.positions, batch.probes), read, strict=True):
                real = np.asarray(at) >= 0
                kept = np.where(real, values, 0.0)
                row += [real.sum(axis=1), kept.sum(axis=1, dtype=np.float64)]
            sums.append(row)
        return Mass(*(np.concatenate(column) for column in zip(*sums, strict=True)))


def _key(texts: str, direction: str, tuned: Iterable[str]) -> str:
    return json.dumps([texts, direction, sorted(tuned)])

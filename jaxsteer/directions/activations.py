"""The activation pass: traces in, moments by behaviour and offset out, in one pass a batch."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

from jaxsteer.directions.moments import Moments
from jaxsteer.llama import (
    BLOCK_TOKENS,
    TENSOR,
    Model,
    TokenBatch,
    bucket,
    check_batch,
    forward,
    left_pad,
    mesh_of,
    mesh_sizes,
    spread_rows,
)
from jaxsteer.runtime import hosts, preemption
from jaxsteer.steering import SITES, Capture, EventSums, int32s, site_index, site_width

Pair = tuple[jax.Array, jax.Array]  # a sum, and what rounding has taken from it


@dataclass(frozen=True)
class Trace:
    """The tokens of one text, where its sentences start and what each of them does."""

    tokens: Sequence[int]  # the prompt's, then the reasoning's
    prompt_length: int  # activations are read behind the prompt only
    starts: Sequence[int]  # index of each sentence's first token
    labels: Sequence[str]  # of each sentence

    @property
    def positive(self) -> list[bool]:
        """Whether each sentence backtracks."""
        return [label == "backtracking" for label in self.labels]


@preemption.deferred()
def activation_moments(
    model: Model,
    traces: Sequence[Trace],
    *,
    labels: Sequence[str],
    offsets: Sequence[int],
    site: str = "resid_post",
    layers: Sequence[int] | None = None,
    rows: int | None = None,
    length: int | None = None,
    progress: str | None = None,
) -> Moments:
    """Moments over all traces for every layer, label and offset; one forward pass a batch.

    Activations stay on the device. Their sums are accumulated there as float32 pairs, so the number
    of batches adds no error, and are read after the last batch. SIGTERM stops the pass after a
    batch; the next call starts from the beginning.

    Args:
        model: on one device or on a mesh: rows are split over `data`, sums over `tensor`.
        traces: texts with their sentences.
        labels: those that sentences may have; each becomes a group.
        offsets: in tokens from a sentence's first token. A sentence is left out at offsets that
            reach into the prompt or past the end of the text.
        site: where in the block.
        layers: all of them if not given; the pass ends at the last one.
        rows: of a batch; by default as many as `BLOCK_TOKENS` allows, in batches of equal size.
        length: to which rows are padded, by default the bucket of the longest. Calls that share it
            and `rows` share one compiled program.
        progress: name of a progress bar.

    Raises:
        ValueError: for no traces or offsets, a label that is not in `labels`, or traces that do not
            fit the model or `length`.
    """
    check_traces(traces, labels=labels, offsets=offsets)
    site = SITES[site_index(site)]
    length = length or bucket(max(len(trace.tokens) for trace in traces))
    rows = rows or equal_rows(model, len(traces), length)
    n_events = bucket(max(len(trace.starts) for trace in traces), step=16)
    layers = None if layers is None else tuple(layers)
    n_layers = model.config.n_layers if layers is None else len(layers)
    shape = n_layers, 2, len(labels), len(offsets), site_width(site, model.config)
    where = _sums_sharding(model, shape[-1])
    running, count = _zeros(shape, where), np.zeros(shape[2:4], np.int64)
    quiet = progress is None or not hosts.is_writer()
    bar = tqdm(total=len(traces), desc=progress, unit="trace", disable=quiet)
    ahead: tuple[jax.Array, int] | None = None  # a batch that the device may still work on
    for first in range(0, len(traces), rows):
        some = list(traces[first : first + rows])
        batch = left_pad([*(t.tokens for t in some), *[[0]] * (rows - len(some))], length=length)
        check_batch(batch, model.config)
        positions, groups = event_positions(some, labels, offsets, (rows, n_events))
        count += np.einsum("BEK,BEO->KO", groups, positions >= 0, dtype=np.int64)
        placed = spread_rows((batch, jnp.asarray(positions), jnp.asarray(groups)), model)
        running, done = _add_batch(running, model, *placed, site=site, layers=layers, where=where)
        _wait(ahead, bar)
        ahead = done, len(some)
        read = min(first + rows, len(traces))
        preemption.stop_if_asked(f"{read} of {len(traces)} traces were read, and are read anew")
    _wait(ahead, bar)
    bar.close()
    high, low = (part.astype(np.float64) for part in hosts.gather(running))
    total, squares = np.moveaxis(high + low, 1, 0)
    all_labels = [label for trace in traces for label in trace.labels]
    sentences = np.array([all_labels.count(label) for label in labels])
    return Moments(tuple(labels), tuple(offsets), sentences, count, total, squares)


def check_traces(traces: Sequence[Trace], *, labels: Sequence[str], offsets: Sequence[int]) -> None:
    """Raise `ValueError` for traces that the pass cannot count."""
    for name, values in (("labels", labels), ("offsets", offsets)):
        if not values or len(set(values)) < len(values):
            raise ValueError(f"{name}: got {list(values)}, expected at least one, all distinct")
    int32s("offsets", list(offsets), low=-(2**31))
    if not traces:
        raise ValueError("traces: got none, expected at least one")
    for i, trace in enumerate(traces):
        if len(trace.labels) != len(trace.starts):
            raise ValueError(
                f"traces[{i}]: got {len(trace.starts)} sentences and {len(trace.labels)} labels"
            )
        # At the very end start sentences of which no token is left (`annotate.token_spans`).
        outside = [start for start in trace.starts if not 0 <= start <= len(trace.tokens)]
        if outside:
            raise ValueError(
                f"traces[{i}].starts: got {outside[0]}, expected 0 to {len(trace.tokens)}"
            )
        unknown = sorted(set(trace.labels) - set(labels))
        if unknown:
            raise ValueError(
                f"traces[{i}]: got the label {unknown[0]!r}, expected {', '.join(labels)}"
            )


def equal_rows(model: Model, count: int, length: int) -> int:
    """Rows of a batch: few batches of equal size, each of at most `BLOCK_TOKENS` a device."""
    data, _ = mesh_sizes(model)
    most = data * max(1, BLOCK_TOKENS // length)
    batches = -(-count // most)
    return data * -(-count // (batches * data))


def event_positions(
    traces: Sequence[Trace],
    labels: Sequence[str],
    offsets: Sequence[int],
    shape: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """What to sum: positions, int32 `[B, E, O]`, -1 for none, and groups, bool `[B, E, K]`.

    `shape` is `(B, E)`: rows without a trace and events without a sentence count for nothing.
    """
    positions = np.full((*shape, len(offsets)), -1, np.int32)
    groups = np.zeros((*shape, len(labels)), bool)
    place = {label: k for k, label in enumerate(labels)}
    for b, trace in enumerate(traces):
        n = len(trace.starts)
        at = np.asarray(trace.starts, np.int64).reshape(n, 1) + np.asarray(offsets, np.int64)
        inside = (at >= trace.prompt_length) & (at < len(trace.tokens))
        positions[b, :n] = np.where(inside, at, -1)
        groups[b, np.arange(n), [place[label] for label in trace.labels]] = True
    return positions, groups


def _wait(ahead: tuple[jax.Array, int] | None, bar: tqdm) -> None:
    """Wait for a batch, so that the host prepares only one batch ahead of the device."""
    if ahead is not None:
        ahead[0].block_until_ready()
        bar.update(ahead[1])


@functools.partial(jax.jit, static_argnames=("site", "layers", "where"), donate_argnames="running")
def _add_batch(
    running: Pair,
    model: Model,
    batch: TokenBatch,
    positions: jax.Array,
    groups: jax.Array,
    *,
    site: str,
    layers: tuple[int, ...] | None,
    where: NamedSharding | None,
) -> tuple[Pair, jax.Array]:
    """The sums with a batch added, and a number that is ready when they are."""
    capture = Capture(sites=(site,), layers=layers, read=EventSums(positions, groups, squares=True))
    # The logits are not used, so the compiler leaves the unembedding out.
    sums = forward(model, batch.tokens, mask=batch.mask, capture=capture).captured[site]
    if where is not None:
        sums = jax.lax.with_sharding_constraint(sums, where)
    return _add_exactly(running, sums), sums[0, 0, 0, 0, 0]


def _add_exactly(running: Pair, x: jax.Array) -> Pair:
    """A float32 array added to a pair that stands for the sum of its parts (Knuth's two-sum)."""
    high, low = running
    total = high + x
    back = total - high
    low = low + ((high - (total - back)) + (x - back))
    # The second part stays below the first one's rounding, so that it loses nothing either.
    whole = total + low
    return whole, low - (whole - total)


def _zeros(shape: tuple[int, ...], where: NamedSharding | None) -> Pair:
    make = jax.jit(lambda: (jnp.zeros(shape), jnp.zeros(shape)), out_shardings=where)
    return make()


def _sums_sharding(model: Model, width: int) -> NamedSharding | None:
    """Where sums `[L, 2, K, O, D]` lie on a mesh: their width over `tensor` if it divides it."""
    mesh = mesh_of(model)
    if mesh is None:
        return None
    split = width % mesh.shape[TENSOR] == 0
    return NamedSharding(mesh, P(*[None] * 4, TENSOR) if split else P())

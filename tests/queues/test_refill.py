"""queues.refill: rows that take over each other's slots are the rows of the plain loop."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import SHALLOW, random_model, random_rows

from experiments.benchmarks import refill as benchmark
from experiments.benchmarks.refill_simulation import cost_of_refill
from jaxsteer.decoding.generation import DecodeState, decode_step, run
from jaxsteer.decoding.request import Request, make_request
from jaxsteer.decoding.samplers import Sampling, sample, sampling
from jaxsteer.llama.model import Model
from jaxsteer.llama.tokens import TokenBatch, left_pad
from jaxsteer.queues import refill, slots
from jaxsteer.queues.refill import generate_queue
from jaxsteer.queues.slots import FinishedRow, Occupancy, pool_sizes
from jaxsteer.steering import scope
from jaxsteer.steering.interventions import add
from jaxsteer.steering.scope import broadcast_rows
from jaxsteer.steering.steering import Steering

SCALE = 16  # the traces are so many times longer than the rows of these tests
LENGTHS = np.array(benchmark.recorded_lengths()) // SCALE
N, SLOTS, G = len(LENGTHS), 64, int(LENGTHS.max())
LOGPROB = 2e-5  # as in test_generate

# All tests share one set of compiled programs, so it may be traced once for each size.
step = chex.assert_max_traces(decode_step, n=len(pool_sizes(SLOTS)))
plain_loop = jax.jit(run, static_argnames=("max_new_tokens", "sampler"))


@pytest.fixture(scope="module")
def model() -> Model:
    """One layer: six programs compile here, for seconds a layer."""
    return random_model(replace(SHALLOW, n_layers=1, max_positions=8 + G))


@pytest.fixture(scope="module")
def batch() -> TokenBatch:
    lengths = np.random.default_rng(0).integers(1, 9, N)
    return left_pad(random_rows(lengths, SHALLOW.vocab_size), length=8)


def steering(rows: int) -> Steering:
    """Rows that differ in vector and coefficient."""
    rng = np.random.default_rng(1)
    return add(
        rng.standard_normal((rows, SHALLOW.d_model)),
        layer=0,
        coeff=rng.uniform(-1, 1, rows),
        scope=scope.everywhere(),
    )


def ask(
    model: Model,
    batch: TokenBatch,
    max_tokens: np.ndarray,
    *,
    settings: Sampling,
    steered: Steering,
    stop: int,
) -> Request:
    request = make_request(
        model,
        batch,
        max_new_tokens=G,
        steering=steered,
        sampling_params=settings,
        stop_tokens=[stop],
    )
    return replace(request, max_tokens=jnp.asarray(max_tokens, jnp.int32))


def decode(model: Model, batch: TokenBatch, request: Request, **options) -> Iterator[FinishedRow]:
    options = {"slots": SLOTS, "max_new_tokens": G, "sampler": sample, "step": step} | options
    return generate_queue(model, batch, request, **options)


def decode_plainly(model: Model, batch: TokenBatch, request: Request) -> DecodeState:
    return plain_loop(model, batch, request, max_new_tokens=G, sampler=sample)


def check(rows: list[FinishedRow], plain: DecodeState) -> None:
    """All rows are there, once, token for token those of the plain loop."""
    assert sorted(row.index for row in rows) == list(range(N))
    tokens, logprobs, length = jax.device_get((plain.tokens, plain.logprobs, plain.length))
    for row in rows:
        n = length[row.index]
        np.testing.assert_array_equal(row.tokens, tokens[row.index, :n])
        np.testing.assert_allclose(row.logprobs, logprobs[row.index, :n], atol=LOGPROB)


def test_with_the_lengths_of_300_traces_nine_tenths_of_the_row_steps_are_live(model, batch):
    """Half of the rows sampled, half greedy; each steered in its own way."""
    settings = sampling(N, temperature=np.arange(N) % 2, seed=3)
    # No sampled token is a stop token here: the lengths are those of the traces.
    request = ask(model, batch, LENGTHS, settings=settings, steered=steering(N), stop=0)
    request = replace(request, stop_tokens=jnp.full_like(request.stop_tokens, -1))
    plain = decode_plainly(model, batch, request)
    spent = Occupancy()
    check(list(decode(model, batch, request, occupancy=spent)), plain)
    assert len(LENGTHS) == 300
    assert spent.live_row_steps == LENGTHS.sum() - N  # prefill made each row's first token
    assert spent.live_share >= 0.9
    counted = cost_of_refill(
        LENGTHS.tolist(), SLOTS, share=16, sizes=pool_sizes(SLOTS), cursor_a_row=True
    )
    assert (spent.live_row_steps, spent.row_steps) == (counted.live, counted.row_steps)
    assert benchmark.plain_share(LENGTHS.tolist(), SLOTS) < 0.75
    assert (plain.length == LENGTHS).all()


def test_rows_end_at_their_stop_token_or_maximum_and_one_steering_may_serve_all(model, batch):
    """Ends that nobody knows before; some rows end in prefill, one before it."""
    maxima = np.random.default_rng(2).integers(1, G + 1, N)
    maxima[[0, 70, 299]] = 0, 1, 1
    options = {"settings": sampling(N, temperature=1.0, seed=np.arange(N) % 5), "stop": 7}
    one = steering(1)
    request = ask(model, batch, maxima, steered=one, **options)
    wide = replace(request, steering=broadcast_rows(request.steering, N, "steering"))
    plain = decode_plainly(model, batch, wide)
    ended = np.asarray(plain.length) < maxima
    assert 30 < ended.sum() < N - 30  # both kinds of end occur
    rows = list(decode(model, batch, request))
    check(rows, plain)
    order = [row.index for row in rows]
    assert order.index(299) < N - 20  # the last prompt ends at once, and before slower ones
    assert order[0] == 0


def test_other_data_of_one_shape_compiles_nothing(model, batch):
    """Another model, other prompts, maxima and settings: the programs of the tests above."""
    programs = (refill._start, refill._admit, slots.keep_slots)

    def first_rows(seed: int) -> list[FinishedRow]:
        settings = sampling(N, temperature=0.5 + seed, seed=seed)
        prompts = random_rows([1 + seed] * N, SHALLOW.vocab_size, seed=seed)
        padded = left_pad(prompts, length=8)
        other = random_model(model.config, seed=seed)
        lengths = np.random.default_rng(seed).integers(1, 20, N)
        request = ask(other, padded, lengths, settings=settings, steered=steering(N), stop=seed)
        return list(decode(other, padded, request))

    # Other tests of the process may have compiled these for shapes of their own.
    there = [program._cache_size() for program in programs]
    first = first_rows(1)
    before = [program._cache_size() for program in programs]
    assert first_rows(2) != first
    assert [program._cache_size() for program in programs] == before
    # At most one to start, one to refill, one for each smaller size; a size may be skipped.
    new = np.subtract(before, there)
    assert (new <= [1, 1, len(pool_sizes(SLOTS))]).all()


def test_what_is_not_asked_for_is_not_decoded(model, batch):
    """The iterator is lazy: who takes one row and leaves has paid for the first refill only."""
    settings, spent = sampling(N, temperature=1.0), Occupancy()
    maxima = np.where(np.arange(N) < 4, 2, G)
    request = ask(model, batch, maxima, settings=settings, steered=steering(N), stop=0)
    request = replace(request, stop_tokens=jnp.full_like(request.stop_tokens, -1))
    queue = decode(model, batch, request, occupancy=spent)
    assert spent.steps == 0
    assert {row.index for row in itertools.islice(queue, 4)} == {0, 1, 2, 3}
    assert spent.steps == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slots": 0}, "slots: got 0, expected at least 1"),
        ({"max_new_tokens": G - 1}, f"max_new_tokens: got {G - 1}, expected the request's {G}"),
        ({"rows": 2}, f"request: got 2 rows, expected the batch's {N}"),
    ],
)
def test_bad_input_is_refused_before_any_work(model, batch, options, message):
    rows = options.pop("rows", N)
    part = jax.tree.map(lambda x: x[:rows], batch)
    request = make_request(model, part, max_new_tokens=G)
    with pytest.raises(ValueError, match=message):
        decode(model, batch, request, **options)  # raises here, not at the first row


def test_sizes_of_a_pool():
    assert pool_sizes(1) == [1]
    assert pool_sizes(16) == [16, 8]
    assert pool_sizes(100) == [100, 50, 25]

"""Rows that share their prompts generate what rows with prompts of their own do, and hold less."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import SHALLOW, last_logits, random_rows

from jaxsteer.decoding import generation
from jaxsteer.decoding.generation import begin_shared, generate, run
from jaxsteer.decoding.memory import program_bytes, rows_that_fit
from jaxsteer.decoding.request import make_request
from jaxsteer.decoding.samplers import greedy, sampling
from jaxsteer.decoding.shared_prompts import reaches_prefix, repeat_prompts
from jaxsteer.decoding.stops import stop_strings
from jaxsteer.decoding.streaming import stream
from jaxsteer.llama import cudnn_attention, should_copy_prompts, xla_attention
from jaxsteer.llama.model import forward
from jaxsteer.llama.tokens import left_pad
from jaxsteer.queues import refill
from jaxsteer.queues.refill import generate_queue
from jaxsteer.queues.shared_queue import count_groups
from jaxsteer.queues.slots import Occupancy
from jaxsteer.steering import scope
from jaxsteer.steering.capture import Capture
from jaxsteer.steering.interventions import add, noise
from jaxsteer.sweeps import grid, sweep

R, G = 4, 8
# Log-probabilities of two programs that sum in other orders: float32, of magnitude 10.
LOGPROB = 2e-5
PREFIXES = random_rows((7, 1, 4), SHALLOW.vocab_size)  # of the second, nothing can be shared
ROWS = R * len(PREFIXES)


def steering(where: scope.Scope):
    """Each row has its own vector, layer and coefficient."""
    random = np.random.default_rng(1)
    vectors = random.standard_normal((ROWS, SHALLOW.d_model))
    layers = random.integers(0, SHALLOW.n_layers, ROWS)
    return add(vectors, layer=layers[:, None], coeff=np.linspace(-1, 1, ROWS), scope=where)


def check_same(model, **asked) -> None:
    """The rows of `samples=R` are those of prompts that are given R times."""
    shared = generate(model, PREFIXES, samples=R, max_new_tokens=G, **asked)
    repeated = [prompt for prompt in PREFIXES for _ in range(R)]
    private = generate(model, repeated, max_new_tokens=G, **asked)
    np.testing.assert_array_equal(shared.tokens, private.tokens)
    np.testing.assert_array_equal(shared.length, private.length)
    np.testing.assert_allclose(shared.logprobs, private.logprobs, rtol=0, atol=LOGPROB)
    assert len({row.tobytes() for row in shared.tokens}) > len(PREFIXES)  # worth comparing


@pytest.mark.parametrize("where", [scope.generated(), scope.from_last_prompt_token()])
def test_steered_rows_are_those_with_private_caches(shallow, where):
    check_same(shallow, steering=steering(where))


@pytest.fixture
def copying(monkeypatch):
    """Rows copy the keys and values of their prompt, as on a GPU behind short prompts."""
    monkeypatch.setattr(generation, "should_copy_prompts", lambda *_, **__: True)
    jax.clear_caches()  # of programs that share
    yield
    jax.clear_caches()


@pytest.mark.parametrize("where", [scope.generated(), scope.from_last_prompt_token()])
def test_rows_that_copy_their_prompt_are_those_with_private_caches(shallow, copying, where):
    """Also of a prompt of one token, of which there is nothing to copy."""
    check_same(shallow, steering=steering(where))
    check_same(shallow, sampling_params=sampling(ROWS, temperature=1.0, seed=2))
    batch = left_pad(PREFIXES, length=9)
    request = make_request(shallow, batch, samples=R, max_new_tokens=G)
    state = begin_shared(shallow, batch, request)
    assert state.cache.prefix is None
    assert state.cache.capacity == 9 + G
    assert state.cache.valid.sum(axis=1).tolist() == [6] * R + [0] * R + [3] * R


def test_prompts_are_copied_on_gpus_where_they_are_short():
    sizes = [(128, 1500), (1536, 512), (750, 1500), (751, 1500), (1, 100)]
    copied = [
        should_copy_prompts(cudnn_attention, prompt_length=prompt, new_tokens=new)
        for prompt, new in sizes
    ]
    assert copied == [True, False, True, False, False]
    assert not should_copy_prompts(xla_attention, prompt_length=128, new_tokens=1500)


def test_sampled_rows_are_those_with_private_caches(shallow):
    settings = sampling(ROWS, temperature=np.tile([0.0, 1.0, 2.0, 1.0], 3), top_p=0.9, seed=5)
    z = noise(1.0, layer=1, coeff=1.0, width=SHALLOW.d_model)
    check_same(shallow, sampling_params=settings, steering=z)


def test_rows_end_by_tokens_strings_and_maxima_of_their_own(shallow):
    settings = sampling(ROWS, temperature=1.0)
    free = generate(shallow, PREFIXES, samples=R, max_new_tokens=G, sampling_params=settings)
    pieces = [b"<%d>" % i for i in range(SHALLOW.vocab_size)]
    ends = stop_strings([f"<{free.tokens[2, 3]}>"], pieces, vocab_size=SHALLOW.vocab_size)
    maxima = np.where(np.arange(ROWS) == 5, 2, G)
    stops = [[int(row[4])] for row in free.tokens]
    check_same(
        shallow,
        sampling_params=settings,
        stop_tokens=stops,
        stop_strings=ends,
        max_tokens=maxima,
    )


def test_a_prompt_is_kept_once(shallow):
    batch = left_pad(PREFIXES, length=9)
    request = make_request(shallow, batch, samples=R, max_new_tokens=G)
    state = jax.jit(begin_shared)(shallow, batch, request)
    prefix, K, H = state.cache.prefix, SHALLOW.n_kv_heads, SHALLOW.head_dim
    assert state.cache.k[0].size == ROWS * (1 + G) * K * H
    assert prefix.k[0].size == len(PREFIXES) * 9 * K * H
    assert prefix.length.tolist() == [len(p) - 1 for p in PREFIXES]


def test_a_loop_and_a_step_of_ones_own_get_it_without_asking(shallow):
    batch = left_pad(PREFIXES, length=9)
    request = make_request(shallow, batch, samples=R, max_new_tokens=G)

    def python_loop(cond, body, state):
        assert state.cache.prefix is not None
        for _ in range(G - 1):
            assert cond(state)
            state = body(state)
        return state

    state = run(shallow, batch, request, sampler=greedy, loop=python_loop)
    expected = generate(shallow, batch, request)
    np.testing.assert_array_equal(state.tokens, expected.tokens)
    streamed = list(stream(shallow, batch, request))
    np.testing.assert_array_equal(np.stack(streamed, axis=1), expected.tokens)


@pytest.mark.parametrize("loop", [jax.lax.while_loop, lambda *args: jax.lax.while_loop(*args)])
def test_first_tokens_are_chosen_in_the_loop_unless_it_is_ones_own(shallow, loop):
    """So a program has one pass through the model for them and all others."""
    seen = []

    def sampler(logits, keys, params):
        seen.append(logits.shape)
        return jnp.argmax(logits, axis=-1)

    batch = left_pad(PREFIXES, length=9)
    options = {"max_new_tokens": G, "sampler": sampler, "loop": loop}
    out = generate(shallow, batch, samples=R, **options)
    passes = 1 if loop is jax.lax.while_loop else 2
    assert len(seen) == passes
    expected = generate(shallow, PREFIXES, samples=R, max_new_tokens=G)
    np.testing.assert_array_equal(out.tokens, expected.tokens)
    seen.clear()
    generated = scope.generated()
    cells = grid({"v": np.ones(SHALLOW.d_model)}, layers=[0], coeffs=[0.0, 1.0], scope=generated)
    list(sweep(shallow, batch, cells, **options))
    assert len(seen) == passes


def test_several_tokens_at_once_behind_a_prefix_and_what_is_captured(shallow):
    """Positions count the prefix; a pass of three tokens sees what three passes of one do."""
    batch = left_pad(PREFIXES, length=9)
    request = make_request(shallow, batch, samples=R, max_new_tokens=G)
    state = jax.jit(begin_shared)(shallow, batch, request)
    every = repeat_prompts(batch, ROWS)
    new = np.random.default_rng(3).integers(0, SHALLOW.vocab_size, (ROWS, 2))
    tokens = np.concatenate([np.asarray(state.token)[:, None], new], axis=1)
    lengths = np.asarray(every.lengths)
    everywhere = add(np.ones(SHALLOW.d_model), layer=0, coeff=1.0, scope=scope.window(7))
    out = jax.jit(forward)(
        shallow,
        tokens,
        cache=state.cache,
        steering=everywhere,
        prompt_length=every.lengths,
        capture=Capture(positions=lengths[:, None]),  # the first of `new`
    )
    expected = last_logits(shallow, every, new, steering=everywhere)
    np.testing.assert_allclose(out.logits, expected, rtol=0, atol=LOGPROB)
    raw = jax.jit(forward)(
        shallow,
        tokens,
        cache=state.cache,
        steering=everywhere,
        prompt_length=every.lengths,
        capture=Capture(),
    ).captured["resid_post"]
    np.testing.assert_array_equal(out.captured["resid_post"][:, :, 0], raw[:, :, 1])


def test_steering_that_reaches_into_the_prompts_has_private_caches_and_says_so(shallow):
    with pytest.warns(UserWarning, match="steering reaches into the prompts"):
        check_same(shallow, steering=steering(scope.everywhere()))


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (scope.everywhere(), True),
        (scope.prompt(), True),
        (scope.from_last_prompt_token(), False),
        (scope.window(7, 8), False),  # the last token of the longest prompt
        (scope.window(6, 7), True),
        (scope.generated(), False),
        (scope.window(8), False),
        (scope.union(scope.window(-9), exclude=[scope.prompt()]), False),
    ],
)
def test_which_scopes_reach_what_is_shared(batch, where, expected):
    one = add(np.ones(4), layer=0, coeff=1.0, scope=where)
    assert bool(reaches_prefix(one, batch)) == expected


def test_numbers_of_rows_that_do_not_fit_are_named(shallow):
    with pytest.raises(ValueError, match="samples: got 0, expected at least 1"):
        generate(shallow, PREFIXES, samples=0, max_new_tokens=G)
    request = make_request(shallow, PREFIXES, samples=R, max_new_tokens=G)
    with pytest.raises(ValueError, match="request: got 12 rows, expected the batch's 5"):
        generate(shallow, [[1]] * 5, request)
    with pytest.raises(ValueError, match="got a prompt of 7 tokens in row 0"):
        generate(shallow, PREFIXES[::-1], request)


def test_more_rows_fit_on_a_shared_prompt_as_planned(shallow):
    sizes = {"prompt_length": 4096, "new_tokens": 64}
    assert rows_that_fit(shallow, prompts=1, **sizes) > 5 * rows_that_fit(shallow, **sizes)
    rows = rows_that_fit(shallow, prompts=2, **sizes)
    planned = partial(program_bytes, shallow, prompt_rows=2, shared=True, **sizes)
    usable = rows_that_fit.__globals__["usable_bytes"](shallow)
    assert planned(rows=rows) <= usable < planned(rows=rows + 1)


@pytest.mark.parametrize(
    ("slots", "prompts", "fewest", "live_share", "copies"),
    [
        (4, 1, 0, 0.5, False),
        (8, 2, 0, 0.5, False),
        (6, 6, 0, 0.5, False),
        (8, 2, G, 0.8, False),
        (8, 2, 0, 0.5, True),
    ],
)
def test_a_queue_of_rows_that_share_prompts_gives_the_rows_of_generate(
    shallow, slots, prompts, fewest, live_share, copies, monkeypatch
):
    """A group of slots for each prompt, or several prompts one after another; slots that idle.

    With `copies` each row runs its own prompt, as on a GPU behind short prompts. Rows that all end
    at once are all replaced before the next step.
    """
    monkeypatch.setattr(refill, "should_copy_prompts", lambda *_, **__: copies)
    random = np.random.default_rng(4)
    few = random_rows((7, 1, 4, 3, 5, 2)[:prompts], SHALLOW.vocab_size)
    rows = prompts * 10
    options = {
        "samples": 10,
        "max_new_tokens": G,
        "max_tokens": random.integers(fewest, G + 1, rows),
        "steering": add(np.ones(SHALLOW.d_model), layer=1, coeff=np.linspace(-1, 1, rows)),
        "sampling_params": sampling(rows, temperature=1.0, top_p=0.9),
    }
    occupancy = Occupancy()
    queue = generate_queue(shallow, few, slots=slots, occupancy=occupancy, **options)
    expected = generate(shallow, few, **options).rows()
    found = {row.index: row.tokens for row in queue}
    assert found == dict(enumerate(expected))
    assert occupancy.live_share > live_share


@pytest.mark.parametrize(
    ("slots", "prompts", "samples", "data", "expected"),
    [
        (64, 10, 100, 1, 4),
        (64, 100, 8, 1, 32),
        (64, 1, 500, 1, 1),
        (64, 3, 2, 2, 2),
    ],
)
def test_groups_of_slots(slots, prompts, samples, data, expected):
    assert count_groups(slots, prompts, samples, data) == expected

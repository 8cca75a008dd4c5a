"""decoding.generation: rows do not see each other, the cache is not seen, nothing is left over."""

import inspect
import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import settings_worker
from oracle import SHALLOW, alone, last_logits, random_model, random_rows, steps
from quick_compile import xla_flags

from jaxsteer.decoding.generation import (
    choose_and_append,
    decode_step,
    generate,
    run,
    slots_by_loop,
)
from jaxsteer.decoding.request import Asked, make_request
from jaxsteer.decoding.samplers import greedy, sampling
from jaxsteer.decoding.stops import stop_strings
from jaxsteer.decoding.streaming import stream
from jaxsteer.llama.model import forward
from jaxsteer.llama.tokens import TokenBatch, left_pad
from jaxsteer.queues.refill import generate_queue
from jaxsteer.queues.slots import Occupancy
from jaxsteer.steering import scope
from jaxsteer.steering.capture import Capture
from jaxsteer.steering.interventions import add
from jaxsteer.steering.steering import Steering
from jaxsteer.sweeps import Cell, sweep

B, G = 3, 8
THINKING = add(np.ones(SHALLOW.d_model), layer=0, coeff=1.0, scope=scope.thinking())
STOP = stop_strings(["a"], [b"a"], vocab_size=7)
# Log-probabilities of two programs that sum in other orders: float32, of magnitude 10.
LOGPROB = 2e-5


def vector(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(SHALLOW.d_model).astype(np.float32)


@pytest.fixture(scope="module")
def steering() -> Steering:
    """Rows that differ in vector, layer and coefficient."""
    vectors = [vector(seed) for seed in range(B)]
    return add(vectors, layer=[[0], [1], [1]], coeff=[1.0, -1.0, 0.5], scope=scope.everywhere())


def test_greedy_is_the_argmax_of_the_model_step_by_step(shallow, batch, steering):
    found = generate(shallow, batch, max_new_tokens=G, steering=steering)
    assert found.length.tolist() == [G] * B
    logits = last_logits(shallow, batch, found.tokens[:, :-1], steering=steering)
    np.testing.assert_array_equal(found.tokens, logits.argmax(axis=-1))
    every = np.asarray(jax.nn.log_softmax(logits, axis=-1))
    expected = np.take_along_axis(every, found.tokens[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(found.logprobs, expected, atol=LOGPROB)
    plain = generate(shallow, batch, max_new_tokens=G)
    assert (plain.tokens != found.tokens).any(axis=1).all()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_in_a_ragged_batch_is_the_row_alone(shallow, batch, prompts, steering, temperature):
    options = {"temperature": temperature, "seed": 5}
    settings = sampling(B, **options)
    found = generate(shallow, batch, max_new_tokens=G, steering=steering, sampling_params=settings)
    order = np.array([2, 0, 1])
    moved = generate(
        shallow,
        left_pad([prompts[i] for i in order], length=9),
        max_new_tokens=G,
        steering=jax.tree.map(lambda x: x[order], steering),
        sampling_params=sampling(B, row=order, **options),
    )
    np.testing.assert_array_equal(moved.tokens, found.tokens[order])
    for row in range(B):
        single = generate(
            shallow,
            left_pad([prompts[row]], length=9),
            max_new_tokens=G,
            steering=alone(steering, row),
            sampling_params=sampling(1, row=[row], **options),
        )
        np.testing.assert_array_equal(single.tokens[0], found.tokens[row])
        np.testing.assert_allclose(single.logprobs[0], found.logprobs[row], atol=LOGPROB)


def test_seeds_matter_and_repeat(shallow, batch, steering):
    def tokens(seed: int) -> np.ndarray:
        settings = sampling(B, temperature=1.0, seed=seed)
        options = {"steering": steering, "sampling_params": settings}
        return generate(shallow, batch, max_new_tokens=G, **options).tokens

    first, other, again = tokens(1), tokens(2), tokens(1)
    assert (first != other).any(axis=1).all()
    np.testing.assert_array_equal(first, again)  # and nothing is left over from the run between


def test_a_row_ends_with_its_first_stop_token(shallow, batch):
    whole = generate(shallow, batch, max_new_tokens=G)
    stops = [int(whole.tokens[0, 3]), int(whole.tokens[1, 5])]
    found = generate(shallow, batch, max_new_tokens=G, stop_tokens=stops)
    ends = []
    for row in range(B):
        hits = np.flatnonzero(np.isin(whole.tokens[row], stops))
        end = hits[0] + 1 if len(hits) else G
        ends.append(end)
        np.testing.assert_array_equal(found.tokens[row, :end], whole.tokens[row, :end])
        np.testing.assert_allclose(
            found.logprobs[row, :end], whole.logprobs[row, :end], atol=LOGPROB
        )
        assert not found.tokens[row, end:].any()
        assert not found.logprobs[row, end:].any()
    assert found.length.tolist() == ends
    assert min(ends) < G  # a row did end early
    assert found.rows() == [whole.tokens[b, :n].tolist() for b, n in enumerate(ends)]
    assert found.rows(drop=stops)[0] == [t for t in found.rows()[0] if t not in stops]


def test_the_loop_ends_when_every_row_has(shallow, batch):
    whole = generate(shallow, batch, max_new_tokens=G)
    seen = list(stream(shallow, batch, max_new_tokens=G, stop_tokens=set(whole.tokens[:, 1])))
    assert len(seen) == 2


def test_rows_may_end_after_tokens_and_maxima_of_their_own(shallow, batch):
    whole = generate(shallow, batch, max_new_tokens=G).tokens
    stops = [[], [int(whole[1, 3])], [int(whole[2, 1]), int(whole[0, 0])]]
    first_hit = [np.isin(row, stop).argmax() + 1 for row, stop in zip(whole, stops, strict=True)]
    found = generate(shallow, batch, max_new_tokens=G, max_tokens=[5, G, G], stop_tokens=stops)
    ends = [5, first_hit[1], first_hit[2]]
    assert found.length.tolist() == ends
    for row, end in enumerate(ends):
        expected = np.where(np.arange(G) < end, whole[row], 0)
        np.testing.assert_array_equal(found.tokens[row], expected)
    found = generate(shallow, batch, max_new_tokens=G, max_tokens=[2, 0, 3])
    assert found.length.tolist() == [2, 0, 3]


def test_a_stream_yields_the_tokens_of_generate(shallow, batch, steering):
    options = {
        "max_new_tokens": G,
        "max_tokens": [G, 0, 3],
        "steering": steering,
        "sampling_params": sampling(B, temperature=1.0, top_k=9, seed=2),
    }
    found = generate(shallow, batch, **options)
    step = chex.assert_max_traces(decode_step, n=1)
    for _ in range(2):  # the second stream compiles nothing
        seen = np.stack(list(stream(shallow, batch, **options, step=step)), axis=1)
        ended = np.arange(G) >= found.length[:, None]
        np.testing.assert_array_equal(seen, np.where(ended, -1, found.tokens))


def test_a_stream_refuses_bad_input_when_it_is_made(shallow, batch):
    with pytest.raises(ValueError, match="max_new_tokens: got 0"):
        stream(shallow, batch, max_new_tokens=0)


def test_a_loop_in_python_is_the_compiled_loop(shallow, batch, steering):
    def python_loop(cond, body, state):
        while cond(state):
            state = body(state)
        return state

    request = make_request(shallow, batch, max_new_tokens=G, steering=steering)
    step = jax.jit(decode_step, static_argnames="sampler")
    state = run(
        shallow,
        batch,
        request,
        max_new_tokens=G,
        sampler=greedy,
        step=step,
        loop=python_loop,
    )
    found = generate(shallow, batch, max_new_tokens=G, steering=steering)
    np.testing.assert_array_equal(state.tokens, found.tokens)


def test_sampler_and_step_can_be_swapped(shallow, batch):
    def always_7(logits, key, params):
        return jnp.full(logits.shape[0], 7, jnp.int32)

    found = generate(shallow, batch, max_new_tokens=4, sampler=always_7)
    assert (found.tokens == 7).all()

    def stops_at_once(model, state, request, *, sampler):
        state = decode_step(model, state, request, sampler=sampler)
        return replace(state, done=jnp.ones_like(state.done))

    found = generate(shallow, batch, max_new_tokens=4, step=stops_at_once)
    assert found.length.tolist() == [2] * B


@pytest.mark.parametrize(
    "wrong",
    [lambda logits, keys, params: jnp.argmax(logits), lambda logits, keys, params: logits[:, 0]],
)
def test_a_sampler_that_gives_no_token_a_row_is_named(shallow, batch, wrong):
    with pytest.raises(ValueError, match=r"sampler: got .*, expected an integer for each"):
        generate(shallow, batch, max_new_tokens=4, sampler=wrong)


def remembering(model, state, request, *, sampler):
    """A step that captures in the pass it makes anyway, and carries the largest value it saw."""
    out = forward(
        model,
        state.token[:, None],
        cache=state.cache,
        steering=request.steering,
        prompt_length=request.prompt_length,
        capture=Capture(layers=(1,)),
    )
    seen = jnp.max(out.captured["resid_post"][0, :, 0], axis=-1)
    state = replace(state, cache=out.cache, extra=jnp.maximum(state.extra, seen))
    return choose_and_append(state, out.logits[:, 0], request, sampler)


def test_a_step_of_ones_own_may_carry_something(shallow, batch, steering):
    request = make_request(shallow, batch, max_new_tokens=G, steering=steering)
    state = jax.jit(
        lambda model: run(
            model,
            batch,
            request,
            max_new_tokens=G,
            sampler=greedy,
            step=remembering,
            extra=jnp.full((B,), -jnp.inf),
        )
    )(shallow)
    tokens = generate(shallow, batch, max_new_tokens=G, steering=steering).tokens
    np.testing.assert_array_equal(state.tokens, tokens)
    capture = Capture(layers=(1,))
    passes = list(steps(shallow, batch, tokens[:, :-1], steering=steering, capture=capture))
    seen = [out.captured["resid_post"][0, :, 0].max(axis=-1) for _, out in passes[1:]]
    np.testing.assert_allclose(state.extra, np.max(seen, axis=0), rtol=1e-5)


def test_nothing_that_is_data_compiles_again(shallow, prompts):
    """One trace for all values of steering, sampling, prompts and weights of one shape."""
    step = chex.assert_max_traces(decode_step, n=1)
    other = random_model(SHALLOW, seed=1)
    seen = set()
    for i, (model, where) in enumerate(
        [
            (shallow, scope.generated()),
            (shallow, scope.everywhere()),
            (other, scope.window(-3, None)),
            (other, scope.prompt()),
        ]
    ):
        rows = random_rows([2 + i, 7, 4], SHALLOW.vocab_size, seed=i)
        found = generate(
            model,
            left_pad(rows, length=9),
            max_new_tokens=4,
            steering=add(
                vector(i), layer=[[i % 2], [0], [1]] if i else 1, coeff=float(i), scope=where
            ),
            sampling_params=sampling(B, temperature=0.5 + i, seed=i),
            stop_tokens=[i] * (1 + i),
            max_tokens=4 - i % 2,
            step=step,
        )
        seen.add(found.tokens.tobytes())
    assert len(seen) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: got 0, expected at least 1"),
        ({"max_new_tokens": 2.5}, "max_new_tokens: got 2.5, expected at least 1"),
        ({"max_new_tokens": 57}, "prompt of 8 tokens and 57 new ones.*max_positions=64"),
        ({"max_tokens": 5}, "max_tokens: got 5, expected 0 to max_new_tokens=4"),
        ({"max_tokens": [1, -1, 2]}, "max_tokens: got -1, expected 0 to"),
        ({"max_tokens": [1, 2]}, r"max_tokens: got int64 \[2\], expected an integer or \[3\]"),
        ({"max_tokens": [1.0, 2.0, 3.0]}, "max_tokens: got float64"),
        ({"stop_tokens": 2}, "stop_tokens: got 2, expected a list of ids"),
        ({"stop_tokens": None}, "stop_tokens: got None, expected a list of ids"),
        ({"stop_tokens": jnp.array([2, 61])}, "stop_tokens: got id 61, expected 0 to 60"),
        ({"stop_tokens": [61]}, "stop_tokens: got id 61, expected 0 to 60"),
        ({"stop_tokens": [1.5]}, "stop_tokens: got id 1.5, expected 0 to 60"),
        ({"stop_tokens": [[1], [2]]}, "stop_tokens: got 2 entries, .* each of the 3 rows"),
        ({"stop_tokens": [[1], [2], 3]}, "stop_tokens: got 3 entries, 2 of them lists"),
        ({"stop_tokens": [[1], [], [-1]]}, "stop_tokens: got id -1"),
        ({"think_tokens": (61, 1)}, "think_tokens: got id 61"),
        ({"think_tokens": (3, 3)}, r"think_tokens: got \(3, 3\), expected two different ids"),
        ({"steering": THINKING}, "think_tokens: got None, expected the ids of <think> and </thi"),
        ({"stop_strings": ["x"]}, "stop_strings: got list, expected what `stop_strings` makes"),
        ({"sampling_params": {"seed": 1}}, "sampling_params: got dict, expected what `sampling`"),
        ({"stop_strings": STOP}, "stop_strings: got a table for 7 tokens, expected vocab_size=61"),
        (
            {"sampling_params": replace(sampling(3), temperature=jnp.array([1, jnp.nan, 1]))},
            "temperature: got .*nan",
        ),
        (
            {"sampling_params": replace(sampling(3), top_p=jnp.ones(2))},
            r"top_p: got shape \(2,\), expected one value or \[3\]",
        ),
        ({"sampling_params": sampling(2)}, "sampling: got 2 rows, expected the batch's 3"),
    ],
)
def test_requests_that_do_not_fit(shallow, batch, options, message):
    def never(*args, **kwargs):
        raise AssertionError("work started")

    with pytest.raises(ValueError, match=message):
        generate(shallow, batch, **{"max_new_tokens": 4, "step": never} | options)


def test_a_token_outside_the_vocabulary_is_refused(shallow):
    with pytest.raises(ValueError, match=r"tokens\[0, 2\]: got id 61, expected 0 to 60"):
        generate(shallow, left_pad([[1, 61]], length=3), max_new_tokens=1)


def test_other_things_in_the_place_of_model_and_batch(shallow, batch):
    with pytest.raises(ValueError, match="model: got tuple, expected a Model, the first of what"):
        generate((shallow, None), batch, max_new_tokens=1)
    with pytest.raises(ValueError, match="batch: got dict, expected token ids row by row, or a To"):
        generate(shallow, {"input_ids": [[1, 2]]}, max_new_tokens=1)
    with pytest.raises(ValueError, match=r"prompts\[0\]: got 1, expected a list of token ids"):
        generate(shallow, [1, 2], max_new_tokens=1)
    with pytest.raises(ValueError, match="request: got int, expected what `make_request` makes"):
        generate(shallow, batch, 8)


def test_one_request_is_what_its_keywords_ask_for_in_all_four(shallow, prompts, batch, steering):
    """And token ids row by row are the batch that they make."""
    asked = {
        "max_new_tokens": G,
        "max_tokens": [G, 2, 5],
        "sampling_params": sampling(B, temperature=1.0, seed=3),
        "stop_tokens": [7],
    }
    request = make_request(shallow, prompts, **asked, steering=steering)
    found = [
        generate(shallow, batch, **asked, steering=steering).rows(),
        generate(shallow, batch, request).rows(),
        generate(shallow, prompts, request, max_new_tokens=G).rows(),
    ]
    for options in (asked | {"steering": steering}, {"request": request}):
        queue = generate_queue(shallow, prompts, slots=2, **options)
        found.append([row.tokens for row in sorted(queue, key=lambda row: row.index)])
        columns = np.stack(list(stream(shallow, prompts, **options)), axis=1)
        found.append([row[row >= 0].tolist() for row in columns])
    assert found == [found[0]] * len(found)
    plain, cells = make_request(shallow, prompts, **asked), [Cell({}, ())]
    swept = [
        [result.tokens for result in next(sweep(shallow, prompts, cells, **options))]
        for options in (asked, {"request": plain})
    ]
    assert swept == [generate(shallow, batch, plain).rows()] * 2


def test_the_keywords_that_are_passed_on_are_those_of_a_request():
    parameters = inspect.signature(make_request).parameters.values()
    expected = {p.name for p in parameters if p.kind == p.KEYWORD_ONLY}
    assert Asked.__annotations__.keys() == expected


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"stop_tokens": [1]}, "request: got one and stop_tokens, expected one or the other"),
        ({}, {"max_new_tokens": 5}, "max_new_tokens: got 5, expected the request's 4, or nothing"),
        ({"max_tokens": jnp.full(B, 5)}, {}, "max_tokens: got 5, expected 0 to max_new_tokens=4"),
        ({"max_tokens": jnp.full(2, 4)}, {}, "request: got 2 rows, expected the batch's 3"),
        (
            {"prompt_length": jnp.array([3, 7, 5])},
            {},
            "got a prompt of 7 tokens in row 1, expected the batch's 8",
        ),
        ({"steering": (add(np.ones(16), layer=9, coeff=1.0),)}, {}, "layer: got 9, expected 0 to"),
    ],
)
def test_a_request_of_another_call(shallow, batch, changes, options, message):
    request = replace(make_request(shallow, batch, max_new_tokens=4), **changes)
    for ask in (generate, stream, partial(generate_queue, slots=2)):
        with pytest.raises(ValueError, match=message):
            ask(shallow, batch, request, **options)


def test_what_is_checked_on_the_host_is_refused_inside_jit(shallow, batch):
    with pytest.raises(ValueError, match="tokens: got a traced array, expected numbers"):
        jax.jit(lambda batch: generate(shallow, batch, max_new_tokens=1).tokens)(batch)


def test_tokens_that_are_no_integers_are_refused(shallow, batch):
    wrong = TokenBatch(batch.tokens.astype(jnp.float32), batch.mask)
    with pytest.raises(ValueError, match="tokens: got dtype float32, expected integers"):
        generate(shallow, wrong, max_new_tokens=1)


HUGE = add(np.full(SHALLOW.d_model, 3e38), layer=1, coeff=[0.0, 2.0, 0.0])


@pytest.mark.parametrize("coeff", [2.0, 1.0])  # overflows, and so does its square alone
def test_a_row_whose_numbers_overflow_ends_is_marked_and_has_no_text(shallow, batch, coeff):
    """The first sampled token is unsteered, and all that it has; the other rows do not notice."""
    plain = generate(shallow, batch, max_new_tokens=G)
    huge = replace(HUGE, coeff=jnp.array([0.0, coeff, 0.0]))
    with pytest.warns(UserWarning, match="1 of 3 rows ended early, with finite=False: their log-"):
        found = generate(shallow, batch, max_new_tokens=G, steering=huge)
    assert found.finite.tolist() == [True, False, True]
    assert found.length.tolist() == [G, 1, G]
    for row in (0, 2):
        np.testing.assert_array_equal(found.tokens[row], plain.tokens[row])
    assert found.tokens[1].tolist() == [int(plain.tokens[1, 0])] + [0] * (G - 1)
    assert np.isfinite(found.logprobs).all()
    texts = found.texts([b"a"] * SHALLOW.vocab_size)
    assert texts == ["a" * G, None, "a" * G]
    with pytest.warns(UserWarning, match="1 of 3 rows ended early"):
        seen = np.stack(list(stream(shallow, batch, max_new_tokens=G, steering=huge)), axis=1)
    np.testing.assert_array_equal(seen[1], [plain.tokens[1, 0]] + [-1] * (G - 1))


def test_rows_that_overflow_are_marked_in_queues_and_sweeps(shallow, batch):
    spent = Occupancy()
    queue = generate_queue(
        shallow, batch, slots=2, max_new_tokens=G, steering=HUGE, occupancy=spent
    )
    with pytest.warns(UserWarning, match="1 of 3 rows ended early"):
        rows = list(queue)
    finite = {row.index: (row.finite, len(row.tokens)) for row in rows}
    assert finite == {0: (True, G), 1: (False, 1), 2: (True, G)}
    assert spent.not_finite == 1
    cells = [Cell({"n": n}, jax.tree.map(lambda x, n=n: x[n : n + 1], HUGE)) for n in (0, 1)]
    with pytest.warns(UserWarning, match="3 of 6 rows ended early"):
        (chunk,) = sweep(shallow, batch, cells, max_new_tokens=G)
    assert [(r.cell.labels["n"], r.finite, len(r.tokens)) for r in chunk] == [
        (n, n == 0, G if n == 0 else 1) for n in (0, 1) for _ in range(B)
    ]


@pytest.mark.parametrize("variable", ["JAX_ENABLE_X64", "JAX_DEBUG_INFS"])
def test_settings_of_jax_change_nothing(variable):
    """64-bit types by default; a stop at any infinity."""
    command = [sys.executable, settings_worker.__file__]
    env = os.environ | {variable: "1", "XLA_FLAGS": xla_flags()}
    found = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-2000:]
    assert json.loads(found.stdout) == settings_worker.everything()


@pytest.mark.parametrize("samples", [1, 2])
def test_a_cache_that_grows_on_a_cpu_changes_nothing(shallow, batch, monkeypatch, samples):
    """Four loops, each in a cache with room for four tokens more."""
    request = make_request(shallow, batch, max_new_tokens=16, samples=samples)
    capacities = []

    def loop(cond, body, state):
        capacities.append(state.cache.capacity)
        return jax.lax.while_loop(cond, body, state)

    def tokens() -> np.ndarray:
        return jax.jit(partial(run, sampler=greedy, loop=loop))(shallow, batch, request).tokens

    expected = tokens()
    monkeypatch.setattr("jaxsteer.decoding.generation._GROWTH", 4)
    np.testing.assert_array_equal(tokens(), expected)
    before = 9 if samples == 1 else 1  # what of the prompts is in a row's own cache
    assert capacities == [before + 16, before + 4, before + 8, before + 12, before + 16]
    assert slots_by_loop(shallow, 16, lambda *args: None) == [16]  # a step that may write more

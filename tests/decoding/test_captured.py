"""Activations while generating: what is kept is what a second pass over the finished text reads."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import SHALLOW, random_rows, relative_error, run

import jaxsteer
from jaxsteer.decoding import Captured, Generation, greedy, make_request, memory, sampling
from jaxsteer.llama import TokenBatch, forward, left_pad, run_prompts
from jaxsteer.steering import SITES, All, Capture, Project, RowSums, Steering, above, add, scope
from jaxsteer.sweeps import Cell

B, G, L, D = 3, 6, SHALLOW.n_layers, SHALLOW.d_model
SAME = 1e-5  # float32 sums in another order; relative to the largest value
THINK = (7, 9)
V = np.random.default_rng(0).standard_normal((4, D)).astype(np.float32)
STEERED = add(V[:3], layer=[[0], [1], [1]], coeff=[2.0, -1.0, 0.5], scope=scope.everywhere())
ASKED = {
    "max_new_tokens": G,
    "max_tokens": [G, 2, G],  # a row that ends early, and is read to its end all the same
    "steering": STEERED,
    "sampling_params": sampling(B, temperature=1.0, seed=4),
}


def second_pass(model, batch: TokenBatch, out: Generation, **options) -> dict[str, np.ndarray]:
    """Every site, `[L, B, position, D]`, of a pass over each finished text; NaN behind its end."""
    prompts = [row[mask].tolist() for row, mask in zip(batch.tokens, batch.mask, strict=True)]
    texts = [p + t for p, t in zip(prompts, out.rows(), strict=True)]
    whole = left_pad(texts, length=16)
    asked = {"steering": STEERED, "prompt_length": batch.lengths} | options
    found = run(model, whole.tokens, mask=whole.mask, capture=Capture(sites=SITES), **asked)
    moved = {site: np.full_like(x, np.nan) for site, x in found.captured.items()}
    for site, x in found.captured.items():
        for b, n in enumerate(map(len, texts)):
            moved[site][:, b, :n] = x[:, b, 16 - n :]
    return moved


def check(captured: Captured, raw: dict[str, np.ndarray], positions: list[list[int]]) -> None:
    """Raw values at the positions expected, and none besides."""
    assert captured.count.tolist() == [len(row) for row in positions]
    for site, x in captured.values.items():
        for b, row in enumerate(positions):
            assert captured.positions[b].tolist() == row + [-1] * (x.shape[2] - len(row))
            expected = raw[site][: len(x), b][:, row]
            assert not row or relative_error(x[:, b, : len(row)], expected) <= SAME, (site, b)
            assert np.isnan(x[:, b, len(row) :]).all()


@pytest.fixture(scope="module")
def whole(shallow, batch) -> Generation:
    return jaxsteer.generate(shallow, batch, **ASKED, capture=Capture(sites=SITES))


@pytest.fixture(scope="module")
def raw(shallow, batch, whole) -> dict[str, np.ndarray]:
    return second_pass(shallow, batch, whole)


def test_every_site_of_every_generated_token_the_last_included(shallow, batch, whole, raw):
    assert whole.length.tolist() == [G, 2, G]
    check(whole.captured, raw, [[*range(3, 9)], [8, 9], [*range(5, 11)]])
    plain = jaxsteer.generate(shallow, batch, **ASKED)
    np.testing.assert_array_equal(whole.tokens, plain.tokens)
    np.testing.assert_array_equal(whole.logprobs, plain.logprobs)
    assert plain.captured is None


@pytest.mark.parametrize(
    ("options", "positions"),
    [
        ({"where": scope.everywhere()}, [[*range(9)], [*range(10)], [*range(11)]]),
        ({"every": 2}, [[3, 5, 7], [8], [5, 7, 9]]),
        ({"every": 3, "where": scope.everywhere()}, [[0, 3, 6], [2, 5, 8], [2, 5, 8]]),
        ({"where": scope.window(-1, 6)}, [[2, 3, 4, 5], [], [4, 5]]),
        ({"where": scope.prompt()}, [[*range(3)], [*range(8)], [*range(5)]]),
        ({"most": 2}, [[3, 4], [8, 9], [5, 6]]),
    ],
)
def test_which_tokens_are_kept(shallow, batch, raw, options, positions):
    capture = Capture(layers=(0,), **options)
    found = jaxsteer.generate(shallow, batch, **ASKED, capture=capture).captured
    if "most" in options:
        assert found.count.tolist() == [6, 2, 6]  # as many were chosen
        found = replace(found, count=np.minimum(found.count, 2))
    check(found, {site: x[:1] for site, x in raw.items()}, positions)


def test_a_condition_on_the_stream(shallow, batch, raw):
    unit = V[3] / np.linalg.norm(V[3])
    along = raw["resid_mid"][1] @ unit  # [B, position]
    generated = np.arange(16) >= np.asarray(batch.lengths)[:, None]
    least = float(np.nanmedian(along[generated & np.isfinite(along)]))
    sites = ("resid_mid", "resid_post")
    capture = Capture(sites, above=above(3 * V[3], least, layer=1, site="resid_mid"))
    found = jaxsteer.generate(shallow, batch, **ASKED, capture=capture).captured
    expected = [np.flatnonzero(row).tolist() for row in generated & (along > least)]
    assert 3 < sum(map(len, expected)) < 11
    check(found, raw, expected)


def test_only_what_is_thought(shallow, batch):
    options = ASKED | {"think_tokens": THINK, "steering": None}
    tokens = iter(range(G))

    def opens_then_closes(logits, key, params):
        token = (11, 7, 12, 13, 9, 14)[next(tokens)]
        return jnp.full(logits.shape[0], token, jnp.int32)

    def python_loop(cond, body, state):
        while cond(state) and int(state.step) < G:
            state = body(state)
        return state

    capture = Capture(layers=(1,), where=scope.thinking(within=scope.generated()))
    request = make_request(shallow, batch, **options, capture=capture)
    state = jaxsteer.run(shallow, batch, request, sampler=opens_then_closes, loop=python_loop)
    assert state.buffers.position.tolist()[0][:3] == [5, 6, -1]  # <think> is at 4, </think> at 7


@pytest.mark.parametrize("where", [scope.generated(), scope.everywhere()])
def test_what_is_reduced_on_the_device_is_made_of_what_is_kept(shallow, batch, where):
    asked = {"where": where, "every": 2, "most": 3}
    read = {
        "raw": All(),
        "products": Project(V),
        "sums": RowSums([[1.0, 0.5], [0.0, 0.5]], squares=True),
        "sum": RowSums([1.0]),
    }
    found = {
        name: jaxsteer.generate(shallow, batch, **ASKED, capture=Capture(read=one, **asked))
        for name, one in read.items()
    }
    found = {name: out.captured.values["resid_post"] for name, out in found.items()}
    x = found["raw"].astype(np.float64)  # [L, B, S, D]
    products = np.einsum("RD,LBSD->LRBS", V, x)
    np.testing.assert_array_equal(np.isnan(found["products"]), np.isnan(products))
    assert relative_error(np.nan_to_num(found["products"]), np.nan_to_num(products)) <= SAME
    x = np.nan_to_num(x)
    weights = np.zeros((x.shape[2], 2))
    weights[0], weights[1:] = (1.0, 0.5), (0.0, 0.5)  # the last ones hold from there on
    sums = np.stack([np.einsum("SG,LBSD->LBGD", weights, x**p) for p in (1, 2)], axis=1)
    assert found["sums"].shape == (L, 2, B, 2, D)
    assert relative_error(found["sums"], sums) <= SAME
    assert relative_error(found["sum"], x.sum(axis=2)[:, :, None]) <= SAME


def test_products_of_a_bfloat16_stream_are_those_of_float32(shallow, batch):
    """The directions are not rounded to bfloat16, which would be off by 2e-3."""
    half = replace(shallow, params=jax.tree.map(lambda x: x.astype(jnp.bfloat16), shallow.params))
    raw, products = (
        jaxsteer.generate(
            half, batch, max_new_tokens=3, capture=Capture(read=read, where=scope.generated())
        ).captured.values["resid_post"]
        for read in (All(), Project(V))
    )
    expected = np.einsum("RD,LBSD->LRBS", V.astype(np.float64), raw.astype(np.float64))
    assert relative_error(products, expected) <= SAME


CAPTURE = Capture(layers=(1,), where=scope.everywhere(), every=2)


def test_streams_queues_and_sweeps_keep_the_same(shallow, batch):
    expected = jaxsteer.generate(shallow, batch, **ASKED, capture=CAPTURE).captured
    x = expected.values["resid_post"]

    steps = list(jaxsteer.stream(shallow, batch, **ASKED, capture=CAPTURE))
    for b in range(B):
        columns = [c.positions[b][:n] for _, c in steps for n in [c.count[b]]]
        values = [c.values["resid_post"][:, b, :n] for _, c in steps for n in [c.count[b]]]
        n = expected.count[b]
        assert np.concatenate(columns).tolist() == expected.positions[b][:n].tolist()
        assert relative_error(np.concatenate(values, axis=1), x[:, b, :n]) <= SAME

    rows = list(jaxsteer.generate_queue(shallow, batch, slots=2, **ASKED, capture=CAPTURE))
    rows = [row.captured for row in sorted(rows, key=lambda row: row.index)]
    asked = ASKED | {"steering": None}
    cells = [Cell({"n": b}, alone(STEERED, b)) for b in range(B)]
    swept = jaxsteer.sweep(shallow, batch, cells, **asked, capture=CAPTURE, rows_per_chunk=3)
    own = [r.captured for chunk in swept for r in chunk if r.cell.labels["n"] == r.prompt]
    for found in (rows, own):
        for b, one in enumerate(found):
            n = expected.count[b]
            assert int(one.count) == n
            assert one.positions[:n].tolist() == expected.positions[b][:n].tolist()
            assert relative_error(one.values["resid_post"][:, :n], x[:, b, :n]) <= SAME


def test_rows_that_share_prompts_keep_what_rows_of_their_own_do(shallow, batch):
    """In all four, with another steering in each row."""
    rows = 2 * B
    vectors = np.random.default_rng(2).standard_normal((rows, D))
    steering = add(vectors, layer=0, coeff=np.linspace(-2, 2, rows), scope=scope.generated())
    asked = {"max_new_tokens": G, "capture": Capture(where=scope.generated())}
    repeated = jax.tree.map(lambda x: np.repeat(x, 2, axis=0), batch)
    private = jaxsteer.generate(shallow, repeated, steering=steering, **asked)
    assert len({row.tobytes() for row in np.asarray(private.tokens)}) > B  # worth comparing
    raw = second_pass(shallow, repeated, private, steering=steering)["resid_post"]
    lengths = np.asarray(repeated.lengths)
    expected = np.stack([raw[:, b, n : n + G] for b, n in enumerate(lengths)], axis=1)

    shared = {"steering": steering, "samples": 2} | asked
    out = jaxsteer.generate(shallow, batch, **shared)
    steps = [kept for _, kept in jaxsteer.stream(shallow, batch, **shared)]
    values = [
        [k.values["resid_post"][:, b, :n] for k in steps for n in [k.count[b]]] for b in range(rows)
    ]
    queue = sorted(
        jaxsteer.generate_queue(shallow, batch, slots=3, **shared), key=lambda r: r.index
    )
    cells = [Cell({"n": b}, alone(steering, b)) for b in range(rows)]
    swept = [r for chunk in jaxsteer.sweep(shallow, batch, cells, **asked) for r in chunk]
    own = sorted((r.cell.labels["n"], r) for r in swept if r.prompt == r.cell.labels["n"] // 2)
    for name, found in {
        "generate": out.captured.values["resid_post"],
        "stream": np.stack([np.concatenate(x, axis=1) for x in values], axis=1),
        "queue": np.stack([r.captured.values["resid_post"] for r in queue], axis=1),
        "sweep": np.stack([r.captured.values["resid_post"] for _, r in own], axis=1),
    }.items():
        assert relative_error(found, expected) <= SAME, name


def alone(steering: Steering, row: int) -> Steering:
    return jax.tree.map(lambda x: x[row : row + 1], steering)


@pytest.mark.parametrize("read", [All(), Project(V), RowSums([[1.0], [2.0]], squares=True)])
def test_prompts_that_run_in_blocks_keep_the_same(shallow, read):
    batch = left_pad(random_rows([3, 7, 1, 5, 7, 2], SHALLOW.vocab_size), length=8)
    capture = Capture(layers=(1, 0), read=read, where=scope.prompt())
    request = make_request(shallow, batch, max_new_tokens=2, capture=capture)
    prefill = jax.jit(partial(jaxsteer.prefill, sampler=greedy), static_argnames="block_tokens")
    one, three = (
        prefill(shallow, batch, request, block_tokens=tokens).buffers for tokens in (48, 16)
    )
    assert one.count.tolist() == [3, 7, 1, 5, 7, 2]
    np.testing.assert_array_equal(one.position, three.position)
    a, b = (np.nan_to_num(kept.values["resid_post"]) for kept in (one, three))
    assert relative_error(b, a) <= SAME


def test_sums_over_rows_cannot_be_read_in_blocks(shallow, batch):
    capture = Capture(weights=jnp.ones((B, 9, 1)))
    with pytest.raises(ValueError, match=r"capture\.read: got TokenSums, expected rows"):
        run_prompts(
            shallow,
            batch,
            capacity=9,
            steering=(),
            capture=capture,
            prompt_length=batch.lengths,
        )


@pytest.mark.parametrize(
    ("capture", "message"),
    [
        (V, "capture: got ndarray, expected a Capture"),
        (Capture(layers=(0, 5)), r"capture\.layers: got 5, expected 0 to 1 "),
        (Capture(positions=[3]), r"capture\.read: got At, expected where=scope\.positions"),
        (Capture(weights=np.ones((1, 1, 1))), r"capture\.read: got TokenSums, expected RowSums"),
        (Capture(directions=np.ones((1, 9))), r"capture\.directions: got width 9, expected 16"),
        (Capture(read=RowSums(np.ones((1, 1, 1)))), r"capture\.weights: got \(1, 1, 1\), expected"),
        (
            Capture(where=scope.mask(np.ones((3, 1), bool))),
            r"capture\.where: got 3 rows, expected one",
        ),
        (Capture(where=scope.generated), r"capture\.where: got function, expected a Scope"),
        (Capture(where=scope.thinking()), "think_tokens: got None, expected the ids"),
        (
            Capture(layers=(0,), above=above(V[0], 0.0, layer=1)),
            r"capture\.above: got resid_post of layer 1, expected one that is captured: resid_post",
        ),
        (
            Capture(where=scope.everywhere(), above=above(V[0], 0.0, layer=1)),
            r"capture\.above: got one with prompt tokens",
        ),
    ],
)
def test_captures_that_cannot_be_kept(shallow, batch, capture, message):
    with pytest.raises(ValueError, match=message):
        jaxsteer.generate(shallow, batch, max_new_tokens=4, capture=capture)


def test_what_only_generation_knows_is_refused_in_a_pass(shallow, batch):
    for options in ({"where": scope.generated()}, {"every": 2}, {"most": 3}):
        (name,) = options
        with pytest.raises(
            ValueError, match=rf"capture\.{name}: got .*, expected it in `generate`"
        ):
            forward(shallow, batch.tokens, capture=Capture(**options))
    with pytest.raises(ValueError, match=r"capture\.every: got 0, expected at least 1"):
        Capture(every=0)


def test_sums_are_refused_in_a_stream(shallow, batch):
    with pytest.raises(ValueError, match="got RowSums, expected All or Project in a stream"):
        jaxsteer.stream(shallow, batch, max_new_tokens=2, capture=Capture(read=RowSums([1.0])))


def test_what_does_not_fit_is_refused_before_anything_runs(shallow, batch, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("work started")

    monkeypatch.setattr(memory.os, "sysconf", lambda name: 4 if name == "SC_PAGE_SIZE" else 500)
    asked = {"max_new_tokens": G, "step": never, "capture": Capture()}
    for ask in (
        jaxsteer.generate,
        partial(jaxsteer.generate_queue, slots=3),
        partial(jaxsteer.sweep, cells=[Cell({}, ())]),
    ):
        with pytest.raises(ValueError, match=r"capture: 3 rows keep 0\.0 GB, .* expected fewer"):
            ask(shallow, batch, **asked)


def test_a_step_that_keeps_nothing_is_told(shallow, batch):
    def forgets(model, state, request, *, sampler):
        out = forward(model, state.token[:, None], cache=state.cache, prompt_length=batch.lengths)
        state = replace(state, cache=out.cache)
        return jaxsteer.choose_and_append(state, out.logits[:, 0], request, sampler)

    with pytest.raises(ValueError, match="step: got one that keeps no activations"):
        jaxsteer.generate(shallow, batch, max_new_tokens=3, capture=Capture(), step=forgets)

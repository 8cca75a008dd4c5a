"""jaxsteer.steering in the model: exactly the scoped positions, exactly what was asked, row by row.

Everything runs in one compiled program, whatever the operation and the scope, so that two runs
may be compared bit for bit; see `steering_helpers.exact_vectors` for why sums can be, too.
"""

from collections.abc import Callable
from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import SMALL, alone, random_rows, relative_error, run, steps
from steering_helpers import (
    OPERATIONS,
    B,
    D,
    L,
    exact_vectors,
    expected_of,
    one_of,
    one_program,
)

from jaxsteer.llama.model import forward
from jaxsteer.llama.tokens import left_pad
from jaxsteer.steering import batching, interventions, scope
from jaxsteer.steering.capture import Capture
from jaxsteer.steering.interventions import add
from jaxsteer.steering.scope import Scope
from jaxsteer.steering.sites import SITES
from jaxsteer.steering.steering import Steering

pytestmark = pytest.mark.optimised

EVERY_SITE = Capture(sites=SITES)
SAME = 1e-5  # float32 sums in another order; relative to the largest value
NEW = np.array(random_rows([5] * B, SMALL.vocab_size, seed=1))  # tokens decoded after the prompts
# Which tokens lie inside <think>…</think>, by slot of prompts padded to 9 and of NEW.
THOUGHTS = np.random.default_rng(2).random((B, 9 + NEW.shape[1])) < 0.5
Rule = Callable[
    [int, int, bool], float
]  # position, prompt length, thought -> factor on the coefficient


def passes(model, batch, one: Steering | None, thoughts: np.ndarray = THOUGHTS):
    """Positions `[B, T]`, captures and logits of the prefill and of each decoding step."""
    count = len(batch.tokens)
    shaped = None if one is None else one_program(one, count)
    options = {"steering": shaped, "capture": EVERY_SITE, "thinking": thoughts}
    for position, out in steps(model, batch, NEW[:count], **options):
        captured = {site: np.asarray(x) for site, x in out.captured.items()}
        yield position, captured, np.asarray(out.logits)


def touched(model, batch, one: Steering, rule: Rule, *, site="resid_post", layer=1):
    """The stream at a site before and after, at each token, with the rule's factor there.

    Nothing before a steered site depends on it, at any position, so a run of the same program
    with coefficients of 0 shows what was there before. The positions seen are checked to be each
    row's own, one after another, and padding to be left alone.

    Returns:
        Row, before `[D]`, after `[D]` and factor, of each real token of each pass.
    """
    lengths = np.asarray(batch.lengths)
    seen = [[] for _ in lengths]
    found = []
    for (position, after, _), (_, before, _) in zip(
        passes(model, batch, one), passes(model, batch, zero(one)), strict=True
    ):
        for row, column in np.ndindex(position.shape):
            at, length = int(position[row, column]), int(lengths[row])
            seen[row].append(at)
            pair = before[site][layer][row, column], after[site][layer][row, column]
            if at >= 0:
                slot = batch.tokens.shape[1] - length + at
                found.append((row, *pair, rule(at, length, bool(THOUGHTS[row, slot]))))
            else:
                np.testing.assert_array_equal(*pair)
    width = batch.tokens.shape[1]
    assert seen == [list(range(n - width, n + NEW.shape[1])) for n in lengths]
    return found


def check_added(model, batch, one: Steering, rule: Rule, **where) -> None:
    """A site holds what was there plus coeff · vector where the rule says so, bit for bit."""
    vector, coeff = (np.asarray(x) for x in (one.vector, one.coeff))
    for row, before, after, factor in touched(model, batch, one, rule, **where):
        own = row % len(coeff)
        amount = np.float32(coeff[own] * factor)
        np.testing.assert_array_equal(after, before + amount * vector[own] if amount else before)


MASK = np.random.default_rng(4).random((B, 12)) < 0.5
SCOPES: dict[str, tuple[Scope, Rule]] = {
    "everywhere": (scope.everywhere(), lambda t, p, _: 1),
    "prompt": (scope.prompt(), lambda t, p, _: t < p),
    "generated": (scope.generated(), lambda t, p, _: t >= p),
    "from the last prompt token": (scope.from_last_prompt_token(), lambda t, p, _: t >= p - 1),
    "window": (scope.window(2, 6), lambda t, p, _: 2 <= t < 6),
    "negative window": (scope.window(-4, -1), lambda t, p, _: p - 4 <= t < p - 1),
    "mixed window": (scope.window(-2, 7), lambda t, p, _: p - 2 <= t < 7),
    "positions": (scope.positions([3, -1, 9]), lambda t, p, _: t in (3, p - 1, 9)),
    "mask": (
        scope.mask([False, True, True, False, False, True, False, True, True]),
        lambda t, p, _: t in (1, 2, 5, 7, 8),
    ),
    "thinking": (scope.thinking(), lambda t, p, thought: thought),
    "thinking within a window": (
        scope.thinking(within=scope.window(-2, 9)),
        lambda t, p, thought: thought and p - 2 <= t < 9,
    ),
    "all but thinking": (
        scope.union(scope.generated(), exclude=[scope.thinking()]),
        lambda t, p, thought: t >= p and not thought,
    ),
    "union with exclusion": (
        scope.union(scope.prompt(), scope.window(9, 11), exclude=[scope.window(-1)]),
        lambda t, p, _: t < p - 1,
    ),
    "hole in the generated part": (
        scope.union(scope.generated(), exclude=[scope.window(6, 9)]),
        lambda t, p, _: t >= p and not 6 <= t < 9,
    ),
}


@pytest.mark.parametrize("name", SCOPES)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_exactly_the_scoped_positions_are_touched(small, batch, operation, name):
    where, rule = SCOPES[name]
    one = one_of(operation, coeff=0.5, layer=1, scope=where)
    if operation == "add":
        check_added(small, batch, one, rule)
    covered = 0
    for _, before, after, factor in touched(small, batch, one, rule):
        if factor:
            expected = expected_of(operation, before, coeff=0.5)
            assert relative_error(after, expected) <= SAME
            assert relative_error(before, expected) > 100 * SAME
            covered += 1
        else:
            np.testing.assert_array_equal(after, before)
    assert covered


def test_the_default_scope_is_what_is_generated(small, batch):
    one = add(exact_vectors(), layer=1, coeff=-2.0)
    check_added(small, batch, one, lambda t, p, _: t >= p)


@pytest.mark.parametrize("layer", range(L))
@pytest.mark.parametrize("site", SITES)
def test_every_site_of_every_layer(small, batch, site, layer):
    one = add(exact_vectors(), layer=layer, coeff=0.5, site=site, scope=scope.everywhere())
    check_added(small, batch, one, lambda t, p, _: 1, site=site, layer=layer)
    found, plain = next(passes(small, batch, one)), next(passes(small, batch, zero(one)))
    order = [(i, name) for i in range(L) for name in SITES]
    real = np.asarray(batch.mask)
    for at, (i, name) in enumerate(order):
        same = np.array_equal(found[1][name][i], plain[1][name][i])
        if at < order.index((layer, site)):
            assert same, f"{name} of layer {i} comes before what was steered"
        else:
            # attn_out is added to the stream one site later, and all that follows feels it.
            assert not same, f"{name} of layer {i} comes after what was steered"
    assert not np.array_equal(found[2][real], plain[2][real])


def zero(one: Steering) -> Steering:
    return replace(one, coeff=jnp.zeros_like(one.coeff))


def all_rows(seed: int = 0) -> list[Steering]:
    """Interventions that differ in everything, more than the batch has rows."""
    every, probe = {"scope": scope.everywhere()}, exact_vectors(seed=seed + 1)[0]
    rising = one_of("add", seed=seed, layer=0, site="attn_out", schedule=[1, 1, 0.5], **every)
    rotated = one_of(
        "ablate",
        seed=seed,
        layer=[[0, 2]],
        site="resid_mid",
        scope=scope.from_last_prompt_token(),
        preserve_norm=True,
    )
    window = one_of("clamp", seed=seed, layer=1, site="head_out", scope=scope.window(-3, 10))
    pulsing = one_of(
        "replace", seed=seed, coeff=0.25, layer=2, scope=scope.thinking(), schedule=[1, 0, 2, 0]
    )
    longer = one_of("add", seed=seed, coeff=3.0, layer="all", preserve_norm=True, **every)
    probed = interventions.when(one_of("ablate", seed=seed, layer="all", **every), probe, above=0.0)
    return [
        rising,
        interventions.when(window, -probe, above=-0.1),
        rotated,
        pulsing,
        longer,
        probed,
    ]


def mixes() -> list[Steering]:
    """The same as batches of three rows."""
    ones = all_rows()
    return [batching.rows(ones[:B]), batching.rows(ones[B:])]


def test_coefficient_0_is_the_unsteered_model_bit_for_bit(small, batch):
    options = {"mask": batch.mask, "capture": EVERY_SITE}
    thoughts = THOUGHTS[:, :9]
    # Operation by operation: two compiled programs may round differently, whatever they compute.
    plain = forward(small, batch.tokens, **options)
    for one in mixes():
        one = zero(one)
        found = forward(small, batch.tokens, steering=one, thinking=thoughts, **options)
        np.testing.assert_array_equal(found.logits, plain.logits)
        for name in SITES:
            np.testing.assert_array_equal(found.captured[name], plain.captured[name])
        # Compiled, in prefill and decoding, nothing but such roundings is left.
        for (_, found, logits), (_, unsteered, expected) in zip(
            passes(small, batch, one), passes(small, batch, None), strict=True
        ):
            assert relative_error(logits, expected) <= 1e-6
            for name in SITES:
                assert relative_error(found[name], unsteered[name]) <= 1e-6


def test_with_coefficient_0_nothing_else_matters_bit_for_bit(small, batch):
    """In one compiled program, so that not even roundings may differ."""
    first, second = (zero(one) for one in mixes())
    nowhere = replace(mixes()[0], scope=scope.rows([scope.window(1000)] * B))
    never = interventions.when(add(exact_vectors(B), layer=1, coeff=1.0), np.ones(D), above=1e9)
    for results in zip(
        *(passes(small, batch, one) for one in (first, second, nowhere, never)), strict=True
    ):
        chex.assert_trees_all_equal(*[result[1:] for result in results])


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ([1, 0.5, 0.25], [1, 0.5, 0.25, 0.25, 0.25]),  # the last entry holds
        ([0, 0, 2, 0], [0, 0, 2, 0, 0]),  # a pulse
        (0.5, [0.5] * 5),
    ],
)
def test_a_schedule_follows_the_generated_position(small, batch, schedule, factors):
    one = add(exact_vectors(), layer=1, coeff=4.0, scope=scope.everywhere(), schedule=schedule)
    # The prompt has the first entry.
    check_added(small, batch, one, lambda t, p, _: factors[max(t - p, 0)])


@pytest.mark.parametrize("mix", range(2))
def test_rows_that_differ_in_everything_are_the_rows_alone(small, batch, mix):
    one, singles = mixes()[mix], all_rows()[mix * B :][:B]
    found, plain = list(passes(small, batch, one)), list(passes(small, batch, zero(one)))
    for row, single in enumerate(singles):
        shaped, own = one_program(single, 1), NEW[row : row + 1]
        for step, (_, out) in enumerate(
            steps(
                small,
                alone(batch, row),
                own,
                steering=shaped,
                capture=EVERY_SITE,
                thinking=THOUGHTS[row : row + 1],
            )
        ):
            real = found[step][0][row] >= 0
            logits = found[step][2][row][real]
            assert relative_error(logits, out.logits[0][real]) <= SAME
            for site, x in out.captured.items():
                assert relative_error(found[step][1][site][:, row, real], x[:, 0, real]) <= SAME
        # And the row was steered at all, by much more than that.
        assert any(
            relative_error(a[2][row], b[2][row]) > 1e-2 for a, b in zip(found, plain, strict=True)
        )


def test_each_row_has_its_own_exact_vector_coefficient_and_scope(small, batch):
    one = add(exact_vectors(B), layer=1, coeff=[1.0, -2.0, 0.0], scope=scope.mask(MASK))
    rows = {int(n): row for row, n in enumerate(batch.lengths)}  # no two prompts are equally long

    def masked(t: int, p: int, _: bool) -> float:
        return t < MASK.shape[1] and MASK[rows[p], t]

    for row, before, after, factor in touched(small, batch, one, masked):
        amount = np.float32(one.coeff[row] * factor)
        np.testing.assert_array_equal(after, before + amount * np.asarray(one.vector)[row])


def test_several_layers_of_a_row_and_all_layers(small, batch):
    direction = exact_vectors()[0]
    layers = [[0], [0, 2], ["all"]]
    one = interventions.ablate(direction, layer=layers, scope=scope.everywhere())
    for position, after, _ in passes(small, batch, one):
        along = np.abs(after["resid_post"] @ direction)  # [L, B, T]
        for layer, row in np.ndindex(L, B):
            gone = along[layer, row, position[row] >= 0] < 1e-5
            acts = layer in layers[row] or layers[row] == ["all"]
            assert gone.all() if acts else not gone.any(), (layer, row)


def test_interventions_are_applied_in_the_order_given(small, batch):
    vector = exact_vectors()
    options = {"layer": 1, "scope": scope.everywhere()}
    large, back = (add(vector, coeff=c, **options) for c in (2.0**20, -(2.0**20)))
    later = add(vector, coeff=1.0, **options | {"layer": 2})

    def stream(*interventions) -> np.ndarray:
        out = run(small, batch.tokens, mask=batch.mask, steering=interventions, capture=Capture())
        return np.asarray(out.captured["resid_post"])

    before = stream(*map(zero, (large, back, later)))
    # Large steps round the stream away, so that only one order gives these bits.
    step = np.float32(2.0**20) * vector
    real = np.asarray(batch.mask)
    up_and_down = ((before[1] + step) - step)[real]
    down_and_up = ((before[1] - step) + step)[real]
    assert not np.array_equal(up_and_down, down_and_up)
    np.testing.assert_array_equal(stream(large, back, zero(later))[1][real], up_and_down)
    np.testing.assert_array_equal(stream(back, large, zero(later))[1][real], down_and_up)
    # At two layers both act.
    two, one = stream(zero(large), zero(back), later), stream(zero(large), zero(back), zero(later))
    np.testing.assert_array_equal(two[2][real], (one[2] + vector)[real])


def test_forward_does_not_steer_nothing_in_silence(small):
    batch = left_pad([[1, 2, 3], [4, 5]], length=4)
    behind = add(np.ones(small.config.d_model), layer=0, coeff=50.0)  # scope: generated
    with pytest.raises(ValueError, match=r"prompt_length: got None, so that all 4 tokens are"):
        forward(small, batch.tokens, mask=batch.mask, steering=behind)
    with pytest.raises(ValueError, match="prompt_length: got None"):  # a constant of the program
        jax.jit(lambda m: forward(m, batch.tokens, steering=behind).logits)(small)
    options = {"mask": batch.mask, "prompt_length": jnp.zeros(2, jnp.int32)}
    steered = forward(small, batch.tokens, steering=behind, **options).logits
    everywhere = replace(behind, scope=scope.everywhere())
    expected = forward(small, batch.tokens, mask=batch.mask, steering=everywhere).logits
    real = np.asarray(batch.mask)
    np.testing.assert_array_equal(steered[real], expected[real])


def test_forward_names_what_does_not_fit(small):
    tokens = jnp.ones((1, 4), jnp.int32)
    wrong = add(np.ones(small.config.d_model), layer=99, coeff=1.0, scope=scope.everywhere())
    with pytest.raises(ValueError, match=r"layer: got 99"):
        forward(small, tokens, steering=wrong)
    with pytest.raises(ValueError, match=r"tokens: got \(4,\), expected int32 \[B, T\]"):
        forward(small, tokens[0])
    with pytest.raises(ValueError, match=r"tokens: got str, expected"):
        forward(small, "the residual stream")

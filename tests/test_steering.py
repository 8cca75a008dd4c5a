"""jaxsteer.steering: exactly the scoped positions, exactly `before + coeff · vector`, row by row.

Vectors hold ±0.5, ±1 and ±2 and coefficients are powers of two, so that their products are exact
in float32: a compiler that fuses the multiplication into the addition rounds no differently from
one that does not, and equality can be bit for bit.
"""

from collections.abc import Callable
from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from oracle import SMALL, alone, random_rows, relative_error, run, steps, torch_twin

from jaxsteer import scope, steering
from jaxsteer.capture import Capture
from jaxsteer.generate import generate
from jaxsteer.model import forward
from jaxsteer.scope import Scope, broadcast_rows, pad_windows
from jaxsteer.sites import SITES
from jaxsteer.steering import Steering, add, check_steering

B, L, D = 3, SMALL.n_layers, SMALL.d_model
EVERY_SITE = Capture(sites=SITES)
SAME = 1e-5  # float32 sums in another order; relative to the largest value
NEW = np.array(random_rows([5] * B, SMALL.vocab_size, seed=1))  # tokens decoded after the prompts
Rule = Callable[[int, int], float]  # (position, prompt length) -> factor on the coefficient


def exact_vectors(count: int = 1, *, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.choice([-2, -1, -0.5, 0.5, 1, 2], size=(count, D)).astype(np.float32)


def one_program(one: Steering, rows: int = B) -> Steering:
    """The same steering in the shapes that the tests here share, so that it compiles once."""
    one = replace(one, sites=SITES, scope=pad_windows(one.scope, 3))
    padding = ((0, 0), (0, 4 - one.schedule.shape[1]))
    one = replace(one, schedule=jnp.pad(one.schedule, padding, mode="edge"))
    return broadcast_rows(one, rows, "steering")


def passes(model, batch, one: Steering | None):
    """Positions `[B, T]`, captures and logits of the prefill and of each decoding step."""
    shaped = None if one is None else one_program(one, len(batch.tokens))
    for position, out in steps(
        model, batch, NEW[: len(batch.tokens)], steering=shaped, capture=EVERY_SITE
    ):
        captured = {site: np.asarray(x) for site, x in out.captured.items()}
        yield position, captured, np.asarray(out.logits)


def check_touched(model, batch, one: Steering, rule: Rule, *, site="resid_post", layer=1) -> None:
    """A site holds what was there plus coeff · vector where the rule says so, bit for bit.

    Nothing before a steered site depends on it, at any position, so a run of the same program
    with coefficients of 0 shows what was there before.
    """
    vector, coeff = (np.asarray(x) for x in (one.vector, one.coeff))
    untouched = replace(one, coeff=jnp.zeros_like(one.coeff))
    lengths = np.asarray(batch.lengths)
    seen = [[] for _ in lengths]
    for (position, after, _), (_, before, _) in zip(
        passes(model, batch, one), passes(model, batch, untouched), strict=True
    ):
        expected = before[site][layer].copy()
        for row, column in np.ndindex(position.shape):
            at = int(position[row, column])
            seen[row].append(at)
            if at >= 0:
                own = row % len(coeff)
                amount = np.float32(coeff[own] * rule(at, int(lengths[row])))
                expected[row, column] += amount * vector[own]
        np.testing.assert_array_equal(after[site][layer], expected)
    width = batch.tokens.shape[1]
    assert seen == [list(range(n - width, n + NEW.shape[1])) for n in lengths]


SCOPES: dict[str, tuple[Scope, Rule]] = {
    "everywhere": (scope.everywhere(), lambda t, p: 1),
    "prompt": (scope.prompt(), lambda t, p: t < p),
    "generated": (scope.generated(), lambda t, p: t >= p),
    "from the last prompt token": (scope.from_last_prompt_token(), lambda t, p: t >= p - 1),
    "window": (scope.window(2, 6), lambda t, p: 2 <= t < 6),
    "negative window": (scope.window(-4, -1), lambda t, p: p - 4 <= t < p - 1),
    "mixed window": (scope.window(-2, 7), lambda t, p: p - 2 <= t < 7),
    "union with exclusion": (
        scope.union(scope.prompt(), scope.window(9, 11), exclude=[scope.window(-1)]),
        lambda t, p: t < p - 1,
    ),
    "hole in the generated part": (
        scope.union(scope.generated(), exclude=[scope.window(6, 9)]),
        lambda t, p: t >= p and not 6 <= t < 9,
    ),
}


@pytest.mark.parametrize("name", SCOPES)
def test_exactly_the_scoped_positions_are_touched(small, batch, name):
    where, rule = SCOPES[name]
    check_touched(small, batch, add(exact_vectors(), layer=1, coeff=4.0, scope=where), rule)


def test_the_default_scope_is_what_is_generated(small, batch):
    check_touched(small, batch, add(exact_vectors(), layer=1, coeff=-2.0), lambda t, p: t >= p)


@pytest.mark.parametrize("layer", range(L))
@pytest.mark.parametrize("site", SITES)
def test_every_site_of_every_layer(small, batch, site, layer):
    one = add(exact_vectors(), layer=layer, coeff=0.5, site=site, scope=scope.everywhere())
    check_touched(small, batch, one, lambda t, p: 1, site=site, layer=layer)
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


def test_coefficient_0_is_the_unsteered_model_bit_for_bit(small, batch):
    rng = np.random.default_rng(0)
    vector = 1e3 * rng.standard_normal((B, D))
    sites = ["resid_post", "attn_out", "resid_mid"]
    one = add(vector, layer=[0, 1, 2], coeff=0.0, site=sites, scope=scope.everywhere())
    options = {"mask": batch.mask, "capture": EVERY_SITE}
    # Operation by operation: two compiled programs may round differently, whatever they compute.
    found = forward(small, batch.tokens, steering=one, **options)
    plain = forward(small, batch.tokens, **options)
    np.testing.assert_array_equal(found.logits, plain.logits)
    for name in SITES:
        np.testing.assert_array_equal(found.captured[name], plain.captured[name])
    # Compiled, in prefill and decoding, nothing but such roundings is left.
    for (_, found, logits), (_, plain, expected) in zip(
        passes(small, batch, one), passes(small, batch, None), strict=True
    ):
        assert relative_error(logits, expected) <= 1e-6
        for name in SITES:
            assert relative_error(found[name], plain[name]) <= 1e-6


def test_with_coefficient_0_nothing_else_matters_bit_for_bit(small, batch):
    """In one compiled program, so that not even roundings may differ."""
    silent = zero(mixed_rows())
    other = replace(silent, vector=jnp.zeros((B, D)), layer=jnp.zeros(B, jnp.int32))
    nowhere = replace(mixed_rows(), scope=scope.window(1000))
    for (_, *first), (_, *second), (_, *third) in zip(
        *(passes(small, batch, one) for one in (silent, other, nowhere)), strict=True
    ):
        chex.assert_trees_all_equal(first, second, third)


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
    check_touched(small, batch, one, lambda t, p: factors[max(t - p, 0)])


def mixed_rows() -> Steering:
    """Three rows that differ in everything."""
    scopes = [scope.everywhere(), scope.from_last_prompt_token(), scope.window(-3, 10)]
    return add(
        exact_vectors(B),
        layer=[0, 2, 1],
        coeff=[0.25, -0.5, 1.0],
        site=["attn_out", "resid_mid", "resid_post"],
        schedule=[[1, 1, 0.5], [0.5, 1, 1], [1, 2, 0]],
        scope=jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *scopes),
    )


def test_rows_that_differ_in_everything_are_the_rows_alone(small, batch):
    one = mixed_rows()
    found, plain = list(passes(small, batch, one)), list(passes(small, batch, zero(one)))
    for row in range(B):
        single = replace(alone(one, row), sites=SITES)
        own = NEW[row : row + 1]
        shaped = one_program(single, 1)
        for step, (_, out) in enumerate(
            steps(small, alone(batch, row), own, steering=shaped, capture=EVERY_SITE)
        ):
            real = found[step][0][row] >= 0
            logits = found[step][2][row][real]
            assert relative_error(logits, out.logits[0][real]) <= SAME
            for site, x in out.captured.items():
                assert relative_error(found[step][1][site][:, row, real], x[:, 0, real]) <= SAME
        # And the row was steered at all, by much more than that.
        assert relative_error(found[-1][2][row], plain[-1][2][row]) > 1e-2


def test_each_row_has_its_own_exact_vector_and_coefficient(small, batch):
    one = add(exact_vectors(B), layer=1, coeff=[1.0, -2.0, 0.0], scope=scope.prompt())
    check_touched(small, batch, one, lambda t, p: t < p)


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


def test_the_sum_is_made_in_float32_and_rounded_once():
    # bfloat16 has 256 and 258. A vector rounded to 1 first would end half-way, at the even 256.
    x = jnp.full((1, 1, D), 256.0, jnp.bfloat16)
    one = add(np.full(D, 1 + 2.0**-10), layer=0, coeff=1.0, scope=scope.everywhere())
    strengths = jnp.ones((1, 1))
    found = steering.apply(x, site="resid_post", layer=0, steering=one, strengths=strengths)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found.astype(jnp.float32), 258.0)


def hooked(twin, site: str, layer: int, amount: torch.Tensor, *, decoding_only: bool):
    """Add `amount` to a site of transformers' model, in every pass or not in the prefill."""

    def change(x):
        return x if decoding_only and x.shape[1] > 1 else x + amount

    def after(module, args, out):
        return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

    block = twin.model.layers[layer]
    if site == "resid_pre":
        return block.register_forward_pre_hook(lambda m, args: (change(args[0]), *args[1:]))
    module = {"resid_post": block, "attn_out": block.self_attn, "mlp_out": block.mlp}[site]
    return module.register_forward_hook(after)


@pytest.fixture(scope="module")
def twin(small):
    return torch_twin(small)


def greedy_by_transformers(twin, batch, count: int) -> np.ndarray:
    with torch.no_grad():
        tokens = twin.generate(
            torch.tensor(np.asarray(batch.tokens), dtype=torch.long),
            attention_mask=torch.tensor(np.asarray(batch.mask), dtype=torch.long),
            do_sample=False,
            max_new_tokens=count,
        )
    return tokens[:, batch.tokens.shape[1] :].numpy()


@pytest.mark.parametrize("site", ["resid_pre", "attn_out", "mlp_out", "resid_post"])
@pytest.mark.parametrize("generated_only", [True, False])
def test_a_hook_in_transformers_gives_the_same_tokens(small, batch, twin, site, generated_only):
    rng = np.random.default_rng(5)
    vector = rng.standard_normal(D).astype(np.float32)
    where = scope.generated() if generated_only else scope.everywhere()
    one = add(vector, layer=1, coeff=1.5, site=site, scope=where)
    found = generate(small, batch, max_new_tokens=8, steering=one_program(one)).tokens
    handle = hooked(twin, site, 1, 1.5 * torch.tensor(vector), decoding_only=generated_only)
    expected = greedy_by_transformers(twin, batch, 8)
    handle.remove()
    np.testing.assert_array_equal(found, expected)
    plain = greedy_by_transformers(twin, batch, 8)
    assert (found != plain).mean() > 0.3  # steering matters here
    if generated_only:  # the first token's logits were made at the prompt's end
        np.testing.assert_array_equal(found[:, 0], plain[:, 0])


def test_stacking_changes_no_strength():
    position = jnp.broadcast_to(jnp.arange(-2, 12), (B, 14))
    lengths = jnp.array([3, 8, 5])
    ones = [
        add(exact_vectors(), layer=1, coeff=[1.0, 2.0, 3.0], schedule=[1, 2, 3]),
        add(exact_vectors(), layer=2, coeff=[1.0, 2.0, 3.0], scope=SCOPES["mixed window"][0]),
        replace(mixed_rows(), coeff=jnp.ones(B)),
        add(
            exact_vectors(),
            layer=0,
            coeff=[1.0, 2.0, 3.0],
            scope=SCOPES["union with exclusion"][0],
        ),
    ]
    ones = [broadcast_rows(one, B, "steering") for one in ones]
    stacked = steering.stack(ones)
    assert stacked.sites == ("attn_out", "resid_mid", "resid_post")
    for c, one in enumerate(ones):
        cell = jax.tree.map(lambda x, c=c: x[c], stacked)
        np.testing.assert_array_equal(
            steering.strength(cell, position, lengths), steering.strength(one, position, lengths)
        )
        np.testing.assert_array_equal(cell.vector, one.vector)


V = np.ones(D, np.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vector": [1.0, np.nan]}, "vector: got NaN or infinity, expected finite numbers"),
        ({"coeff": np.inf}, "coeff: got NaN or infinity"),
        ({"schedule": [1.0, np.nan]}, "schedule: got NaN or infinity"),
        (
            {"vector": np.ones((2, D)), "coeff": [1.0, 2.0, 3.0]},
            "vector: got 2 rows, expected 1 or 3",
        ),
        ({"layer": [0, 1], "coeff": [1.0] * 3}, "layer: got 2 rows, expected 1 or 3"),
        ({"vector": np.ones((1, 1, D))}, r"vector: got shape \(1, 1, 16\)"),
        ({"vector": np.ones((0, D))}, r"vector: got shape \(0, 16\)"),
        ({"layer": 1.5}, "layer: got dtype float64, expected integers"),
        ({"site": "resid_past"}, "site: got 'resid_past', expected one of resid_pre, attn_out"),
        ({"site": ["resid_post", "mlp"]}, "site: got 'mlp'"),
    ],
)
def test_interventions_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        add(**{"vector": V, "layer": 0, "coeff": 1.0} | arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vector": np.ones(D + 1)}, r"steering\.vector: got width 17, expected d_model=16"),
        ({"layer": 3}, r"steering\.layer: got 3 to 3, expected 0 to 2"),
        ({"layer": -1}, r"steering\.layer: got -1 to -1, expected 0 to 2"),
        ({"coeff": [1.0, 2.0]}, r"steering: got 2 rows, expected 1 or the batch's 3"),
    ],
)
def test_interventions_that_do_not_fit_the_model_or_the_batch(small, batch, arguments, message):
    one = add(**{"vector": V, "layer": 0, "coeff": 1.0} | arguments)
    with pytest.raises(ValueError, match=message):
        check_steering(one, SMALL, rows=B)
    with pytest.raises(ValueError, match=message):
        generate(small, batch, max_new_tokens=1, steering=one)


def test_names_of_transformerlens_are_understood():
    assert add(V, layer=0, coeff=1.0, site="hook_mlp_out").sites == ("mlp_out",)

"""steering.interventions: what each operation makes of a stream, its derivatives, and bad input."""

from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import SMALL, random_model, relative_error, run
from steering_helpers import (
    ALONG_ITSELF,
    OPERATIONS,
    B,
    D,
    exact_vectors,
    expected_of,
    one_of,
    one_program,
)

from jaxsteer.decoding.generation import generate
from jaxsteer.directions import Direction
from jaxsteer.llama.model import forward
from jaxsteer.steering import batching, interventions, schedules, scope
from jaxsteer.steering import steering as steers
from jaxsteer.steering.capture import Capture
from jaxsteer.steering.checks import check_steering
from jaxsteer.steering.interventions import ablate, add, clamp, head_vector, when
from jaxsteer.steering.scope import broadcast_rows
from jaxsteer.steering.sites import SITES
from jaxsteer.steering.steering import Steering
from jaxsteer.sweeps import grid

pytestmark = pytest.mark.optimised

T = 6
EVERYWHERE = {"layer": 0, "scope": scope.everywhere()}
SAME = 1e-6  # float32 in another order; relative to the largest value
LENGTH = 1e-5  # of a token whose length is kept, relative


@jax.jit
def applied(x: jax.Array, one: Steering) -> jax.Array:
    """`x` `[B, T, D]`, all of it prompt, after the intervention."""
    position = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
    coeffs = steers.token_coeffs(one, position, jnp.full(x.shape[0], x.shape[1]))
    return steers.apply(x, site="resid_post", layer=0, steering=one, coeffs=coeffs)


def stream(*, rows: int = B, seed: int = 0, dtype=jnp.float32, scale: float = 1.0) -> jax.Array:
    rng = np.random.default_rng(seed)
    return jnp.asarray(scale * rng.standard_normal((rows, T, D)), dtype)


def lengths(x) -> np.ndarray:
    return np.linalg.norm(np.asarray(x, np.float64), axis=-1)


@pytest.mark.parametrize("coeff", [1.0, 0.5, -2.0])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_operation_is_its_formula(operation, coeff):
    x = stream()
    found = applied(x, one_of(operation, coeff=coeff, **EVERYWHERE))
    expected = expected_of(operation, x, coeff=coeff)
    assert relative_error(found, expected) <= SAME
    if operation == "replace" and coeff == 1.0:
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_ablated_directions_are_gone_and_stay_gone(count):
    x, directions = stream(), np.random.default_rng(1).standard_normal((count, D))
    one = ablate(directions, **EVERYWHERE)
    once = applied(x, one)
    assert np.abs(once @ directions.T).max() <= 1e-5
    assert relative_error(applied(once, one), once) <= SAME
    # What is orthogonal to them is left as it was, and half the coefficient takes half.
    others = np.linalg.svd(directions)[2][count:]
    assert relative_error(once @ others.T, x @ others.T) <= SAME
    half = applied(x, ablate(directions, coeff=0.5, **EVERYWHERE))
    assert relative_error(half, (x + once) / 2) <= SAME
    # Length and order of the directions do not matter.
    scaled = directions[::-1] * np.geomspace(1e-20, 1e15, count)[:, None]
    assert relative_error(applied(x, ablate(scaled, **EVERYWHERE)), once) <= SAME


def test_rows_may_ablate_directions_of_their_own():
    x, directions = stream(), np.random.default_rng(1).standard_normal((B, 2, D))
    found = applied(x, ablate(directions, **EVERYWHERE))
    for row in range(B):
        expected = applied(x[row : row + 1], ablate(directions[row], **EVERYWHERE))
        assert relative_error(found[row], expected[0]) <= SAME


def test_after_clamping_the_projection_is_the_value():
    x, direction = stream(scale=10.0), np.random.default_rng(1).standard_normal(D)
    values = np.array([0.0, 5.0, -3.0])
    found = applied(x, clamp(direction, values, **EVERYWHERE))
    along = found @ direction / np.linalg.norm(direction)
    np.testing.assert_allclose(along, np.tile(values[:, None], T), atol=1e-4)
    assert relative_error(applied(x, clamp(7 * direction, values, **EVERYWHERE)), found) <= SAME
    half = applied(x, clamp(direction, values, coeff=0.5, **EVERYWHERE))
    assert relative_error(half, (x + found) / 2) <= SAME
    # Clamped to 0 is ablated.
    gone = applied(x, ablate(direction, **EVERYWHERE))
    assert relative_error(applied(x, clamp(direction, 0.0, **EVERYWHERE)), gone) <= SAME


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_length_is_kept_and_the_direction_is_that_without_keeping_it(operation):
    x = stream(scale=3.0)
    kept = applied(x, one_of(operation, preserve_norm=[True, False, True], **EVERYWHERE))
    plain = applied(x, one_of(operation, **EVERYWHERE))
    assert relative_error(kept[1], plain[1]) <= SAME
    np.testing.assert_allclose(lengths(kept)[::2], lengths(x)[::2], rtol=LENGTH)
    assert (np.abs(lengths(plain) / lengths(x) - 1) > 1e-3).all()
    unit = kept / lengths(kept)[..., None], plain / lengths(plain)[..., None]
    assert relative_error(*unit) <= SAME


@pytest.mark.parametrize(
    ("dtype", "scale"), [(jnp.bfloat16, 1e37), (jnp.float16, 9e3), (jnp.float32, 1e-30)]
)
def test_keeping_the_length_neither_overflows_nor_vanishes(dtype, scale):
    x = stream(dtype=dtype, scale=scale)
    vector = 5 * scale * np.random.default_rng(1).standard_normal(D)
    one = add(vector, coeff=1.0, preserve_norm=True, **EVERYWHERE)
    found = applied(x, one)
    assert found.dtype == dtype
    assert np.isfinite(np.asarray(found, np.float64)).all()
    rounding = 4 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(lengths(found), lengths(x), rtol=max(rounding, LENGTH))


def test_a_stream_of_nothing_keeps_its_length_of_nothing():
    vector, zeros = exact_vectors()[0], jnp.zeros((1, T, D))
    one = add(vector, coeff=1.0, preserve_norm=True, **EVERYWHERE)
    np.testing.assert_array_equal(applied(zeros, one), zeros)
    # And where an operation leaves nothing, there is no direction in which to keep a length.
    vector = np.random.default_rng(1).standard_normal(D)
    along = jnp.broadcast_to(jnp.float32(vector) * 0.3, (1, T, D))
    assert 0 < np.abs(applied(along, ablate(vector, **EVERYWHERE))).max() <= 1e-6  # rounding
    found = applied(along, ablate(vector, preserve_norm=True, **EVERYWHERE))
    assert np.abs(found).max() <= 1e-5


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("preserve_norm", [False, True])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_coefficient_0_gives_the_stream_back_bit_for_bit(operation, preserve_norm, dtype):
    one = one_of(operation, coeff=0.0, preserve_norm=preserve_norm, **EVERYWHERE)
    for x in (stream(dtype=dtype, scale=1e3), jnp.zeros((B, T, D), dtype)):
        np.testing.assert_array_equal(applied(x, one), x)


def test_the_sum_is_made_in_float32_and_rounded_once():
    # bfloat16 has 256 and 258. A vector rounded to 1 first would end half-way, at the even 256.
    x = jnp.full((1, 1, D), 256.0, jnp.bfloat16)
    found = applied(x, add(np.full(D, 1 + 2.0**-10), coeff=1.0, **EVERYWHERE))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found.astype(jnp.float32), 258.0)


def test_a_condition_is_asked_of_each_token_before_the_intervention():
    x, probe = stream(), np.random.default_rng(1).standard_normal(D)
    along = x @ probe / np.linalg.norm(probe)
    thresholds = np.array([0.0, 0.5, -0.5])
    one = when(add(exact_vectors(), coeff=2.0, **EVERYWHERE), probe, above=thresholds)
    fires = np.asarray(along) > thresholds[:, None]
    assert 0 < fires.sum() < fires.size
    expected = np.where(fires[..., None], x + 2.0 * exact_vectors()[0], x)
    np.testing.assert_array_equal(applied(x, one), expected)
    always = batching.rows([one, add(exact_vectors(), coeff=2.0, **EVERYWHERE)])
    np.testing.assert_array_equal(
        applied(x[:1], jax.tree.map(lambda leaf: leaf[B:], always)),
        x[:1] + 2.0 * exact_vectors()[0],
    )


def test_rows_of_different_operations_are_each_alone():
    x = stream(rows=len(OPERATIONS))
    ones = [one_of(name, seed=i, **EVERYWHERE) for i, name in enumerate(OPERATIONS)]
    together = applied(x, batching.rows(ones))
    for row, one in enumerate(ones):
        assert relative_error(together[row], applied(x[row : row + 1], one)[0]) <= SAME


@jax.jit
def loss(coeff, vector, one: Steering, x, weight) -> jax.Array:
    return jnp.sum(weight * applied(x, replace(one, coeff=coeff, vector=vector)))


gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))


@pytest.mark.parametrize("preserve_norm", [False, True])
@pytest.mark.parametrize("coeff", [0.0, 0.5])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_derivatives_are_those_of_the_formula(operation, coeff, preserve_norm):
    """By coefficient, at 0 as well, and by the vector, against differences in float64."""
    x, weight = stream(rows=1), np.random.default_rng(1).standard_normal((1, T, D))
    covered = np.isin(np.arange(T), [1, 2, 3])[:, None]
    where = {"scope": scope.window(1, 4), "layer": 0, "preserve_norm": preserve_norm}
    one = one_program(one_of(operation, coeff=coeff, **where), 1, thinking=False)

    def exact(coeff: float, moved: np.ndarray) -> float:
        # The vector enters each operation as coeff times itself.
        new = expected_of(operation, x, coeff=coeff) + coeff * moved
        if preserve_norm:
            new *= (lengths(x) / lengths(new))[..., None]
        return float(np.sum(weight * np.where(covered, new, x)))

    step, still = 1e-6, np.zeros(D)
    by_coeff, by_vector = gradients(one.coeff, one.vector, one, x, weight)
    slope = (exact(coeff + step, still) - exact(coeff - step, still)) / (2 * step)
    undone = preserve_norm and operation in ALONG_ITSELF
    assert abs(slope) < 1e-6 if undone else abs(slope) > 0.1
    np.testing.assert_allclose(by_coeff[0], slope, rtol=1e-3, atol=1e-5)
    _, tangent = jax.jvp(
        lambda c: loss(c, one.vector, one, x, weight), (one.coeff,), (jnp.ones(1),)
    )
    np.testing.assert_allclose(tangent, slope, rtol=1e-3, atol=1e-5)
    slopes = [(exact(coeff, step * e) - exact(coeff, -step * e)) / (2 * step) for e in np.eye(D)]
    np.testing.assert_allclose(by_vector[0], slopes, rtol=1e-3, atol=1e-4)


def test_derivatives_through_the_model_at_coefficient_0(shallow, batch):
    one = add(exact_vectors(), layer=0, coeff=0.0, scope=scope.everywhere())

    @jax.jit
    def logit(coeff):
        out = forward(shallow, batch.tokens, mask=batch.mask, steering=replace(one, coeff=coeff))
        return jnp.sum(out.logits[:, -1, 0])

    step = jnp.full(1, 2e-3)
    slope = (logit(step) - logit(-step)) / (2 * step)
    assert abs(float(slope[0])) > 0.1
    np.testing.assert_allclose(jax.grad(logit)(jnp.zeros(1)), slope, rtol=1e-2)


def test_nothing_is_compiled_again_when_only_data_changes(small, batch):
    chex.clear_trace_counter()
    counted = jax.jit(
        chex.assert_max_traces(n=1)(lambda s: forward(small, batch.tokens, steering=s))
    )
    everywhere, holed = scope.everywhere(), scope.union(scope.window(2), exclude=[scope.prompt()])
    vectors = np.random.default_rng(0).standard_normal((6, D))
    for one in (
        add(vectors[0], layer=0, coeff=1.0),
        add(vectors[1], layer="all", coeff=-8.0, scope=everywhere),
        add(vectors[2], layer=[[0, 2]], coeff=0.0, scope=holed, schedule=[1.0, 0.5]),
        add(vectors[3], layer=2, coeff=2.0, scope=scope.positions([3, -1])),
        add(vectors[4], layer=1, coeff=1.0, scope=scope.mask([True, False, True])),
        add(vectors[5], layer=1, coeff=1.0, schedule=schedules.linear_decay(7)),
    ):
        counted(one)
    chex.clear_trace_counter()
    counted = jax.jit(
        chex.assert_max_traces(n=1)(lambda s: forward(small, batch.tokens, steering=s))
    )
    sites = ["mlp_out", "resid_post"]
    for one in (
        batching.rows([ablate(vectors[:3], layer=0, site=s) for s in (*sites, *sites[:1])]),
        batching.rows(
            [ablate(vectors[2:6], layer="all", site=s) for s in (*sites[::-1], *sites)][:3]
        ),
        batching.rows(
            [
                clamp(vectors[0], 2.0, layer=1, site=sites[0]),
                ablate(vectors[1:5], layer=2, coeff=0.5, site=sites[1], scope=holed),
                add(vectors[0], layer=0, coeff=1.0, site=sites[0]),
            ]
        ),
    ):
        counted(one)


def test_a_heads_vector_is_its_own_and_zero_elsewhere():
    N, H = SMALL.n_heads, SMALL.head_dim
    found = head_vector(np.arange(1.0, H + 1), head=2, config=SMALL)
    assert found.tolist() == [0] * (2 * H) + [1, 2, 3, 4] + [0] * ((N - 3) * H)
    silenced = head_vector(np.eye(H), head=1, config=SMALL)
    assert silenced.shape == (H, N * H)
    np.testing.assert_array_equal(silenced[:, H : 2 * H], np.eye(H))


V = np.ones(D, np.float32)
IN_SPAN = r"directions: got direction 2 of row 0 in the span of those before it"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vector": [1.0, np.nan]}, "vector: got NaN or infinity, expected finite numbers"),
        ({"vector": [1e39, 1.0]}, "vector: got NaN or infinity"),  # in float32
        ({"vector": [1.0 + 1j]}, "vector: got dtype complex128, expected real numbers"),
        ({"vector": V > 0}, "vector: got dtype bool, expected real numbers"),
        ({"vector": ["a", "b"]}, "vector: got dtype <U1, expected real numbers"),
        ({"vector": None}, "vector: got NoneType, expected real numbers"),
        ({"vector": [[1.0], [1.0, 2.0]]}, r"vector: got list, expected \[D\] or \[B, D\]"),
        ({"vector": 1.0}, r"vector: got shape \(\), expected \[D\]"),
        ({"vector": np.ones((1, 1, D))}, r"vector: got shape \(1, 1, 16\)"),
        ({"vector": np.ones((0, D))}, r"vector: got shape \(0, 16\)"),
        ({"vector": scope.generated()}, "vector: got Scope, expected real numbers"),
        ({"coeff": np.inf}, "coeff: got NaN or infinity"),
        ({"coeff": True}, "coeff: got dtype bool"),
        ({"coeff": [[1.0]]}, r"coeff: got shape \(1, 1\), expected a number or \[B\]"),
        ({"schedule": [1.0, np.nan]}, "schedule: got NaN or infinity"),
        ({"schedule": []}, r"schedule: got shape \(0,\)"),
        ({"vector": np.ones((2, D)), "coeff": [1.0] * 3}, "vector: got 2 rows, expected 1 or 3"),
        ({"layer": [0, 1], "coeff": [1.0] * 3}, "layer: got 2 rows, expected 1 or 3"),
        ({"preserve_norm": [True] * 2, "coeff": [1.0] * 3}, "preserve_norm: got 2 rows"),
        ({"preserve_norm": 1.0}, "preserve_norm: got 1.0, expected a bool"),
        ({"scope": scope.mask(np.ones((2, 1), bool)), "coeff": [1.0] * 3}, "scope: got 2 rows"),
        ({"scope": scope.generated}, "scope: got <function generated"),
        ({"layer": 1.5}, 'layer: got 1.5, expected an integer or "all"'),
        ({"layer": np.array([1.0])}, "layer: got 1.0, expected an integer"),
        ({"layer": True}, "layer: got True, expected an integer"),
        ({"layer": "last"}, "layer: got 'last', expected an integer"),
        ({"layer": -1}, r"layer: got -1, expected 0 or more"),
        ({"layer": [[0, -1]]}, r"layer: got -1, expected 0 or more"),
        ({"layer": []}, r"layer: got \[\], expected at least one per row"),
        ({"layer": [[0], []]}, "expected at least one per row"),
        ({"site": "resid_past"}, "site: got 'resid_past', expected one of resid_pre, head_out"),
        ({"site": ["resid_post", "mlp"]}, "site: got 'mlp'"),
        ({"site": 3}, "site: got 3"),
    ],
)
def test_interventions_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        add(**{"vector": V, "layer": 0, "coeff": 1.0} | arguments)


def direction(layer: int, site: str = "resid_mid", seed: int = 0) -> Direction:
    return Direction(exact_vectors(seed=seed)[0], layer, site, f"{layer}", {})


def test_a_direction_is_a_vector_that_knows_its_layer_and_site():
    d, v, where = direction(2), exact_vectors()[0], {"layer": 2, "site": "resid_mid"}
    pairs = [
        (add(d, coeff=2.0), add(v, coeff=2.0, **where)),
        (add(d, coeff=2.0, layer=1), add(v, coeff=2.0, layer=1, site="resid_mid")),
        (add([d, d], coeff=[1.0, 2.0]), add([v, v], coeff=[1.0, 2.0], **where)),
        (ablate(d), ablate(v, **where)),
        (ablate([d, direction(2, seed=1)]), ablate([v, exact_vectors(seed=1)[0]], **where)),
        (clamp(d, 3.0), clamp(v, 3.0, **where)),
        (interventions.replace(d), interventions.replace(v, **where)),
        (when(add(d, coeff=1.0), d, above=1.0), when(add(v, coeff=1.0, **where), v, above=1.0)),
        *[
            (found.steering, expected.steering)
            for found, expected in zip(
                grid({"d": d}, coeffs=[1.0, 2.0]),
                grid({"d": v}, coeffs=[1.0, 2.0], layers=[2], site="resid_mid"),
                strict=True,
            )
        ],
    ]
    for found, expected in pairs:
        assert found.sites == expected.sites
        chex.assert_trees_all_equal(found, expected)
    with pytest.raises(ValueError, match=r"layer: got directions of \[0, 1\], expected it to be"):
        add([direction(0), direction(1)], coeff=1.0)
    with pytest.raises(ValueError, match="layer: got none, expected a layer, or a Direction"):
        add(v, coeff=1.0)
    with pytest.raises(ValueError, match="layers: got none, expected some for 'v', which is no"):
        grid({"v": v}, coeffs=[1.0])


A_ROW = r"expected \[\[0\], \[1\], …\] for one per row, or "
A_LAYER = (
    r"layer: got \[0, 1, 2\] for 3 vectors, "
    + A_ROW
    + "for one vector per layer one intervention each"
)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda v: add(v, layer=range(3), coeff=1.0), A_LAYER),
        (lambda v: add(v, layer=range(3), coeff=[1.0, 2.0, 3.0]), A_LAYER),
        (lambda v: clamp(v, 1.0, layer=np.arange(3)), A_LAYER),
        (lambda v: interventions.replace(v, layer=jnp.arange(3)), A_LAYER),
        (lambda v: ablate(v[:, None], layer=(0, 1, 2)), A_LAYER),
        (lambda v: ablate(v, layer=[0, 1, 2]), "for 1 vectors, " + A_ROW + r"\[\[0, 1, 2\]\] for"),
        (lambda v: add(v[0], layer=[0, 1, 2], coeff=1.0), "for 1 vectors, " + A_ROW),
    ],
)
def test_a_list_of_layers_that_may_mean_two_things_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(exact_vectors(3))


def test_one_layer_a_row_and_several_in_every_row_are_spelled_apart():
    v = exact_vectors(3)
    a_row = add(v, layer=[[0], [1], [2]], coeff=1.0)
    assert a_row.layer.tolist() == [[0, -1], [1, -1], [2, -1]]
    assert add(v[0], layer=[0, 1, 2], coeff=[1.0] * 3).layer.tolist() == a_row.layer.tolist()
    assert clamp(v[0], [1.0] * 3, layer=[0, 1, 2]).layer.tolist() == a_row.layer.tolist()
    every = add(v, layer=[[0, 1]], coeff=1.0)
    assert every.layer.tolist() == [[0, 1]] * 3


def test_an_argument_of_another_name_is_told():
    with pytest.raises(TypeError, match="unexpected argument 'sit', expected layer, site, scope"):
        add(V, layer=0, coeff=1.0, sit="resid_post")


def test_traced_arguments_are_told_the_other_way():
    with pytest.raises(ValueError, match=r"coeff: got a traced array, .* dataclasses\.replace"):
        jax.grad(lambda c: add(V, layer=0, coeff=c).coeff[0])(1.0)


def test_a_vector_of_another_width_is_refused_while_tracing(small, batch):
    wrong = add(np.ones(D + 1), layer=0, coeff=1.0)
    with pytest.raises(ValueError, match=r"steering\.vector: got width 17, expected 16 at resid"):
        forward(small, batch.tokens, steering=wrong)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ablate(np.zeros(D), layer=0), "directions: got 0 for direction 0 of row 0"),
        (lambda: ablate(np.stack([V, 0 * V]), layer=0), "directions: got 0 for direction 1"),
        (lambda: ablate([[1, 0, 0], [0, 1, 0], [1, 1, 0]], layer=0), IN_SPAN),
        (lambda: ablate(np.ones((3, 2)) + np.eye(3, 2), layer=0), "3 directions of width 2"),
        (lambda: ablate(V, layer=0, coeff=np.nan), "coeff: got NaN"),
        (lambda: ablate(V * np.nan, layer=0), "directions: got NaN"),
        (lambda: ablate(np.ones((1, 1, 1, D)), layer=0), r"directions: got shape \(1, 1, 1, 16\)"),
        (lambda: clamp(0 * V, 1.0, layer=0), "direction: got 0"),
        (lambda: clamp(V, np.inf, layer=0), "value: got NaN or infinity"),
        (lambda: clamp(np.ones((2, D)), [1.0] * 3, layer=0), "direction: got 2 rows"),
        (lambda: interventions.replace(V, layer=0, coeff="1"), "coeff: got dtype <U1"),
        (lambda: when(one_of("add", layer=0), V[:-1], above=0.0), "direction: got width 15"),
        (lambda: when(one_of("add", layer=0), V, above=np.nan), "above: got NaN"),
        (lambda: when(one_of("add", layer=0), 0 * V, above=0.0), "direction: got 0"),
        (
            lambda: when(when(one_of("add", layer=0), V, above=0.0), V, above=0.0),
            "steering: got one with a condition",
        ),
        (lambda: head_vector(V, head=0, config=SMALL), "vector: got width 16, expected head_dim=4"),
        (lambda: head_vector(np.ones(4), head=4, config=SMALL), "head: got 4, expected 0 to 3"),
        (lambda: batching.rows([]), "steerings: got none"),
        (lambda: batching.stack([]), "steerings: got none"),
        (
            lambda: batching.rows([one_of("add", layer=0), add(V[:4], layer=0, coeff=1.0)]),
            r"steerings: got vectors of widths \[4, 16\]",
        ),
        (
            lambda: batching.stack([one_of("add", layer=0), add(V, layer=[[0], [1]], coeff=1.0)]),
            r"steerings: got \[1, 2\] rows",
        ),
    ],
)
def test_what_else_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


WIDE = replace(SMALL, head_dim=8)  # heads of 32 together against a stream of 16
GOOD = add(V, layer=0, coeff=1.0)


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (
            add(np.ones(D + 1), layer=0, coeff=1.0),
            "vector: got width 17, expected 16 at resid_post",
        ),
        (add(V, layer=3, coeff=1.0), "layer: got 3, expected 0 to 2"),
        (add(V, layer=[[0, 7], [3, 1], [2, 2]], coeff=1.0), "layer: got 3, 7, expected 0 to 2"),
        (add(V, layer=0, coeff=[1.0, 2.0]), "got 2 rows, expected 1 or the batch's 3"),
        (add(V, layer=0, coeff=1.0, site="head_out"), "vector: got width 16, expected 32 at head"),
        (
            batching.rows([GOOD, add(V, layer=0, coeff=1.0, site="head_out"), GOOD]),
            "vector: got width 16, expected 32 at head_out",
        ),
        (replace(GOOD, vector=GOOD.vector * np.nan), "vector: got NaN or infinity"),
        (replace(GOOD, coeff=jnp.ones(2)), "coeff: got 2 rows, expected 1 or the batch's 3"),
        (replace(GOOD, coeff=jnp.ones(())), "coeff: got no row axis"),
        (replace(GOOD, layer=jnp.full((1, 1), -7)), "layer: got -7, expected 0 to 2"),
        (replace(GOOD, site=jnp.zeros(1, jnp.int32)), r"site: got \[0\]"),
    ],
)
def test_interventions_that_do_not_fit_the_model_or_the_batch(one, message):
    with pytest.raises(ValueError, match=rf"steering.*{message}"):
        check_steering(one, WIDE, rows=B)


def test_what_does_not_fit_is_told_before_anything_runs(small, batch):
    with pytest.raises(ValueError, match=r"steering\.layer: got 3"):
        generate(small, batch, max_new_tokens=1, steering=add(V, layer=3, coeff=1.0))
    with pytest.raises(ValueError, match="steering: got int, expected a Steering"):
        generate(small, batch, max_new_tokens=1, steering=5)


def test_one_head_is_steered_where_heads_are_wider_than_the_stream():
    model, tokens = random_model(replace(WIDE, n_layers=1)), jnp.ones((2, 4), jnp.int32)
    vector = head_vector(exact_vectors()[0, :8], head=2, config=model.config)
    one = add(vector, layer=0, coeff=2.0, site="z", scope=scope.window(1, 3))
    check_steering(one, model.config, rows=2)

    def heads(one: Steering) -> np.ndarray:
        out = run(model, tokens, steering=one, capture=Capture(sites=("head_out",)))
        return np.asarray(out.captured["head_out"][0])

    expected = heads(replace(one, coeff=jnp.zeros(1))).copy()
    expected[:, 1:3, 16:24] += 2.0 * exact_vectors()[0, :8]
    np.testing.assert_array_equal(heads(one), expected)


@jax.jit
def everywhere(x: jax.Array, one: Steering, thinking: jax.Array) -> list[jax.Array]:
    """`x` after each site of each layer."""
    position = jnp.broadcast_to(jnp.arange(-1, T - 1), x.shape[:2])
    coeffs = steers.token_coeffs(one, position, jnp.array([3, 1, 4]), thinking)
    return [
        steers.apply(x, site=site, layer=layer, steering=one, coeffs=coeffs)
        for site in SITES[2:]
        for layer in range(2)
    ]


def test_stacking_changes_nothing():
    ones = [
        one_of("add", layer=1, coeff=[1.0, 2.0, 3.0], schedule=[1, 2, 3] * 3),
        one_of("ablate", layer=[0, 1, 0], site=["attn_out", "mlp_out", "resid_mid"]),
        when(one_of("clamp", layer=[[0], [1], ["all"]]), V, above=0.0),
        one_of("replace", layer=[[1]] * B, preserve_norm=True, scope=scope.thinking()),
    ]
    stacked = batching.stack([broadcast_rows(one, B, "steering") for one in ones])
    assert stacked.sites == ("attn_out", "resid_mid", "mlp_out", "resid_post")
    thoughts = jnp.arange(B * T).reshape(B, T) % 2 == 0
    for c, one in enumerate(ones):
        cell = jax.tree.map(lambda x, c=c: x[c], stacked)
        found, expected = (everywhere(stream(), one_program(s), thoughts) for s in (cell, one))
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a, b)
        assert any((x != stream()).any() for x in found)


def test_a_shorter_schedule_goes_on_as_it_ended():
    short = replace(one_of("add", layer=0), schedule=jnp.array([[1.0, 2.0]]))
    long = one_of("add", layer=0, schedule=np.arange(20.0))
    position, prompt = jnp.arange(12)[None], jnp.array([2])
    expected = steers.token_coeffs(short, position, prompt).coeff
    assert expected[0, -1] == 2.0
    together = batching.rows([short, long])
    first = jax.tree.map(lambda x: x[:1], together)
    np.testing.assert_array_equal(steers.token_coeffs(first, position, prompt).coeff, expected)


def test_names_of_transformerlens_are_understood():
    assert add(V, layer=0, coeff=1.0, site="hook_mlp_out").sites == ("mlp_out",)
    assert add(V, layer=0, coeff=1.0, site="hook_z").sites == ("head_out",)

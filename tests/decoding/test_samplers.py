"""decoding.samplers: the right distribution, the right tokens kept, the same draw in any batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsteer.decoding.draws import count_blocks
from jaxsteer.decoding.samplers import (
    choose_sampler,
    greedy,
    keys,
    sample,
    sampling,
    truncated_sample,
)

draw_all = jax.jit(sample)
draw_kept = jax.jit(truncated_sample)

# 99.9% quantiles of the chi-square distribution by degrees of freedom; the seeds are fixed.
CHI_SQUARE = {3: 16.27, 5: 20.52}


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(np.asarray(x, np.float64) - np.max(x, axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def chi_square(tokens: np.ndarray, probs: np.ndarray) -> float:
    counts = np.bincount(tokens, minlength=len(probs))
    assert counts[probs == 0].sum() == 0
    expected = len(tokens) * probs[probs > 0]
    return float(((counts[probs > 0] - expected) ** 2 / expected).sum())


def by_sorting(logits: np.ndarray, top_k: int, top_p: float, min_p: float) -> np.ndarray:
    """Which tokens of one row stay: those with a logit of at least that of the last one needed."""
    probs = softmax(logits)
    order = np.argsort(-logits, kind="stable")
    needed = len(logits)
    if top_p < 1:
        needed = int(np.searchsorted(np.cumsum(probs[order]), top_p)) + 1
    if top_k > 0:
        needed = min(needed, top_k)
    last = logits[order[min(needed, len(logits)) - 1]]
    return (logits >= last) & (probs >= min_p * probs.max())


def random_settings(rng: np.random.Generator, rows: int, V: int) -> dict[str, np.ndarray]:
    """Some of which switch a limit off."""
    return {
        "top_k": np.where(rng.random(rows) < 0.1, V + 10, rng.integers(0, 8, rows)),
        "top_p": np.where(rng.random(rows) < 0.1, 1, rng.uniform(0.01, 1, rows)),
        "min_p": np.where(rng.random(rows) < 0.1, 0, rng.uniform(0, 1, rows) ** 3),
        "temperature": np.where(rng.random(rows) < 0.1, 0, rng.uniform(0.3, 2, rows)),
    }


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("which", ["top_k", "top_p", "min_p", "all"])
def test_it_is_the_draw_from_exactly_the_tokens_that_a_sort_keeps(which, ties):
    rng = np.random.default_rng(0)
    rows, V = 300, 50
    logits = (4 * rng.standard_normal((rows, V))).astype(np.float32)
    if ties:
        logits = np.round(logits)  # about 20 values for 50 tokens; equal tokens stay together
    settings = random_settings(rng, rows, V)
    settings = {k: v for k, v in settings.items() if which in (k, "all") or k == "temperature"}
    params = sampling(rows, **settings, seed=5)
    key = keys(params, 3)
    found = np.asarray(draw_kept(logits, key, params))

    tries = 0
    for i in range(rows):
        hot = float(params.temperature[i])
        limits = (np.asarray(x, np.float64)[i] for x in (params.top_p, params.min_p))
        kept = by_sorting(logits[i] / np.float32(hot or 1), int(params.top_k[i]), *limits)
        expected, count = by_shares(logits[i], hot, kept, key[i])
        assert found[i] == expected, i
        tries += count
    assert tries > 1.05 * rows  # the limits did something


def by_shares(logits: np.ndarray, hot: float, kept: np.ndarray, key) -> tuple[int, int]:
    """The token of one row and how often one was drawn: blocks first, float64, until it is kept."""
    if not hot:
        return int(np.argmax(logits)), 1
    block = len(logits) // count_blocks(len(logits))
    above, count = -np.inf, 0
    while True:
        u = jax.random.uniform(jax.random.fold_in(key, count) if count else key, (2,))
        count += 1
        weights = np.where(logits > above, softmax(logits.astype(np.float64) / hot), 0)
        chosen = fall(weights.reshape(-1, block).sum(axis=1), float(u[0]))
        token = chosen * block + fall(weights.reshape(-1, block)[chosen], float(u[1]))
        if kept[token]:
            return token, count
        above = logits[token]


def fall(weights: np.ndarray, u: float) -> int:
    sums = np.cumsum(weights)
    return int(np.searchsorted(sums, u * sums[-1], side="right"))


def test_a_settled_row_is_not_touched_while_others_are_retried():
    """One token is kept of many alike: rows need very different numbers of tries."""
    rng = np.random.default_rng(1)
    rows, V = 40, 2000
    logits = rng.uniform(0, 0.01, (rows, V)).astype(np.float32)
    params = sampling(rows, temperature=1.0, top_k=1)
    found = draw_kept(logits, keys(params, 0), params)
    np.testing.assert_array_equal(found, logits.argmax(axis=1))


def test_over_cells_with_shared_settings_it_is_each_cell_alone():
    rng = np.random.default_rng(2)
    logits = jnp.asarray(2 * rng.standard_normal((5, 12, 40)), jnp.float32)
    params = sampling(12, temperature=1.0, top_p=np.linspace(0.1, 1, 12), seed=1)
    key = keys(params, 0)
    cells = jax.jit(jax.vmap(lambda x: truncated_sample(x, key, params)))(logits)
    expected = [draw_kept(x, key, params) for x in logits]
    np.testing.assert_array_equal(cells, expected)


def test_only_arrays_of_one_value_a_row_are_carried_through_the_retries():
    """Under `vmap` each of them goes through a select in each round."""
    params = sampling(8, temperature=1.0, top_p=0.9)
    jaxpr = jax.make_jaxpr(truncated_sample)(jnp.zeros((8, 50)), keys(params, 0), params)
    (loop,) = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "while"]
    carried = loop.invars[loop.params["cond_nconsts"] + loop.params["body_nconsts"] :]
    assert [v.aval.shape for v in carried] == [(8,), (8,)]


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_broken_logits_end(value):
    params = sampling(2, temperature=1.0, top_k=1, top_p=0.5, min_p=0.5)
    token = draw_kept(jnp.full((2, 50), value), keys(params, 0), params)
    assert ((token >= 0) & (token < 50)).all()


def test_temperature_gives_the_softmax():
    logits = np.array([1.0, 0.5, 0.0, -0.3, 2.0, -1.0], np.float32)
    n = 20_000
    params = sampling(n, temperature=0.7, seed=3)
    tokens = np.asarray(draw_all(jnp.tile(logits, (n, 1)), keys(params, 0), params))
    assert chi_square(tokens, softmax(logits / 0.7)) < CHI_SQUARE[5]
    assert chi_square(tokens, softmax(logits)) > CHI_SQUARE[5]  # the test could fail


def test_truncated_sampling_gives_the_softmax_of_what_is_kept():
    logits = np.array([1.0, 0.5, 0.0, -0.3, 2.0, -1.0], np.float32)
    n = 20_000
    params = sampling(n, temperature=1.5, top_k=4, seed=4)
    tokens = np.asarray(draw_kept(jnp.tile(logits, (n, 1)), keys(params, 0), params))
    probs = softmax(np.where(logits >= -0.3, logits / 1.5, -np.inf))
    probs[3] = probs[5] = 0  # -0.3 is the fifth
    assert chi_square(tokens, probs / probs.sum()) < CHI_SQUARE[3]


def test_draws_of_positions_and_seeds_are_independent():
    """Pairs of draws from two equally likely tokens fall into four cells alike."""
    n = 20_000
    logits = jnp.zeros((n, 2))

    def draws(seed: int, position: int) -> np.ndarray:
        params = sampling(n, temperature=1.0, seed=seed)
        return np.asarray(draw_all(logits, keys(params, position), params))

    first = draws(0, 0)
    for other in (draws(0, 1), draws(1, 0)):
        assert chi_square(2 * first + other, np.full(4, 0.25)) < CHI_SQUARE[3]


def test_a_row_draws_the_same_alone_and_in_any_batch_and_order():
    rng = np.random.default_rng(0)
    n, V = 12, 40
    logits = jnp.asarray(2 * rng.standard_normal((n, V)), jnp.float32)
    settings = {
        "temperature": np.where(np.arange(n) % 4 == 0, 0, 1.0),
        "top_k": np.where(np.arange(n) % 3 == 0, 5, 0),
        "top_p": np.where(np.arange(n) % 3 == 1, 0.8, 1.0),
        "min_p": np.where(np.arange(n) % 5 == 1, 0.1, 0.0),
        "seed": np.arange(n) % 2,
        "row": 100 + np.arange(n),
    }
    params = sampling(n, **settings)
    together = np.asarray(draw_kept(logits, keys(params, 7), params))
    shuffled = rng.permutation(n)
    moved = jax.tree.map(lambda x: x[shuffled], params)
    found = draw_kept(logits[shuffled], keys(moved, 7), moved)
    np.testing.assert_array_equal(found, together[shuffled])
    jitted = {sample: draw_all, truncated_sample: draw_kept, greedy: greedy}
    for row in range(n):
        one = sampling(1, **{k: v[row] for k, v in settings.items()})
        # By the sampler that would be chosen for the row alone, too.
        for sampler in (draw_kept, jitted[choose_sampler(one)]):
            found = sampler(logits[row : row + 1], keys(one, 7), one)
            np.testing.assert_array_equal(found, together[row : row + 1])


def test_temperature_0_takes_the_most_likely_token():
    logits = np.random.default_rng(0).standard_normal((8, 30)).astype(np.float32)
    params = sampling(8, top_k=3)
    for sampler in (greedy, draw_all, draw_kept):
        tokens = sampler(logits, keys(params, 0), params)
        assert tokens.dtype == jnp.int32
        np.testing.assert_array_equal(tokens, logits.argmax(axis=1))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, greedy),
        ({"top_k": 3}, greedy),  # the most likely token is always kept
        ({"temperature": 1.0}, sample),
        ({"temperature": [0.0, 1.0]}, sample),
        ({"temperature": 1.0, "top_k": [0, 3]}, truncated_sample),
        ({"temperature": 1.0, "top_p": 0.9}, truncated_sample),
        ({"temperature": 1.0, "min_p": 0.1}, truncated_sample),
    ],
)
def test_the_cheapest_sampler_is_chosen(settings, expected):
    assert choose_sampler(sampling(2, **settings)) is expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature: got -1.0, expected 0.0 to inf"),
        ({"temperature": np.nan}, "temperature: got nan"),
        ({"top_k": -1}, "top_k: got -1, expected 0"),
        ({"top_p": 0.0}, "top_p: got 0.0"),
        ({"top_p": 1.1}, "top_p: got 1.1"),
        ({"min_p": 1.5}, "min_p: got 1.5, expected 0.0 to 1.0"),
        ({"seed": -1}, "seed: got -1"),
        ({"seed": 1.5}, "seed: got dtype float64, expected integers"),
        ({"top_k": [1.0, 2.0, 3.0]}, "top_k: got dtype float64, expected integers"),
        ({"top_p": "all"}, "top_p: got dtype <U3, expected numbers"),
        ({"seed": [1, 2]}, r"seed: got shape \(2,\), expected one value or \[3\]"),
    ],
)
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        sampling(3, **settings)

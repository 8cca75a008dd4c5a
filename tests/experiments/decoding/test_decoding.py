"""experiments.decoding: each example against plain decoding, a recomputation or exact chances."""

import itertools
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from oracle import SHALLOW, last_logits, random_model, random_rows, steps
from pipeline_helpers import Finished

from experiments.decoding import best_of_n as best
from experiments.decoding import contrastive as contrast
from experiments.decoding import probe_steering, speculative
from experiments.decoding.acceptance import accept
from experiments.decoding.pair import Pair, load_pair
from experiments.pipeline.run import DEFAULT_SETTINGS, command, open_run
from jaxsteer import (
    Capture,
    Model,
    Steering,
    TokenBatch,
    add,
    generate,
    left_pad,
    make_request,
    sampling,
)
from jaxsteer.decoding.results import Generation
from jaxsteer.decoding.samplers import greedy

B, G = 3, 8
ONE = replace(SHALLOW, n_layers=1)  # compiles in half the time; the small pair has eight
LOGPROB = 2e-5  # of two programs that sum in other orders: float32, of magnitude 10


def near(model: Model, *, noise: float) -> Model:
    """A model that mostly agrees with `model`."""
    rng = np.random.default_rng(7)

    def shift(x: jax.Array) -> jax.Array:
        return x + noise * jnp.std(x) * rng.standard_normal(x.shape).astype(np.float32)

    return replace(model, params=jax.tree.map(shift, model.params))


@pytest.fixture(scope="module")
def model() -> Model:
    return random_model(ONE)


@pytest.fixture(scope="module")
def base(model: Model) -> Model:
    return near(model, noise=0.1)


@pytest.fixture(scope="module")
def base_batch() -> TokenBatch:
    """The prompts in another format: other tokens, other lengths."""
    return left_pad(random_rows((6, 2, 4), ONE.vocab_size, seed=3), length=9)


@pytest.fixture(scope="module")
def both(batch: TokenBatch, base_batch: TokenBatch) -> tuple[TokenBatch, TokenBatch]:
    return batch, base_batch


@pytest.fixture(scope="module")
def steering() -> Steering:
    v = np.random.default_rng(0).standard_normal(ONE.d_model)
    return add(v, layer=0, coeff=[1.0, -2.0, 0.5])


@pytest.fixture(scope="module")
def whole(model: Model, batch: TokenBatch) -> Generation:
    return generate(model, batch, max_new_tokens=G)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The small pair itself, and two problems."""
    run = open_run(tmp_path_factory.mktemp("pair"), DEFAULT_SETTINGS)
    return replace(load_pair(run, problems=2), max_new_tokens=24)


@pytest.fixture(scope="module")
def plain(pair: Pair) -> np.ndarray:
    """What its reasoning model answers, greedily."""
    options = {"max_new_tokens": 24, "stop_tokens": pair.stop_tokens}
    return generate(pair.models[0], pair.prompts[0], **options).tokens


def log_softmax(x: np.ndarray) -> np.ndarray:
    return np.asarray(jax.nn.log_softmax(x, axis=-1))


def test_contrast_by_hand() -> None:
    """Over the base model token 1 gains most, token 2 too, but it is not plausible."""
    reasoning = jnp.log(jnp.array([[0.6, 0.3, 0.1]]))
    base = jnp.log(jnp.array([[0.85, 0.14, 0.01]]))

    def choose(alpha: float, beta: float) -> int:
        # Other constants in the logits change nothing.
        return int(contrast.against(base - 3, alpha, beta, greedy)(reasoning + 5, None, None)[0])

    # .6/.85 = .71, .3/.14 = 2.1, .1/.01 = 10; plausible are .6 and .3 above .2 · .6 = .12
    assert choose(1.0, 0.2) == 1
    assert choose(1.0, 0.1) == 2
    assert choose(1.0, 0.0) == 2
    assert choose(0.0, 0.2) == 0
    # .6/.85^.5 = .65, .3/.14^.5 = .80
    assert choose(0.5, 0.2) == 1
    # .6/.85^.25 = .62, .3/.14^.25 = .49
    assert choose(0.25, 0.2) == 0


def test_contrastive_decoding_is_the_arg_max_of_the_contrast(model, base, both, whole) -> None:
    request = make_request(model, both[0], max_new_tokens=G)
    found = {
        alpha: contrast.contrastive(
            (model, base), both, request, alpha=alpha, beta=0.6, max_new_tokens=G
        )
        for alpha in (0.0, 0.8)
    }
    np.testing.assert_array_equal(found[0.0].tokens, whole.tokens)
    np.testing.assert_allclose(found[0.0].logprobs, whole.logprobs, atol=LOGPROB)
    tokens = np.asarray(found[0.8].tokens)
    assert (tokens != whole.tokens).any(axis=1).all()
    p, q = (
        log_softmax(last_logits(one, prompts, tokens[:, :-1]))
        for one, prompts in zip((model, base), both, strict=True)
    )
    plausible = p >= p.max(axis=-1, keepdims=True) + np.log(0.6)
    np.testing.assert_array_equal(tokens, np.where(plausible, p - 0.8 * q, -np.inf).argmax(-1))
    assert (tokens != (p - 0.8 * q).argmax(-1)).any()  # the threshold did cut something off


def test_the_best_of_n_has_the_highest_log_probability(model, batch, whole) -> None:
    options = {"max_new_tokens": G, "stop_tokens": [int(whole.tokens[0, 2])], "temperature": 2.0}
    for by in ("mean", "total"):
        found = best.best_of_n(model, batch, n=4, by=by, **options)
        answers = [[tuple(answer) for answer in row] for row in found.tokens]
        assert all(len(set(row)) > 1 for row in answers)
        np.testing.assert_array_equal(found.best, found.score.argmax(axis=1))
        for j in range(4):
            chosen = np.zeros((B, G), int)
            length = np.array([len(found.tokens[row][j]) for row in range(B)])
            for row in range(B):
                chosen[row, : length[row]] = found.tokens[row][j]
            every = log_softmax(last_logits(model, batch, chosen[:, :-1]))
            each = np.take_along_axis(every, chosen[..., None], axis=-1)[..., 0]
            expected = np.where(np.arange(G) < length[:, None], each, 0).sum(axis=1)
            expected = expected / length if by == "mean" else expected
            np.testing.assert_allclose(found.score[:, j], expected, rtol=1e-4)
    shifted = best.best_of_n(model, batch, n=4, seed=1, **options)
    assert [row[1:] for row in found.tokens] == [row[:3] for row in shifted.tokens]


@pytest.mark.parametrize("options", [{"n": 0}, {"n": 2, "by": "sum"}])
def test_best_of_n_refuses(model, batch, options) -> None:
    with pytest.raises(ValueError, match="expected at least 1, and 'mean' or 'total'"):
        best.best_of_n(model, batch, max_new_tokens=2, **options)


def test_a_probe_switches_the_steering_on_and_it_decays(model, batch, steering) -> None:
    probe = np.random.default_rng(1).standard_normal(ONE.d_model).astype(np.float32)
    settings = sampling(B, temperature=1.0, seed=3)
    ends = np.array([G, 3, G])
    request = replace(
        make_request(model, batch, max_new_tokens=G, steering=steering, sampling_params=settings),
        max_tokens=jnp.asarray(ends, jnp.int32),
    )

    def decode(threshold: float):
        found = probe_steering.steer_when_fired(
            model,
            batch,
            request,
            probe=probe,
            layer=0,
            threshold=threshold,
            decay=0.5,
            max_new_tokens=G,
        )
        return jax.device_get((found[0].tokens, *found[1:]))

    def scheduled(factors: np.ndarray) -> Steering:
        return add(steering.vector, layer=0, coeff=steering.coeff, schedule=factors)

    def expected(factors: np.ndarray) -> np.ndarray:
        options = {"steering": scheduled(factors), "sampling_params": settings}
        out = generate(model, batch, max_new_tokens=G, **options)
        return np.where(np.arange(G) < ends[:, None], out.tokens, 0)

    run = np.arange(G) < ends[:, None] - 1  # the last token is never run through the model
    never, factors, seen = decode(np.inf)
    np.testing.assert_array_equal(never, expected(np.zeros((B, G))))
    np.testing.assert_array_equal(factors, np.where(run, 0, np.nan))
    always, factors, _ = decode(-np.inf)
    np.testing.assert_array_equal(always, expected(np.ones((B, G))))
    np.testing.assert_array_equal(factors, np.where(run, 1, np.nan))
    assert (always != never).any()

    threshold = float(np.nanquantile(seen, 0.7))
    tokens, factors, seen = decode(threshold)
    replayed = np.full((B, G), np.nan)
    for row, g in zip(*np.nonzero(run), strict=True):
        before = replayed[row, g - 1] if g else 0.0
        replayed[row, g] = 1.0 if seen[row, g] > threshold else before / 2
    np.testing.assert_array_equal(factors, replayed)
    assert {0.0, 0.5, 1.0} <= set(factors[run])
    # The same factors as a schedule: the same tokens, and what the probe saw before steering.
    factors = np.nan_to_num(factors)
    np.testing.assert_array_equal(tokens, expected(factors))
    options = {"steering": scheduled(factors), "capture": Capture(layers=(0,))}
    passes = steps(model, batch, tokens[:, :-1], **options)
    after = np.stack([out.captured["resid_post"][0, :, -1] for _, out in passes][1:], axis=1)
    coeff = factors[:, :-1, None] * np.asarray(steering.coeff)[:, None, None]
    before = after - coeff * np.asarray(steering.vector)[:, None]
    np.testing.assert_allclose(seen[run], (before @ probe)[run[:, :-1]], atol=1e-4)


def speculate(models, prompts, steering: Steering, *, stop: int = -1, order=(0, 1, 2), **options):
    """Tokens of each row and its rounds; all calls share one compiled program."""
    request = make_request(
        models[0],
        prompts[0],
        max_new_tokens=G,
        steering=steering,
        sampling_params=sampling(B, row=order, **options),
        stop_tokens=[0],
    )
    request = replace(request, stop_tokens=jnp.full_like(request.stop_tokens, stop))
    state, rounds = speculative.speculative(models, prompts, request, k=3, max_new_tokens=G)
    rows = zip(state.tokens.tolist(), state.length, strict=True)
    return [tokens[:n] for tokens, n in rows], rounds.tolist()


def test_speculative_greedy_decoding_is_greedy_decoding(model, base, both, steering) -> None:
    options = {"max_new_tokens": G, "steering": steering}
    plain = generate(model, both[0], **options).tokens
    stop = int(plain[0, 4])
    ends = [next((i + 1 for i, t in enumerate(row) if t == stop), G) for row in plain]
    assert ends[0] < G
    expected = [row[:n].tolist() for row, n in zip(plain, ends, strict=True)]
    found, rounds = speculate((model, base), both, steering, stop=stop)
    assert found == expected
    assert len(set(rounds)) > 1  # rows accept different numbers of drafts


def test_a_drafter_that_is_the_model_itself_is_always_right(model, batch, steering) -> None:
    nothing = replace(steering, coeff=0 * steering.coeff)
    _, rounds = speculate((model, model), (batch, batch), nothing, temperature=1.0)
    assert rounds == [2] * B  # one token from the prompt, then up to four a round


def test_rows_do_not_see_each_other(model, base, both, steering) -> None:
    options = {"temperature": 1.0, "seed": 4}
    rows, _ = speculate((model, base), both, steering, **options)
    order = np.array([2, 0, 1])
    moved, steered = jax.tree.map(lambda x: x[order], (both, steering))
    found, _ = speculate((model, base), moved, steered, order=order, **options)
    assert found == [rows[i] for i in order]


TINY = replace(ONE, vocab_size=5)
N, K, NEW, HEAT = 20_000, 2, 4, 1.3


@pytest.fixture(scope="module")
def drawn() -> tuple[Model, Model, TokenBatch, np.ndarray, np.ndarray]:
    """20,000 speculative texts of 4 tokens from one prompt, and the rounds that each took."""
    reasoning = random_model(TINY)
    models = reasoning, near(reasoning, noise=0.7)
    prompts = left_pad([[1, 3, 0]] * N, length=3)
    request = make_request(
        reasoning,
        prompts,
        max_new_tokens=NEW,
        sampling_params=sampling(N, temperature=HEAT, seed=11),
    )
    state, rounds = speculative.speculative(
        models, (prompts, prompts), request, k=K, max_new_tokens=NEW
    )
    return *models, prompts, np.asarray(state.tokens[:, :NEW]), np.asarray(rounds)


def chances_of_all(model: Model, prompts: TokenBatch, texts: np.ndarray) -> np.ndarray:
    """The exact probability of every text `[M, G]` after the prompt."""
    one = jax.tree.map(lambda x: x[: len(texts)], prompts)
    each = log_softmax(last_logits(model, one, texts[:, :-1]) / HEAT)
    each = np.take_along_axis(each.astype(np.float64), texts[..., None], axis=-1)
    return np.exp(each[..., 0].sum(axis=1))


def test_speculative_texts_have_the_distribution_of_the_reasoning_model(drawn) -> None:
    """Pearson's chi-square of all 625 texts of four tokens, n = 20,000, against exact chances."""
    reasoning, base, prompts, tokens, rounds = drawn
    texts = np.array(list(itertools.product(range(5), repeat=NEW)))
    places = 5 ** np.arange(NEW)[::-1]
    counts = np.bincount(tokens @ places, minlength=len(texts))

    def p_value(chances: np.ndarray) -> float:
        np.testing.assert_allclose(chances.sum(), 1, rtol=1e-5)
        common = N * chances >= 5  # the rare ones count together
        expected = np.append(N * chances[common], N * chances[~common].sum())
        found = np.append(counts[common], counts[~common].sum())
        assert common.sum() > 100
        return scipy.stats.chisquare(found, expected * N / expected.sum()).pvalue

    assert p_value(chances_of_all(reasoning, prompts, texts)) > 0.01
    assert p_value(chances_of_all(base, prompts, texts)) < 1e-12  # so many texts do tell
    assert {1, 2, 3} <= set(rounds.tolist())  # drafts were accepted, and refused


def test_one_draft_is_accepted_or_replaced_so_that_the_token_has_chances_p() -> None:
    p, q = np.array([0.5, 0.3, 0.2, 0.0]), np.array([0.2, 0.3, 0.1, 0.4])
    keys = jax.random.split(jax.random.key(0), N)
    x = jax.random.categorical(jax.random.key(1), jnp.log(q), shape=(N, 1))
    both = jnp.tile(jnp.stack([p, q]), (N, 1, 1))  # behind an accepted draft, q is wanted
    new, count = jax.device_get(jax.jit(accept)(keys, x, both, jnp.tile(q, (N, 1, 1))))
    counts = np.bincount(new[:, 0], minlength=4)
    assert counts[3] == 0
    assert scipy.stats.chisquare(counts[:3], N * p[:3]).pvalue > 0.01
    taken = count == 2
    np.testing.assert_array_equal(new[taken, 0], x[taken, 0])
    # Accepted with probability Σ min(p, q) = .6
    assert scipy.stats.binomtest(int(taken.sum()), N, 0.6).pvalue > 0.01
    assert scipy.stats.chisquare(np.bincount(new[taken, 1]), taken.sum() * q).pvalue > 0.01


def test_contrastive_decoding_of_the_small_pair(pair, plain) -> None:
    options = {"beta": 0.1, "max_new_tokens": 24}
    found = [
        contrast.contrastive(pair.models, pair.prompts, pair.request(), alpha=alpha, **options)
        for alpha in (0.0, 1.0)
    ]
    np.testing.assert_array_equal(found[0].tokens, plain)
    assert (found[1].tokens != plain).any()


def test_best_of_n_on_the_small_pair(pair) -> None:
    found = best.best_of_n(pair.models[0], pair.prompts[0], n=3, max_new_tokens=24)
    assert (found.score.max(axis=1) > found.score.min(axis=1)).all()
    assert (found.score > -2).all()  # nats a token; the model's held-out loss is .88


def test_a_probe_on_the_small_pair(pair, plain) -> None:
    v = np.asarray(pair.models[0].params["lm_head"]["kernel"][:, 50], np.float32)
    request = pair.request(steering=add(v / np.linalg.norm(v), layer=4, coeff=800.0))
    options = {"probe": v, "layer": 4, "decay": 0.8, "max_new_tokens": 24}
    model, batch = pair.models[0], pair.prompts[0]
    found = [
        probe_steering.steer_when_fired(model, batch, request, threshold=t, **options)[0]
        for t in (np.inf, -np.inf)
    ]
    np.testing.assert_array_equal(found[0].tokens, plain)
    assert (found[1].tokens != plain).any()


def test_speculative_decoding_of_the_small_pair(pair, plain) -> None:
    state, rounds = speculative.speculative(
        pair.models, pair.prompts, pair.request(), k=4, max_new_tokens=24
    )
    for row, n in enumerate(state.length):
        np.testing.assert_array_equal(state.tokens[row, :n], plain[row, :n])
    assert (rounds < 0.5 * state.length).all()  # two tokens a pass, or more


@pytest.mark.parametrize("module", [contrast, best, probe_steering, speculative])
def test_each_is_a_command(finished: Finished, module, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--out", str(finished.out), "--config", str(finished.settings)]
    assert command("decoding", "", module.show, argv) == 0
    printed = capsys.readouterr().out
    assert ", problem 0] " in printed
    assert ", problem 1] " in printed


def test_each_example_can_be_read_at_a_glance() -> None:
    for module in (contrast, best, probe_steering, speculative):
        assert len(Path(module.__file__).read_text().splitlines()) < 80, module.__name__

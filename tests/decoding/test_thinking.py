"""decoding.thinking: which tokens lie inside <think>…</think>, in prompts and while decoding."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from oracle import SHALLOW, last_logits, random_rows

from jaxsteer.decoding.generation import generate
from jaxsteer.decoding.thinking import still_thinking, think_tokens, thinking_in
from jaxsteer.llama.tokens import left_pad
from jaxsteer.steering import scope
from jaxsteer.steering.interventions import add
from jaxsteer.steering.steering import Steering

OPEN, CLOSE = 1, 2


def by_walking(tokens: list[int]) -> list[bool]:
    """From the token after the opening one up to, not including, the closing one."""
    inside, found = False, []
    for token in tokens:
        if token == CLOSE:
            inside = False
        found.append(inside)
        if token == OPEN:
            inside = True
    return found


def test_prompts_and_their_continuations_are_those_of_a_walk():
    rng = np.random.default_rng(0)
    rows = [rng.integers(4, size=rng.integers(1, 12)).tolist() for _ in range(200)]
    batch = left_pad(rows, length=12)
    pair = jnp.tile(jnp.array([OPEN, CLOSE]), (len(rows), 1))
    # Padding is no token, whatever its id.
    tokens = jnp.where(batch.mask, batch.tokens, OPEN)
    thinking = thinking_in(tokens, batch.mask, pair)
    for found, row in zip(np.asarray(thinking), rows, strict=True):
        assert found[12 - len(row) :].tolist() == by_walking(row)
    last, now = batch.tokens[:, -1], thinking[:, -1]
    new = rng.integers(4, size=(len(rows), 10))
    for step in range(10):
        now, last = still_thinking(now, last, new[:, step], pair), new[:, step]
        expected = [by_walking([*r, *n[: step + 1]])[-1] for r, n in zip(rows, new, strict=True)]
        assert now.tolist() == expected


def test_without_think_tokens_nothing_is_thought():
    tokens, none = jnp.array([[0, 1, 2]]), jnp.array([[-1, -1]])
    assert not thinking_in(tokens, jnp.ones_like(tokens, bool), none).any()


def test_a_scope_steers_what_is_thought_in_prompts_and_while_decoding(shallow):
    """The same as explicit positions, found by walking over what was generated."""
    G = 10
    rows = random_rows((6, 4, 3), SHALLOW.vocab_size)
    vectors = 3 * np.random.default_rng(0).standard_normal((3, SHALLOW.d_model))

    def steering(where: scope.Scope) -> Steering:
        return add(vectors, layer=0, coeff=1.0, scope=where)

    plain = generate(shallow, left_pad(rows, length=7), max_new_tokens=G).tokens
    # The first row opens in the prompt and closes with its first token; the others may open.
    opening, closing = int(rows[0][2]), int(plain[0, 0])
    batch = left_pad(rows, length=7)
    options = {"max_new_tokens": G, "think_tokens": (opening, closing)}
    found = generate(shallow, batch, steering=steering(scope.thinking()), **options)

    def thought(row: list[int], new: np.ndarray) -> list[bool]:
        names = {opening: OPEN, closing: CLOSE}
        return by_walking([names.get(int(t), 0) for t in [*row, *new]])

    covered = [
        thought(r, n) + [False] * (6 - len(r)) for r, n in zip(rows, found.tokens, strict=True)
    ]
    assert any(covered[0][:6])
    same = steering(scope.mask(np.array(covered)))
    logits = last_logits(shallow, batch, found.tokens[:, :-1], steering=same)
    np.testing.assert_array_equal(found.tokens, logits.argmax(axis=-1))
    unsteered = last_logits(shallow, batch, found.tokens[:, :-1])
    assert (unsteered.argmax(axis=-1) != found.tokens).any()


def test_the_ids_come_from_the_tokenizer():
    def tokenizer(**vocabulary: int) -> SimpleNamespace:
        return SimpleNamespace(get_vocab=lambda: vocabulary)

    assert think_tokens(tokenizer(**{"<think>": 7, "</think>": 9})) == (7, 9)
    with pytest.raises(ValueError, match="tokenizer: got none with a token </think>"):
        think_tokens(tokenizer(**{"<think>": 7}))

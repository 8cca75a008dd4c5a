"""llama.prompt_blocks: blocks of rows give what the whole batch gives, each row in its place."""

import functools

import jax
import numpy as np
import pytest
from oracle import SHALLOW, random_rows, relative_error, run

from jaxsteer.llama.cache import by_slot, empty_cache
from jaxsteer.llama.prompt_blocks import count_blocks, run_prompts
from jaxsteer.llama.tokens import TokenBatch, left_pad
from jaxsteer.steering import scope
from jaxsteer.steering.interventions import add
from jaxsteer.steering.steering import Steering

ROWS, LENGTH, CAPACITY = 6, 7, 12
TOLERANCE = 1e-6  # float32, sums in another order


@functools.partial(jax.jit, static_argnames=("capacity", "block_tokens"))
def blocks(model, batch, steering, *, capacity, block_tokens):
    return run_prompts(
        model,
        batch,
        capacity=capacity,
        steering=steering,
        prompt_length=batch.lengths,
        block_tokens=block_tokens,
    )


@pytest.fixture(scope="module")
def six() -> TokenBatch:
    return left_pad(random_rows([3, 7, 1, 5, 7, 2], SHALLOW.vocab_size), length=LENGTH)


def steerings() -> tuple[Steering, ...]:
    """One intervention a row, and one for all rows."""
    vectors = np.random.default_rng(0).standard_normal((ROWS, SHALLOW.d_model))
    own = add(vectors, layer=[[0], [1]] * 3, coeff=np.arange(ROWS), scope=scope.prompt())
    return own, add(vectors[0], layer=1, coeff=2.0, scope=scope.everywhere())


@pytest.mark.parametrize("rows", [6, 3, 2, 1])
def test_blocks_change_nothing(shallow, six, rows):
    options = {"capacity": CAPACITY, "block_tokens": rows * LENGTH + 3}
    out = blocks(shallow, six, steerings(), **options)
    logits, cache = out.logits, out.cache
    whole = empty_cache(SHALLOW, rows=ROWS, capacity=CAPACITY, dtype=shallow.dtype)
    expected = run(
        shallow,
        six.tokens,
        mask=six.mask,
        cache=whole,
        steering=steerings(),
        prompt_length=six.lengths,
        last_only=True,
    )
    assert relative_error(logits, expected.logits[:, 0]) < TOLERANCE
    assert int(cache.cursor) == LENGTH
    np.testing.assert_array_equal(cache.valid, expected.cache.valid)
    real = np.asarray(cache.valid)
    assert cache.by_head  # on a CPU; `whole` is not: two orders in memory, one meaning
    for layer in range(SHALLOW.n_layers):
        mine, theirs = (by_slot(c, c.k[layer], c.v[layer]) for c in (cache, expected.cache))
        for x, y in zip(mine, theirs, strict=True):
            assert relative_error(np.asarray(x)[real], np.asarray(y)[real]) < TOLERANCE
        assert not np.asarray(mine)[:, LENGTH:].any()


def test_the_prompt_pass_does_not_attend_over_the_room_for_new_tokens(shallow, six):
    """With a thousand times the room, the products are as many as they were."""

    def operations(capacity: int) -> float:
        lowered = blocks.lower(shallow, six, (), capacity=capacity, block_tokens=2**15)
        return lowered.compile().cost_analysis()["flops"]

    assert operations(1000 * LENGTH) < 1.1 * operations(LENGTH)


@pytest.mark.parametrize(
    ("rows", "length", "limit", "expected"),
    [(6, 7, 42, 1), (6, 7, 41, 2), (6, 7, 20, 3), (6, 7, 13, 6), (6, 7, 1, 6), (7, 7, 42, 7)],
)
def test_the_fewest_equal_blocks(rows, length, limit, expected):
    assert count_blocks(rows, length, limit=limit) == expected

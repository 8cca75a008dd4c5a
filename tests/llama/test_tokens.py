"""jaxsteer.llama.tokens: padding is explicit, and batches that do not fit say so."""

from collections import UserDict
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from jaxsteer.config.shape import LlamaConfig
from jaxsteer.llama.tokens import TokenBatch, check_batch, left_pad

CONFIG = replace(LlamaConfig.tiny(), max_positions=10)


def test_rows_end_together_and_the_mask_says_what_is_real():
    batch = left_pad([[5, 0], [7, 8, 9]], length=4)  # id 0 occurs as a real token, too
    np.testing.assert_array_equal(batch.tokens, [[0, 0, 5, 0], [0, 7, 8, 9]])
    np.testing.assert_array_equal(batch.mask, [[0, 0, 1, 1], [0, 1, 1, 1]])
    np.testing.assert_array_equal(batch.lengths, [2, 3])
    assert (batch.tokens.dtype, batch.mask.dtype) == (jnp.int32, bool)


@pytest.mark.parametrize(("longest", "width"), [(1, 64), (64, 64), (65, 128)])
def test_lengths_are_bucketed(longest, width):
    assert left_pad([[1], [1] * longest]).tokens.shape == (2, width)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "prompts: got none, expected at least one"),
        ([[1], []], r"prompts\[1\]: got no tokens, expected at least one"),
        ([[1], [1] * 5], r"prompts\[1\]: got 5 tokens, expected at most 4"),
        ([[1], [2.0]], r"prompts\[1\]: got dtype float64, expected token ids \(integers\)"),
        ([[1], [-2]], r"prompts\[1\]: got ids -2 to -2, expected 0 or more"),
        ([[1], [2**40]], r"prompts\[1\]: got ids 1099511627776 to"),
        ([[1], UserDict(input_ids=[2])], r"prompts\[1\]: got a UserDict, .* its input_ids"),
        (UserDict(input_ids=[[2]]), "prompts: got a UserDict, expected rows: its input_ids"),
        ([[1], "text"], r"prompts\[1\]: got a text, expected token ids"),
        ([[1], [[2]]], r"prompts\[1\]: got \[\[2\]\], expected a list of token ids"),
    ],
)
def test_rows_that_cannot_be_padded(rows, message):
    with pytest.raises(ValueError, match=message):
        left_pad(rows, length=4)


def batch_of(tokens, mask) -> TokenBatch:
    return TokenBatch(jnp.array(tokens, jnp.int32), jnp.array(mask, bool))


@pytest.mark.parametrize(
    ("batch", "new_tokens", "message"),
    [
        (batch_of([[1, 97]], [[1, 1]]), 0, r"tokens\[0, 1\]: got id 97, expected 0 to 96"),
        (batch_of([[-1, 1]], [[0, 1]]), 0, r"tokens\[0, 0\]: got id -1"),
        (batch_of([[1, 1, 1]], [[1, 0, 1]]), 0, "mask: expected left padding"),
        (batch_of([[1, 1, 1]], [[1, 1, 0]]), 0, "mask: expected left padding"),
        (batch_of([[1, 1], [1, 1]], [[1, 1], [0, 0]]), 0, "at least one real token"),
        (batch_of([[1, 1]], [[1, 1, 1]]), 0, r"tokens and mask: got \(1, 2\) and \(1, 3\)"),
        (batch_of([[1] * 8], [[1] * 8]), 3, "prompt of 8 tokens and 3 new ones.*max_positions=10"),
    ],
)
def test_batches_that_do_not_fit_the_model(batch, new_tokens, message):
    with pytest.raises(ValueError, match=message):
        check_batch(batch, CONFIG, new_tokens=new_tokens)


@pytest.mark.parametrize(
    ("tokens", "mask", "message"),
    [
        (jnp.ones((1, 2)), jnp.ones((1, 2), bool), "tokens: got dtype float32, expected integers"),
        (jnp.ones((1, 2), int), jnp.ones((1, 2), int), "mask: got dtype int32, expected bool"),
        (jnp.ones((0, 2), int), jnp.ones((0, 2), bool), r"got \(0, 2\) and \(0, 2\), expected"),
    ],
)
def test_batches_of_other_types(tokens, mask, message):
    with pytest.raises(ValueError, match=message):
        check_batch(TokenBatch(tokens, mask), CONFIG)


def test_each_row_has_room_for_its_own_new_tokens():
    batch = left_pad([[1] * 8, [1]])
    check_batch(batch, CONFIG, new_tokens=np.array([2, 9]))
    with pytest.raises(ValueError, match=r"prompts\[1\]: got a prompt of 1 tokens and 10 new"):
        check_batch(batch, CONFIG, new_tokens=np.array([2, 10]))


def test_padding_does_not_count_towards_the_positions():
    check_batch(left_pad([[1] * 8], length=64), CONFIG, new_tokens=2)

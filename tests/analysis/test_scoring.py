"""analysis.scoring: log-probabilities of given texts are the model's own, steered or not."""

from functools import partial

import jax
import numpy as np
import pytest
from oracle import SHALLOW, SMALL, random_rows, run

from jaxsteer.analysis.scoring import score, token_logprobs
from jaxsteer.decoding.generation import generate
from jaxsteer.llama.tokens import left_pad
from jaxsteer.steering import scope
from jaxsteer.steering.interventions import add, noise

LENGTHS = (3, 8, 5, 1)
LOGPROB = 1e-5
V = np.random.default_rng(0).standard_normal(SHALLOW.d_model)


def texts() -> list[list[int]]:
    return random_rows(LENGTHS, SMALL.vocab_size)


def test_they_are_those_of_the_models_logits(small):
    batch = left_pad(texts(), length=12)
    logits = jax.nn.log_softmax(run(small, batch.tokens, mask=batch.mask).logits)
    for limit in (1 << 28, 4 * 3 * SMALL.vocab_size, 1):  # one block, four, a column each
        found = np.asarray(jax.jit(partial(token_logprobs, block_logits=limit))(small, batch))
        for row, length in enumerate(LENGTHS):
            own = np.asarray(batch.tokens[row, 13 - length :])
            expected = np.asarray(logits)[row, np.arange(12 - length, 11), own]
            np.testing.assert_allclose(found[row, 13 - length :], expected, atol=LOGPROB)
            assert not found[row, : 13 - length].any()


def test_a_text_is_scored_as_it_was_generated(shallow, batch, prompts):
    """Teacher forcing and decoding agree, with steering that differs from token to token, too."""
    length = {"length": 3.0, "width": SHALLOW.d_model}
    steered = (add(V, layer=0, coeff=1.5, schedule=[1, 0, 2]), noise(layer=1, coeff=1.0, **length))
    out = generate(shallow, batch, max_new_tokens=6, steering=steered)
    whole = [prompt + row for prompt, row in zip(prompts, out.rows(), strict=True)]
    lengths = [len(prompt) for prompt in prompts]
    found = score(shallow, whole, steering=steered, prompt_lengths=lengths, rows_per_batch=3)
    for row, n, expected in zip(found, lengths, out.logprobs, strict=True):
        np.testing.assert_allclose(row[n:], expected, atol=LOGPROB)
    plain = score(shallow, whole, rows_per_batch=3)
    assert max(np.abs(a - b).max() for a, b in zip(plain, found, strict=True)) > 0.1


@pytest.mark.parametrize("before", [8, 1])
def test_texts_behind_a_prefix_are_those_with_it_in_front(shallow, before):
    prefix, *given = random_rows((before, 3, 7, 1, 5), SMALL.vocab_size)
    prompts = [0, 2, 1, 0]  # tokens of a text that are prompt, too
    steered = add(V, layer=0, coeff=1.5, schedule=[1, 0, 2])
    behind = score(
        shallow, given, prefix=prefix, steering=steered, prompt_lengths=prompts, rows_per_batch=3
    )
    whole = score(
        shallow,
        [prefix + text for text in given],
        steering=steered,
        prompt_lengths=[before + n for n in prompts],
    )
    for found, expected in zip(behind, whole, strict=True):
        np.testing.assert_allclose(found, expected[before:], atol=LOGPROB)


def test_steering_that_reaches_into_a_prefix_is_refused(shallow):
    everywhere = add(V, layer=0, coeff=1.0, scope=scope.everywhere())
    options = {"prefix": [1, 2, 3], "prompt_lengths": [0]}
    with pytest.raises(ValueError, match="reaches into the prefix of 3 tokens, before its last"):
        score(shallow, [[4, 5]], steering=everywhere, **options)
    last = add(V, layer=0, coeff=1.0, scope=scope.from_last_prompt_token())
    assert len(score(shallow, [[4, 5]], steering=last, **options)[0]) == 2


def test_batches_change_nothing(shallow):
    """Nor does their length: short texts run in a quarter and half of it."""
    given = random_rows((3, 40, 8, 45, 1), SMALL.vocab_size)
    whole = score(shallow, given, length=64)
    assert [len(row) for row in whole] == [3, 40, 8, 45, 1]
    assert [row[0] for row in whole] == [0] * 5
    for a, b in zip(whole, score(shallow, given, rows_per_batch=3, length=64), strict=True):
        np.testing.assert_allclose(a, b, atol=LOGPROB)


def test_logits_of_all_tokens_are_never_there(shallow):
    batch = left_pad(texts(), length=12)
    limit = 4 * 3 * SHALLOW.vocab_size
    compiled = jax.jit(partial(token_logprobs, block_logits=limit)).lower(shallow, batch).compile()
    text = compiled.as_text()
    assert f"[4,3,{SHALLOW.vocab_size}]" in text
    assert f"[4,12,{SHALLOW.vocab_size}]" not in text
    assert f"[48,{SHALLOW.vocab_size}]" not in text


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ([], {}, "prompts: got none, expected at least one"),
        ([[1], []], {}, r"prompts\[1\]: got no tokens"),
        ([[1], [61]], {}, r"got id 61, expected 0 to 60"),
        ([[1] * 65], {}, "max_positions=64"),
        ([[1]], {"rows_per_batch": 0}, "rows_per_batch: got 0"),
        ([[1]], {"prompt_lengths": [1, 1]}, "prompt_lengths: got 2, expected one of each text"),
        ([[1]], {"steering": add(V, layer=0, coeff=1.0)}, "prompt_lengths: got None"),
        ([[1]], {"steering": add(V, layer=2, coeff=1.0)}, r"steering\.layer: got 2"),
        (
            [[1], [2]],
            {"steering": add(V, layer=0, coeff=[1.0, 2.0]), "prompt_lengths": [1, 1]},
            "got 2 rows, expected 1",
        ),
    ],
)
def test_what_cannot_be(shallow, given, options, message):
    with pytest.raises(ValueError, match=message):
        score(shallow, given, **options)

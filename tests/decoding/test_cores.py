"""Rows in parts that run at the same time: the same tokens, one program."""

import jax
import numpy as np
import pytest

import jaxsteer
from jaxsteer.decoding import cores, greedy
from jaxsteer.steering import Capture, from_last_prompt_token

NEW = 6
VECTOR = np.linspace(-1, 1, 16)


@pytest.fixture
def use(monkeypatch):
    """Sets the number of cores, and takes every part for worth its weights."""

    def set_cores(count: int) -> None:
        monkeypatch.setattr(cores, "_cores", lambda: count)
        monkeypatch.setattr(cores, "CACHE_SHARE", 1e-6)
        monkeypatch.setattr(cores, "LEAST_ROWS", 1)

    return set_cores


def assert_same(one: jaxsteer.decoding.Generation, other: jaxsteer.decoding.Generation) -> None:
    assert np.array_equal(one.tokens, other.tokens)
    assert np.array_equal(one.length, other.length)
    # Products of fewer rows may add up in another order: float32, a few units in the last place.
    np.testing.assert_allclose(one.logprobs, other.logprobs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("prompts", "samples"), [(6, 1), (1, 6), (2, 3)])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_in_parts_get_the_tokens_that_they_get_together(
    small, use, prompts, samples, temperature
):
    B = prompts * samples
    lists = [[3 + i, 5, 7 + i][: 2 + i % 2] for i in range(prompts)]
    asked = {
        "max_new_tokens": NEW,
        "samples": samples,
        "max_tokens": [NEW - i % 3 for i in range(B)],
        "sampling_params": jaxsteer.sampling(B, temperature=temperature, seed=4),
        "steering": jaxsteer.add(
            np.outer(np.arange(B), VECTOR), layer=1, coeff=2.0, scope=from_last_prompt_token()
        ),
    }
    use(1)
    whole = jaxsteer.generate(small, lists, **asked)
    use(2)
    assert_same(jaxsteer.generate(small, lists, **asked), whole)
    assert len({tuple(row) for row in whole.tokens}) > 1


@pytest.mark.parametrize("prompts", [4, 1])
def test_a_chunk_in_parts_is_the_chunk(small, use, prompts):
    """Cut by its prompts; by its cells if there is one prompt."""
    cells = jaxsteer.grid({"v": VECTOR}, layers=[0, 1], coeffs=[0.0, 1.0])
    lists = [[3, 5 + i, 7] for i in range(prompts)]

    def rows() -> dict[tuple[int, int], list[int]]:
        chunks = jaxsteer.sweep(small, lists, cells, max_new_tokens=NEW)
        return {(cells.index(r.cell), r.prompt): r.tokens for chunk in chunks for r in chunk}

    use(1)
    whole = rows()
    use(4)
    assert rows() == whole
    assert len(whole) == 4 * prompts


def test_parts_are_compiled_once_and_under_the_settings_of_the_caller(small, use, compiled):
    """Settings made with `with` hold for a thread only. `compile_generate` knows of parts."""
    use(3)
    with jax.default_matmul_precision("bfloat16"):
        jaxsteer.compile_generate(small, rows=6, prompt_length=3, max_new_tokens=NEW)
        jaxsteer.generate(small, [[3, 5, 7]] * 6, max_new_tokens=NEW)
    assert sum("_run_to_end" in name for name in compiled) == 1


def test_a_sweep_in_parts_runs_the_program_that_was_compiled_ahead(small, use, compiled):
    use(2)
    cells = jaxsteer.grid({"v": VECTOR}, layers=[0, 1], coeffs=[0.0, 1.0])
    jaxsteer.compile_sweep(small, [[3, 5]] * 4, cells, max_new_tokens=NEW)
    list(jaxsteer.sweep(small, [[3, 5]] * 4, cells, max_new_tokens=NEW))
    assert sum("_run_to_end" in name for name in compiled) == 1


def test_what_may_look_at_several_rows_gets_all_of_them(small, use):
    use(2)
    seen = []

    def sampler(logits: jax.Array, key: jax.Array, params: jaxsteer.decoding.Sampling) -> jax.Array:
        seen.append(logits.shape[0])
        return greedy(logits, key, params)

    jaxsteer.generate(small, [[3, 5]] * 4, max_new_tokens=NEW, sampler=sampler)
    assert set(seen) == {4}


def test_parts_are_as_many_as_pay_and_as_divide(small, monkeypatch):
    request = jaxsteer.make_request(small, [[3, 5]] * 8, max_new_tokens=NEW)
    capture = jaxsteer.make_request(
        small, [[3, 5]] * 8, max_new_tokens=NEW, capture=Capture(layers=[1])
    )

    def count(available: int, share: float, divides: int = 8, plain: bool = True) -> int:
        monkeypatch.setattr(cores, "_cores", lambda: available)
        monkeypatch.setattr(cores, "CACHE_SHARE", share)
        sizes = {"rows": 8, "prompt_length": 2, "divides": divides}
        return cores.count_parts(small, request, plain=plain, **sizes)

    assert count(4, 1e-6) == 1  # fewer than 16 rows a part
    monkeypatch.setattr(cores, "LEAST_ROWS", 1)
    assert [count(n, 1e-6) for n in (1, 2, 3, 4, 16)] == [1, 2, 2, 4, 8]
    assert count(4, 1e-6, divides=6) == 3
    assert count(4, 1e-6, divides=7) == 1
    assert count(4, 1e-6, plain=False) == 1
    assert count(4, 1e6) == 1
    sizes = {"rows": 8, "prompt_length": 2, "divides": 8, "plain": True}
    assert count(4, 1e-6) == cores.count_parts(small, request, **sizes) == 4
    assert cores.count_parts(small, capture, **sizes) == 1
    on_mesh = jaxsteer.shard_model(small, jaxsteer.make_mesh(data=1))
    assert cores.count_parts(on_mesh, request, **sizes) == 1

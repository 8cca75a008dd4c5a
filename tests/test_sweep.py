"""jaxsteer.sweep: a cell of a grid is the cell alone, however the grid is cut into chunks."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import SHALLOW, random_model, random_rows

from jaxsteer import scope
from jaxsteer.attention import cudnn_attention
from jaxsteer.generate import decode_step, generate
from jaxsteer.interventions import add
from jaxsteer.sampling import sampling
from jaxsteer.sweep import (
    Cell,
    CellResult,
    count_chunks,
    grid,
    reaches_prompt,
    rows_that_fit,
    sweep,
)
from jaxsteer.tokens import left_pad

G = 6
PROMPTS = 3
# Log-probabilities of two programs that sum in other orders: float32, of magnitude 10.
LOGPROB = 2e-5
SETTINGS = sampling(PROMPTS, temperature=1.0, seed=3)


def vectors(count: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {f"v{i}": rng.standard_normal(SHALLOW.d_model) for i in range(count)}


@pytest.fixture(scope="module")
def cells() -> list[Cell]:
    return grid(vectors(), layers=[0, 1], coeffs=[0.0, 1.0])


def key(result: CellResult) -> tuple:
    return (*result.cell.labels.values(), result.prompt)


def collect(model, batch, cells, **options) -> tuple[dict[tuple, CellResult], list[int]]:
    """All results of a sweep by their labels and prompt, and how many each chunk gave."""
    chunks = list(sweep(model, batch, cells, **{"max_new_tokens": G} | options))
    results = {key(result): result for chunk in chunks for result in chunk}
    sizes = [len(chunk) for chunk in chunks]
    assert len(results) == sum(sizes), "a result came twice"
    return results, sizes


@pytest.fixture(scope="module")
def whole(shallow, batch, cells):
    """The grid in one chunk, sampled."""
    results, sizes = collect(shallow, batch, cells, sampling_params=SETTINGS)
    assert sizes == [24]
    return results


def check_same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, result in found.items():
        assert result.tokens == expected[name].tokens, name
        np.testing.assert_allclose(result.logprobs, expected[name].logprobs, atol=LOGPROB)


def check_alone(model, batch, results: dict, **options) -> None:
    """Each cell gives what `generate` gives for its intervention."""
    cells = {id(r.cell): r.cell for r in results.values()}.values()
    for cell in cells:
        alone = generate(model, batch, max_new_tokens=G, steering=cell.steering, **options)
        for prompt, (tokens, n) in enumerate(zip(alone.tokens, alone.length, strict=True)):
            found = results[(*cell.labels.values(), prompt)]
            assert found.tokens == tokens[:n].tolist(), (dict(cell.labels), prompt)
            np.testing.assert_allclose(found.logprobs, alone.logprobs[prompt, :n], atol=LOGPROB)


def test_a_grid_names_its_cells(cells):
    assert [tuple(cell.labels.values()) for cell in cells] == [
        (v, layer, coeff) for v in ("v0", "v1") for layer in (0, 1) for coeff in (0.0, 1.0)
    ]
    assert list(cells[0].labels) == ["vector", "layer", "coeff"]


def test_a_cell_is_the_cell_alone(shallow, batch, cells, whole):
    assert len(whole) == len(cells) * PROMPTS
    check_alone(shallow, batch, whole, sampling_params=SETTINGS)
    # Cells of coefficient 0 share their random numbers with the others, and nothing else does.
    assert whole["v0", 0, 0.0, 1].tokens == whole["v1", 1, 0.0, 1].tokens
    assert len({tuple(result.tokens) for result in whole.values()}) > len(cells)


@pytest.mark.parametrize(
    ("rows", "sizes"),
    [
        (10, [9, 9, 6]),  # 3 cells × 3 prompts; the cells do not divide
        (2, [2] * 8 + [1] * 8),  # 1 cell × 2 prompts; the prompts do not divide
    ],
)
def test_chunks_change_nothing(shallow, batch, cells, whole, rows, sizes):
    found, chunks = collect(shallow, batch, cells, sampling_params=SETTINGS, rows_per_chunk=rows)
    assert chunks == sizes
    assert len(chunks) == count_chunks(len(cells), PROMPTS, rows)
    check_same(found, whole)


def test_what_is_done_is_not_done_again(shallow, batch, cells, whole):
    ran = []

    def counting_loop(cond, body, state):
        jax.debug.callback(lambda: ran.append(1))
        return jax.lax.while_loop(cond, body, state)

    options = {"sampling_params": SETTINGS, "rows_per_chunk": 10, "loop": counting_loop}
    some = {name for name in whole if name[:3] != ("v1", 0, 1.0)} - {("v0", 0, 0.0, 2)}

    def done(cell: Cell, prompt: int) -> bool:
        return (*cell.labels.values(), prompt) in some

    found, sizes = collect(shallow, batch, cells, done=done, **options)
    jax.effects_barrier()
    # The first chunk lacks one result, the second three; the third is skipped.
    assert (sizes, len(ran)) == ([1, 3], 2)
    check_same(found, {name: r for name, r in whole.items() if name not in some})
    assert collect(shallow, batch, cells, done=lambda cell, prompt: True, **options)[1] == []
    jax.effects_barrier()
    assert len(ran) == 2


def test_cells_may_differ_in_scope_site_and_schedule(shallow, batch):
    """One scope that reaches into the prompt is enough to prefill each cell on its own."""
    v = vectors()["v0"]
    options = {
        "everywhere": {"scope": scope.everywhere()},
        "generated": {"scope": scope.generated()},
        "last": {"scope": scope.from_last_prompt_token()},
        "holes": {"scope": scope.union(scope.window(1), exclude=[scope.window(-2, -1)])},
        "fading": {"site": "mlp_out", "schedule": [1.0, 0.5, 0.0]},
    }
    cells = [Cell({"n": n}, add(v, layer=1, coeff=2.0, **o)) for n, o in options.items()]
    found, _ = collect(shallow, batch, cells)
    check_alone(shallow, batch, found)
    assert found["everywhere", 0].tokens != found["generated", 0].tokens


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (scope.everywhere(), True),
        (scope.prompt(), True),
        (scope.from_last_prompt_token(), True),
        (scope.window(7, 8), True),  # only the longest prompt has a token there
        (scope.generated(), False),
        (scope.window(8), False),
        (scope.union(scope.window(-9), exclude=[scope.prompt()]), False),
    ],
)
def test_which_scopes_reach_the_prompt(batch, one, expected):
    steering = jax.tree.map(lambda x: x[None], add(np.ones(4), layer=0, coeff=1.0, scope=one))
    assert reaches_prompt(steering, batch.lengths).tolist() == [expected]


def test_rows_end_with_stop_tokens(shallow, batch, cells, whole):
    stop = whole["v0", 0, 1.0, 0].tokens[2]
    found, _ = collect(shallow, batch, cells, sampling_params=SETTINGS, stop_tokens=[stop])
    for name, result in found.items():
        tokens = whole[name].tokens
        end = tokens.index(stop) + 1 if stop in tokens else G
        assert result.tokens == tokens[:end]
        assert len(result.logprobs) == end


def test_one_trace_for_the_whole_grid_and_another_model(shallow, batch, cells):
    step = chex.assert_max_traces(decode_step, n=1)
    options = {"rows_per_chunk": 6, "step": step}
    base, _ = collect(shallow, batch, cells, **options)
    others = grid({"w": -vectors()["v1"]}, layers=[1], coeffs=[-3.0, 0.5, 4.0])
    rows = left_pad(random_rows([6, 2, 9], SHALLOW.vocab_size, seed=8), length=9)
    found, _ = collect(random_model(SHALLOW, seed=1), rows, [*others, *cells[:5]], **options)
    assert len(base) == len(found) == 24


def test_cells_fold_into_the_rows_of_the_cudnn_path(shallow, batch, monkeypatch):
    """With the XLA implementation in cuDNN's place; the vmap rule is what is tested."""
    real = jax.nn.dot_product_attention

    @functools.wraps(real)
    def stand_in(*args, implementation, **kwargs):
        assert implementation == "cudnn"
        return real(*args, implementation="xla", **kwargs)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    model = shallow.with_attention(cudnn_attention)
    cells = grid(vectors(), layers=[1], coeffs=[2.0], scope=scope.everywhere())
    found, _ = collect(model, batch, cells)
    check_alone(shallow, batch, found)


def test_counting_chunks():
    assert count_chunks(16, 20, 320) == 1
    assert count_chunks(16, 20, 160) == 2
    assert count_chunks(16, 20, 19) == 32  # prompts in two halves, cells one by one
    assert count_chunks(1, 1, 1) == 1


def test_rows_that_fit_into_half_of_the_free_memory(monkeypatch):
    class Device:
        def memory_stats(self):
            return {"bytes_limit": 10 * 2**20, "bytes_in_use": 2 * 2**20}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    # 2 layers × (keys and values) × 2 heads × width 4 × 4 bytes = 128 bytes a token.
    assert rows_that_fit(SHALLOW, length=100, dtype=jnp.float32) == 4 * 2**20 // (128 * 100)
    assert rows_that_fit(SHALLOW, length=100, dtype=jnp.bfloat16) == 4 * 2**20 // (64 * 100)
    assert rows_that_fit(SHALLOW, length=10**9, dtype=jnp.float32) == 1  # one row is always tried


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cells": []}, "cells: got none, expected at least one"),
        ({"rows_per_chunk": 0}, "rows_per_chunk: got 0, expected at least 1"),
        ({"sampling_params": sampling(2)}, "sampling_params: got 2 rows, expected .* 3"),
        ({"max_new_tokens": 60}, "prompt of 8 tokens and 60 new ones"),
        ({"cells": grid({"v": np.ones(17)}, layers=[0], coeffs=[1.0])}, "got width 17"),
        ({"cells": grid(vectors(), layers=[2], coeffs=[1.0])}, "layer: got 2 to 2, expected 0"),
        ({"stop_tokens": [-5]}, "stop_tokens: got id -5"),
    ],
)
def test_sweeps_that_do_not_fit(shallow, batch, cells, options, message):
    def never(*args, **kwargs):
        raise AssertionError("work started")

    arguments = {"cells": cells, "max_new_tokens": G, "step": never} | options
    with pytest.raises(ValueError, match=message):
        next(sweep(shallow, batch, **arguments))

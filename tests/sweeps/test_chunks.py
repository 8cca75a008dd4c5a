"""sweeps.chunks: a cell of a grid is the cell alone, however the grid is cut into chunks."""

import functools
from dataclasses import replace

import chex
import jax
import numpy as np
import pytest
from oracle import SHALLOW, random_model, random_rows

from jaxsteer.decoding import generation, memory
from jaxsteer.decoding.generation import decode_step, generate
from jaxsteer.decoding.results import Outcome
from jaxsteer.decoding.samplers import sampling
from jaxsteer.decoding.stops import stop_strings
from jaxsteer.llama.attention import cudnn_attention
from jaxsteer.llama.tokens import left_pad
from jaxsteer.steering import scope
from jaxsteer.steering.interventions import ablate, add, clamp, when
from jaxsteer.steering.interventions import replace as replaced
from jaxsteer.sweeps import chunk_sizes
from jaxsteer.sweeps import chunks as sweeping
from jaxsteer.sweeps.cells import Cell, grid
from jaxsteer.sweeps.chunks import CellResult, sweep

G = 6
PROMPTS = 3
# Log-probabilities of two programs that sum in other orders: float32, of magnitude 10.
LOGPROB = 2e-5
V = np.ones(SHALLOW.d_model, np.float32)
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


def test_cells_that_copy_their_prompts_change_nothing(shallow, batch, cells, whole, monkeypatch):
    """As on a GPU, behind short prompts; log-probabilities up to the order of float32 sums."""
    monkeypatch.setattr(generation, "should_copy_prompts", lambda *_, **__: True)
    jax.clear_caches()  # of programs that share
    found, _ = collect(shallow, batch, cells, sampling_params=SETTINGS)
    jax.clear_caches()
    assert found.keys() == whole.keys()
    for key, result in found.items():
        assert result.tokens == whole[key].tokens
        np.testing.assert_allclose(result.logprobs, whole[key].logprobs, rtol=0, atol=2e-5)


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
    check_same(found, whole)


def test_what_is_done_is_not_done_again(shallow, batch, cells, whole, monkeypatch):
    ran, run = [], sweeping._run_cells

    def counting(*args, **options):
        ran.append(1)
        return run(*args, **options)

    monkeypatch.setattr(sweeping, "_run_cells", counting)
    options = {"sampling_params": SETTINGS, "rows_per_chunk": 10}
    some = {name for name in whole if name[:3] != ("v1", 0, 1.0)} - {("v0", 0, 0.0, 2)}

    def done(cell: Cell, prompt: int) -> bool:
        return (*cell.labels.values(), prompt) in some

    found, sizes = collect(shallow, batch, cells, done=done, **options)
    # One result of the first cell is missing and all of the sixth: one chunk holds both.
    assert (sizes, len(ran)) == ([4], 1)
    check_same(found, {name: r for name, r in whole.items() if name not in some})
    assert collect(shallow, batch, cells, done=lambda cell, prompt: True, **options)[1] == []
    assert len(ran) == 1


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


def test_cells_may_have_several_interventions_or_none(shallow, batch):
    """Of any operation; what a cell has no counterpart for changes nothing in it."""
    a, b = vectors().values()
    heads = np.ones(SHALLOW.n_heads * SHALLOW.head_dim)
    steered = {
        "none": (),
        "two": (add(a, layer=0, coeff=1.0), when(ablate(b, layer=1), a, above=0.0)),
        "at another width": (clamp(heads, 3.0, layer=0, site="head_out"), replaced(a, layer=1)),
    }
    cells = [Cell({"n": name}, steering) for name, steering in steered.items()]
    found, _ = collect(shallow, batch, cells)
    check_alone(shallow, batch, found)
    unsteered = generate(shallow, batch, max_new_tokens=G).tokens
    assert [found["none", p].tokens for p in range(PROMPTS)] == unsteered.tolist()
    assert len({tuple(r.tokens) for r in found.values()}) == 3 * PROMPTS
    bare, _ = collect(shallow, batch, cells[:1])
    assert [bare["none", p].tokens for p in range(PROMPTS)] == unsteered.tolist()


def test_rows_end_with_stop_tokens(shallow, batch, cells, whole):
    stop = whole["v0", 0, 1.0, 0].tokens[2]
    found, _ = collect(shallow, batch, cells, sampling_params=SETTINGS, stop_tokens=[stop])
    for name, result in found.items():
        tokens = whole[name].tokens
        end = tokens.index(stop) + 1 if stop in tokens else G
        assert result.tokens == tokens[:end]
        assert len(result.logprobs) == end


def test_what_a_prompt_asks_for_goes_with_it_into_every_cell(shallow, batch):
    """Its own maximum and stop tokens, and a table for all; prompts in two chunks, steered, too."""
    cells = grid({"v": V}, layers=[0], coeffs=[0.0, 2.0], scope=scope.everywhere())
    free = [generate(shallow, batch, max_new_tokens=G, steering=c.steering).tokens for c in cells]
    pieces = [bytes([65 + i]) for i in range(SHALLOW.vocab_size)]
    text = pieces[free[1][2, 1]] + pieces[free[1][2, 2]]
    asked = {
        "max_tokens": [2, G, G],
        "stop_tokens": [[], [int(free[0][1, 3])], []],
        "stop_strings": stop_strings([text.decode()], pieces, vocab_size=SHALLOW.vocab_size),
    }
    found, sizes = collect(shallow, batch, cells, rows_per_chunk=2, **asked)
    assert sizes == [2, 2, 1, 1]
    lengths = [[len(found["v", 0, coeff, p].tokens) for p in range(3)] for coeff in (0.0, 2.0)]
    assert [row[0] for row in lengths] == [2, 2]
    assert lengths[0][1] <= 4
    assert lengths[1][2] <= 3
    check_alone(shallow, batch, found, **asked)


def test_one_trace_for_the_whole_grid_and_another_model(shallow, batch, cells):
    step = chex.assert_max_traces(decode_step, n=1)
    options = {"rows_per_chunk": 6, "step": step}
    base, _ = collect(shallow, batch, cells, **options)
    others = grid({"w": -vectors()["v1"]}, layers=[1], coeffs=[-3.0, 0.5, 4.0])
    rows = left_pad(random_rows([6, 2, 9], SHALLOW.vocab_size, seed=8), length=9)
    found, _ = collect(random_model(SHALLOW, seed=1), rows, [*others, *cells[:5]], **options)
    assert len(base) == len(found) == 24
    # Other scopes, too, as long as they leave the prompt alone.
    scopes = [scope.window(9, 12), scope.union(scope.generated(), exclude=[scope.window(10, 11)])]
    others = [Cell({"n": i}, add(V, layer=0, coeff=1.0, scope=s)) for i, s in enumerate(scopes)]
    collect(shallow, batch, others, **options)


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


def failing_loop(limit: int, ran: list[tuple[int, ...]]):
    """A loop for which there is no memory beyond `limit` rows, and what it was asked to run."""

    def loop(cond, body, state):
        ran.append(state.done.shape)
        if state.done.size > limit:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")
        return jax.lax.while_loop(cond, body, state)

    return loop


def test_a_chunk_that_does_not_fit_is_halved_and_nothing_is_lost(shallow, batch, cells, whole):
    ran = []
    with pytest.warns(UserWarning, match="out of memory with . cells × 3 prompts at once, going"):
        found, sizes = collect(
            shallow, batch, cells, sampling_params=SETTINGS, loop=failing_loop(7, ran)
        )
    assert ran == [(8, 3), (4, 3), (2, 3)]  # the last one is compiled once for all its chunks
    assert sizes == [6] * 4
    check_same(found, whole)


def test_memory_may_run_out_in_the_middle(shallow, batch, cells, whole, monkeypatch):
    """What was yielded before is neither lost nor run again."""
    chunks = sweep(
        shallow, batch, cells, max_new_tokens=G, sampling_params=SETTINGS, rows_per_chunk=10
    )
    first = next(chunks)
    run = sweeping._run_cells

    def full(model, part, request, **options):
        if part.tokens.shape[0] * request.steering[0].coeff.shape[0] > 3:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return run(model, part, request, **options)

    monkeypatch.setattr(sweeping, "_run_cells", full)
    with pytest.warns(UserWarning, match="3 cells × 3 prompts at once, going on with 1 × 3"):
        rest = list(chunks)
    assert [len(chunk) for chunk in rest] == [3] * 5
    check_same({key(r): r for chunk in [first, *rest] for r in chunk}, whole)


def test_a_row_that_does_not_fit_is_an_error(shallow, batch, cells):
    ran = []
    chunks = sweep(shallow, batch, cells[:2], max_new_tokens=G, loop=failing_loop(0, ran))
    with (
        pytest.warns(UserWarning, match="out of memory"),
        pytest.raises(MemoryError, match="a single row does not fit the device: RESOURCE_EXHAUS"),
    ):
        next(chunks)
    assert ran == [(2, 3), (1, 3), (1, 1)]


@pytest.mark.parametrize(
    ("says", "room", "elsewhere", "reason"),
    [
        (None, True, True, "another host has no memory"),
        (None, False, False, "needs more than a device of this host has free"),
        ("RESOURCE_EXHAUSTED: hbm", True, False, "RESOURCE_EXHAUSTED: hbm"),
    ],
)
def test_all_hosts_know_before_a_chunk_begins_that_one_has_no_room(
    shallow, monkeypatch, says, room, elsewhere, reason
):
    class Lowered:
        def compile(self):
            if says:
                raise jax.errors.JaxRuntimeError(says)

    told = []
    monkeypatch.setattr(sweeping.hosts, "any_of", lambda no: told.append(no) or no or elsewhere)
    monkeypatch.setattr(chunk_sizes, "has_room", lambda program, model: room)
    with pytest.raises(sweeping.NoRoom, match=reason):
        sweeping.agree_on_room(Lowered, shallow)
    assert told == [not elsewhere]


def test_a_host_that_runs_out_of_memory_alone_ends(shallow, batch, cells, monkeypatch):
    """The others have begun with the chunk, and no message reaches them there."""

    def full(*args, **options):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 bytes")

    monkeypatch.setattr(sweeping.hosts, "several", lambda: True)
    monkeypatch.setattr(sweeping, "agree_on_room", lambda lower, model: None)
    monkeypatch.setattr(sweeping.hosts, "gather", lambda tree: jax.device_get(tree))
    monkeypatch.setattr(chunk_sizes, "usable_bytes", lambda model: 10**9)
    monkeypatch.setattr(sweeping, "_run_cells", full)
    with pytest.raises(MemoryError, match=r"of this host; start again with fewer rows_per_chunk"):
        next(sweep(shallow, batch, cells, max_new_tokens=G))


def test_other_errors_are_not_taken_for_a_lack_of_memory(shallow, batch, cells):
    def loop(cond, body, state):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        next(sweep(shallow, batch, cells, max_new_tokens=G, loop=loop))


def test_chunks_are_as_large_as_the_memory_allows(shallow, batch, cells, monkeypatch):
    """By calculation, with the prompts that cells share beside them; nothing is run for it."""
    shapes = []

    def run(model, part, request, **options):
        shapes.append((request.steering[0].coeff.shape[0], part.tokens.shape[0]))
        found = np.zeros((*shapes[-1], G))
        return Outcome(found, found, np.zeros(shapes[-1], int), np.ones(shapes[-1], bool), None)

    monkeypatch.setattr(sweeping, "_run_cells", run)

    def shape(room: int, prompt_rows: int, *, shared: bool = False, **options) -> tuple[int, int]:
        asked = {"rows": room, "prompt_rows": prompt_rows, "prompt_length": 9, "new_tokens": G}
        usable = memory.program_bytes(shallow, shared=shared, **asked)
        monkeypatch.setattr(chunk_sizes, "usable_bytes", lambda model: usable)
        collect(shallow, batch, **options)
        return shapes[-1]

    assert shape(24, 3, shared=True, cells=cells) == (8, 3)
    assert shape(23, 3, shared=True, cells=cells) == (4, 3)
    assert shape(3, 3, cells=cells) == (1, 3)
    assert shape(2, 2, cells=cells) == (1, 2)
    everywhere = grid(vectors(), layers=[0, 1], coeffs=[1.0, 2.0], scope=scope.everywhere())
    assert shape(24, 24, cells=everywhere) == (8, 3)
    assert shape(24, 23, cells=everywhere) == (4, 3)


def bad(**fields) -> list[Cell]:
    """A cell whose arrays were changed after they were checked."""
    good = add(V, layer=0, coeff=1.0)
    return [Cell({"n": 0}, good), Cell({"n": 1}, replace(good, **fields))]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cells": []}, "cells: got none, expected at least one"),
        ({"cells": [add(V, layer=0, coeff=1.0)]}, r"cells\[0\]: got Steering, expected a Cell"),
        ({"rows_per_chunk": 0}, "rows_per_chunk: got 0, expected at least 1"),
        ({"sampling_params": sampling(2)}, "sampling: got 2 rows, expected .* 3"),
        ({"steering": add(V, layer=0, coeff=1.0)}, "steering: got one for all cells"),
        ({"max_new_tokens": 60}, "prompt of 8 tokens and 60 new ones"),
        ({"max_new_tokens": 0}, "max_new_tokens: got 0"),
        ({"cells": grid({"v": np.ones(17)}, layers=[0], coeffs=[1.0])}, "got width 17"),
        ({"cells": grid(vectors(), layers=[2], coeffs=[1.0])}, "layer: got 2.*, expected 0"),
        ({"cells": bad(vector=V[None] * np.nan)}, "cells.1. {'n': 1}: steering.vector: got NaN"),
        ({"cells": bad(coeff=np.array([np.inf]))}, "cells.1. {'n': 1}: steering.coeff: got NaN"),
        ({"cells": [Cell({}, add([V, V], layer=0, coeff=1.0))]}, "got 2 rows, expected 1"),
        ({"stop_tokens": [-5]}, "stop_tokens: got id -5"),
    ],
)
def test_sweeps_that_do_not_fit(shallow, batch, cells, options, message):
    def never(*args, **kwargs):
        raise AssertionError("work started")

    arguments = {"cells": cells, "max_new_tokens": G, "step": never} | options
    with pytest.raises(ValueError, match=message):
        sweep(shallow, batch, **arguments)  # at once, not when the first chunk is asked for


@pytest.mark.parametrize("empty", ["vectors", "layers", "coeffs"])
def test_a_grid_of_nothing_is_refused(empty):
    arguments = {"vectors": vectors(), "layers": [0], "coeffs": [1.0]}
    arguments[empty] = type(arguments[empty])()
    with pytest.raises(ValueError, match=f"{empty}: got none, expected at least one"):
        grid(arguments.pop("vectors"), **arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vectors": [V]}, "vectors: got list, expected vectors by their names"),
        ({"layers": 1}, "layers: got 1, expected a list"),
        ({"coeffs": np.float32(2)}, r"coeffs: got np\.float32\(2\.0\), expected a list"),
    ],
)
def test_a_grid_needs_names_and_lists(changes, message):
    arguments = {"vectors": vectors(), "layers": [0], "coeffs": [1.0]} | changes
    with pytest.raises(ValueError, match=message):
        grid(arguments.pop("vectors"), **arguments)

"""decoding.memory: what a chunk needs, by a formula that is held against the compiler's count."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import SHALLOW, random_model

from jaxsteer.config.shape import LlamaConfig
from jaxsteer.decoding import memory
from jaxsteer.decoding.memory import (
    has_room,
    is_out_of_memory,
    program_bytes,
    prompt_token_bytes,
    row_bytes,
    rows_that_fit,
    sweep_bytes,
)
from jaxsteer.decoding.request import make_request
from jaxsteer.decoding.samplers import greedy
from jaxsteer.llama.attention import cudnn_attention, tpu_attention
from jaxsteer.llama.model import init
from jaxsteer.llama.sharding import abstract_model
from jaxsteer.llama.tokens import left_pad
from jaxsteer.sweeps.cells import grid, stack_cells
from jaxsteer.sweeps.chunks import _run_cells

# Wide enough for arrays of rows to outweigh what the loop holds beside them.
CONFIG = LlamaConfig(
    vocab_size=512,
    d_model=64,
    d_mlp=128,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=16,
    max_positions=1024,
)


def test_the_formula_bounds_what_the_compiler_counts():
    model = init(CONFIG)
    T, G = 100, 100
    cells = grid({"v": np.ones(64)}, layers=[0], coeffs=[1.0, 2.0, 3.0, 4.0])
    batch = left_pad([[1] * T] * 8, length=T)
    request = make_request(model, batch, max_new_tokens=G)
    request = replace(request, steering=stack_cells(cells, CONFIG))
    compiled = _run_cells.lower(model, batch, request, steer_prompt=False, sampler=greedy).compile()
    counts = compiled.memory_analysis()  # the caches are an output
    counted = counts.temp_size_in_bytes + counts.output_size_in_bytes
    sizes = {"prompt_length": T, "new_tokens": G}
    expected = program_bytes(model, rows=32, prompt_rows=8, shared=True, **sizes)
    assert counted < expected < 3 * counted


class Device:
    process_index = 0

    def __init__(self, stats):
        self.stats = stats

    def memory_stats(self):
        return self.stats


def give_memory(monkeypatch, *devices) -> None:
    """Let the model's weights lie on devices with these statistics."""
    found = {Device(stats) for stats in devices}
    monkeypatch.setattr(type(jnp.zeros(1)), "devices", lambda self: found)


def test_rows_fill_what_is_free_on_the_fullest_device(monkeypatch):
    model = random_model(SHALLOW).with_attention(cudnn_attention)
    asked = {"prompt_length": 10, "new_tokens": 90}
    row = row_bytes(model, **asked)
    token = prompt_token_bytes(model, prompt_length=10)
    # 2 layers × (keys and values) × 2 heads × width 4 × 4 bytes = 128 bytes a token at least.
    assert 128 * 100 < row < 2 * 128 * 100
    free = 50 * (row + 10 * token)
    give_memory(
        monkeypatch,
        {"bytes_limit": 10**12, "bytes_in_use": 0},
        {"bytes_limit": int(free / 0.9) + 1000, "bytes_in_use": 0},
    )
    assert rows_that_fit(model, **asked) in (50, 51)
    # Many short prompts run in blocks, which take no more memory than one block does.
    free = 10_000 * row + memory.BLOCK_TOKENS * token
    give_memory(monkeypatch, {"bytes_limit": int(free / 0.9) + 1000 + 7, "bytes_in_use": 7})
    assert rows_that_fit(model, **asked) in (10_000, 10_001)
    give_memory(monkeypatch, {"bytes_limit": 10, "bytes_in_use": 20})
    assert rows_that_fit(model, **asked) == 1  # one row is always tried


def test_a_model_of_shapes_counts_with_its_weights_alone(monkeypatch):
    model = abstract_model(SHALLOW)
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(model.params))
    stats = {"bytes_limit": 10 * size, "bytes_in_use": 5 * size}  # of weights on their way, too
    monkeypatch.setattr(type(jax.devices()[0]), "memory_stats", lambda self: stats)
    assert memory.usable_bytes(model) == int(0.9 * 9 * size)


def test_a_device_that_says_nothing_has_a_fixed_share(monkeypatch):
    model = random_model(SHALLOW)
    give_memory(monkeypatch, None)
    assert memory.usable_bytes(model) == int(0.9 * 2**31)


class Counts:
    output_size_in_bytes, alias_size_in_bytes = 70, 20
    temp_size_in_bytes, generated_code_size_in_bytes = 40, 10


class Program:
    def __init__(self, counts):
        self.counts = counts

    def memory_analysis(self):
        return self.counts


def test_a_program_finds_room_where_it_is_free_on_every_device(shallow, monkeypatch):
    roomy = {"bytes_limit": 10**9, "bytes_in_use": 0}
    for limit, fits in ((1100, True), (1099, False)):
        give_memory(monkeypatch, roomy, {"bytes_limit": limit, "bytes_in_use": 1000})
        assert has_room(Program(Counts), shallow) is fits
    assert has_room(Program(None), shallow)
    give_memory(monkeypatch, None)
    assert has_room(Program(Counts), shallow)


def test_halving_is_for_a_lack_of_memory_only():
    assert is_out_of_memory(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 bytes"))
    assert is_out_of_memory(jax.errors.JaxRuntimeError("INTERNAL: CUDA: Out of memory"))
    assert not is_out_of_memory(jax.errors.JaxRuntimeError("INTERNAL: something else"))
    assert not is_out_of_memory(ValueError("RESOURCE_EXHAUSTED"))


def test_what_the_backend_raises_is_recognised():
    size = 2**46
    with pytest.raises(jax.errors.JaxRuntimeError) as raised:
        jax.block_until_ready(jax.jit(lambda: jnp.ones((size,), jnp.float32) + jnp.arange(1.0))())
    assert is_out_of_memory(raised.value)


def test_models_stay_while_they_take_a_third_of_the_memory(shallow, monkeypatch):
    size = sum(x.nbytes for x in jax.tree.leaves(shallow.params))
    assert memory.room_for_another([])
    monkeypatch.setattr(memory, "CPU_BYTES", 6 * size)  # what a CPU has; it tells of none itself
    assert memory.room_for_another([shallow])
    assert not memory.room_for_another([shallow, shallow])
    monkeypatch.setattr(memory, "CPU_BYTES", 6 * size - 1)
    assert not memory.room_for_another([shallow])


def test_a_tpu_lays_the_prompts_of_a_sweep_out_in_eights():
    """As compiled for TPUs: 18 and 20 prompts, but not 8, 10 or 12."""
    model = init(CONFIG, dtype=jnp.bfloat16).with_attention(tpu_attention)
    row = row_bytes(model, prompt_length=16, new_tokens=100, shared=True)

    def cells_alone(prompts: int) -> int:
        asked = {"prompts": prompts, "prompt_length": 16, "new_tokens": 100}
        return sweep_bytes(model, cells=5, **asked) - sweep_bytes(model, cells=3, **asked)

    for prompts, laid_out in ((1, 1), (8, 8), (10, 10), (12, 12), (18, 24), (20, 24)):
        assert cells_alone(prompts) == 2 * laid_out * row

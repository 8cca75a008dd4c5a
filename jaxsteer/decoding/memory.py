"""How many rows fit into a device's memory, by calculation.

The peak memory of a decoding program, without the weights:

    rows × row + block × token

    row     the keys and values of a prompt and its new tokens, in all layers, and the row's share
            of a step's temporaries, of which the logits over the vocabulary are the largest
    token   the temporaries of a prompt's token during prefill: stream, projections, MLP, and the
            scores or the mask of attention. Prompts run in blocks of at most `BLOCK_TOKENS`
            tokens, or of one row, so this does not grow with the rows

Rows that share their prompts hold only their own tokens; each prompt is held once.

On a mesh, all numbers are for one device: its rows, and its part of heads, MLP and vocabulary.
"""

import math
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxsteer.llama import (
    BLOCK_TOKENS,
    Model,
    cached_by_head,
    is_abstract,
    mesh_sizes,
    should_copy_prompts,
    suits_kernel,
    tpu_attention,
    xla_attention,
)
from jaxsteer.runtime import hosts

# Share of the free memory that may be used; the allocator loses the rest between its blocks.
USABLE = 0.9
# On a CPU, where memory is shared with everybody, this much stands for what is free.
CPU_BYTES = 2**31


def row_bytes(
    model: Model, *, prompt_length: int, new_tokens: int, captured: int = 0, shared: bool = False
) -> int:
    """Bytes of one row while it is decoded: its cache, and its share of a step's temporaries.

    `captured` are the bytes of its captured activations (`capture_bytes`). With `shared`, only the
    last token of its prompt is in its cache.
    """
    config, (_, tensor) = model.config, mesh_sizes(model)
    width = jnp.dtype(model.dtype).itemsize
    slots = prompt_length + new_tokens
    cache = (1 + new_tokens if shared else slots) * _token_cache_bytes(model)
    if model.attention is tpu_attention:
        # Its compiler keeps the rest on the chip: logits as they are carried, made and chosen from.
        return captured + cache + 3 * 4 * config.vocab_size // tensor
    if model.attention is xla_attention and not cached_by_head(model.attention):
        cache *= 2  # XLA makes a copy of keys and values in the order in which it multiplies them
    # Logits in float32, and what becomes of them: tempered, with noise, masked, exponentials.
    logits = 6 * 4 * config.vocab_size // tensor
    mlp = 3 * config.d_mlp // tensor
    stream = width * (8 * config.d_model + mlp) + 4 * 4 * config.d_model
    scores = 3 * 4 * config.n_heads * slots // tensor
    return captured + cache + logits + stream + scores


def prompt_token_bytes(model: Model, *, prompt_length: int) -> int:
    """Bytes of one token of a block of prompts at the peak of a layer."""
    config, (_, tensor) = model.config, mesh_sizes(model)
    width = jnp.dtype(model.dtype).itemsize
    if model.attention is tpu_attention:
        # Two streams, and the MLP's three arrays or the scores with one more stream.
        most = width * 3 * config.d_mlp // tensor
        if not suits_kernel(prompt_length):
            scores = 4 * config.n_heads * prompt_length // tensor
            most = max(most, scores + width * config.d_model)
        return width * 2 * config.d_model + most + _token_cache_bytes(model)
    heads = 2 * (config.n_heads + config.n_kv_heads) * config.head_dim
    split = (3 * config.d_mlp + heads) // tensor
    layer = width * (8 * config.d_model + split) + 2 * 4 * config.d_model
    if model.attention is xla_attention:
        scores = config.n_heads // tensor * prompt_length
        attention = scores * (2 * 4 + width)  # and probabilities
    else:
        attention = prompt_length * (width + 1)  # one mask for all heads, and its bias
    return layer + attention + _token_cache_bytes(model)


def cache_bytes(model: Model, *, rows: int, prompt_length: int, new_tokens: int) -> int:
    """Bytes of the keys and values of `rows` rows on one device."""
    data, _ = mesh_sizes(model)
    return -(-rows // data) * (prompt_length + new_tokens) * _token_cache_bytes(model)


def program_bytes(
    model: Model,
    *,
    rows: int,
    prompt_rows: int,
    prompt_length: int,
    new_tokens: int,
    captured: int = 0,
    shared: bool = False,
) -> int:
    """Bytes of a program that runs `prompt_rows` prompts and holds the caches of `rows` rows.

    With `shared` the rows share the prompts, whose keys and values are added.
    """
    asked: dict[str, Any] = {"prompt_length": prompt_length, "new_tokens": new_tokens}
    row = row_bytes(model, captured=captured, shared=shared, **asked)
    token = prompt_token_bytes(model, prompt_length=prompt_length)
    data, _ = mesh_sizes(model)
    rows, prompt_rows = -(-rows // data), -(-prompt_rows // data)
    block = min(prompt_rows * prompt_length, max(BLOCK_TOKENS, prompt_length))
    prompt_cache = prompt_rows * prompt_length * _token_cache_bytes(model) if shared else 0
    return rows * row + block * token + prompt_cache


def sweep_bytes(
    model: Model,
    *,
    cells: int,
    prompts: int,
    prompt_length: int,
    new_tokens: int,
    steer_prompt: bool = False,
    captured: int = 0,
) -> int:
    """Bytes of a chunk of a sweep: its cells, and the prompts that they share."""
    data, _ = mesh_sizes(model)
    asked: dict[str, Any] = {
        "prompt_length": prompt_length,
        "new_tokens": new_tokens,
        "captured": captured,
    }
    # Where `data` does not divide the prompts, cells are split, and each part runs all prompts.
    copies = 1 if prompts % data == 0 else data
    if cells == 1 or steer_prompt:
        run = cells * prompts if steer_prompt else prompts * copies
        return program_bytes(model, rows=cells * prompts, prompt_rows=run, **asked)
    shared, run = _are_shared(model, prompt_length, new_tokens), prompts * copies
    each = run // data  # prompts of a device
    if model.attention is tpu_attention and each >= 16:
        # Its compiler lays a slot's prompts side by side, in eights; found so for 18 and 20 of
        # them, and not for 10 and 12, which would be padded more.
        each += -each % 8
    rows = -(-cells // copies) * each * data
    return program_bytes(model, rows=rows, prompt_rows=run, shared=shared, **asked)


def _are_shared(model: Model, prompt_length: int, new_tokens: int) -> bool:
    """Whether rows of one prompt hold it once, not a copy each."""
    sizes = {"prompt_length": prompt_length, "new_tokens": new_tokens}
    return not should_copy_prompts(model.attention, **sizes)


def rows_that_fit(
    model: Model, *, prompt_length: int, new_tokens: int, prompts: int | None = None
) -> int:
    """Rows for `generate` that fit into the memory usable now; they share `prompts`, if given.

    At least 1, because only a run can tell whether a single row fits; on a mesh, a multiple of its
    `data` axis. The answer depends on what else is in memory now: if batches must always have the
    same size, choose it yourself.
    """
    row = row_bytes(model, prompt_length=prompt_length, new_tokens=new_tokens)
    token = prompt_token_bytes(model, prompt_length=prompt_length)
    usable = usable_bytes(model)
    data, _ = mesh_sizes(model)
    if prompts is not None:
        sizes: dict[str, Any] = {"prompt_length": prompt_length, "new_tokens": new_tokens}
        sizes["shared"] = _are_shared(model, prompt_length, new_tokens)
        usable -= program_bytes(model, rows=0, prompt_rows=prompts, **sizes)
        return data * max(1, usable // row_bytes(model, **sizes))
    # `program_bytes` solved for rows: all prompts in one block, or several of the full size. Each
    # is enough, so the larger.
    one_block = usable / (row + prompt_length * token)
    blocks = (usable - max(BLOCK_TOKENS, prompt_length) * token) / row
    return data * max(1, int(max(one_block, blocks)))


def check_capture_fits(
    model: Model,
    *,
    rows: int,
    prompt_length: int,
    new_tokens: int,
    captured: int,
    prompts: int | None = None,
) -> None:
    """Raise `ValueError` if `captured` bytes of activations a row do not fit beside the rest.

    The rows share `prompts`, if these are given and fewer than the rows.
    Where devices do not report free memory, the captured bytes may take half of the host's memory.
    """
    if not captured:
        return
    asked: dict[str, Any] = {
        "prompt_length": prompt_length,
        "new_tokens": new_tokens,
        "captured": captured,
        "shared": prompts not in (None, rows) and _are_shared(model, prompt_length, new_tokens),
    }
    needed = program_bytes(model, rows=rows, prompt_rows=prompts or rows, **asked)
    usable = usable_bytes(model)
    if _free_bytes(model) is None:
        data, _ = mesh_sizes(model)
        needed = -(-rows // data) * captured
        usable = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    if needed > usable:
        raise ValueError(
            f"capture: {rows} rows keep {rows * captured / 1e9:,.1f} GB, and the program needs "
            f"{needed / 1e9:,.1f} GB on a device that has {usable / 1e9:,.1f}; expected fewer "
            "layers or rows, `every`, `most`, or what is reduced on the device (Project, RowSums)"
        )


def usable_bytes(model: Model) -> int:
    """Bytes that a program may take on the fullest device that holds weights of the model.

    On many hosts it is the fullest device of all hosts, and every process has to call this.
    """
    free = _free_bytes(model)
    return hosts.smallest(int(USABLE * (CPU_BYTES if free is None else free)))


def has_room(program: jax.stages.Compiled, model: Model) -> bool:
    """Whether the devices of this host have the memory free that a compiled program needs.

    True if devices do not report their memory. A fragmented allocator can fail all the same.
    """
    free, counts = _free_bytes(model), program.memory_analysis()
    if free is None or counts is None:
        return True
    made = counts.output_size_in_bytes - counts.alias_size_in_bytes
    return made + counts.temp_size_in_bytes + counts.generated_code_size_in_bytes <= free


def _free_bytes(model: Model) -> int | None:
    """Free bytes of the fullest device of this host that holds weights; None if unknown.

    Of a model of shapes: what will be free where nothing but its weights is held.
    """
    leaf = jax.tree.leaves(model.params)[0]
    this_process, abstract = jax.process_index(), is_abstract(model)
    devices = leaf.sharding.device_set if abstract else leaf.devices()
    all_stats = [d.memory_stats() for d in devices if d.process_index == this_process]
    known = [stats for stats in all_stats if stats and "bytes_limit" in stats]
    if abstract:
        known = [{**stats, "bytes_in_use": weight_bytes(model)} for stats in known]
    return min((s["bytes_limit"] - s["bytes_in_use"] for s in known), default=None)


def room_for_another(models: Sequence[Model]) -> bool:
    """Whether another model of their size may stay beside these, for all to take a third at most.

    The rest is for caches and activations. Where a device does not tell its memory, small models
    are all that it is likely to hold.
    """
    if not models:
        return True
    leaf = jax.tree.leaves(models[0].params)[0]
    device = leaf.addressable_shards[0].device
    limit = (device.memory_stats() or {}).get("bytes_limit", CPU_BYTES)
    sizes = [weight_bytes(model) for model in models]
    return 3 * (sum(sizes) + max(sizes)) <= limit


def weight_bytes(model: Model) -> int:
    """Bytes of the weights on one device; `model` may be one of shapes."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(model.params)
    )


def is_out_of_memory(error: Exception) -> bool:
    """Whether JAX raised this because a device had no memory left."""
    text = str(error)
    return isinstance(error, jax.errors.JaxRuntimeError) and (
        "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower()
    )


def _token_cache_bytes(model: Model) -> int:
    config, (_, tensor) = model.config, mesh_sizes(model)
    per_layer = 2 * config.n_kv_heads * config.head_dim // tensor
    return config.n_layers * per_layer * jnp.dtype(model.dtype).itemsize

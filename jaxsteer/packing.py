"""Projections that read the same input, side by side in one weight: faster decoding on GPUs.

A decode step is a chain of matrix products that each read their weights once, and each kernel
loses some microseconds until it reads at full speed. Two large products instead of five lose
less, and leave XLA nothing to join by itself, which it does with a slow kernel (figures in
`experiments/benchmarks/RESULTS.md`).

    attn.qkv_proj      [D, K, N / K + 2, H]   of each key/value head: its queries, key, value
    mlp.gate_up_proj   [D, 2, F]

Tensor parallelism splits the axes K and F, not the joined ones. `model` computes with either
form; the numbers are the same up to the order of float32 sums.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp

from jaxsteer.model import Model, Params, is_packed


def pack(model: Model, *, donate: bool = False) -> Model:
    """The same model with q, k, v joined and gate, up joined; a packed one as it is.

    Both forms are in memory at the end. With `donate` the separate weights are freed layer by
    layer, and `model` can no longer be used.
    """
    if is_packed(model):
        return model
    layers = {}
    for i, layer in model.params["layers"].items():
        attn, mlp = dict(layer["attn"]), dict(layer["mlp"])
        qkv = [attn.pop(name) for name in ("q_proj", "k_proj", "v_proj")]
        gate_up = [mlp.pop(name) for name in ("gate_proj", "up_proj")]
        attn["qkv_proj"], mlp["gate_up_proj"] = _join(qkv, gate_up)
        layers[i] = layer | {"attn": attn, "mlp": mlp}
        if donate:
            _free([*qkv, *gate_up], after=layers[i])
    return replace(model, params=model.params | {"layers": layers})


def unpack(model: Model, *, donate: bool = False) -> Model:
    """The same model with separate projections, as checkpoints have them; undoes `pack` exactly."""
    if not is_packed(model):
        return model
    layers = {}
    for i, layer in model.params["layers"].items():
        attn, mlp = dict(layer["attn"]), dict(layer["mlp"])
        joined = [attn.pop("qkv_proj"), mlp.pop("gate_up_proj")]
        qkv, gate_up = _part(*joined)
        attn |= dict(zip(("q_proj", "k_proj", "v_proj"), qkv, strict=True))
        mlp |= dict(zip(("gate_proj", "up_proj"), gate_up, strict=True))
        layers[i] = layer | {"attn": attn, "mlp": mlp}
        if donate:
            _free(joined, after=layers[i])
    return replace(model, params=model.params | {"layers": layers})


@jax.jit
def _join(qkv: list[jax.Array], gate_up: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
    q, k, v = qkv
    D, K, H = k.shape
    grouped = [q.reshape(D, K, -1, H), k[:, :, None], v[:, :, None]]
    return jnp.concatenate(grouped, axis=2), jnp.stack(gate_up, axis=1)


@jax.jit
def _part(qkv: jax.Array, gate_up: jax.Array) -> tuple[tuple[jax.Array, ...], ...]:
    D, _, _, H = qkv.shape
    q = qkv[:, :, :-2].reshape(D, -1, H)
    return (q, qkv[:, :, -2], qkv[:, :, -1]), (gate_up[:, 0], gate_up[:, 1])


def _free(weights: list[jax.Array], *, after: Params) -> None:
    jax.block_until_ready(after)  # or every layer would be twice in memory before one is freed
    for weight in weights:
        weight.delete()

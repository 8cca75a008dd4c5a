"""Weights laid out as a kind of device decodes fastest: `arrange`, which `jaxsteer.load` calls.

GPUs: projections that read the same input lie side by side in one weight (`pack`). A decode step
is a chain of matrix products that each read their weights once, and each kernel loses some
microseconds until it reads at full speed. Two large products instead of five lose less, and leave
XLA nothing to join by itself, for which it may choose a slow kernel
(`python -m experiments.benchmarks.profile --separate` shows what it chooses).

    attn.qkv_proj      [D, K, N / K + 2, H]   of each key/value head: its queries, key, value
    attn.qkv_bias      [K, N / K + 2, H]      likewise, in models that have biases there
    mlp.gate_up_proj   [D, 2, F]

Tensor parallelism splits the axes K and F, not the joined ones. `model` computes with either
form; the numbers are the same up to the order of float32 sums.

TPUs: shapes and numbers stay, only the order in memory changes (`heads_first`). Their compiler
wants q, k and v of one head after another; of weights that lie otherwise every program makes
itself copies, 1.6 GB of an 8B model (`python -m experiments.benchmarks.tpu_aot`).
"""

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Format, Layout

from jaxsteer.llama.model import Model, Params, is_packed
from jaxsteer.llama.parameters import PACKED
from jaxsteer.llama.sharding import is_abstract, mesh_of, shard_model, sharding_of

_QKV = {row.path.split(".")[-1]: parts for row, parts in PACKED.items() if "G" in row.axes}
_HEADS = ("q_proj", "k_proj", "v_proj")  # [D, N or K, H]
_HEADS_FIRST = Layout(major_to_minor=(1, 0, 2))


def arrange(model: Model, *, donate: bool = False) -> Model:
    """The same model, laid out as this backend decodes fastest; on CPUs as it is.

    Both forms are in memory at the end. With `donate` the weights that are laid out anew are freed
    layer by layer, and `model` can no longer be used. Works on a model of shapes, too, for
    compiling ahead of time.
    """
    backend = jax.default_backend()
    if backend == "tpu":
        return heads_first(model, donate=donate)
    if backend != "gpu":
        return model
    if is_abstract(model):
        return _packed_shapes(model)
    mesh = mesh_of(model)
    model = pack(model, donate=donate)
    return model if mesh is None else shard_model(model, mesh)


def _packed_shapes(model: Model) -> Model:
    packed = jax.eval_shape(pack, model).params
    mesh, leaves = mesh_of(model), jax.tree.leaves(model.params)
    where = (
        jax.tree.map(lambda _: leaves[0].sharding, packed)
        if mesh is None
        else sharding_of(packed, mesh)
    )
    placed = jax.tree.map(
        lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to), packed, where
    )
    return replace(model, params=placed)


def heads_first(model: Model, *, donate: bool = False) -> Model:
    """The same model with q, k, v in memory head by head; no shape and no number changes.

    `donate` is that of `arrange`.
    """
    layers = {}
    for i, layer in model.params["layers"].items():
        old = {name: layer["attn"][name] for name in _HEADS if name in layer["attn"]}
        new = {name: _turned(x) for name, x in old.items()}
        layers[i] = layer | {"attn": layer["attn"] | new}
        if donate:
            _free([x for name, x in old.items() if x is not new[name]], after=new)
    return replace(model, params=model.params | {"layers": layers})


def _turned(x: Any) -> Any:  # an array, or its shape
    where = Format(_HEADS_FIRST, x.sharding)
    if isinstance(x, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
    layout = x.format.layout
    if layout is not None and layout.major_to_minor == _HEADS_FIRST.major_to_minor:
        return x
    return _copy_to(where)(x)


@functools.cache
def _copy_to(where: Format) -> jax.stages.Wrapped:
    # Not `jax.device_put`, which takes no array that is spread over several hosts.
    return jax.jit(jnp.copy, out_shardings=where)


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
        separate = {
            joined: [attn.pop(part) for part in parts]
            for joined, parts in _QKV.items()
            if parts[0] in attn
        }
        gate_up = [mlp.pop(name) for name in ("gate_proj", "up_proj")]
        qkv, mlp["gate_up_proj"] = _join(separate, gate_up)
        layers[i] = layer | {"attn": attn | qkv, "mlp": mlp}
        if donate:
            _free([*jax.tree.leaves(separate), *gate_up], after=layers[i])
    return replace(model, params=model.params | {"layers": layers})


def unpack(model: Model, *, donate: bool = False) -> Model:
    """The same model with separate projections, as checkpoints have them; undoes `pack` exactly."""
    if not is_packed(model):
        return model
    layers = {}
    for i, layer in model.params["layers"].items():
        layers[i] = unpack_layer(layer)
        if donate:
            joined = [layer["attn"][name] for name in _QKV if name in layer["attn"]]
            _free([*joined, layer["mlp"]["gate_up_proj"]], after=layers[i])
    return replace(model, params=model.params | {"layers": layers})


def unpack_layer(layer: Params) -> Params:
    """The weights of one layer with separate projections; pure."""
    if "gate_up_proj" not in layer["mlp"]:
        return layer
    attn, mlp = dict(layer["attn"]), dict(layer["mlp"])
    joined = {name: attn.pop(name) for name in _QKV if name in attn}
    qkv, gate_up = _part(joined, mlp.pop("gate_up_proj"))
    for name, parts in qkv.items():
        attn |= dict(zip(_QKV[name], parts, strict=True))
    mlp |= dict(zip(("gate_proj", "up_proj"), gate_up, strict=True))
    return layer | {"attn": attn, "mlp": mlp}


@jax.jit
def _join(qkv: dict[str, list[jax.Array]], gate_up: list[jax.Array]) -> tuple[Params, jax.Array]:
    joined = {}
    for name, (q, k, v) in qkv.items():  # [D, N, H] and twice [D, K, H]; biases without D
        q = q.reshape(*k.shape[:-1], -1, k.shape[-1])
        joined[name] = jnp.concatenate([q, k[..., None, :], v[..., None, :]], axis=-2)
    return joined, jnp.stack(gate_up, axis=1)


@jax.jit
def _part(qkv: Params, gate_up: jax.Array) -> tuple[Params, tuple[jax.Array, ...]]:
    parted = {}
    for name, x in qkv.items():
        q = x[..., :-2, :].reshape(*x.shape[:-3], -1, x.shape[-1])
        parted[name] = (q, x[..., -2, :], x[..., -1, :])
    return parted, (gate_up[:, 0], gate_up[:, 1])


def _free(weights: list[jax.Array], *, after: Params) -> None:
    jax.block_until_ready(after)  # or every layer would be twice in memory before one is freed
    for weight in weights:
        weight.delete()

"""A model on many devices: rows over one axis of a mesh, heads, MLP and vocabulary over the other.

    mesh = make_mesh(data=2, tensor=4)
    model, tokenizer = load("checkpoints/r1-distill-llama-8b", mesh=mesh)
    out = generate(model, shard_batch(batch, mesh), max_new_tokens=100)

The model's code does not mention meshes: the compiler derives everything else from the shardings of
weights and rows. The result is Megatron's scheme (arXiv 1909.08053): each block splits its heads
and its MLP over `tensor` and sums its two outputs, which is two all-reduces a layer, each of the
size of the stream. The keys and values of a head stay on one device.

If there are more devices than key/value heads, the heads are repeated: with K heads on a `tensor`
axis of K · r, each head is stored r times, beside the queries that read it. The sharded model's
config has K · r key/value heads; it computes the same function.

A vocabulary that `tensor` does not divide is padded with rows of zeros, in the embedding and in the
head. The model cuts their logits off. The config and saved checkpoints keep the true size.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxsteer.config import LlamaConfig
from jaxsteer.llama.cache import KVCache
from jaxsteer.llama.model import Model, Params, abstract_params, from_params
from jaxsteer.llama.parameters import AXES, SPLIT, ParamPath, axes_of, flatten, nest
from jaxsteer.runtime import hosts

DATA, TENSOR = "data", "tensor"

_ATTN = "layers.{}.attn."
KEYS_AND_VALUES = P(DATA, None, TENSOR, None)  # [B, S, K, H]

Tree = TypeVar("Tree")


def make_mesh(*, data: int | None = None, tensor: int = 1, devices: Any = None) -> Mesh:
    """Devices in a grid of `data` × `tensor`.

    Args:
        data: parts into which rows are split; by default as many as the devices allow.
        tensor: devices that share one copy of the weights, next to each other where the hardware
            has neighbours.
        devices: all there are, if not given.

    Raises:
        ValueError: for sizes that are not positive or need more devices than there are.
    """
    devices = jax.devices() if devices is None else list(devices)
    if tensor < 1 or (data is not None and data < 1):
        raise ValueError(f"mesh: got data={data}, tensor={tensor}, expected at least 1 of each")
    data = max(1, len(devices) // tensor) if data is None else data
    if data * tensor > len(devices):
        raise ValueError(
            f"mesh: data={data} × tensor={tensor} needs {data * tensor} devices, "
            f"found {len(devices)}"
        )
    return jax.make_mesh(
        (data, tensor),
        (DATA, TENSOR),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=devices[: data * tensor],
    )


def check_tensor(config: LlamaConfig, tensor: int) -> None:
    """Raise `ValueError`, naming the sizes that would do, if a model cannot be split so often."""
    if not _divides(config, tensor):
        fitting = [n for n in range(1, config.n_heads + 1) if _divides(config, n)]
        raise ValueError(
            f"tensor: got {tensor}, expected one of {', '.join(map(str, fitting))}: it divides "
            f"n_heads={config.n_heads} and d_mlp={config.d_mlp}, and is a divisor or a multiple of "
            f"n_kv_heads={config.n_kv_heads}"
        )


def _divides(config: LlamaConfig, tensor: int) -> bool:
    heads = config.n_kv_heads % tensor == 0 or tensor % config.n_kv_heads == 0
    return heads and config.n_heads % tensor == 0 and config.d_mlp % tensor == 0


def params_sharding(config: LlamaConfig, mesh: Mesh | AbstractMesh) -> Params:
    """The sharding of each parameter of a checkpoint: a tree for `load(path, sharding=…)`.

    Raises:
        ValueError: if the model cannot be split over the mesh's `tensor` axis.
    """
    check_tensor(config, mesh.shape[TENSOR])
    return sharding_of(abstract_params(config), mesh)


def sharding_of(params: Mapping[Any, Any], mesh: Mesh | AbstractMesh) -> Params:
    """Where any tree of parameters (or their shapes) goes, packed ones included.

    Raises:
        ValueError: for a parameter that is not in the table of `parameters`.
    """
    tensor = mesh.shape[TENSOR]
    return nest(
        (path, NamedSharding(mesh, _spec(axes_of(path), x.shape, tensor)))
        for path, x in flatten(params)
    )


def _spec(axes: str, shape: tuple[int, ...], tensor: int) -> P:
    """Which axis is split: D until key/value heads are repeated and the vocabulary is padded."""
    split = next((i for i, letter in enumerate(axes) if letter in SPLIT), None)
    if split is not None and shape[split] % tensor:
        split = axes.find("D") if "D" in axes and shape[axes.find("D")] % tensor == 0 else None
    return P() if split is None else P(*(TENSOR if i == split else None for i in range(len(axes))))


def abstract_model(
    config: LlamaConfig, *, dtype: Any = jnp.float32, mesh: Mesh | AbstractMesh | None = None
) -> Model:
    """A model of shapes, each where `shard_model` places it, or on the first device.

    Raises:
        ValueError: if the model cannot be split over the mesh's `tensor` axis.
    """
    shapes = abstract_params(config, jnp.dtype(dtype))
    if mesh is None:
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        where = jax.tree.map(lambda _: here, shapes)
    else:
        tensor = mesh.shape[TENSOR]
        check_tensor(config, tensor)
        config = replace(config, n_kv_heads=config.n_kv_heads * max(1, tensor // config.n_kv_heads))
        padded = functools.partial(pad_vocabulary, config=config, tensor=tensor)
        shapes = jax.eval_shape(padded, abstract_params(config, jnp.dtype(dtype)))
        where = sharding_of(shapes, mesh)
    placed = jax.tree.map(
        lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to), shapes, where
    )
    return from_params(placed, config)


def is_abstract(model: Model) -> bool:
    """Whether it is one of `abstract_model`: shapes, no weights."""
    return isinstance(jax.tree.leaves(model.params)[0], jax.ShapeDtypeStruct)


def shard_model(model: Model, mesh: Mesh) -> Model:
    """The same model, split over a mesh; it may be packed, and its weights may be anywhere.

    A model whose key/value heads had to be repeated says so in its config.

    Raises:
        ValueError: if the model cannot be split over the mesh's `tensor` axis.
    """
    tensor = mesh.shape[TENSOR]
    check_tensor(model.config, tensor)
    model = replace(model, params=hosts.place(model.params, sharding_of(model.params, mesh)))
    padded = functools.partial(pad_vocabulary, config=model.config, tensor=tensor)
    model = replace(model, params=_changed(padded, model.params, mesh))
    times = max(1, tensor // model.config.n_kv_heads)
    if times == 1:
        return model
    placed = sharding_of(jax.eval_shape(lambda m: repeat_kv_heads(m, times), model).params, mesh)
    layers = {}
    # Layer by layer, so that little is there twice.
    for i, layer in model.params["layers"].items():
        few = _kv_weights(layer["attn"])
        many = _repeat(hosts.place(few, NamedSharding(mesh, P())), times)
        many = hosts.place(many, {name: placed["layers"][i]["attn"][name] for name in few})
        layers[i] = layer | {"attn": layer["attn"] | many}
    return _with_heads(model, layers, times)


def pad_vocabulary(params: Params, config: LlamaConfig, tensor: int) -> Params:
    """The same weights with the vocabulary padded to a multiple of `tensor`; pure.

    A `tensor` of 1 removes the padding.
    """
    size = -(-config.vocab_size // tensor) * tensor

    def padded(x: jax.Array, axis: int) -> jax.Array:
        true = jax.lax.slice_in_dim(x, 0, config.vocab_size, axis=axis)
        more = [(0, size - config.vocab_size if i == axis else 0) for i in range(x.ndim)]
        return jnp.pad(true, more)

    def resized(path: ParamPath, x: jax.Array) -> jax.Array:
        axis = axes_of(path).find("V")
        return x if axis < 0 or x.shape[axis] == size else padded(x, axis)

    return nest((path, resized(path, x)) for path, x in flatten(params))


def without_padding(model: Model) -> Model:
    """The same model without padding of the vocabulary, as it is saved."""
    padded = functools.partial(pad_vocabulary, config=model.config, tensor=1)
    return replace(model, params=_changed(padded, model.params, mesh_of(model)))


def _changed(change: Callable[[Params], Params], params: Params, mesh: Mesh | None) -> Params:
    """The parameters after `change`, which is applied only to those whose shapes it changes."""
    shapes = dict(flatten(jax.eval_shape(change, params)))
    old = nest((path, x) for path, x in flatten(params) if shapes[path].shape != x.shape)
    if not old:
        return params
    where = None if mesh is None else sharding_of(jax.eval_shape(change, old), mesh)
    if mesh is not None:  # whole on each device: the compiler would do so, too, and warn
        old = hosts.place(old, NamedSharding(mesh, P()))
    new = dict(flatten(jax.jit(change, out_shardings=where)(old)))
    return nest((path, new.get(path, x)) for path, x in flatten(params))


def repeat_kv_heads(model: Model, times: int) -> Model:
    """A model that computes the same with each key/value head stored `times` times; pure."""
    layers = {
        i: layer | {"attn": layer["attn"] | _repeat(_kv_weights(layer["attn"]), times)}
        for i, layer in model.params["layers"].items()
    }
    return _with_heads(model, layers, times)


def _with_heads(model: Model, layers: Params, times: int) -> Model:
    config = replace(model.config, n_kv_heads=model.config.n_kv_heads * times)
    return replace(model, params=model.params | {"layers": layers}, config=config)


def _kv_weights(attn: Params) -> Params:
    """What an attention has for each key/value head."""
    return {name: x for name, x in attn.items() if "K" in AXES.get(_ATTN + name, "")}


@functools.partial(jax.jit, static_argnames="times")
def _repeat(kv_weights: Params, times: int) -> Params:
    def repeat(axes: str, x: jax.Array) -> jax.Array:
        if "G" not in axes:  # [D, K, H]; biases without D
            return jnp.repeat(x, times, axis=axes.index("K"))
        *lead, K, G, H = x.shape  # [D, K, N / K + 2, H]; biases without D
        q = x[..., :-2, :].reshape(*lead, K * times, (G - 2) // times, H)
        return jnp.concatenate([q, jnp.repeat(x[..., -2:, :], times, axis=-3)], axis=-2)

    return {name: repeat(AXES[_ATTN + name], x) for name, x in kv_weights.items()}


def shard_batch(tree: Tree, mesh: Mesh) -> Tree:
    """A batch, a request or a steering with its rows split over `data`; one row serves all.

    Raises:
        ValueError: if `data` does not divide the number of rows.
    """
    for x in jax.tree.leaves(tree):
        if x.ndim and x.shape[0] > 1 and x.shape[0] % mesh.shape[DATA]:
            raise ValueError(
                f"rows: got {x.shape[0]}, expected a multiple of the mesh's data={mesh.shape[DATA]}"
            )
    return hosts.place(tree, rows_sharding(tree, mesh))


def rows_sharding(tree: Any, mesh: Mesh) -> Any:
    """Where arrays with a row axis (or their shapes) go: rows over `data` if it divides them."""

    def over_data(x: Any) -> NamedSharding:
        split = x.ndim and x.shape[0] % mesh.shape[DATA] == 0
        return NamedSharding(mesh, P(DATA) if split else P())

    return jax.tree.map(over_data, tree)


def cache_sharding(cache: KVCache, mesh: Mesh) -> KVCache:
    """Where a cache (or its shapes) goes: a `KVCache` of shardings, rows and heads split.

    Caches made inside a compiled program need none of this.
    """
    spec = P(DATA, TENSOR) if cache.by_head else KEYS_AND_VALUES
    heads = [NamedSharding(mesh, spec)] * len(cache.k)
    return replace(rows_sharding(cache, mesh), k=heads, v=list(heads))


def mesh_of(model: Model) -> Mesh | None:
    """The mesh over which a model is split; None for one that is on a single device."""
    where = model.params["embed"]["embedding"].sharding
    if isinstance(where, NamedSharding) and isinstance(where.mesh, Mesh):
        return where.mesh if {DATA, TENSOR} <= set(where.mesh.axis_names) else None
    return None


def mesh_sizes(model: Model) -> tuple[int, int]:
    """Parts into which rows and weights are split, `(data, tensor)`; ones on a single device.

    Known while tracing, too.
    """
    sizes = jax.typeof(model.params["embed"]["embedding"]).sharding.mesh.shape
    return sizes.get(DATA, 1), sizes.get(TENSOR, 1)


def spread_rows(tree: Tree, model: Model) -> Tree:
    """`shard_batch` over the model's own mesh, if there is one and the rows divide."""
    mesh = mesh_of(model)
    return tree if mesh is None else hosts.place(tree, rows_sharding(tree, mesh))

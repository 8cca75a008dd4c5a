"""Fingerprints of weights and arrays, and the differences between two configurations."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsteer.llama import Model, unpack, unpack_layer, without_padding
from jaxsteer.runtime import hosts

_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def weights_fingerprint(model: Model) -> str:
    """A fingerprint of the weights, computed on their devices in the time it takes to read them.

    It hashes a sum over all weights, weighted by position: it tells models apart, not forgeries.
    Weights that a backend keeps packed or padded have the print of those in their checkpoint.
    """
    model = without_padding(model)
    parts = {name: _sums_of(x) for name, x in model.params.items() if name != "layers"}
    layers = {i: _sums_of_layer(layer) for i, layer in model.params["layers"].items()}
    sums = jax.tree.leaves(hosts.gather(parts | {"layers": layers}))
    leaves = jax.tree_util.tree_leaves_with_path(jax.eval_shape(unpack, model).params)
    named = [
        [jax.tree_util.keystr(path), leaf.dtype.name, list(leaf.shape), leaf_sums.tolist()]
        for (path, leaf), leaf_sums in zip(leaves, sums, strict=True)
    ]
    return _short(json.dumps(named).encode())


@jax.jit
def _sums_of(tree: Any) -> Any:
    return jax.tree.map(_sums, tree)


@jax.jit
def _sums_of_layer(layer: Any) -> Any:
    return jax.tree.map(_sums, unpack_layer(layer))


def _sums(x: jax.Array) -> jax.Array:
    """Two sums modulo 2³² over the bits of `x`, weighted by their positions."""
    bits = jax.lax.bitcast_convert_type(x, _WORDS[x.dtype.itemsize]).astype(jnp.uint32)
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    mixed = (bits + 1) * (place * jnp.uint32(0x9E3779B1) | 1)
    return jnp.stack([jnp.sum(mixed), jnp.sum(mixed ^ (mixed >> 15), dtype=jnp.uint32)])


def tree_fingerprint(tree: Any) -> str:
    """A fingerprint of all arrays in a tree: of their names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(hosts.gather(leaf))
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def describe(tree: Any) -> dict[str, Any]:
    """Each array of a tree by name: its value if all entries are equal, else its fingerprint."""
    described = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(hosts.gather(leaf))
        name = jax.tree_util.keystr(path).lstrip(".")
        same = array.size > 0 and bool(np.all(array == array.flat[0]))
        described[name] = [
            list(array.shape),
            array.flat[0].item() if same else tree_fingerprint(array),
        ]
    return described


def differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    """What differs between two JSON values, one line each, by name."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            inner = f"{name}.{key}" if name else str(key)
            yield from differences(old.get(key), new.get(key), inner)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from differences(a, b, f"{name}[{i}]")
    elif old != new:
        yield f"{name}: {_shown(old)} there, {_shown(new)} now"


def _shown(value: Any) -> str:
    return f"{len(value)} entries" if isinstance(value, list) else json.dumps(value)


def _short(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]

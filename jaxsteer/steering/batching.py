"""Interventions of different kinds in one: as the rows of a batch, or as the cells of a sweep."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxsteer.steering import scope as scopes
from jaxsteer.steering.sites import SITES
from jaxsteer.steering.steering import ALWAYS, NO_LAYER, Steering

# Fields that are None in an intervention that does not use them.
_OPTIONAL = ("basis", "erase", "along", "noise", "seed", "preserve_norm", "condition", "threshold")


def rows(steerings: Sequence[Steering]) -> Steering:
    """Interventions of any kinds as the rows of one, `[B, …]`, one after another.

    Each may have one row or several. A field that only some of them use gets a neutral value in the
    others' rows, so each row does what it did alone.

    Raises:
        ValueError: for none, or vectors of different widths.
    """
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *_aligned(steerings))


def stack(steerings: Sequence[Steering]) -> Steering:
    """Interventions of one row count as one with a leading cell axis, `[C, B, …]`.

    Raises:
        ValueError: for none, or vectors of different widths or row counts.
    """
    counts = sorted({one.coeff.shape[0] for one in steerings})
    if len(counts) > 1:
        raise ValueError(f"steerings: got {counts} rows, expected equally many in each")
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *_aligned(steerings))


def _aligned(steerings: Sequence[Steering]) -> list[Steering]:
    """The same interventions with the same fields, in arrays that differ in their rows only."""
    if not steerings:
        raise ValueError("steerings: got none, expected at least one")
    widths = sorted({one.vector.shape[-1] for one in steerings})
    if len(widths) > 1:
        raise ValueError(f"steerings: got vectors of widths {widths}, expected one width")
    sites = tuple(s for s in SITES if any(s in one.sites for one in steerings))
    steps = max(one.schedule.shape[1] for one in steerings)
    layers = max(one.layer.shape[1] for one in steerings)
    rank = max(0 if one.basis is None else one.basis.shape[1] for one in steerings)
    used = [name for name in _OPTIONAL if any(getattr(one, name) is not None for one in steerings)]
    aligned = []
    for one, scope in zip(steerings, scopes.align([s.scope for s in steerings]), strict=True):
        count = one.coeff.shape[0]
        missing = {
            name: _neutral(name, count, rank, widths[0])
            for name in used
            if getattr(one, name) is None
        }
        one = replace(
            one,
            sites=sites,
            scope=scope,
            schedule=_pad(one.schedule, steps, mode="edge"),
            layer=_pad(one.layer, layers, constant_values=NO_LAYER),
            **missing,
        )
        aligned.append(one if one.basis is None else replace(one, basis=_pad(one.basis, rank)))
    return aligned


def _neutral(name: str, rows: int, rank: int, width: int) -> jax.Array:
    """The value of an optional field that changes nothing."""
    if name == "threshold":
        return jnp.full((rows,), ALWAYS)
    shape = {"basis": (rows, rank, width), "condition": (rows, width)}.get(name, (rows,))
    return jnp.zeros(shape, {"preserve_norm": bool, "seed": jnp.uint32}.get(name, jnp.float32))


def _pad(array: jax.Array, size: int, **how: Any) -> jax.Array:
    """`array` with its second axis prolonged to `size`."""
    missing = size - array.shape[1]
    if not missing:
        return array
    return jnp.pad(array, ((0, 0), (0, missing)) + ((0, 0),) * (array.ndim - 2), **how)

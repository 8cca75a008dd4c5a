"""Interventions of different kinds in one: as the rows of a batch, or as the cells of a sweep."""

from collections.abc import Sequence
from dataclasses import replace

import jax
import numpy as np

from jaxsteer.steering import scope as scopes
from jaxsteer.steering import small_arrays
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
    return jax.tree.map(lambda *leaves: small_arrays.concatenate(leaves), *_aligned(steerings))


def stack(steerings: Sequence[Steering]) -> Steering:
    """Interventions of one row count as one with a leading cell axis, `[C, B, …]`.

    Raises:
        ValueError: for none, or vectors of different widths or row counts.
    """
    counts = sorted({one.coeff.shape[0] for one in steerings})
    if len(counts) > 1:
        raise ValueError(f"steerings: got {counts} rows, expected equally many in each")
    return jax.tree.map(lambda *leaves: small_arrays.stack(leaves), *_aligned(steerings))


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
            schedule=small_arrays.pad_second(one.schedule, steps, mode="edge"),
            layer=small_arrays.pad_second(one.layer, layers, constant_values=NO_LAYER),
            **missing,
        )
        if one.basis is not None:
            one = replace(one, basis=small_arrays.pad_second(one.basis, rank))
        aligned.append(one)
    return aligned


def _neutral(name: str, rows: int, rank: int, width: int) -> jax.Array:
    """The value of an optional field that changes nothing."""
    if name == "threshold":
        return jax.device_put(np.full((rows,), ALWAYS, np.float32))
    shape = {"basis": (rows, rank, width), "condition": (rows, width)}.get(name, (rows,))
    dtype = {"preserve_norm": np.bool_, "seed": np.uint32}.get(name, np.float32)
    return jax.device_put(np.zeros(shape, dtype))

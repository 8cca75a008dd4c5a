"""Cells: what a sweep varies. Each is one or several interventions, and runs on every prompt."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from jaxsteer.config import LlamaConfig
from jaxsteer.steering import (
    Scope,
    Steering,
    Vectors,
    Where,
    add,
    as_tuple,
    check_steering,
    stack,
)


@dataclass(frozen=True)
class Cell:
    """What is done to the model in one cell, and the labels that tell it from the others."""

    labels: Mapping[str, Any]  # what goes into the results, e.g. {"source": "base", "coeff": 8.0}
    # One intervention or several in their order, each of one row, for every prompt alike; () none.
    steering: Steering | tuple[Steering, ...]


def grid(
    vectors: Mapping[str, Vectors],
    *,
    coeffs: Sequence[float],
    layers: Sequence[int] | None = None,
    site: str | None = None,
    scope: Scope | None = None,
) -> list[Cell]:
    """Every vector × layer × coefficient, labelled `vector`, `layer` and `coeff`.

    >>> [dict(c.labels) for c in grid({"v": [1.0]}, layers=[0], coeffs=[0.0, 2.0])]
    [{'vector': 'v', 'layer': 0, 'coeff': 0.0}, {'vector': 'v', 'layer': 0, 'coeff': 2.0}]

    A `Direction` is added at its own layer and site where none is given.

    Raises:
        ValueError: if there is nothing to vary, or for what `add` refuses.
    """
    if not isinstance(vectors, Mapping):
        raise ValueError(f"vectors: got {type(vectors).__name__}, expected vectors by their names")
    for name, values in (("vectors", vectors), ("layers", layers), ("coeffs", coeffs)):
        if values is None:
            continue
        if not isinstance(values, Mapping) and np.ndim(values) == 0:
            raise ValueError(f"{name}: got {values!r}, expected a list")
        if len(values) == 0:
            raise ValueError(f"{name}: got none, expected at least one")
    cells = []
    for name, vector in vectors.items():
        own = getattr(vector, "layer", None)
        if layers is None and own is None:
            raise ValueError(f"layers: got none, expected some for {name!r}, which is no Direction")
        for layer, coeff in itertools.product([own] if layers is None else layers, coeffs):
            labels = {"vector": name, "layer": layer, "coeff": coeff}
            where = Where(layer=layer, scope=scope)
            if site is not None:
                where["site"] = site
            cells.append(Cell(labels, add(vector, coeff=coeff, **where)))
    return cells


def check_cells(cells: Sequence[Cell], config: LlamaConfig) -> None:
    """Check a grid on the host.

    Raises:
        ValueError: for no cells, or naming the cell whose steering does not fit the model.
    """
    if not cells:
        raise ValueError("cells: got none, expected at least one")
    for i, cell in enumerate(cells):
        if not isinstance(cell, Cell):
            raise ValueError(f"cells[{i}]: got {type(cell).__name__}, expected a Cell (`grid`)")
        for one in as_tuple(cell.steering):
            try:
                check_steering(one, config, rows=1)
            except ValueError as error:
                raise ValueError(f"cells[{i}] {dict(cell.labels)}: {error}") from None


def stack_cells(cells: Sequence[Cell], config: LlamaConfig) -> tuple[Steering, ...]:
    """The cells' interventions, stacked into slots with a leading cell axis C.

    A slot holds at most one intervention of each cell, and slots are applied in order. Vectors of
    one slot have one width. Where a cell has nothing for a slot, it gets another cell's
    intervention at coefficient 0, which changes nothing, bit for bit.
    """
    slots: list[dict[int, Steering]] = []  # by cell
    for c, cell in enumerate(cells):
        slot = 0
        for one in as_tuple(cell.steering):
            while slot < len(slots) and _width(slots[slot]) != one.vector.shape[-1]:
                slot += 1
            if slot == len(slots):
                slots.append({})
            slots[slot][c] = one
            slot += 1
    if not slots:
        slots = [{0: add(np.zeros(config.d_model), layer=0, coeff=0.0)}]
    return tuple(
        stack([slot.get(c, _without_effect(slot)) for c in range(len(cells))]) for slot in slots
    )


def _width(slot: dict[int, Steering]) -> int:
    return next(iter(slot.values())).vector.shape[-1]


def _without_effect(slot: dict[int, Steering]) -> Steering:
    one = next(iter(slot.values()))
    return replace(one, coeff=jax.device_put(np.zeros_like(one.coeff)))

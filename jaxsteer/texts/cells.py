"""Cells of a sweep over texts: vectors × layers × coefficients, and baselines of equal length."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import jax
import numpy as np

from jaxsteer.directions import Direction, random_directions, rescale
from jaxsteer.llama import Model, TokenBatch
from jaxsteer.steering import NO_LAYER, Capture, Project, Steering, Where, add, as_tuple, noise
from jaxsteer.sweeps import Cell
from jaxsteer.texts.layer_directions import LayerDirections, residual_norms

Baseline = Literal["random", "noise"]
BASELINES = ("random", "noise")


def sweep_cells(
    model: Model,
    batch: TokenBatch,
    vectors: Any,
    *,
    layers: Sequence[int] | None,
    coeffs: Sequence[float],
    baselines: Sequence[Baseline] = (),
    unit: str = "vector",
    seed: int = 0,
) -> list[Cell]:
    """The cells of `LanguageModel.sweep`, labelled `source`, `layer` and `coeff`.

    Coefficient 0 is one cell, whose source is "none".

    Raises:
        ValueError: naming the argument, what was found and what was expected.
    """
    check_unit(unit)
    if unknown := set(baselines) - set(BASELINES):
        raise ValueError(f"baselines: got {sorted(unknown)}, expected some of {BASELINES}")
    if not len(coeffs):
        raise ValueError("coeffs: got none, expected at least one")
    named = by_name(vectors)
    sites = {name: getattr(vector, "site", "resid_post") for name, vector in named.items()}
    if unit == "residual" and (odd := set(sites.values()) - {"resid_post"}):
        raise ValueError(
            f"unit: got 'residual' for {sorted(odd)}, expected directions of resid_post"
        )
    norms = residual_norms(model, batch) if unit == "residual" else None
    cells = []
    if any(coeff == 0 for coeff in coeffs):
        cells.append(Cell({"source": "none", "layer": None, "coeff": 0.0}, ()))
    for name, vector in named.items():
        for layer in _layers(vector, layers, name, model.config.n_layers):
            values = _at(vector, layer)
            if norms is not None:
                values = rescale(values, float(norms[layer]))
            random = random_directions(1, len(values), seed=seed)[0]
            length = float(np.linalg.norm(values))
            where: Where = {"layer": layer, "site": sites[name]}
            for coeff in map(float, coeffs):
                if coeff == 0:
                    continue
                kinds: dict[str, Steering] = {name: add(values, coeff=coeff, **where)}
                if "random" in baselines:
                    kinds["random"] = add(rescale(random, length), coeff=coeff, **where)
                if "noise" in baselines:
                    kinds["noise"] = noise(
                        length, coeff=abs(coeff), width=len(values), seed=seed, **where
                    )
                cells += [
                    Cell({"source": source, "layer": layer, "coeff": coeff}, steering)
                    for source, steering in kinds.items()
                ]
    return cells


def check_unit(unit: str) -> None:
    """Refuse what a coefficient cannot count."""
    if unit not in ("vector", "residual"):
        raise ValueError(f"unit: got {unit!r}, expected 'vector' or 'residual'")


def in_residual_norms(model: Model, batch: TokenBatch, cells: Sequence[Cell]) -> list[Cell]:
    """The cells with each added vector as long as the residual stream at its layer.

    Raises:
        ValueError: for steering that is not an addition to resid_post at one layer.
    """
    norms = residual_norms(model, batch)
    return [
        replace(cell, steering=tuple(_as_long(one, norms) for one in as_tuple(cell.steering)))
        for cell in cells
    ]


def _as_long(steering: Steering, norms: np.ndarray) -> Steering:
    """An addition of one row with its vector rescaled to the norm at its layer."""
    layers = [layer for layer in steering.layer[0].tolist() if layer != NO_LAYER]
    others = (steering.basis, steering.erase, steering.along, steering.noise)
    is_addition = steering.sites == ("resid_post",) and all(one is None for one in others)
    if not is_addition or len(layers) != 1 or not 0 <= layers[0] < len(norms):
        raise ValueError(
            "unit: got 'residual', expected an addition to resid_post at one layer of "
            f"0 to {len(norms) - 1}"
        )
    vector = rescale(np.asarray(steering.vector[0]), float(norms[layers[0]]))
    return replace(steering, vector=jax.device_put(vector[None]))


def added_lengths(cells: Sequence[Cell]) -> dict[str, float]:
    """What coefficient 1 of each vector adds at each layer, by `source.layer`."""
    by_cell = {}
    for cell in cells:
        source, layer = cell.labels["source"], cell.labels["layer"]
        if layer is not None and isinstance(cell.steering, Steering):
            by_cell[f"{source}.{layer}"] = float(np.linalg.norm(cell.steering.vector))
    return by_cell


def projecting(
    model: Model, batch: TokenBatch, vectors: Any, layers: Sequence[int] | None
) -> Capture:
    """A capture of the stream along the first vector at its first layer, in lengths of the stream.

    The length is the root mean square over a batch.
    """
    name, vector = next(iter(by_name(vectors).items()))
    layer = _layers(vector, layers, name, model.config.n_layers)[0]
    values = _at(vector, layer)
    values = values / np.linalg.norm(values) / residual_norms(model, batch)[layer]
    site = getattr(vector, "site", "resid_post")
    return Capture((site,), (layer,), Project(values[None]))


def by_name(vectors: Any) -> dict[str, Any]:
    """One vector or several, by name."""
    if isinstance(vectors, Mapping) and not isinstance(vectors, LayerDirections):
        return dict(vectors)
    name = getattr(vectors, "name", None) or "direction"
    return {name: vectors}


def _layers(vector: Any, layers: Sequence[int] | None, name: str, count: int) -> Sequence[int]:
    if layers is None and isinstance(vector, Direction):
        layers = [vector.layer]
    if layers is None:
        raise ValueError(f"layers: got None, expected layers to add {name!r} at")
    if wrong := [layer for layer in layers if layer not in range(count)]:
        raise ValueError(f"layers: got {wrong[0]!r}, expected 0 to {count - 1}")
    return layers


def _at(vector: Any, layer: int) -> np.ndarray:
    """The vector `[D]` for a layer."""
    if isinstance(vector, LayerDirections):
        return vector[layer].vector
    return np.asarray(vector.vector if isinstance(vector, Direction) else vector, np.float32)

"""The cells of Figure 4: what a direction is compared with, each as long as the direction.

Labels are `source`, `coeff` and `length`, the length of what is added at a token:

    random-0 …           directions drawn from the sphere
    mean                 the mean activation over D
    noise                Gaussian noise, drawn anew at each token
    self                 the activation itself
    behaviour-<name>     the directions of other behaviours, Eq. 3 with their sentences as D+
    raw-mean, raw-self, raw-behaviour-<name>
                         the same at their own lengths: the mean, the activation and the directions
                         times the number by which the base-derived direction is multiplied
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from experiments.pipeline.settings import Steering
from experiments.stages.derive import BACKTRACKING
from jaxsteer.analysis import OTHER
from jaxsteer.directions import random_directions, rescale
from jaxsteer.steering import add, amplify, noise
from jaxsteer.sweeps import Cell

BEHAVIOUR, RAW = "behaviour-", "raw-"


def baseline_vectors(saved: Mapping[str, Any], *, layer: int) -> dict[str, np.ndarray]:
    """Mean activation and other behaviours' directions of the base model, by their source.

    `saved` are the directions of the stage `derive`. What remains when a sentence has none of the
    names is no behaviour.
    """
    start, end = f"base.{layer}.", ".union"
    vectors = {"mean": saved[f"{start}mean"].vector} if f"{start}mean" in saved else {}
    for name, direction in saved.items():
        behaviour = name.removeprefix(start).removesuffix(end)
        whole = name == f"{start}{behaviour}{end}"
        if whole and behaviour not in (BACKTRACKING, OTHER):
            vectors[BEHAVIOUR + behaviour] = direction.vector
    return vectors


def baseline_cells(
    vectors: Mapping[str, np.ndarray],
    *,
    layer: int,
    site: str,
    residual_norm: float,
    steering: Steering,
) -> list[Cell]:
    """The cells at each of `steering.baseline_coeffs`; `vectors` hold `base` and the others'."""
    cells: list[Cell] = []
    for coeff in steering.baseline_coeffs:
        own = float(np.linalg.norm(vectors["base"]))
        length = residual_norm if steering.unit == "residual" else own
        where = {"layer": layer, "site": site}
        cells += _equal(vectors, steering, coeff, length, where)
        if steering.raw_baselines:
            cells += _raw(vectors, steering, coeff, length / own, residual_norm, where)
    return cells


def _equal(
    vectors: Mapping[str, np.ndarray],
    steering: Steering,
    coeff: float,
    length: float,
    where: dict[str, Any],
) -> Iterator[Cell]:
    """Every baseline, `coeff` times `length` long."""
    width = len(vectors["base"])

    def labels(source: str) -> dict[str, Any]:
        return {"source": source, "coeff": coeff, "length": abs(coeff) * length}

    drawn = random_directions(steering.random_directions, width)
    named = {f"random-{i}": vector for i, vector in enumerate(drawn)}
    for source, vector in (named | _chosen(vectors, steering)).items():
        yield Cell(labels(source), add(rescale(vector, length), coeff=coeff, **where))
    if "noise" in steering.baselines:
        yield Cell(labels("noise"), noise(length, coeff=coeff, width=width, **where))
    if "self" in steering.baselines:
        yield Cell(labels("self"), amplify(length=length, coeff=coeff, width=width, **where))


def _raw(
    vectors: Mapping[str, np.ndarray],
    steering: Steering,
    coeff: float,
    factor: float,
    residual_norm: float,
    where: dict[str, Any],
) -> Iterator[Cell]:
    """Those that have a length of their own, `coeff · factor` times that."""

    def labels(source: str, length: float) -> dict[str, Any]:
        return {"source": RAW + source, "coeff": coeff, "length": abs(coeff) * factor * length}

    for source, vector in _chosen(vectors, steering).items():
        length = float(np.linalg.norm(vector))
        yield Cell(labels(source, length), add(vector, coeff=coeff * factor, **where))
    if "self" in steering.baselines:
        width = len(vectors["base"])
        yield Cell(
            labels("self", residual_norm), amplify(coeff=coeff * factor, width=width, **where)
        )


def _chosen(vectors: Mapping[str, np.ndarray], steering: Steering) -> dict[str, np.ndarray]:
    """The vectors of the baselines that the settings name."""
    return {
        source: vector
        for source, vector in vectors.items()
        if (source == "mean" and "mean" in steering.baselines)
        or (source.startswith(BEHAVIOUR) and "behaviour" in steering.baselines)
    }

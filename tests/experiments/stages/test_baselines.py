"""Figure 4's baselines: which cells they are, and how long what they add is."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.pipeline.settings import Steering
from experiments.stages.baselines import baseline_cells, baseline_vectors
from jaxsteer.steering import steering as steers

WIDTH, NORM = 16, 7.0
COEFFS = [-2.0, 0.5]
STREAM = np.random.default_rng(3).normal(size=(1, 5, WIDTH)).astype(np.float32)


def vectors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    names = {"base": 1, "reasoning": 2, "mean": 9, "behaviour-setup": 3, "behaviour-a-b": 0.5}
    return {name: (s * rng.normal(size=WIDTH)).astype(np.float32) for name, s in names.items()}


def cells(unit: str, *, names: Sequence[str] = ("mean", "noise", "self", "behaviour"), raw=False):
    options: dict[str, Any] = {"random_directions": 2, "baseline_coeffs": COEFFS}
    steering = Steering(
        coeffs=COEFFS, unit=unit, baselines=list(names), raw_baselines=raw, **options
    )
    where: dict[str, Any] = {"layer": 1, "site": "resid_mid", "residual_norm": NORM}
    made = baseline_cells(vectors(), steering=steering, **where)
    found = {(cell.labels["source"], cell.labels["coeff"]): cell for cell in made}
    assert len(found) == len(made)
    return found


def added(cell: Any) -> np.ndarray:
    """What a cell adds to the stream at each generated token, `[T, D]`."""
    one, position = cell.steering, jnp.arange(5)[None]
    assert one.sites == ("resid_mid",)
    coeffs = steers.token_coeffs(one, position, jnp.zeros(1, jnp.int32), row=jnp.array([4]))
    options: dict[str, Any] = {"steering": one, "coeffs": coeffs}
    after = steers.apply(jnp.asarray(STREAM), site="resid_mid", layer=1, **options)
    return np.asarray(after - STREAM)[0]


def test_every_baseline_is_as_long_as_the_direction() -> None:
    for unit, length in (("residual", NORM), ("vector", np.linalg.norm(vectors()["base"]))):
        found = cells(unit)
        names = ["random-0", "random-1", "mean", "behaviour-setup", "behaviour-a-b"]
        assert {source for source, _ in found} == {*names, "noise", "self"}
        assert {coeff for _, coeff in found} == set(COEFFS)
        for (_, coeff), cell in found.items():
            lengths = np.linalg.norm(added(cell), axis=-1)
            np.testing.assert_allclose(lengths, abs(coeff) * length, rtol=1e-4)
            assert cell.labels["length"] == pytest.approx(abs(coeff) * length)


def test_each_points_where_its_name_says() -> None:
    found = cells("residual")
    unit = STREAM[0] / np.linalg.norm(STREAM[0], axis=-1, keepdims=True)
    np.testing.assert_allclose(added(found["self", -2.0]), -2 * NORM * unit, rtol=1e-3, atol=1e-4)
    setup = vectors()["behaviour-setup"] / np.linalg.norm(vectors()["behaviour-setup"])
    along = added(found["behaviour-setup", 0.5]) @ setup
    np.testing.assert_allclose(along, 0.5 * NORM, rtol=1e-4)
    noise = added(found["noise", 0.5])
    assert np.linalg.matrix_rank(noise) == 5
    # A larger coefficient is more of the same draw, so that cells are paired.
    np.testing.assert_allclose(added(found["noise", -2.0]), -4 * noise, rtol=1e-3, atol=1e-4)


def test_raw_ones_are_multiplied_like_the_direction() -> None:
    """By the coefficient where that counts directions, by as much as reaches its length else."""
    own = np.linalg.norm(vectors()["base"])
    for unit, factor in (("vector", 1.0), ("residual", NORM / own)):
        found = cells(unit, names=("mean", "self"), raw=True)
        raw = {source for source, _ in found if source.startswith("raw-")}
        assert raw == {"raw-mean", "raw-self"}
        for coeff in COEFFS:
            cell = found["raw-mean", coeff]
            expected = np.tile(coeff * factor * vectors()["mean"], (5, 1))
            np.testing.assert_allclose(added(cell), expected, rtol=1e-3, atol=1e-4)
            length = abs(coeff) * factor * np.linalg.norm(vectors()["mean"])
            assert cell.labels["length"] == pytest.approx(length)
            more = added(found["raw-self", coeff])
            np.testing.assert_allclose(more, coeff * factor * STREAM[0], rtol=1e-3, atol=1e-4)


def test_settings_leave_baselines_out() -> None:
    assert {source for source, _ in cells("vector", names=())} == {"random-0", "random-1"}
    found = {source for source, _ in cells("vector", names=("noise",))}
    assert found == {"random-0", "random-1", "noise"}


def test_vectors_come_from_the_base_models_directions_at_the_layer() -> None:
    names = ["base.1.union", "base.1.mean", "base.1.setup.union", "base.1.offset.-3", "base.2.mean"]
    names += ["base.1.other.union", "base.1.backtracking.union", "reasoning.1.planning.union"]
    names += ["base.1.adding knowledge.union", "base.11.late.union"]
    saved = {name: SimpleNamespace(vector=np.array([i])) for i, name in enumerate(names)}
    found = {k: int(v[0]) for k, v in baseline_vectors(saved, layer=1).items()}
    assert found == {"mean": 1, "behaviour-setup": 2, "behaviour-adding knowledge": 8}
    assert baseline_vectors({}, layer=1) == {}

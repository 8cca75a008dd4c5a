"""What tests of steering share: exact vectors, interventions of all kinds, one compiled shape."""

from dataclasses import replace

import jax
import numpy as np
from oracle import SMALL

from jaxsteer.steering import batching, interventions, scope
from jaxsteer.steering.scope import broadcast_rows
from jaxsteer.steering.sites import SITES
from jaxsteer.steering.steering import Steering

B, L, D = 3, SMALL.n_layers, SMALL.d_model
OPERATIONS = ("add", "ablate", "clamp", "replace", "scale", "amplify")
ALONG_ITSELF = ("scale", "amplify")  # keeping the stream's length undoes these


def exact_vectors(count: int = 1, *, seed: int = 0) -> np.ndarray:
    """Vectors `[count, D]` whose products with powers of two are exact in float32.

    A compiler that fuses such a multiplication into an addition rounds no differently from one
    that does not, so that equality can be bit for bit.
    """
    rng = np.random.default_rng(seed)
    return rng.choice([-2, -1, -0.5, 0.5, 1, 2], size=(count, D)).astype(np.float32)


def one_of(operation: str, *, coeff=1.0, seed: int = 0, **where) -> Steering:
    """An intervention of one kind, along vectors of its own."""
    vectors = exact_vectors(2, seed=seed)
    if operation == "add":
        return interventions.add(vectors[0], coeff=coeff, **where)
    if operation == "ablate":
        return interventions.ablate(vectors, coeff=coeff, **where)
    if operation == "clamp":
        return interventions.clamp(vectors[0], 3.0, coeff=coeff, **where)
    if operation == "scale":
        return interventions.amplify(coeff=coeff, width=D, **where)
    if operation == "amplify":
        return interventions.amplify(coeff=coeff, width=D, length=2.5, **where)
    return interventions.replace(vectors[0], coeff=coeff, **where)


def expected_of(operation: str, x: np.ndarray, *, coeff: float = 1.0, seed: int = 0):
    """What `one_of` makes of `x` `[..., D]`, in float64 and by another formula."""
    x = np.asarray(x, np.float64)
    vectors = exact_vectors(2, seed=seed).astype(np.float64)
    if operation == "add":
        return x + coeff * vectors[0]
    if operation == "ablate":
        return x - coeff * x @ np.linalg.pinv(vectors) @ vectors
    if operation == "clamp":
        unit = vectors[0] / np.linalg.norm(vectors[0])
        return x + coeff * (3.0 - x @ unit)[..., None] * unit
    if operation in ("scale", "amplify"):
        length = np.sqrt(np.sum(x**2, axis=-1, keepdims=True))
        return x * (1 + coeff * (1 if operation == "scale" else 2.5 / length))
    return (1 - coeff) * x + coeff * vectors[0]


def one_program(one: Steering, rows: int = B, *, thinking: bool = True) -> Steering:
    """The same steering with every field and in shapes that tests share: it compiles once."""
    where = scope.mask([True, False] * 4)
    where = scope.thinking(within=where) if thinking else where
    full = batching.rows(
        [
            one_of("replace", layer=[[0] * 4], preserve_norm=True, schedule=[1.0] * 8),
            interventions.ablate(np.eye(4, D), layer=0, scope=where),
            interventions.amplify(layer=0, coeff=1.0, length=1.0, width=D),
        ]
    )
    full = interventions.when(full, exact_vectors()[0], above=0.0)
    wide = batching.rows([broadcast_rows(one, rows, "steering"), full])
    return jax.tree.map(lambda x: x[:rows], replace(wide, sites=SITES))

"""The interventions people ask for, checked and made into `Steering`.

    add(v, layer=10, coeff=8.0)                   # x + 8 v: one row, for all
    add(v, layer=[[3], [10]], coeff=[4.0, 8.0])   # two rows that differ
    add(v, layer=[[3, 10]], coeff=4.0)            # at two layers, in every row
    ablate([u, v], layer="all")                   # no component along u and v at any layer
    clamp(v, 4.0, layer=10)                       # x · v/|v| = 4
    replace(v, layer=10, scope=scope.positions([3]))
    amplify(layer=10, coeff=0.5, width=4096)      # 1.5 x; with a length, x + 0.5 length x/|x|
    noise(3.0, layer=10, coeff=1.0, width=4096)   # x + 3 z, z anew at each token, of length 1
    when(add(v, layer=10, coeff=8.0), u, above=2.0)   # only on tokens where x · u/|u| > 2

Every argument may be one value, for all rows, or have a leading row axis; `rows` puts different
operations into the rows of one batch. All operations share the arguments of `Where`: `layer`,
`site`, `scope`, `schedule` and `preserve_norm`. A vector may be a `Direction`, which knows its
layer and site, or a `LayerDirections`, which has one for the layer that is given.

Each raises `ValueError` for an argument out of range: its name, what it is and what is expected. To
differentiate, build the steering first and put traced arrays in with
`dataclasses.replace`.
"""

import dataclasses
from typing import Unpack

import jax
import numpy as np
from numpy.typing import ArrayLike

from jaxsteer.config import LlamaConfig
from jaxsteer.steering.checks import check_noise
from jaxsteer.steering.operation_arguments import (
    Vectors,
    Where,
    at_layers,
    checked_steering,
    finite_array,
    orthonormal,
    row_count,
    seed_array,
    whole_number,
    with_own_layer,
)
from jaxsteer.steering.scope import broadcast_rows
from jaxsteer.steering.steering import Steering


def add(vector: Vectors, *, coeff: ArrayLike, **where: Unpack[Where]) -> Steering:
    """Add `coeff · vector` to the residual stream (the paper's Section 3).

    `vector` `[D]` or `[B, D]` is used as it is; `coeff`, a number or `[B]`, is in units of its
    length. 0 changes nothing, bit for bit.
    """
    vector = at_layers(vector, where)
    added = finite_array("vector", vector, 1, "[D] or [B, D]")
    return checked_steering(added, coeff, with_own_layer(vector, where))


def ablate(directions: Vectors, *, coeff: ArrayLike = 1.0, **where: Unpack[Where]) -> Steering:
    """Subtract `coeff` times the component along one or several directions from the stream.

    `directions` are `[D]`, `[R, D]` (all R for every row) or `[B, R, D]`, of any length; none may
    be 0 or a combination of the others. `coeff` is a number or `[B]`. At 1 the whole component is
    removed, and ablating again changes nothing.
    """
    directions = at_layers(directions, where)
    given = finite_array("directions", directions, 2, "[D], [R, D] or [B, R, D]", at_least=1)
    basis = orthonormal("directions", given)
    vector = np.zeros((len(basis), basis.shape[-1]), np.float32)
    return checked_steering(vector, coeff, with_own_layer(directions, where), basis=basis)


def clamp(
    direction: Vectors, value: ArrayLike, *, coeff: ArrayLike = 1.0, **where: Unpack[Where]
) -> Steering:
    """Set the projection on `direction / |direction|` to `value`, in units of the stream.

    `direction` is `[D]` or `[B, D]`, `value` and `coeff` are numbers or `[B]`. At coefficient s
    the projection goes the share s of the way to `value`.
    """
    direction = at_layers(direction, where)
    given = finite_array("direction", direction, 1, "[D] or [B, D]")
    unit = orthonormal("direction", given[:, None])
    wanted = finite_array("value", value, 0, "a number or [B]")
    count = row_count({"direction": unit, "value": wanted})
    vector = np.broadcast_to(wanted[:, None] * unit[:, 0], (count, unit.shape[-1]))
    return checked_steering(vector, coeff, with_own_layer(direction, where), basis=unit)


def replace(vector: Vectors, *, coeff: ArrayLike = 1.0, **where: Unpack[Where]) -> Steering:
    """Put `vector`, `[D]` or `[B, D]`, in place of the stream, or the share `coeff` of it."""
    vector = at_layers(vector, where)
    new = finite_array("vector", vector, 1, "[D] or [B, D]")
    return checked_steering(new, coeff, with_own_layer(vector, where), erase=np.ones(1, np.float32))


def amplify(
    *, coeff: ArrayLike, width: int, length: ArrayLike | None = None, **where: Unpack[Where]
) -> Steering:
    """Scale the activation itself: Figure 4's self-amplification.

    Without `length` the stream becomes `(1 + coeff) · x`. With one, a number or `[B]` in units of
    the stream, `coeff · length` is added along x, whatever the length of x: as much as `add` adds
    with a vector of this length. `width` is the stream's, D.
    """
    zero = np.zeros((1, whole_number("width", width, least=1)), np.float32)
    if length is None:
        return checked_steering(zero, coeff, where, erase=-np.ones(1, np.float32))
    lengths = finite_array("length", length, 0, "a number or [B]")
    return checked_steering(zero, coeff, where, along=lengths)


def noise(
    length: ArrayLike, *, coeff: ArrayLike, width: int, seed: ArrayLike = 0, **where: Unpack[Where]
) -> Steering:
    """Add `coeff · length · z`, with Gaussian noise z of length 1 drawn anew at each token.

    `length`, a number or `[B]`, is in units of the stream; `width` is the stream's, D. Draws belong
    to (`seed`, row, position, layer, site), where `Sampling.row` identifies the row: so a row gets
    the same draws alone or in any batch, read or decoded. Each row has one `layer`; for several
    layers, give each a noise of its own.
    """
    lengths = finite_array("length", length, 0, "a number or [B]")
    zero = np.zeros((1, whole_number("width", width, least=1)), np.float32)
    drawn = checked_steering(zero, coeff, where, noise=lengths, seed=seed_array(seed))
    check_noise(lengths, np.asarray(drawn.layer))
    return drawn


def when(steering: Steering, direction: Vectors, *, above: ArrayLike) -> Steering:
    """The same intervention, only on tokens whose projection on a direction is above a threshold.

    The projection is x · direction / ‖direction‖, of the stream at the steered site and layer
    before this intervention; `direction` is `[D]` or `[B, D]`, `above` a number or `[B]`.

    Raises:
        ValueError: naming the argument; also if the steering has a condition already.
    """
    if steering.condition is not None:
        raise ValueError("steering: got one with a condition, expected one without")
    unit = orthonormal(
        "direction", finite_array("direction", direction, 1, "[D] or [B, D]")[:, None]
    )
    if unit.shape[-1] != steering.vector.shape[-1]:
        raise ValueError(
            f"direction: got width {unit.shape[-1]}, expected the steering's "
            f"{steering.vector.shape[-1]}"
        )
    threshold = finite_array("above", above, 0, "a number or [B]")
    count = row_count({"steering": steering.coeff, "direction": unit, "above": threshold})
    return dataclasses.replace(
        broadcast_rows(steering, count, "steering"),
        condition=broadcast_rows(jax.device_put(unit[:, 0]), count, "direction"),
        threshold=broadcast_rows(jax.device_put(threshold), count, "above"),
    )


def head_vector(vector: ArrayLike, *, head: int, config: LlamaConfig) -> np.ndarray:
    """A vector for the site `head_out` that touches one head: `[H]` to `[N · H]`, 0 elsewhere.

    Several at once: `[R, H]` to `[R, N · H]`, so that `ablate(head_vector(np.eye(H), …))` silences
    the head. (`replace` would put the zeros into the other heads, too.)
    """
    N, H = config.n_heads, config.head_dim
    vectors = finite_array("vector", vector, 1, "[H] or [R, H]")
    if vectors.shape[-1] != H:
        raise ValueError(f"vector: got width {vectors.shape[-1]}, expected head_dim={H}")
    if not isinstance(head, int | np.integer) or not 0 <= head < N:
        raise ValueError(f"head: got {head!r}, expected 0 to {N - 1}")
    wide = np.zeros((len(vectors), N, H), np.float32)
    wide[:, head] = vectors
    flat = wide.reshape(len(vectors), N * H)
    return flat[0] if np.ndim(vector) == 1 else flat

"""The interventions people ask for, checked and made into `Steering`.

    add(v, layer=10, coeff=8.0)                   # x + 8 v: one row, for all
    add(v, layer=[3, 10], coeff=[4.0, 8.0])       # two rows that differ
    ablate([u, v], layer="all")                   # no component along u and v at any layer
    clamp(v, 4.0, layer=10)                       # x · v/|v| = 4
    replace(v, layer=10, scope=scope.positions([3]))
    amplify(layer=10, coeff=0.5, width=4096)      # 1.5 x; with a length, x + 0.5 length x/|x|
    noise(3.0, layer=10, coeff=1.0, width=4096)   # x + 3 z, z anew at each token, of length 1
    when(add(v, layer=10, coeff=8.0), u, above=2.0)   # only on tokens where x · u/|u| > 2

Every argument may be one value, for all rows, or have a leading row axis; `rows` puts different
operations into the rows of one batch. What the arguments mean that all operations share:

    layer           block whose site is steered, counted from 0: a number, "all", one of these a
                    row `[B]`, or several a row `[B, A]`
    site            one of `SITES`, or one a row
    scope           where in the row; `generated()` if not given
    schedule        factor on the strength by generated position: a number, `[G]` or `[B, G]`;
                    `schedules` makes some. The prompt has the first entry, and the last one holds.
    preserve_norm   rescale each steered token to the length it had; bool or `[B]`

Each raises `ValueError` for an argument that cannot be, naming it, what was found and what was
expected. To differentiate, build the steering first and put traced arrays in with
`dataclasses.replace`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxsteer.config import LlamaConfig
from jaxsteer.steering import scope as scopes
from jaxsteer.steering.arguments import (
    Layers,
    bucket,
    layers,
    many,
    numbers,
    orthonormal,
    row_count,
    seeds,
)
from jaxsteer.steering.scope import Scope, broadcast_rows
from jaxsteer.steering.sites import SITES, site_index
from jaxsteer.steering.steering import Steering, check_noise


def add(
    vector: ArrayLike,
    *,
    layer: Layers,
    coeff: ArrayLike,
    site: str | Sequence[str] = "resid_post",
    scope: Scope | None = None,
    schedule: ArrayLike = 1.0,
    preserve_norm: ArrayLike = False,
) -> Steering:
    """Add `coeff · vector` to the residual stream (the paper's Section 3).

    `vector` `[D]` or `[B, D]` is used as it is; `coeff`, a number or `[B]`, is in units of its
    length. 0 changes nothing, bit for bit.
    """
    found = numbers("vector", vector, 1, "[D] or [B, D]")
    strength = numbers("coeff", coeff, 0, "a number or [B]")
    return _steering(found, strength, layer, site, scope, schedule, preserve_norm)


def ablate(
    directions: ArrayLike,
    *,
    layer: Layers,
    strength: ArrayLike = 1.0,
    site: str | Sequence[str] = "resid_post",
    scope: Scope | None = None,
    schedule: ArrayLike = 1.0,
    preserve_norm: ArrayLike = False,
) -> Steering:
    """Take `strength` times the component along one or several directions out of the stream.

    `directions` are `[D]`, `[R, D]` (all R for every row) or `[B, R, D]`, of any length; none may
    be 0 or a combination of the others. At strength 1, a number or `[B]`, nothing along them is
    left, and doing it again changes nothing.
    """
    found = numbers("directions", directions, 2, "[D], [R, D] or [B, R, D]", at_least=1)
    basis = orthonormal("directions", found)
    amount = numbers("strength", strength, 0, "a number or [B]")
    vector = np.zeros((len(basis), basis.shape[-1]), np.float32)
    return _steering(vector, amount, layer, site, scope, schedule, preserve_norm, basis=basis)


def clamp(
    direction: ArrayLike,
    value: ArrayLike,
    *,
    layer: Layers,
    strength: ArrayLike = 1.0,
    site: str | Sequence[str] = "resid_post",
    scope: Scope | None = None,
    schedule: ArrayLike = 1.0,
    preserve_norm: ArrayLike = False,
) -> Steering:
    """Set the projection on `direction / |direction|` to `value`, in units of the stream.

    `direction` is `[D]` or `[B, D]`, `value` and `strength` are numbers or `[B]`. At strength s
    the projection goes the share s of the way to `value`.
    """
    found = numbers("direction", direction, 1, "[D] or [B, D]")
    unit = orthonormal("direction", found[:, None])
    wanted = numbers("value", value, 0, "a number or [B]")
    amount = numbers("strength", strength, 0, "a number or [B]")
    count = row_count({"direction": unit, "value": wanted})
    vector = np.broadcast_to(wanted[:, None] * unit[:, 0], (count, unit.shape[-1]))
    return _steering(vector, amount, layer, site, scope, schedule, preserve_norm, basis=unit)


def replace(
    vector: ArrayLike,
    *,
    layer: Layers,
    strength: ArrayLike = 1.0,
    site: str | Sequence[str] = "resid_post",
    scope: Scope | None = None,
    schedule: ArrayLike = 1.0,
    preserve_norm: ArrayLike = False,
) -> Steering:
    """Put `vector`, `[D]` or `[B, D]`, in place of the stream, or the share `strength` of it."""
    found = numbers("vector", vector, 1, "[D] or [B, D]")
    amount = numbers("strength", strength, 0, "a number or [B]")
    erase = np.ones(1, np.float32)
    return _steering(found, amount, layer, site, scope, schedule, preserve_norm, erase=erase)


def amplify(
    *,
    layer: Layers,
    coeff: ArrayLike,
    width: int,
    length: ArrayLike | None = None,
    site: str | Sequence[str] = "resid_post",
    scope: Scope | None = None,
    schedule: ArrayLike = 1.0,
    preserve_norm: ArrayLike = False,
) -> Steering:
    """Scale the activation itself: Figure 4's self-amplification.

    Without `length` the stream becomes `(1 + coeff) · x`. With one, a number or `[B]` in units of
    the stream, `coeff · length` is added along x, whatever the length of x: as much as `add` adds
    with a vector of this length. `width` is the stream's, D.
    """
    amount = numbers("coeff", coeff, 0, "a number or [B]")
    still = np.zeros((1, _positive("width", width)), np.float32)
    if length is None:
        own = {"erase": -np.ones(1, np.float32)}
    else:
        own = {"along": numbers("length", length, 0, "a number or [B]")}
    return _steering(still, amount, layer, site, scope, schedule, preserve_norm, **own)


def noise(
    length: ArrayLike,
    *,
    layer: Layers,
    coeff: ArrayLike,
    width: int,
    seed: ArrayLike = 0,
    site: str | Sequence[str] = "resid_post",
    scope: Scope | None = None,
    schedule: ArrayLike = 1.0,
    preserve_norm: ArrayLike = False,
) -> Steering:
    """Add `coeff · length · z`, with Gaussian noise z of length 1 drawn anew at each token.

    `length`, a number or `[B]`, is in units of the stream, and `width` is the stream's, D. The
    draws belong to (`seed`, row, position, layer, site), so a row gets the same ones alone or in
    any batch, read or decoded; who the row is, `Sampling.row` says. `layer` is one for each row:
    give several layers a noise each.
    """
    found = numbers("length", length, 0, "a number or [B]")
    amount = numbers("coeff", coeff, 0, "a number or [B]")
    still = np.zeros((1, _positive("width", width)), np.float32)
    optional = {"noise": found, "seed": seeds(seed)}
    one = _steering(still, amount, layer, site, scope, schedule, preserve_norm, **optional)
    check_noise(found, np.asarray(one.layer))
    return one


def when(steering: Steering, direction: ArrayLike, *, above: ArrayLike) -> Steering:
    """The same intervention, only on tokens whose projection on a direction is above a threshold.

    The projection is x · direction / |direction|, of the stream at the steered site and layer
    before this intervention; `direction` is `[D]` or `[B, D]`, `above` a number or `[B]`.

    Raises:
        ValueError: naming the argument; also if the steering has a condition already.
    """
    if steering.condition is not None:
        raise ValueError("steering: got one with a condition, expected one without")
    unit = orthonormal("direction", numbers("direction", direction, 1, "[D] or [B, D]")[:, None])
    if unit.shape[-1] != steering.vector.shape[-1]:
        raise ValueError(
            f"direction: got width {unit.shape[-1]}, expected the steering's "
            f"{steering.vector.shape[-1]}"
        )
    threshold = numbers("above", above, 0, "a number or [B]")
    count = row_count({"steering": steering.coeff, "direction": unit, "above": threshold})
    return dataclasses.replace(
        broadcast_rows(steering, count, "steering"),
        condition=broadcast_rows(jnp.asarray(unit[:, 0]), count, "direction"),
        threshold=broadcast_rows(jnp.asarray(threshold), count, "above"),
    )


def head_vector(vector: ArrayLike, *, head: int, config: LlamaConfig) -> np.ndarray:
    """A vector for the site `head_out` that touches one head: `[H]` to `[N · H]`, 0 elsewhere.

    Several at once: `[R, H]` to `[R, N · H]`, so that `ablate(head_vector(np.eye(H), …))` silences
    the head. (`replace` would put the zeros into the other heads, too.)
    """
    N, H = config.n_heads, config.head_dim
    found = numbers("vector", vector, 1, "[H] or [R, H]")
    if found.shape[-1] != H:
        raise ValueError(f"vector: got width {found.shape[-1]}, expected head_dim={H}")
    if not isinstance(head, int | np.integer) or not 0 <= head < N:
        raise ValueError(f"head: got {head!r}, expected 0 to {N - 1}")
    wide = np.zeros((len(found), N, H), np.float32)
    wide[:, head] = found
    flat = wide.reshape(len(found), N * H)
    return flat[0] if np.ndim(vector) == 1 else flat


def _steering(
    vector: np.ndarray,
    coeff: np.ndarray,
    layer: Layers,
    site: str | Sequence[str],
    scope: Scope | None,
    schedule: ArrayLike,
    preserve_norm: ArrayLike,
    **optional: np.ndarray,
) -> Steering:
    """Checked arrays and what all operations share, brought to one row count."""
    names: list[Any] = list(site) if many(site) else [site]
    steps = numbers("schedule", schedule, 1, "a number, [G] or [B, G]", at_least=0)
    scope = scopes.generated() if scope is None else scope
    if not isinstance(scope, Scope):
        raise ValueError(f"scope: got {scope!r}, expected a Scope such as scope.generated()")
    keep = np.atleast_1d(np.asarray(preserve_norm))
    if keep.dtype != np.bool_ or keep.ndim != 1:
        raise ValueError(f"preserve_norm: got {preserve_norm!r}, expected a bool or bool [B]")
    arrays = optional | {
        "vector": vector,
        "coeff": coeff,
        "layer": layers(layer),
        "site": np.array([site_index(name) for name in names], np.int32),
        # Sizes in powers of two, so that other lengths seldom compile another program.
        "schedule": np.pad(steps, ((0, 0), (0, bucket(steps.shape[1], 8))), mode="edge"),
    }
    if keep.any():
        arrays["preserve_norm"] = keep
    windows = scope.excluded.shape[1]
    scope = scopes.pad_windows(scope, windows + bucket(windows, 2))
    count = row_count(arrays | {"scope": scope.excluded, "preserve_norm": keep})
    wide = {k: broadcast_rows(jnp.asarray(a), count, k) for k, a in arrays.items()}
    used = tuple(s for i, s in enumerate(SITES) if i in arrays["site"])
    return Steering(**wide, scope=broadcast_rows(scope, count, "scope"), sites=used)


def _positive(name: str, value: Any) -> int:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}: got {value!r}, expected an integer of at least 1")
    return int(value)

"""The interventions people ask for, checked and made into `Steering`.

    add(v, layer=10, coeff=8.0)                   # x + 8 v: one row, for all
    add(v, layer=[3, 10], coeff=[4.0, 8.0])       # two rows that differ
    ablate([u, v], layer="all")                   # no component along u and v at any layer
    clamp(v, 4.0, layer=10)                       # x · v/|v| = 4
    replace(v, layer=10, scope=scope.positions([3]))
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
from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeGuard

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxsteer import scope as scopes
from jaxsteer.config import LlamaConfig
from jaxsteer.scope import Scope, broadcast_rows
from jaxsteer.sites import SITES, site_index
from jaxsteer.steering import EVERY_LAYER, NO_LAYER, Steering

Layers = int | Literal["all"] | Sequence[Any] | ArrayLike

# Of a direction's length: less than this outside the others' span is rounding of float32 input.
_DEPENDENT = 1e-5


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
    found = _numbers("vector", vector, 1, "[D] or [B, D]")
    strength = _numbers("coeff", coeff, 0, "a number or [B]")
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
    found = _numbers("directions", directions, 2, "[D], [R, D] or [B, R, D]", at_least=1)
    basis = _orthonormal("directions", found)
    amount = _numbers("strength", strength, 0, "a number or [B]")
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
    found = _numbers("direction", direction, 1, "[D] or [B, D]")
    unit = _orthonormal("direction", found[:, None])
    wanted = _numbers("value", value, 0, "a number or [B]")
    amount = _numbers("strength", strength, 0, "a number or [B]")
    count = _row_count({"direction": unit, "value": wanted})
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
    found = _numbers("vector", vector, 1, "[D] or [B, D]")
    amount = _numbers("strength", strength, 0, "a number or [B]")
    erase = np.ones(1, np.float32)
    return _steering(found, amount, layer, site, scope, schedule, preserve_norm, erase=erase)


def when(steering: Steering, direction: ArrayLike, *, above: ArrayLike) -> Steering:
    """The same intervention, only on tokens whose projection on a direction is above a threshold.

    The projection is x · direction / |direction|, of the stream at the steered site and layer
    before this intervention; `direction` is `[D]` or `[B, D]`, `above` a number or `[B]`.

    Raises:
        ValueError: naming the argument; also if the steering has a condition already.
    """
    if steering.condition is not None:
        raise ValueError("steering: got one with a condition, expected one without")
    unit = _orthonormal("direction", _numbers("direction", direction, 1, "[D] or [B, D]")[:, None])
    if unit.shape[-1] != steering.vector.shape[-1]:
        raise ValueError(
            f"direction: got width {unit.shape[-1]}, expected the steering's "
            f"{steering.vector.shape[-1]}"
        )
    threshold = _numbers("above", above, 0, "a number or [B]")
    count = _row_count({"steering": steering.coeff, "direction": unit, "above": threshold})
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
    found = _numbers("vector", vector, 1, "[H] or [R, H]")
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
    names: list[Any] = list(site) if _many(site) else [site]
    steps = _numbers("schedule", schedule, 1, "a number, [G] or [B, G]", at_least=0)
    scope = scopes.generated() if scope is None else scope
    if not isinstance(scope, Scope):
        raise ValueError(f"scope: got {scope!r}, expected a Scope such as scope.generated()")
    keep = np.atleast_1d(np.asarray(preserve_norm))
    if keep.dtype != np.bool_ or keep.ndim != 1:
        raise ValueError(f"preserve_norm: got {preserve_norm!r}, expected a bool or bool [B]")
    arrays = optional | {
        "vector": vector,
        "coeff": coeff,
        "layer": _layers(layer),
        "site": np.array([site_index(name) for name in names], np.int32),
        # Sizes in powers of two, so that other lengths seldom compile another program.
        "schedule": np.pad(steps, ((0, 0), (0, _bucket(steps.shape[1], 8))), mode="edge"),
    }
    if keep.any():
        arrays["preserve_norm"] = keep
    windows = scope.excluded.shape[1]
    scope = scopes.pad_windows(scope, windows + _bucket(windows, 2))
    count = _row_count(arrays | {"scope": scope.excluded, "preserve_norm": keep})
    wide = {k: broadcast_rows(jnp.asarray(a), count, k) for k, a in arrays.items()}
    used = tuple(s for i, s in enumerate(SITES) if i in arrays["site"])
    return Steering(**wide, scope=broadcast_rows(scope, count, "scope"), sites=used)


def _bucket(size: int, least: int) -> int:
    """How much is missing from `size` to the next power of two, `least` or more."""
    return max(least, 1 << (size - 1).bit_length()) - size


def _row_count(arrays: dict[str, Any]) -> int:
    """The common row count; an array of one row goes with any.

    Raises:
        ValueError: naming the first array that does not fit the one with the most rows.
    """
    count = max(len(array) for array in arrays.values())
    for name, array in arrays.items():
        if len(array) not in (1, count):
            raise ValueError(f"{name}: got {len(array)} rows, expected 1 or {count}")
    return count


def _numbers(
    name: str, value: ArrayLike, ndim: int, shapes: str, *, at_least: int | None = None
) -> np.ndarray:
    """`value` as finite float32 with `ndim` axes after the row axis, which may be missing."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}: got {type(value).__name__}, expected {shapes}") from error
    if not (jnp.issubdtype(array.dtype, np.floating) or jnp.issubdtype(array.dtype, np.integer)):
        raise ValueError(f"{name}: got dtype {array.dtype}, expected real numbers")
    least = ndim if at_least is None else at_least
    if not least <= array.ndim <= ndim + 1 or array.size == 0:
        raise ValueError(f"{name}: got shape {array.shape}, expected {shapes}")
    array = array.reshape((1,) * (ndim + 1 - array.ndim) + array.shape)
    with np.errstate(over="ignore"):  # what float32 cannot hold is told below
        array = array.astype(np.float32)
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{name}: got NaN or infinity, expected finite numbers in float32")
    return array


def _orthonormal(name: str, directions: np.ndarray) -> np.ndarray:
    """Orthonormal float32 rows that span `directions` `[B, R, D]`, row by row of the batch."""
    _, R, D = directions.shape
    wide = directions.astype(np.float64)
    length = np.linalg.norm(wide, axis=-1, keepdims=True)
    if not length.all():
        row, which, _ = np.argwhere(length == 0)[0]
        raise ValueError(f"{name}: got 0 for direction {which} of row {row}, expected a length")
    if R > D:
        raise ValueError(f"{name}: got {R} directions of width {D}, expected at most {D}")
    q, r = np.linalg.qr(np.swapaxes(wide / length, -1, -2))  # [B, D, R], [B, R, R]
    outside = np.abs(np.diagonal(r, axis1=-2, axis2=-1))
    if outside.min() < _DEPENDENT:
        row, which = np.argwhere(outside < _DEPENDENT)[0]
        raise ValueError(
            f"{name}: got direction {which} of row {row} in the span of those before it, "
            "expected linearly independent ones"
        )
    q = q * np.sign(np.diagonal(r, axis1=-2, axis2=-1))[:, None]  # the first one, not its opposite
    return np.pad(np.swapaxes(q, -1, -2), ((0, 0), (0, _bucket(R, 1)), (0, 0))).astype(np.float32)


def _layers(layer: Layers) -> np.ndarray:
    """Layers of each row, int32 `[B, A]`, A a power of two."""
    if hasattr(layer, "dtype"):
        layer = np.asarray(layer).tolist()
    table = [list(row) if _many(row) else [row] for row in (layer if _many(layer) else [layer])]
    if not table or not all(table):
        raise ValueError(f"layer: got {layer!r}, expected at least one a row")
    widest = max(map(len, table))
    found = np.full((len(table), widest + _bucket(widest, 2)), NO_LAYER, np.int32)
    for i, row in enumerate(table):
        for j, one in enumerate(row):
            found[i, j] = _layer(one)
    return found


def _many(value: Any) -> TypeGuard[Iterable[Any]]:
    return isinstance(value, Sequence | np.ndarray) and not isinstance(value, str)


def _layer(layer: Any) -> int:
    if isinstance(layer, str) and layer == "all":
        return EVERY_LAYER
    if not isinstance(layer, int | np.integer) or isinstance(layer, bool):
        raise ValueError(f'layer: got {layer!r}, expected an integer or "all"')
    if not 0 <= layer < 2**31:
        raise ValueError(f"layer: got {layer}, expected 0 or more (layers count from 0)")
    return int(layer)

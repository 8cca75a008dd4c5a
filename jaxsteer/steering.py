"""Steering as data: vectors, layers, coefficients and positions, with one entry per row.

An intervention adds `coeff · vector` to the residual stream at one site of some layers, at some
positions of each row. None of it is compiled in: a batch may hold another vector, layer,
coefficient and scope in each of its rows, and changing them never recompiles.

    steering = jaxsteer.add(v, layer=10, coeff=8.0)                     # one row, for all
    steering = jaxsteer.add(v, layer=[3, 10], coeff=[4.0, 8.0])         # two rows that differ
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxsteer import scope as scopes
from jaxsteer.config import LlamaConfig
from jaxsteer.scope import Scope, broadcast_rows
from jaxsteer.sites import SITES, site_index


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Steering:
    """`x + coeff · vector` for each row, at one site and layer, within a scope.

    Arrays have a row axis of B, or of 1 to serve every row. A sweep adds a leading cell axis.
    """

    vector: jax.Array  # float32 [B, D], used as it is: never normalised
    coeff: jax.Array  # float32 [B]
    layer: jax.Array  # int32 [B], counted from 0
    site: jax.Array  # int32 [B], an index in SITES
    schedule: jax.Array  # float32 [B, G]: factor on coeff at the g-th generated token; the last
    # entry holds from there on, the first one for the prompt
    scope: Scope
    # The sites that occur in `site`: what is not named here costs nothing in the compiled program.
    sites: tuple[str, ...] = field(metadata={"static": True})


def add(
    vector: ArrayLike,
    *,
    layer: ArrayLike,
    coeff: ArrayLike,
    site: str | Sequence[str] = "resid_post",
    scope: Scope | None = None,
    schedule: ArrayLike = 1.0,
) -> Steering:
    """Add `coeff · vector` to the residual stream (the paper's Section 3).

    Every argument may be one value, for all rows, or have a leading row axis.

    Args:
        vector: `[D]` or `[B, D]`.
        layer: block whose `site` is steered, counted from 0; a number or `[B]`.
        coeff: in units of the vector's own length; a number or `[B]`. 0 changes nothing,
            bit for bit.
        site: one of `SITES`, or one a row.
        scope: where in the row; `generated()` if not given.
        schedule: factor on `coeff` by generated position: a number, `[G]` or `[B, G]`.

    Raises:
        ValueError: for row counts that do not match, NaN or infinite numbers, unknown sites.
    """
    names = [site] if isinstance(site, str) else list(site)
    arrays = {
        "vector": np.atleast_2d(np.asarray(vector, np.float32)),
        "coeff": np.atleast_1d(np.asarray(coeff, np.float32)),
        "layer": np.atleast_1d(np.asarray(layer)),
        "site": np.array([site_index(name) for name in names], np.int32),
        "schedule": np.atleast_2d(np.asarray(schedule, np.float32)),
    }
    expected_rank = {"vector": 2, "coeff": 1, "layer": 1, "site": 1, "schedule": 2}
    for name, array in arrays.items():
        if array.ndim != expected_rank[name] or array.size == 0:
            raise ValueError(f"{name}: got shape {array.shape}, see the docstring for its shapes")
        if not np.all(np.isfinite(array)):
            raise ValueError(f"{name}: got NaN or infinity, expected finite numbers")
    if not np.issubdtype(arrays["layer"].dtype, np.integer):
        raise ValueError(f"layer: got dtype {arrays['layer'].dtype}, expected integers")
    arrays["layer"] = arrays["layer"].astype(np.int32)
    scope = scopes.generated() if scope is None else scope
    rows = max([array.shape[0] for array in arrays.values()] + [scope.excluded.shape[0]])
    wide = {k: broadcast_rows(jnp.asarray(a), rows, k) for k, a in arrays.items()}
    used = tuple(s for i, s in enumerate(SITES) if i in arrays["site"])
    return Steering(**wide, scope=broadcast_rows(scope, rows, "scope"), sites=used)


def check_steering(steering: Steering, config: LlamaConfig, *, rows: int) -> None:
    """Check against a model and a batch, on the host: JAX would clamp or broadcast silently.

    Raises:
        ValueError: naming the field, what was found and what the model or batch expects.
    """
    if steering.vector.shape[-1] != config.d_model:
        raise ValueError(
            f"steering.vector: got width {steering.vector.shape[-1]}, "
            f"expected d_model={config.d_model}"
        )
    layers = np.asarray(steering.layer)
    if layers.min() < 0 or layers.max() >= config.n_layers:
        raise ValueError(
            f"steering.layer: got {layers.min()} to {layers.max()}, expected 0 to "
            f"{config.n_layers - 1} (layer l is the output of block l, counted from 0)"
        )
    if steering.coeff.shape[-1] not in (1, rows):
        raise ValueError(
            f"steering: got {steering.coeff.shape[-1]} rows, expected 1 or the batch's {rows}"
        )


def strength(
    steering: Steering,
    position: jax.Array,
    prompt_length: jax.Array,
    thinking: jax.Array | None = None,
) -> jax.Array:
    """Coefficient at each token, float32 `[B, T]`: scope and schedule applied, 0 = leave alone.

    Computed once a forward pass and shared by all layers. `position` `[B, T]` counts the row's
    real tokens (negative on padding), `prompt_length` is `[B]`, `thinking` `[B, T]` is what
    `Scope.covers` asks for.
    """
    rows = position.shape[0]
    steering = broadcast_rows(steering, rows, "steering")
    last = steering.schedule.shape[1] - 1
    step = jnp.clip(position - prompt_length[:, None], 0, last)
    factor = jnp.take_along_axis(steering.schedule, step, axis=1)
    covered = steering.scope.covers(position, prompt_length, thinking) & (position >= 0)
    return jnp.where(covered, steering.coeff[:, None] * factor, 0.0)


def apply(
    x: jax.Array, *, site: str, layer: int, steering: Steering, strengths: jax.Array
) -> jax.Array:
    """The stream `x` `[B, T, D]` with the intervention applied where this site and layer are its.

    The sum is made in float32 and rounded once to the stream's dtype. Tokens of strength 0 pass
    through untouched, so that a zero coefficient is exactly the unsteered model.
    """
    if site not in steering.sites:
        return x
    here = (steering.layer == layer) & (steering.site == SITES.index(site))  # [B] or [1]
    amount = jnp.where(here[:, None], strengths, 0.0)[..., None]  # [B, T, 1]
    steered = x.astype(jnp.float32) + amount * steering.vector[:, None]
    return jnp.where(amount != 0, steered.astype(x.dtype), x)


def as_tuple(steering: Steering | Sequence[Steering] | None) -> tuple[Steering, ...]:
    """No, one or several interventions as a tuple, in the order in which they are applied."""
    if steering is None:
        return ()
    return (steering,) if isinstance(steering, Steering) else tuple(steering)


def stack(steerings: Sequence[Steering]) -> Steering:
    """Interventions of one row count as one with a leading cell axis, `[C, B, …]`.

    Shorter schedules are continued and scopes with fewer windows get empty ones, which changes
    neither.
    """
    if not steerings:
        raise ValueError("steerings: got none, expected at least one")
    sites = tuple(s for s in SITES if any(s in one.sites for one in steerings))
    steps = max(one.schedule.shape[1] for one in steerings)
    aligned = scopes.align([one.scope for one in steerings])
    padded = [
        replace(
            one,
            sites=sites,
            schedule=jnp.pad(
                one.schedule, ((0, 0), (0, steps - one.schedule.shape[1])), mode="edge"
            ),
            scope=scope,
        )
        for one, scope in zip(steerings, aligned, strict=True)
    ]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *padded)

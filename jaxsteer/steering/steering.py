"""Steering as data: vectors, layers, coefficients and positions, with one entry per row.

One formula covers every operation on the residual stream x at one site of some layers, made
in float32 and rounded once:

    x' = x + s · (vector - erase · x - (x Uᵀ) U + along · x / |x| + noise · z)

    add        vector
    ablate     U: orthonormal rows that span the directions
    clamp      U = v / |v|, vector = value · U
    replace    vector, erase = 1
    amplify    along, a length; or erase = -1, for a share of x
    noise      noise, a length; z is drawn anew for each token, of length 1

s is the row's coefficient times its schedule at the token's position. Tokens outside the row's
scope stay as they are. All of it is data: the rows of a batch may differ in all of it, and other
values never recompile. A field that no row uses is None and costs nothing; the first use of a kind
of operation, of a site or of `preserve_norm` compiles another program.

`interventions` has the functions that make a `Steering`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from jaxsteer.steering.scope import Scope, broadcast_rows
from jaxsteer.steering.sites import SITES
from jaxsteer.steering.token_noise import unit_noise

# Values of `layer` that are no layer's number.
NO_LAYER = -1
EVERY_LAYER = -2
# The threshold where there is no condition; finite, so that `jax_debug_infs` does not stop at it.
ALWAYS = np.finfo(np.float32).min

# Products in full float32; some hardware rounds its factors by default.
_EXACT = jax.lax.Precision.HIGHEST
# Below this share of its former length a stream is rounding error, which has no direction.
_VANISHED = 1e-6


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Steering:
    """What happens to each row at one site of some layers, within a scope.

    Arrays have a row axis of B, or of 1 to serve every row. A sweep adds a leading cell axis.
    D is the width of the stream at the site.
    """

    vector: jax.Array  # float32 [B, D], used as it is: never normalised
    coeff: jax.Array  # float32 [B]
    layer: jax.Array  # int32 [B, A]: layers counted from 0, NO_LAYER or EVERY_LAYER
    site: jax.Array  # int32 [B], an index in SITES
    schedule: jax.Array  # float32 [B, G]: factor on coeff at the g-th generated token; the last
    # entry holds from there on, the first one for the prompt
    scope: Scope
    # The sites that occur in `site`; other sites cost nothing in the compiled program.
    sites: tuple[str, ...] = field(metadata={"static": True})
    basis: jax.Array | None = None  # float32 [B, R, D]: U, rows orthonormal or zero
    erase: jax.Array | None = None  # float32 [B]: 0, 1 or -1
    along: jax.Array | None = None  # float32 [B]: length added along x itself
    noise: jax.Array | None = None  # float32 [B]: length of the noise; at one layer of the row
    seed: jax.Array | None = None  # uint32 [B], of the noise
    preserve_norm: jax.Array | None = None  # bool [B]: give x' the length of x, token by token
    # Act on a token only while x · condition > threshold there.
    condition: jax.Array | None = None  # float32 [B, D], of length 1; 0 with `ALWAYS`: always
    threshold: jax.Array | None = None  # float32 [B]


class RowFacts(TypedDict, total=False):
    """What steering needs of each row beside its tokens; `forward` takes these as keywords."""

    prompt_length: jax.Array | None  # int32 [B]: real tokens that are prompt; anchors scopes
    thinking: jax.Array | None  # bool [B, T]: which tokens lie inside <think>…</think>
    row: jax.Array | None  # integers [B]: who the row is in any batch; its noise belongs to it


class TokenCoeffs(NamedTuple):
    """Where and how strongly an intervention acts: per token, the same for all layers.

    What differs by layer is computed in `apply`: whether the intervention acts there, and its
    condition.
    """

    covered: jax.Array  # bool [B, T]
    coeff: jax.Array  # float32 [B, T]: s
    noise: jax.Array | None = None  # float32 [B, T, D]: noise · z


def token_coeffs(
    steering: Steering,
    position: jax.Array,
    prompt_length: jax.Array,
    thinking: jax.Array | None = None,
    row: jax.Array | None = None,
) -> TokenCoeffs:
    """Scope, schedule and noise at each token, computed once for all layers of a forward pass.

    `position` `[B, T]` counts the row's real tokens (negative on padding); the other arguments are
    those of `RowFacts`.

    Raises:
        ValueError: if there is noise and no `row`: noise is drawn per row.
    """
    steering = broadcast_rows(steering, position.shape[0], "steering")
    last = steering.schedule.shape[1] - 1
    step = jnp.clip(position - prompt_length[:, None], 0, last)
    factor = jnp.take_along_axis(steering.schedule, step, axis=1)
    covered = steering.scope.covers(position, prompt_length, thinking) & (position >= 0)
    coeff = steering.coeff[:, None] * factor
    if steering.noise is None:
        return TokenCoeffs(covered, coeff)
    if row is None:
        raise ValueError("row: got None, expected integer row ids [B]: noise is drawn per row")
    return TokenCoeffs(covered, coeff, _noise(steering, position, row))


def _noise(steering: Steering, position: jax.Array, row: jax.Array) -> jax.Array:
    """The noise at each token, `[B, T, D]`; 0 in rows that have none."""
    assert steering.noise is not None
    assert steering.seed is not None
    place = jnp.max(steering.layer, axis=1) * len(SITES) + steering.site  # its only layer
    width = steering.vector.shape[-1]
    drawn = unit_noise(steering.seed, row, position, place, width=width)
    return steering.noise[:, None, None] * drawn


def apply(
    x: jax.Array, *, site: str, layer: int, steering: Steering, coeffs: TokenCoeffs
) -> jax.Array:
    """The stream `x` `[B, T, D]`, changed in rows whose intervention is at this site and layer.

    A coefficient of 0 returns `x` bit for bit; its derivative is right all the same.
    """
    if site not in steering.sites:
        return x
    if (width := steering.vector.shape[-1]) != x.shape[-1]:
        raise ValueError(f"steering.vector: got width {width}, expected {x.shape[-1]} at {site}")
    wide = x.astype(jnp.float32)
    s = coeffs.coeff[..., None]  # [B, T, 1]
    change = steering.vector[:, None]
    if steering.basis is not None:
        change = change - _projected(wide, steering.basis)
    if steering.along is not None:
        change = change + steering.along[:, None, None] * _unit(wide)
    if coeffs.noise is not None:
        change = change + coeffs.noise
    # x and -erase · x in one factor: at s = 1 nothing of x is left, not even its rounding.
    kept = wide if steering.erase is None else wide * (1 - s * steering.erase[:, None, None])
    steered = kept + s * change
    if steering.preserve_norm is not None:
        factor = _norm_factor(wide, steered, s)
        steered = steered * jnp.where(steering.preserve_norm[:, None, None], factor, 1.0)
    acts = coeffs.covered & _acts_at(steering, site, layer)[:, None]  # [B, T]
    if steering.condition is not None:
        assert steering.threshold is not None
        along = jnp.matmul(wide, steering.condition[..., None], precision=_EXACT)[..., 0]
        acts &= along > steering.threshold[:, None]
    return jnp.where(acts[..., None], steered.astype(x.dtype), x)


def _acts_at(steering: Steering, site: str, layer: int) -> jax.Array:
    """Whether each row acts at this site and layer, bool `[B]`."""
    layers = (steering.layer == layer) | (steering.layer == EVERY_LAYER)
    return jnp.any(layers, axis=-1) & (steering.site == SITES.index(site))


def _projected(x: jax.Array, basis: jax.Array) -> jax.Array:
    """The part of `x` `[B, T, D]` in the span of `basis` `[B, R, D]`."""
    along = jnp.matmul(x, jnp.swapaxes(basis, -1, -2), precision=_EXACT)  # [B, T, R]
    return jnp.matmul(along, basis, precision=_EXACT)


def _unit(x: jax.Array) -> jax.Array:
    """`x` at length 1; 0 where it is 0."""
    length = _rms(x) * np.sqrt(x.shape[-1]).astype(np.float32)
    return x / jnp.where(length > 0, length, 1.0)


def _norm_factor(before: jax.Array, after: jax.Array, s: jax.Array) -> jax.Array:
    """The factor that gives `after` the length of `before`, `[B, T, 1]`; 1 if `after` vanished."""
    length, new_length = _rms(before), _rms(after)
    remains = new_length > _VANISHED * length
    factor = jnp.where(remains, length / jnp.where(remains, new_length, 1.0), 1.0)
    # At s = 0 the value is exactly 1, and the derivative is the quotient's.
    unchanged = 1.0 + (factor - jax.lax.stop_gradient(factor))
    return jnp.where(s == 0, unchanged, factor)


def _rms(x: jax.Array) -> jax.Array:
    """Root mean square over the last axis, which is kept; its squares cannot over- or underflow."""
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True))
    scale = jnp.where(largest > 0, largest, 1.0)
    square = jnp.mean((x / scale) ** 2, axis=-1, keepdims=True)
    # The root of 0 has no derivative.
    return jnp.where(largest > 0, scale * jnp.sqrt(jnp.where(largest > 0, square, 1.0)), 0.0)


def as_tuple(steering: Steering | Sequence[Steering] | None) -> tuple[Steering, ...]:
    """None, one intervention or several as a tuple, in the order in which they are applied."""
    if steering is None:
        return ()
    return tuple(steering) if isinstance(steering, Sequence) else (steering,)

"""Steering as data: vectors, layers, coefficients and positions, with one entry per row.

Every operation is the same affine map of the residual stream x at one site of some layers, made
in float32 and rounded once:

    x' = x + s · (vector - erase · x - (x Uᵀ) U + along · x / |x| + noise · z)

    add        vector
    ablate     U: orthonormal rows that span the directions
    clamp      U = v / |v|, vector = value · U
    replace    vector, erase = 1
    amplify    along, a length; or erase = -1, for a share of x
    noise      noise, a length; z is drawn anew for each token, of length 1

s is the row's coefficient times its schedule at the token's position, inside the row's scope;
outside of it x goes through untouched. None of this is compiled in: the rows of a batch may differ
in all of it, and other values never recompile. What no row uses is None and costs nothing; its
first use (of a kind of operation, a site, `preserve_norm`) asks for another program.

`interventions` makes these; here is what they are and how they are applied.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from jaxsteer.config import LlamaConfig
from jaxsteer.steering import scope as scopes
from jaxsteer.steering.scope import Scope, broadcast_rows
from jaxsteer.steering.sites import SITES, check_layers, site_width
from jaxsteer.steering.token_noise import unit_noise

# What `layer` holds beside the numbers of layers.
NO_LAYER = -1
EVERY_LAYER = -2
# The threshold of no condition: finite, so that `jax_debug_infs` has nothing to stop at.
ALWAYS = np.finfo(np.float32).min

_OPTIONAL = ("basis", "erase", "along", "noise", "seed", "preserve_norm", "condition", "threshold")

# Products in full float32, on hardware that would make less of them.
_EXACT = jax.lax.Precision.HIGHEST
# A stream shorter than this share of what it was is rounding error: it has no direction to keep.
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
    # The sites that occur in `site`: what is not named here costs nothing in the compiled program.
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
    """What steering has to know of each row beside its tokens: a pytree, and keywords."""

    prompt_length: jax.Array | None  # int32 [B]: real tokens that are prompt; anchors scopes
    thinking: jax.Array | None  # bool [B, T]: which tokens lie inside <think>…</think>
    row: jax.Array | None  # integers [B]: who the row is in any batch; its noise belongs to it


class TokenCoeffs(NamedTuple):
    """Where and how strongly an intervention acts: per token, the same for all layers.

    `apply` adds what differs by layer: whether the intervention acts there, and its condition.
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
    """Scope, schedule and noise at each token, computed once a forward pass for all layers.

    `position` `[B, T]` counts the row's real tokens (negative on padding), the others are
    `RowFacts`.

    Raises:
        ValueError: if there is noise, which belongs to the row, and no `row`.
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
    """What noise there is at each token, `[B, T, D]`, 0 in rows that have none."""
    assert steering.noise is not None
    assert steering.seed is not None
    place = jnp.max(steering.layer, axis=1) * len(SITES) + steering.site  # its only layer
    width = steering.vector.shape[-1]
    drawn = unit_noise(steering.seed, row, position, place, width=width)
    return steering.noise[:, None, None] * drawn


def apply(
    x: jax.Array, *, site: str, layer: int, steering: Steering, coeffs: TokenCoeffs
) -> jax.Array:
    """The stream `x` `[B, T, D]` with the intervention applied where this site and layer are its.

    A coefficient of 0 gives `x` back bit for bit, and has the right derivative all the same.
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
    acts = coeffs.covered & _is_here(steering, site, layer)[:, None]  # [B, T]
    if steering.condition is not None:
        assert steering.threshold is not None
        along = jnp.matmul(wide, steering.condition[..., None], precision=_EXACT)[..., 0]
        acts &= along > steering.threshold[:, None]
    return jnp.where(acts[..., None], steered.astype(x.dtype), x)


def _is_here(steering: Steering, site: str, layer: int) -> jax.Array:
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
    """What gives `after` the length of `before`, `[B, T, 1]`; 1 where nothing of it is left."""
    length, new_length = _rms(before), _rms(after)
    left = new_length > _VANISHED * length
    factor = jnp.where(left, length / jnp.where(left, new_length, 1.0), 1.0)
    # Exactly 1 where nothing was changed, and the derivative of the quotient still.
    unchanged = 1.0 + (factor - jax.lax.stop_gradient(factor))
    return jnp.where(s == 0, unchanged, factor)


def _rms(x: jax.Array) -> jax.Array:
    """Root mean square over the last axis, kept; no square of it overflows or vanishes."""
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True))
    scale = jnp.where(largest > 0, largest, 1.0)
    square = jnp.mean((x / scale) ** 2, axis=-1, keepdims=True)
    # The root of 0 has no derivative.
    return jnp.where(largest > 0, scale * jnp.sqrt(jnp.where(largest > 0, square, 1.0)), 0.0)


def check_steering(steering: Steering, config: LlamaConfig, *, rows: int) -> None:
    """Check against a model and a batch, on the host: JAX would clamp or broadcast silently.

    Raises:
        ValueError: naming the field, what was found and what the model or batch expects.
    """
    if not isinstance(steering, Steering):
        raise ValueError(f"steering: got {type(steering).__name__}, expected a Steering")
    arrays = {
        f"steering{jax.tree_util.keystr(path)}": np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(steering)
    }
    counts = {array.shape[0] for array in arrays.values() if array.ndim}
    if len(counts) == 1 and not counts <= {1, rows}:
        raise ValueError(f"steering: got {counts.pop()} rows, expected 1 or the batch's {rows}")
    for name, array in arrays.items():
        if array.ndim == 0 or array.shape[0] not in (1, rows):
            found = "no row axis" if array.ndim == 0 else f"{array.shape[0]} rows"
            raise ValueError(f"{name}: got {found}, expected 1 or the batch's {rows}")
        if not np.all(np.isfinite(array)):
            raise ValueError(f"{name}: got NaN or infinity, expected finite numbers")
    layers = arrays["steering.layer"]
    named = layers[(layers != NO_LAYER) & (layers != EVERY_LAYER)]
    check_layers("steering.layer", named.tolist(), config)
    if steering.noise is not None:
        check_noise(arrays["steering.noise"], arrays["steering.layer"])
    _check_sites(steering, config)


def check_known(
    steering: Steering, config: LlamaConfig, *, rows: int, prompt_length: int | None
) -> None:
    """`check_steering` for what is not traced; `prompt_length` where all of a pass is prompt.

    Raises:
        ValueError: as `check_steering`, and if all of it is prompt and the scope begins behind.
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(steering)):
        return
    check_steering(steering, config, rows=rows)
    if prompt_length is not None and steering.scope.only_behind(prompt_length):
        raise ValueError(
            f"prompt_length: got None, so that all {prompt_length} tokens are prompt, and the "
            "scope of steering begins behind the prompt; expected int32 [B] (zeros, to steer all "
            "tokens), or a scope like jaxsteer.scope.everywhere()"
        )


def check_noise(noise: np.ndarray, layers: np.ndarray) -> None:
    """Raise `ValueError` for several layers `[B, A]` in a row with noise `[B]`.

    A token has one draw, which belongs to one layer; another layer needs a noise of its own.
    """
    named = np.sum(layers >= 0, axis=1) + 2 * np.any(layers == EVERY_LAYER, axis=1)
    if np.any((noise != 0) & (named > 1)):
        raise ValueError(
            "steering.layer: got several for a row with noise, expected one (give one noise for "
            "each layer, so that they are independent)"
        )


def _check_sites(steering: Steering, config: LlamaConfig) -> None:
    """Each site is among the compiled ones, and the stream there is as wide as the vectors."""
    named = {SITES.index(site) for site in steering.sites}
    if not set(np.unique(np.asarray(steering.site)).tolist()) <= named:
        raise ValueError(
            f"steering.site: got {np.unique(np.asarray(steering.site))}, expected indices in SITES "
            f"of sites={steering.sites}"
        )
    for site in steering.sites:
        expected = site_width(site, config)
        for name in ("vector", "basis", "condition"):
            array = getattr(steering, name)
            if array is not None and array.shape[-1] != expected:
                raise ValueError(
                    f"steering.{name}: got width {array.shape[-1]}, expected {expected} at {site} "
                    "(sites of another width need a steering of their own)"
                )


def as_tuple(steering: Steering | Sequence[Steering] | None) -> tuple[Steering, ...]:
    """No, one or several interventions as a tuple, in the order in which they are applied."""
    if steering is None:
        return ()
    return tuple(steering) if isinstance(steering, Sequence) else (steering,)


def rows(steerings: Sequence[Steering]) -> Steering:
    """Interventions of any kinds as the rows of one, `[B, …]`, one after another.

    Each may itself have one row or several. What some of them do not use is filled with what
    changes nothing, so that each row does what it did alone.

    Raises:
        ValueError: for none, or vectors of different widths.
    """
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *_aligned(steerings))


def stack(steerings: Sequence[Steering]) -> Steering:
    """Interventions of one row count as one with a leading cell axis, `[C, B, …]`.

    Raises:
        ValueError: for none, or vectors of different widths or row counts.
    """
    counts = sorted({one.coeff.shape[0] for one in steerings})
    if len(counts) > 1:
        raise ValueError(f"steerings: got {counts} rows, expected equally many in each")
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *_aligned(steerings))


def _aligned(steerings: Sequence[Steering]) -> list[Steering]:
    """The same interventions with the same fields, in arrays that differ in their rows only."""
    if not steerings:
        raise ValueError("steerings: got none, expected at least one")
    widths = sorted({one.vector.shape[-1] for one in steerings})
    if len(widths) > 1:
        raise ValueError(f"steerings: got vectors of widths {widths}, expected one width")
    sites = tuple(s for s in SITES if any(s in one.sites for one in steerings))
    steps = max(one.schedule.shape[1] for one in steerings)
    layers = max(one.layer.shape[1] for one in steerings)
    rank = max(0 if one.basis is None else one.basis.shape[1] for one in steerings)
    used = [name for name in _OPTIONAL if any(getattr(one, name) is not None for one in steerings)]
    aligned = []
    for one, scope in zip(steerings, scopes.align([s.scope for s in steerings]), strict=True):
        count = one.coeff.shape[0]
        missing = {
            name: _neutral(name, count, rank, widths[0])
            for name in used
            if getattr(one, name) is None
        }
        one = replace(
            one,
            sites=sites,
            scope=scope,
            schedule=_pad(one.schedule, steps, mode="edge"),
            layer=_pad(one.layer, layers, constant_values=NO_LAYER),
            **missing,
        )
        aligned.append(one if one.basis is None else replace(one, basis=_pad(one.basis, rank)))
    return aligned


def _neutral(name: str, rows: int, rank: int, width: int) -> jax.Array:
    """The value of an optional field that changes nothing."""
    if name == "threshold":
        return jnp.full((rows,), ALWAYS)
    shape = {"basis": (rows, rank, width), "condition": (rows, width)}.get(name, (rows,))
    return jnp.zeros(shape, {"preserve_norm": bool, "seed": jnp.uint32}.get(name, jnp.float32))


def _pad(array: jax.Array, size: int, **how: Any) -> jax.Array:
    """`array` with its second axis prolonged to `size`."""
    missing = size - array.shape[1]
    if not missing:
        return array
    return jnp.pad(array, ((0, 0), (0, missing)) + ((0, 0),) * (array.ndim - 2), **how)

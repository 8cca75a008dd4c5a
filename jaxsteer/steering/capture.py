"""Read activations: which sites and layers come back, at which positions, reduced or raw."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from jaxsteer.config import LlamaConfig
from jaxsteer.steering.group_sums import event_sums, token_sums
from jaxsteer.steering.sites import SITES, site_index, site_width


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Capture:
    """What `forward` brings back of the residual stream, as `{site: array}`.

    `sites` and `layers` are static; `positions`, `weights` and `directions` are data. With none of
    them every position comes back. The arrays are

        raw                 [len(layers), B, T, D]
        with `positions`    [len(layers), B, P, D]   the tokens at those positions of each row,
                                                     NaN where the pass has no such token
        with `weights`      [len(layers), G, D]      float32 sums  Σ_bt weights[b, t, g] · x[b, t]
        with both           [len(layers), G, O, D]   float32 sums over E events of O tokens each:
                                          Σ_be weights[b, e, g] · x[b, positions[b, e, o]]
        with `directions`   [len(layers), R, B, T]   float32 products  directions[r] · x[b, t]

    `squares` puts an axis of 2 behind the layers: the sums, and the same sums of x². Activations
    that are summed or projected never leave the device. Layers come in the order of `layers`.
    Positions count a row's real tokens from 0, whatever its padding and whatever earlier passes
    wrote to the cache; one that the pass does not have, -1 say, adds nothing to a sum. Of events
    boolean weights are the fastest (see `event_sums`).
    """

    sites: tuple[str, ...] = field(default=("resid_post",), metadata={"static": True})
    layers: tuple[int, ...] | None = field(default=None, metadata={"static": True})
    squares: bool = field(default=False, metadata={"static": True})
    positions: jax.Array | None = None  # int32 [B, P], or with weights [B, E, O]
    weights: jax.Array | None = None  # float [B, T, G], or with positions bool or float [B, E, G]
    directions: jax.Array | None = None  # float [R, D]

    def __post_init__(self) -> None:
        if isinstance(self.sites, str):
            raise ValueError(f"capture.sites: got {self.sites!r}, expected several: a tuple")
        if self.layers is not None and not isinstance(self.layers, Iterable):
            raise ValueError(f"capture.layers: got {self.layers!r}, expected several: a tuple")
        object.__setattr__(self, "sites", tuple(SITES[site_index(site)] for site in self.sites))
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(self.layers))
        data = [n for n in ("positions", "weights", "directions") if getattr(self, n) is not None]
        if self.directions is not None and len(data) > 1:
            raise ValueError(f"capture: got {' and '.join(data)}, expected directions alone")
        if self.squares and self.weights is None:
            raise ValueError("capture: got squares without weights, which say what is summed")


def check_capture(capture: Capture, config: LlamaConfig) -> None:
    """Raise `ValueError` for layers that the model does not have, or none, and for wrong shapes."""
    if capture.layers == ():
        raise ValueError("capture.layers: got none, expected at least one, or None for all")
    for layer in capture.layers or ():
        if not 0 <= layer < config.n_layers:
            raise ValueError(
                f"capture.layers: got {layer}, expected 0 to {config.n_layers - 1} "
                "(layer l is the output of block l, counted from 0)"
            )
    both = capture.positions is not None and capture.weights is not None
    shapes = {
        "positions": "[B, E, O]" if both else "[B, P]",
        "weights": "[B, E, G]" if both else "[B, T, G]",
        "directions": "[R, D]",
    }
    for name, wanted in shapes.items():
        array = getattr(capture, name)
        if array is not None and array.ndim != wanted.count(",") + 1:
            raise ValueError(f"capture.{name}: got shape {array.shape}, expected {wanted}")
    if capture.positions is not None and not jnp.issubdtype(capture.positions.dtype, jnp.integer):
        raise ValueError(f"capture.positions: got {capture.positions.dtype}, expected integers")
    if capture.directions is not None:
        found = capture.directions.shape[1]
        for site in capture.sites:
            if found != (width := site_width(site, config)):
                raise ValueError(
                    f"capture.directions: got width {found}, expected {width} at {site}"
                )


def wants(capture: Capture, site: str, layer: int) -> bool:
    """Whether `capture` asks for this site of this layer (decided while tracing)."""
    return site in capture.sites and (capture.layers is None or layer in capture.layers)


def select(capture: Capture, x: jax.Array, first: jax.Array) -> jax.Array:
    """The part of `x` `[B, T, D]` that comes back; `first` `[B]` is the slot of position 0 in it.

    (Negative when an earlier pass held position 0.)
    """
    if capture.weights is not None and capture.positions is None:
        return token_sums(x, capture.weights, squares=capture.squares)
    if capture.directions is not None:
        exact = jax.lax.Precision.HIGHEST
        vectors = capture.directions.astype(jnp.float32)
        return jnp.einsum("RD,BTD->RBT", vectors, x.astype(jnp.float32), precision=exact)
    if capture.positions is not None:
        T = x.shape[1]
        slots = capture.positions + first.reshape(-1, *[1] * (capture.positions.ndim - 1))
        here = (capture.positions >= 0) & (slots >= 0) & (slots < T)
        if capture.weights is not None:
            slots = jnp.where(here, slots, -1)
            return event_sums(x, slots, capture.weights, squares=capture.squares)
        tokens = jnp.take_along_axis(x, jnp.clip(slots, 0, T - 1)[..., None], axis=1)
        return jnp.where(here[..., None], tokens, jnp.nan)
    return x


def collect(
    capture: Capture | None, selected: dict[tuple[str, int], jax.Array], config: LlamaConfig
) -> dict[str, jax.Array]:
    """What `select` gave for each site and layer, stacked by site in the order asked for."""
    if capture is None:
        return {}
    layers = range(config.n_layers) if capture.layers is None else capture.layers
    return {site: jnp.stack([selected[site, layer] for layer in layers]) for site in capture.sites}

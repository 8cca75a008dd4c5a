"""What is returned of the residual stream: sites, layers and tokens, raw or reduced."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxsteer.config import LlamaConfig
from jaxsteer.steering.operation_arguments import Vectors, finite_array, orthonormal
from jaxsteer.steering.readers import All, At, EventSums, Project, Reader, TokenSums
from jaxsteer.steering.scope import Scope
from jaxsteer.steering.sites import SITES, check_layers, site_index


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Above:
    """A condition on a token: its projection on `direction / |direction|` exceeds `threshold`.

    The projection is that of the captured stream at `layer` and `site`, which `Capture` names.
    """

    direction: jax.Array  # float32 [D]
    threshold: jax.Array | float
    layer: int = field(metadata={"static": True})
    site: str = field(default="resid_post", metadata={"static": True})


def above(
    direction: Vectors, threshold: float, *, layer: int | None = None, site: str = "resid_post"
) -> Above:
    """A condition for `Capture(above=…)`; a `Direction` has its own layer and site.

    Raises:
        ValueError: for a direction that is not `[D]` or is 0, no layer, or a threshold that is no
            finite number.
    """
    unit = orthonormal("direction", finite_array("direction", direction, 1, "[D]")[:, None])[0, 0]
    least = finite_array("threshold", threshold, 0, "a number")
    if layer is None:
        layer = getattr(direction, "layer", None)
        site = getattr(direction, "site", site)
    if layer is None:
        raise ValueError("layer: got none, expected a layer, or a Direction, which knows its own")
    return Above(jnp.asarray(unit), jnp.asarray(least[0]), int(layer), SITES[site_index(site)])


@jax.tree_util.register_dataclass
@dataclass(frozen=True, init=False)
class Capture:
    """What `forward` and `generate` return of the residual stream, as `{site: array}`.

    `read` is a reader (see `readers`). Its result has a leading axis of layers, in the order of
    `layers`; by default it is every token, `[L, B, T, D]`. Activations that are summed or projected
    never leave the device. `Capture(positions=…)` is `Capture(read=At(…))`; `weights`, `directions`
    and `squares` are keywords of the other readers.

    During generation `where`, `every`, `above` and `most` select tokens, the same way in all rows:

        where    a scope; by default the generated tokens. `scope.everywhere()` adds the prompt
        every    one token in so many, counted from the first generated token
        above    a condition on generated tokens, made by `above`
        most     the first so many tokens of a row; their memory is allocated beforehand
    """

    sites: tuple[str, ...] = field(metadata={"static": True})
    layers: tuple[int, ...] | None = field(metadata={"static": True})
    read: Reader
    where: Scope | None
    every: int = field(metadata={"static": True})
    above: Above | None
    most: int | None = field(metadata={"static": True})

    def __init__(
        self,
        sites: Sequence[str] = ("resid_post",),
        layers: Sequence[int] | None = None,
        read: Reader | None = None,
        *,
        where: Scope | None = None,
        every: int = 1,
        above: Above | None = None,
        most: int | None = None,
        **arrays: Any,
    ) -> None:
        if isinstance(sites, str):
            raise ValueError(f"capture.sites: got {sites!r}, expected several: a tuple")
        if layers is not None and not isinstance(layers, Iterable):
            raise ValueError(f"capture.layers: got {layers!r}, expected several: a tuple")
        if read is not None and arrays:
            raise ValueError(f"capture: got a reader and {min(arrays)}, expected one or the other")
        for name, count in (("every", every), ("most", most)):
            if count is not None and (not isinstance(count, int | np.integer) or count < 1):
                raise ValueError(f"capture.{name}: got {count!r}, expected at least 1")
        fields = {
            "sites": tuple(SITES[site_index(site)] for site in sites),
            "layers": None if layers is None else tuple(layers),
            "read": _reader(**arrays) if read is None else read,
            "where": where,
            "every": every,
            "above": above,
            "most": most,
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)


def _reader(
    *,
    positions: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    directions: Vectors | None = None,
    squares: bool = False,
) -> Reader:
    """The reader for these keywords of `Capture`."""
    given: dict[str, Any] = {"positions": positions, "weights": weights, "directions": directions}
    given = {name: value for name, value in given.items() if value is not None}
    if "directions" in given and len(given) > 1:
        raise ValueError(f"capture: got {' and '.join(given)}, expected directions alone")
    if squares and "weights" not in given:
        raise ValueError("capture: got squares without weights, which say what is summed")
    if "directions" in given:
        return Project(given["directions"])
    if len(given) == 2:
        return EventSums(given["positions"], given["weights"], squares=squares)
    if "weights" in given:
        return TokenSums(given["weights"], squares=squares)
    return At(given["positions"]) if given else All()


def check_capture(capture: Capture, config: LlamaConfig) -> None:
    """Check a capture for a single pass.

    Raises:
        ValueError: for layers that the model does not have, or none, for arrays of other shapes,
            and for what chooses among tokens that are still to be generated.
    """
    check_places(capture, config)
    for name in ("where", "above", "most"):
        if getattr(capture, name) is not None:
            raise ValueError(f"capture.{name}: got one, expected it in `generate` only")
    if capture.every != 1:
        raise ValueError(f"capture.every: got {capture.every}, expected it in `generate` only")
    capture.read.check(capture.sites, config)


def check_places(capture: Capture, config: LlamaConfig) -> None:
    """Raise `ValueError` for layers that the model does not have, or none."""
    if capture.layers == ():
        raise ValueError("capture.layers: got none, expected at least one, or None for all")
    check_layers("capture.layers", capture.layers or (), config)


def layers_of(capture: Capture, config: LlamaConfig) -> tuple[int, ...]:
    """The layers that are read, all if the capture names none."""
    return tuple(range(config.n_layers)) if capture.layers is None else capture.layers


def wants(capture: Capture, site: str, layer: int) -> bool:
    """Whether `capture` asks for this site of this layer (decided while tracing)."""
    return site in capture.sites and (capture.layers is None or layer in capture.layers)


def collect(
    capture: Capture | None, selected: dict[tuple[str, int], jax.Array], config: LlamaConfig
) -> dict[str, jax.Array]:
    """The activations read at each site and layer, stacked by site in the order asked for."""
    if capture is None:
        return {}
    layers = layers_of(capture, config)
    return {site: jnp.stack([selected[site, layer] for layer in layers]) for site in capture.sites}

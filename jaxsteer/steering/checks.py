"""Checks of a `Steering` against a model and a batch, on the host."""

import jax
import numpy as np

from jaxsteer.config import LlamaConfig
from jaxsteer.steering.sites import SITES, check_layers, site_width
from jaxsteer.steering.steering import EVERY_LAYER, NO_LAYER, Steering


def check_steering(steering: Steering, config: LlamaConfig, *, rows: int) -> None:
    """Check against a model and a batch, on the host. JAX would clamp or broadcast silently.

    Raises:
        ValueError: naming the field, what it is and what the model or the batch expects.
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
            got = "no row axis" if array.ndim == 0 else f"{array.shape[0]} rows"
            raise ValueError(f"{name}: got {got}, expected 1 or the batch's {rows}")
        if not np.all(np.isfinite(array)):
            raise ValueError(f"{name}: got NaN or infinity, expected finite numbers")
    layers = arrays["steering.layer"]
    named = layers[(layers != NO_LAYER) & (layers != EVERY_LAYER)]
    check_layers("steering.layer", named.tolist(), config)
    if steering.noise is not None:
        check_noise(arrays["steering.noise"], arrays["steering.layer"])
    _check_sites(steering, config)


def check_steering_unless_traced(
    steering: Steering, config: LlamaConfig, *, rows: int, prompt_length: int | None
) -> None:
    """`check_steering`, if no array of it is traced.

    `prompt_length` is given if all tokens of the pass are prompt: then a scope that begins after
    the prompt is refused, too, because it would steer nothing.

    Raises:
        ValueError: as `check_steering`, and for such a scope.
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(steering)):
        return
    check_steering(steering, config, rows=rows)
    if prompt_length is not None and steering.scope.begins_after(prompt_length):
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

"""Rotary positions: the angle of each pair at each position, with every scaling that is known.

The numbers are those of transformers, rounded where PyTorch rounds, to the last bit where they are
made on the host: half a unit there is an angle of 1e-4 at position 2,000, and the models were
trained with these.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxsteer.config import LlamaConfig, RopeScaling


def angles(position: jax.Array, config: LlamaConfig) -> jax.Array:
    """Rotary angles float32 `[B, T, H / 2]` of left-padded rows at `position` `[B, T]`.

    With `dynamic` scaling frequencies depend on how long a row is by now, and each row has its own:
    what it would have alone in transformers. A key in the cache keeps the angle that it was written
    with, there as here, so beyond the original context decoding step by step and one pass over the
    whole text differ, there as here.
    """
    at = jnp.maximum(position, 0)[..., None].astype(jnp.float32)
    scaling = config.rope_scaling
    if scaling is None or scaling.kind != "dynamic":
        return at * rope_frequencies(config)
    length = jnp.maximum(position[:, -1:] + 1, scaling.original_max_positions)  # [B, 1]
    H = config.head_dim
    stretch = np.float32(scaling.factor) * length.astype(jnp.float32)
    stretch = stretch / scaling.original_max_positions - np.float32(scaling.factor - 1)
    theta = config.rope_theta * stretch ** (H / (H - 2))
    frequency = 1 / theta[..., None] ** jnp.asarray(_exponents(config))  # [B, 1, H / 2]
    return at * frequency


def rope_frequencies(config: LlamaConfig) -> np.ndarray:
    """Angle per position of each rotary pair, float32 `[H / 2]`, scaling included.

    Of `dynamic` scaling these are the frequencies within the original context.
    """
    power = (config.rope_theta ** _exponents(config).astype(np.float64)).astype(np.float32)
    frequency = np.float32(1.0) / power
    scaling = config.rope_scaling
    if scaling is None or scaling.kind == "dynamic":
        return frequency
    if scaling.kind == "yarn":
        keep = _yarn_keep(config, scaling)
        return (np.float32(1.0) / (np.float32(scaling.factor) * power)) * (1 - keep) + (
            frequency * keep
        )
    stretched = frequency / np.float32(scaling.factor)
    if scaling.kind == "linear":
        return stretched
    # llama3: how often a pair turns over the original context decides how much it is stretched.
    wavelength = np.float32(2 * np.pi) / frequency
    turns = np.float32(scaling.original_max_positions) / wavelength
    low, high = np.float32(scaling.low_freq_factor), np.float32(scaling.high_freq_factor)
    keep = np.clip((turns - low) / (high - low), 0, 1)  # 1: a fast pair, left as it is
    return (1 - keep) * stretched + keep * frequency


def cos_sin(position: jax.Array, config: LlamaConfig, *, once: bool) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of the rotary angles at `position` `[B, T]`, float32 `[B, T, 1, H / 2]`.

    Times yarn's attention factor, where there is one. With `once` they are made in a branch that is
    always taken, which XLA does not join with what reads them. On CPUs it would, and make them anew
    for each layer, head and slot that is written: a fifth of a step.
    """
    scaling = config.rope_scaling
    scale = 1.0 if scaling is None else scaling.attention_factor

    def of_angle(angle: jax.Array) -> tuple[jax.Array, jax.Array]:
        cos, sin = jnp.cos(angle)[:, :, None], jnp.sin(angle)[:, :, None]
        return (cos, sin) if scale == 1.0 else (cos * scale, sin * scale)

    def never(angle: jax.Array) -> tuple[jax.Array, jax.Array]:
        none = jnp.zeros_like(angle)[:, :, None]
        return none, none

    angle = angles(position, config)
    return jax.lax.cond(jnp.any(position >= 0), of_angle, never, angle) if once else of_angle(angle)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotary embedding of `x` `[B, T, N, H]` with what `cos_sin` gives, halves paired as in HF."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def _exponents(config: LlamaConfig) -> np.ndarray:
    return np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)


def _yarn_keep(config: LlamaConfig, scaling: RopeScaling) -> np.ndarray:
    """How much of its own frequency a pair keeps, float32 `[H / 2]` (arXiv 2309.00071).

    1 for pairs that turn more than `beta_fast` times over the original context, 0 for those that
    turn less than `beta_slow` times, a line over the number of the pair between them.
    """

    def pair(turns: float) -> float:
        """Number of the pair that turns so often."""
        wavelength = scaling.original_max_positions / (turns * 2 * math.pi)
        return config.head_dim * math.log(wavelength) / (2 * math.log(config.rope_theta))

    first, last = pair(scaling.beta_fast), pair(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, config.head_dim - 1)
    if first == last:
        last += 0.001
    number = np.arange(config.head_dim // 2, dtype=np.float32)
    return 1 - np.clip((number - np.float32(first)) / np.float32(last - first), 0, 1)

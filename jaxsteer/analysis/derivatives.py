"""The derivative of tokens' log-probability by the strength of a direction.

It is taken at strength 0, with the text held fixed. The direction is added to the stream at the
generated positions, as in steering. The function is the mean log-probability that the next token is
one of a set, over chosen positions of each row. The derivative is exact and computed in forward
mode (`jax.jvp`), where all directions of a layer share one run of the model. Layers and directions
are data, so one program serves all of them.
"""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from numpy.typing import ArrayLike

from jaxsteer.llama import Model, TokenBatch, bind, check_batch, forward, spread_rows, xla_attention
from jaxsteer.runtime import hosts
from jaxsteer.steering import NO_LAYER, Capture, Steering, add, site_width


def sensitivity(
    model: Model,
    batch: TokenBatch,
    directions: ArrayLike,
    layers: ArrayLike,
    *,
    prompt_length: ArrayLike,
    positions: ArrayLike,
    tokens: ArrayLike,
    site: str = "resid_post",
) -> np.ndarray:
    """d(mean log-probability of `tokens`) / d(coefficient) at 0, float32 `[L, O, B]`.

    It takes the memory of a forward pass of `(O + 1) · B` rows with plain attention, the only one
    that has a forward-mode derivative; choose B accordingly. Rows without a position give 0.

    Args:
        model: the model; its attention function is not used.
        batch: B rows of prompt and text, left-padded.
        directions: `[L, O, D]`, O directions for each of L layers, at the length that counts as
            coefficient 1.
        layers: int `[L]`, where they are added, counted from 0.
        prompt_length: int `[B]`; positions from there on are steered.
        positions: int `[B, P]`, counting each row's real tokens from 0: the tokens before those
            whose log-probability is taken; -1 for none.
        tokens: int `[K]`, the set: their probabilities are added up.
        site: where in the block the directions are added.

    Raises:
        ValueError: for arguments whose shapes or values do not fit the model or each other.
    """
    vectors, at = np.asarray(directions, np.float32), np.asarray(layers)
    ids, places = np.asarray(tokens), np.asarray(positions)
    config, B = model.config, batch.tokens.shape[0]
    width = site_width(site, config)
    if vectors.ndim != 3 or vectors.shape[2] != width or not vectors.size:
        raise ValueError(f"directions: got shape {vectors.shape}, expected [L, O, {width}]")
    if not np.isfinite(vectors).all():
        raise ValueError("directions: got NaN or infinity, expected finite numbers in float32")
    if at.shape != vectors.shape[:1] or at.min() < 0 or at.max() >= config.n_layers:
        raise ValueError(
            f"layers: got {at.tolist()}, expected {len(vectors)} from 0 to {config.n_layers - 1}"
        )
    if ids.ndim != 1 or not ids.size or ids.min() < 0 or ids.max() >= config.vocab_size:
        raise ValueError(f"tokens: got {ids!r:.80}, expected ids from 0 to {config.vocab_size - 1}")
    check_batch(batch, config)
    lengths = np.asarray(batch.lengths)
    if places.ndim != 2 or len(places) != B or (places >= lengths[:, None]).any():
        raise ValueError(f"positions: got shape {places.shape}, expected [{B}, P] within the rows")
    template = add(np.zeros(width), layer=0, coeff=1.0, site=site)
    rows = (batch, jnp.asarray(places), jnp.asarray(np.broadcast_to(prompt_length, (B,))))
    plain = model.with_attention(xla_attention)
    placed = spread_rows(rows, model)
    return hosts.gather(_slopes(plain, *placed, template, *map(jnp.asarray, (vectors, at, ids))))


@jax.jit
def _slopes(
    model: Model,
    batch: TokenBatch,
    positions: jax.Array,
    prompt_length: jax.Array,
    template: Steering,
    directions: jax.Array,
    layers: jax.Array,
    tokens: jax.Array,
) -> jax.Array:
    score = functools.partial(_score, model, batch, positions, prompt_length, tokens)

    def of_layer(given: tuple[jax.Array, jax.Array]) -> jax.Array:
        layer, vectors = given
        steering = replace(
            template, layer=jnp.full_like(template.layer, NO_LAYER).at[0, 0].set(layer)
        )

        def along(vector: jax.Array) -> jax.Array:
            def shifted(v: jax.Array) -> jax.Array:
                return score(replace(steering, vector=v[None]))

            return jax.jvp(shifted, (jnp.zeros_like(vector),), (vector,))[1]

        # The run of the model itself does not depend on the direction, so that it is made once.
        return jax.vmap(along)(vectors)

    return jax.lax.map(of_layer, (layers, directions))


def _score(
    model: Model,
    batch: TokenBatch,
    positions: jax.Array,
    prompt_length: jax.Array,
    tokens: jax.Array,
    steering: Steering,
) -> jax.Array:
    """The function to differentiate: mean log-probability `[B]` of the set, under steering."""
    last = model.config.n_layers - 1
    # Only the chosen positions are unembedded: logits of all would be B · T · V numbers.
    capture = Capture(layers=(last,), positions=jnp.maximum(positions, 0))
    out = forward(
        model,
        batch.tokens,
        mask=batch.mask,
        steering=steering,
        prompt_length=prompt_length,
        capture=capture,
    )
    logits = bind(model).unembed(out.captured["resid_post"][0])  # [B, P, V]
    chosen = logsumexp(logits[..., tokens], axis=-1) - logsumexp(logits, axis=-1)
    real = positions >= 0
    return jnp.sum(jnp.where(real, chosen, 0.0), axis=1) / jnp.maximum(real.sum(axis=1), 1)

"""Steer only when a probe fires, and let the steering decay afterwards.

    python -m experiments.decoding.probe_steering --out runs/small

Before each step the stream is read at one layer. Where its projection on `probe` exceeds the
threshold, the request's interventions are applied in full; then they fade by `decay` a token until
the probe fires again (`jaxsteer.when` has no such memory). The read is a pass of its own, of which
the compiler keeps the layers up to that one: it sees the very token that is steered, unsteered.
"""

import functools
import sys
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from experiments.decoding.pair import load_direction, load_pair
from experiments.pipeline.run import Run, command
from jaxsteer import Capture, Model, Request, TokenBatch, add, decode_step, forward, prefill
from jaxsteer.decoding import DecodeState, Sampler, sample, unfinished


@functools.partial(jax.jit, static_argnames=("layer", "max_new_tokens", "sampler"))
def steer_when_fired(
    model: Model,
    batch: TokenBatch,
    request: Request,
    *,
    probe: ArrayLike,
    layer: int,
    threshold: ArrayLike,
    decay: ArrayLike,
    max_new_tokens: int,
    sampler: Sampler = sample,
) -> tuple[DecodeState, jax.Array, jax.Array]:
    """Decode; gives the state, and the factor on the coefficients and the projection `[B, G]`.

    Column g of those belongs to the pass over the g-th generated token; NaN where there was none.
    """
    state = prefill(model, batch, request, max_new_tokens=max_new_tokens, sampler=sampler)
    nothing = jnp.zeros(state.tokens.shape)

    def body(carry: Any) -> Any:
        state, factor, factors, seen = carry
        capture = Capture(layers=(layer,))
        out = forward(model, state.token[:, None], cache=state.cache, capture=capture)
        projection = out.captured["resid_post"][0, :, 0].astype(jnp.float32) @ jnp.asarray(probe)
        factor = jnp.where(projection > threshold, 1.0, decay * factor)
        steered = tuple(replace(s, coeff=s.coeff * factor) for s in request.steering)
        now = (slice(None), state.step - 1)
        factors, seen = factors.at[now].set(factor), seen.at[now].set(projection)
        state = decode_step(model, state, replace(request, steering=steered), sampler=sampler)
        return state, factor, factors, seen

    start = state, nothing[:, 0], nothing, nothing
    state, _, factors, seen = jax.lax.while_loop(lambda carry: unfinished(carry[0]), body, start)
    ran = jnp.arange(max_new_tokens) < state.length[:, None] - 1
    return state, jnp.where(ran, factors, jnp.nan), jnp.where(ran, seen, jnp.nan)


def show(run: Run) -> None:
    """Push back where a text is about to backtrack: nowhere, then at the highest tenth."""
    pair, (v, layer), threshold = load_pair(run, problems=4), load_direction(run), jnp.inf
    request = pair.request(temperature=1.0, steering=add(v, layer=layer, coeff=-0.4))
    options = {"probe": v, "layer": layer, "decay": 0.8, "max_new_tokens": pair.max_new_tokens}
    for _ in range(2):
        state, factors, seen = steer_when_fired(
            pair.models[0], pair.prompts[0], request, threshold=threshold, **options
        )
        pair.print_state(f"fired {jnp.sum(factors == 1)} times above {threshold:.3g}", state)
        threshold = float(jnp.nanquantile(seen, 0.9))


if __name__ == "__main__":
    sys.exit(command("decoding.probe_steering", "Steer only when a probe fires.", show))

"""Contrastive decoding: what the reasoning model says more than the base model does.

    python -m experiments.decoding.contrastive --out runs/small

The next token has the highest log p_reasoning - alpha · log p_base among the tokens that the
reasoning model finds plausible, p_reasoning >= beta · max p_reasoning (Li et al.,
arXiv 2210.15097). Swapped is the sampler: in each step a closure over the base model's logits.
The base model has a cache of its own, which the loop carries beside the state.
"""

import functools
import sys
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from experiments.decoding.pair import Models, Prompts, load_pair, read_prompts
from experiments.pipeline.run import Run, command
from jaxsteer import Request, decode_step, forward, prefill
from jaxsteer.decoding import DecodeState, Sampler, Sampling, greedy, unfinished


def against(base: jax.Array, alpha: ArrayLike, beta: ArrayLike, sampler: Sampler) -> Sampler:
    """`sampler` on the contrast with the logits `base` `[B, V]` of the same place."""

    def contrast(logits: jax.Array, key: jax.Array, params: Sampling) -> jax.Array:
        # Logits are log-probabilities up to a constant of the row, which changes no choice.
        plausible = logits >= jnp.max(logits, axis=-1, keepdims=True) + jnp.log(beta)
        return sampler(jnp.where(plausible, logits - alpha * base, -jnp.inf), key, params)

    return contrast


@functools.partial(jax.jit, static_argnames=("max_new_tokens", "sampler"))
def contrastive(
    models: Models,
    prompts: Prompts,
    request: Request,
    *,
    alpha: ArrayLike,
    beta: ArrayLike,
    max_new_tokens: int,
    sampler: Sampler = greedy,
) -> DecodeState:
    """Decode with the first of `models` against the second; each reads its own of `prompts`."""
    (reasoning, base), (batch, base_batch), G = models, prompts, max_new_tokens
    logits, cache = read_prompts(base, base_batch, room=G)
    chosen = against(logits, alpha, beta, sampler)
    state = prefill(reasoning, batch, request, max_new_tokens=G, sampler=chosen)

    def body(carry: tuple[DecodeState, Any]) -> tuple[DecodeState, Any]:
        state, cache = carry
        out = forward(base, state.token[:, None], cache=cache)
        chosen = against(out.logits[:, 0], alpha, beta, sampler)
        return decode_step(reasoning, state, request, sampler=chosen), out.cache

    return jax.lax.while_loop(lambda carry: unfinished(carry[0]), body, (state, cache))[0]


def show(run: Run) -> None:
    """Print what each alpha makes of a few problems; 0 is plain greedy decoding."""
    pair = load_pair(run, problems=2)
    G, request = pair.max_new_tokens, pair.request()
    for alpha in (0.0, 0.5, 1.0):
        state = contrastive(
            pair.models, pair.prompts, request, alpha=alpha, beta=0.1, max_new_tokens=G
        )
        pair.print_state(f"alpha {alpha}", state)


if __name__ == "__main__":
    sys.exit(command("decoding.contrastive", "Reasoning model against base model.", show))

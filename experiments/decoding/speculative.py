"""Speculative decoding: the base model drafts, the reasoning model has the say.

    python -m experiments.decoding.speculative --out runs/small

Each round the base model drafts k tokens and the reasoning model reads all of them in one pass;
`acceptance` has the rule by which they stand or fall, and why the output is distributed as if the
reasoning model had drawn every token. Rows accept different numbers of drafts, so each has a
cursor of its own: what was refused lies past it, where no query looks, and is overwritten.
"""

import functools
import sys
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from experiments.decoding.acceptance import accept, chances, draw, extend
from experiments.decoding.pair import Models, Prompts, load_pair, read_prompts
from experiments.pipeline.run import Run, command
from jaxsteer import Request, forward, prefill
from jaxsteer.decoding import DecodeState, keys, sample


@functools.partial(jax.jit, static_argnames=("k", "max_new_tokens"))
def speculative(
    models: Models, prompts: Prompts, request: Request, *, k: int, max_new_tokens: int
) -> tuple[DecodeState, jax.Array]:
    """Decode; gives the state, without log-probabilities, and the rounds of each row `[B]`.

    The request's truncation (top-k, top-p, min-p) and stop strings are left out.
    """
    (reasoning, base), room = models, max_new_tokens + k + 1
    steered: Any = {"steering": request.steering, "prompt_length": request.prompt_length}
    heat, each = request.sampling.temperature, jnp.zeros_like(request.prompt_length)
    state = prefill(reasoning, prompts[0], request, max_new_tokens=room, sampler=sample)
    state = replace(state, cache=replace(state.cache, cursor=state.cache.cursor + each))
    _, cache = read_prompts(base, prompts[1], room=room)
    cache = replace(cache, cursor=cache.cursor + each)

    def draft(carry: Any, key: jax.Array) -> Any:
        out = forward(base, carry[0][:, None], cache=carry[1])
        q = chances(out.logits, heat)[:, 0]
        x = draw(key, q)
        return (x, out.cache), (x, q)

    def body(carry: Any) -> Any:
        state, cache, rounds = carry
        split = jax.vmap(lambda key: jax.random.split(key, k + 2), out_axes=1)
        key = split(keys(request.sampling, state.length))  # [k + 2, B]
        # One draft more than is judged: its pass completes the base model's cache.
        (_, drafted), (x, q) = jax.lax.scan(draft, (state.token, cache), key[1:])
        x, q = x[:k].T, jnp.swapaxes(q[:k], 0, 1)  # [B, k], [B, k, V]
        read: Any = forward(reasoning, jnp.c_[state.token, x], cache=state.cache, **steered)
        new, count = accept(key[0], x, chances(read.logits, heat), q)
        cursors = state.cache.cursor, cache.cursor
        state, added = extend(state, new, count, request)
        state = replace(state, cache=replace(read.cache, cursor=cursors[0] + added))
        return state, replace(drafted, cursor=cursors[1] + added), rounds + (added > 0)

    return jax.lax.while_loop(lambda c: ~jnp.all(c[0].done), body, (state, cache, each))[::2]


def show(run: Run) -> None:
    """Print what comes out at two temperatures, and the share of the drafts that are used."""
    pair, k = load_pair(run, problems=64), 4
    G = pair.max_new_tokens
    for heat in (0.0, 1.0):
        request = pair.request(temperature=heat)
        state, rounds = speculative(pair.models, pair.prompts, request, k=k, max_new_tokens=G)
        pair.print_state(f"temperature {heat}", state)
        share = float((state.length - 1 - rounds).sum() / (k * rounds.sum()))
        print(f"temperature {heat}: {share:.2f} of the drafts used\n")


if __name__ == "__main__":
    sys.exit(command("decoding.speculative", "The base model drafts, the other judges.", show))

"""Several rows on each prompt: whether they can share its keys and values."""

import warnings

import jax
import jax.numpy as jnp

from jaxsteer.decoding.request import Request
from jaxsteer.llama import Model, TokenBatch, mesh_sizes
from jaxsteer.runtime import hosts
from jaxsteer.steering import Steering, broadcast_rows


def repeat_prompts(batch: TokenBatch, rows: int) -> TokenBatch:
    """The P prompts of a batch as `rows` rows, those of one prompt one after another."""
    times = rows // batch.tokens.shape[0]
    return jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), batch)


def shared_or_repeated(model: Model, batch: TokenBatch, request: Request) -> TokenBatch:
    """The prompts of a request's rows: each once, or repeated for each row if they cannot share it.

    Warns if the rows of a prompt cannot share it.
    """
    P, B = batch.tokens.shape[0], request.max_tokens.shape[0]
    if P == B:
        return batch
    data, _ = mesh_sizes(model)
    why = ""
    if P > 1 and P % data:
        why = f"{P} prompts are not split over the mesh's data={data}"
    elif request.capture is not None and request.capture.prompt_slots:
        why = "activations of the prompts are captured"
    elif _reach_prefix(request, repeat_prompts(batch, B)):
        why = "steering reaches into the prompts, before their last tokens"
    if not why:
        return batch
    warnings.warn(f"each row keeps its prompt's keys and values for itself: {why}", stacklevel=4)
    return repeat_prompts(batch, B)


def _reach_prefix(request: Request, batch: TokenBatch) -> bool:
    batch, steerings = hosts.gather((batch, request.steering))
    return any(bool(reaches_prefix(one, batch)) for one in steerings)


@jax.jit
def reaches_prefix(steering: Steering, batch: TokenBatch) -> jax.Array:
    """Whether an intervention may touch a prompt before its last token, bool scalar."""
    B, T = batch.tokens.shape
    position = jnp.broadcast_to(jnp.arange(T), (B, T))
    shared = position < batch.lengths[:, None] - 1
    scope = broadcast_rows(steering.scope, B, "scope")
    return jnp.any(scope.may_cover(position, batch.lengths) & shared)

"""The least time that decoding can take on a machine of a given bandwidth and matrix rate.

A decode step is a chain: the products with the weights, then attention over the cache, layer by
layer, each waiting for the one before. Within a part, reading and computing overlap, so the longer
of the two counts; parts cannot overlap, so they add up.

    products     every weight is read once; two operations for each weight and row
    attention    every key and value of every row is read once; two operations for each with each
                 query head

The embedding is looked up, not read. Activations, norms, rotations and the choice of the token are
left out: a floor may be too low, never too high.
"""

from dataclasses import dataclass

import jax

from jaxsteer.model import Model


@dataclass(frozen=True)
class Machine:
    """What was measured of it (see `machine`)."""

    bandwidth: float  # bytes read a second
    rate: float  # bf16 operations a second


def weights_read(model: Model) -> tuple[int, int]:
    """How many weights a step reads, and their bytes."""
    leaves = jax.tree.leaves(model.params)
    embedding = model.params["embed"]["embedding"]
    spared = 0 if model.config.tie_embeddings else 1
    return (
        sum(x.size for x in leaves) - spared * embedding.size,
        sum(x.nbytes for x in leaves) - spared * embedding.nbytes,
    )


def step_seconds(model: Model, machine: Machine, *, rows: int, tokens: float) -> float:
    """Floor of one decode step of `rows` rows whose caches hold `tokens` tokens each."""
    config = model.config
    count, size = weights_read(model)
    products = max(size / machine.bandwidth, 2 * rows * count / machine.rate)
    entries = rows * tokens * config.n_layers * config.head_dim
    cache_bytes = 2 * entries * config.n_kv_heads * model.dtype.itemsize
    operations = 2 * 2 * entries * config.n_heads
    return products + max(cache_bytes / machine.bandwidth, operations / machine.rate)


def decode_seconds(model: Model, machine: Machine, *, rows: int, prompt: int, steps: int) -> float:
    """Floor of `steps` decode steps after prompts of `prompt` tokens."""
    # The floor is linear in the tokens as long as the same side of each `max` wins, so the mean
    # of the first and the last step is the mean of all.
    first = step_seconds(model, machine, rows=rows, tokens=prompt + 1)
    last = step_seconds(model, machine, rows=rows, tokens=prompt + steps)
    return steps * (first + last) / 2


def prefill_operations(model: Model, *, rows: int, prompt: int) -> float:
    """Operations of running prompts: the layers' products for all tokens, the head for the last."""
    config = model.config
    count, _ = weights_read(model)
    head = config.vocab_size * config.d_model
    attention = 2 * 2 * config.n_layers * config.n_heads * config.head_dim * prompt**2 / 2
    return rows * (2 * (count - head) * prompt + 2 * head + attention)

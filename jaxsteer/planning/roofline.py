"""The least time that decoding can take on chips of a given bandwidth and matrix rate.

A decode step is a chain: the products with the weights, then attention over the cache, layer by
layer, each waiting for the one before. Within a part, reading and computing overlap, so the longer
of the two counts; parts cannot overlap, so they add up.

    products     every weight is read once; two operations for each weight and row
    attention    every key and value of every row is read once; two operations for each with each
                 query head
    sums         on a mesh, two all-reduces of the stream a layer and one for the embedding: of t
                 chips that share the weights each sends 2 · (t - 1) / t of it

The embedding is looked up, not read. Activations, norms, rotations, the choice of the token and how
long a message takes to arrive are left out: a floor may be too low, never too high. The
latter counts for more the more chips share the work.
"""

import math
from dataclasses import dataclass

import jax

from jaxsteer.llama import Model


@dataclass(frozen=True)
class Machine:
    """What one chip does at best, measured or published."""

    bandwidth: float  # bytes read a second
    rate: float  # bf16 operations a second
    link: float = math.inf  # bytes a second that it sends to its neighbours


def weights_read(model: Model) -> tuple[int, int]:
    """How many weights a step reads, and their bytes."""
    leaves = jax.tree.leaves(model.params)
    if not model.config.tie_embeddings:
        embedding = model.params["embed"]["embedding"]
        leaves = [x for x in leaves if x is not embedding]
    return sum(x.size for x in leaves), sum(x.size * x.dtype.itemsize for x in leaves)


def step_seconds(
    model: Model,
    machine: Machine,
    *,
    rows: int,
    tokens: float,
    shared: int = 0,
    prefixes: int = 1,
    data: int = 1,
    tensor: int = 1,
) -> float:
    """Floor of one decode step of `rows` rows whose caches hold `tokens` tokens each.

    Of `prefixes` that rows share, `shared` tokens each are read once, and attended to by the rows
    of each. `data` × `tensor` machines share the work: rows over `data`, weights and heads over
    `tensor`. `model` holds arrays or their shapes, of the whole model.
    """
    config, width = model.config, model.dtype.itemsize
    count, size = weights_read(model)
    rows, prefixes = -(-rows // data), prefixes // data if prefixes % data == 0 else prefixes
    products = max(size / machine.bandwidth, 2 * rows * count / machine.rate) / tensor
    entry = config.n_layers * config.head_dim / tensor  # of a token, in each head
    cache_bytes = 2 * (rows * tokens + prefixes * shared) * entry * config.n_kv_heads * width
    operations = 2 * 2 * rows * (tokens + shared) * entry * config.n_heads
    attention = max(cache_bytes / machine.bandwidth, operations / machine.rate)
    sent = 2 * (tensor - 1) / tensor * rows * config.d_model * width
    return products + attention + (2 * config.n_layers + 1) * sent / machine.link


def decode_seconds(
    model: Model,
    machine: Machine,
    *,
    rows: int,
    prompt: int,
    steps: int,
    shared: int = 0,
    prefixes: int = 1,
    data: int = 1,
    tensor: int = 1,
) -> float:
    """Floor of `steps` decode steps after prompts of `prompt` tokens, and prefixes of `shared`."""
    # The floor is linear in the tokens as long as the same side of each `max` wins, so the mean
    # of the first and the last step is the mean of all.
    sizes = {"shared": shared, "prefixes": prefixes, "data": data, "tensor": tensor}
    ends = [
        step_seconds(model, machine, rows=rows, tokens=tokens, **sizes)
        for tokens in (prompt + 1, prompt + steps)
    ]
    return steps * sum(ends) / 2


def prefill_operations(model: Model, *, rows: int, prompt: int) -> float:
    """Operations of running prompts: the layers' products for all tokens, the head for the last."""
    config = model.config
    count, _ = weights_read(model)
    head = config.vocab_size * config.d_model
    attention = 2 * 2 * config.n_layers * config.n_heads * config.head_dim * prompt**2 / 2
    return rows * (2 * (count - head) * prompt + 2 * head + attention)

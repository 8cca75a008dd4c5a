"""Directions that make given tokens likelier, learned by gradient through the frozen model.

    targets = make_targets(texts, prompt_lengths, spans)
    learned = learn_directions(model, targets, layers=[8, 10], seeds=[0, 1], norm=4.0, steps=40)

The length of a vector is bounded: after each step it is projected onto the ball of radius `norm`.
All vectors are learned in one compiled program, because the layer is data. So are the directions
that a vector must be orthogonal to, as in a search for one direction after the other.

Memory of a step, by calculation (`step_bytes`): with `remat` an 8B model in bf16 (16 GB) keeps
0.26 MB a token for the stream, and at a layer's peak 0.2 MB and the scores of plain attention,
0.3 kB a token of context. 8 texts of 2,000 tokens come to 21 GB a direction, so that 5 directions
at once fit a GPU of 140 GB; of 1,024 tokens, to 8 GB. `learn_directions` works in groups of as many
as fit.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import ArrayLike
from tqdm import tqdm

from jaxsteer.decoding import usable_bytes
from jaxsteer.directions.targets import Targets, target_logprobs
from jaxsteer.llama import Model, check_batch, mesh_sizes, spread_rows, xla_attention
from jaxsteer.runtime import hosts
from jaxsteer.steering import (
    Steering,
    Vectors,
    add,
    as_arrays,
    check_layers,
    int32s,
    own_layers,
    site_width,
)

_MOMENTUM = 0.9
# Of the radius: how far a vector moves in the first step; later ones by a cosine down to 0.
_RATE = 0.3
# Of the radius: the length at which a vector starts, in a direction of its seed's.
_START = 0.1


@dataclass(frozen=True)
class Learned:
    """R = layers × seeds vectors, layer by layer."""

    vectors: np.ndarray  # float32 [R, D], no longer than the norm that was allowed
    layers: np.ndarray  # int32 [R]
    seeds: np.ndarray  # int32 [R]
    losses: np.ndarray  # float32 [steps, R]: minus the mean log-probability of a step's targets


def learn_directions(
    model: Model,
    targets: Targets,
    *,
    layers: Sequence[int],
    seeds: Sequence[int],
    norm: ArrayLike,
    steps: int,
    rows_per_step: int = 16,
    orthogonal_to: ArrayLike | None = None,
    site: str = "resid_post",
    remat: bool = True,
    progress: str | None = None,
) -> Learned:
    """Vectors that raise the log-probability of the targets most, one for each layer and seed.

    A step moves a vector against its gradient, with momentum, by a fraction of `norm` that falls
    from 0.3 to 0 by a cosine, and projects it back onto the ball. The texts of a step are the same
    for all vectors; seeds differ in the starting vector.

    Args:
        model: the frozen weights; gradients go through `xla_attention`.
        targets: the texts; `rows_per_step` of them a step, all in turn, in an order of seed 0.
        layers: where the vectors are added, outputs of these blocks counted from 0.
        seeds: of the starting vectors: a random direction, a tenth of `norm` long.
        norm: the largest length, one for all or one per layer.
        steps: gradient steps.
        rows_per_step: texts a step (fewer if there are fewer).
        orthogonal_to: `[K, D]`, directions to whose span the vectors are orthogonal. Another K
            recompiles only beyond the next power of two, at least 8.
        site: where in the block.
        remat: run blocks again in the backward pass instead of keeping their activations.
        progress: title of the bar; None for no bar.

    Raises:
        ValueError: naming the argument, for what cannot be.
    """
    width = site_width(site, model.config)
    grid = [(layer, seed) for layer in layers for seed in seeds]
    radius = _check(model, targets, layers, seeds, norm, steps, rows_per_step)
    radii = np.repeat(radius, len(seeds)).astype(np.float32)
    basis = orthonormal_rows(orthogonal_to, width)
    start = np.stack([np.random.default_rng(seed).normal(size=width) for _, seed in grid])
    start -= start @ basis.T @ basis
    start *= _START * radii[:, None] / np.linalg.norm(start, axis=1, keepdims=True)
    vectors = jnp.asarray(start, jnp.float32)
    momentum = jnp.zeros_like(vectors)
    where = jnp.asarray([layer for layer, _ in grid], jnp.int32)
    rows = min(rows_per_step, len(targets.prompt_length))
    at_once = _at_once(model, targets, rows=rows, directions=len(grid), remat=remat)
    rate = optax.cosine_decay_schedule(_RATE, steps)
    model = model.with_attention(xla_attention)
    losses = []
    bar = tqdm(_minibatches(targets, rows, steps), total=steps, desc=progress, disable=not progress)
    for step, chunk in enumerate(bar):
        vectors, momentum, loss = _step(
            model,
            spread_rows(chunk, model),
            (vectors, momentum, where, jnp.asarray(radii)),
            jnp.asarray(basis, jnp.float32),
            rate(step),
            site=site,
            remat=remat,
            at_once=at_once,
        )
        losses.append(hosts.gather(loss))
        bar.set_postfix_str(f"log-probability a token {-losses[-1].mean():.3f}", refresh=False)
    return Learned(
        vectors=hosts.gather(vectors),
        layers=hosts.gather(where),
        seeds=np.asarray([seed for _, seed in grid], np.int32),
        losses=np.stack(losses),
    )


def logprobs_under(
    model: Model,
    targets: Targets,
    vectors: Vectors,
    layers: Sequence[int] | None = None,
    *,
    site: str = "resid_post",
    rows_at_once: int = 16,
    progress: str | None = None,
) -> np.ndarray:
    """Log-probability of every target under each vector, float32 `[R, B, P]`; 0 for no target.

    `vectors` `[R, D]`, or a list of `Direction`, are added unscaled at the generated positions,
    each at its layer; a vector of zeros gives the unsteered model.

    Raises:
        ValueError: naming the argument, for vectors or texts that do not fit the model.
    """
    check_batch(targets.batch, model.config)
    layers = own_layers(vectors) if layers is None else layers
    wide = np.asarray(as_arrays(vectors), np.float32)
    width = site_width(site, model.config)
    if wide.shape != (len(layers), width):
        raise ValueError(f"vectors: got {wide.shape}, expected [{len(layers)}, {width}]")
    check_layers("layers", layers, model.config)
    model = model.with_attention(xla_attention)
    B, P = targets.position.shape
    rows = min(rows_at_once, B)
    at_once = _at_once(model, targets, rows=rows, directions=len(wide), remat=True)
    host = hosts.gather(targets)
    logprobs = np.zeros((len(wide), B, P), np.float32)
    for first in tqdm(range(0, B, rows), desc=progress, disable=not progress, unit="batch"):
        index = np.minimum(np.arange(first, first + rows), B - 1)  # one shape for all
        chunk = spread_rows(jax.tree.map(jnp.asarray, host.take(index)), model)
        where = jnp.asarray(layers, jnp.int32)
        read = _read(model, chunk, jnp.asarray(wide), where, site=site, at_once=at_once)
        logprobs[:, index] = hosts.gather(read)
    return logprobs


def step_bytes(model: Model, *, rows: int, length: int, targets: int, remat: bool = True) -> int:
    """Peak bytes of the gradient of one direction on one device, without the weights.

    `targets` is P, the most targets of a row.
    """
    config, (data, tensor) = model.config, mesh_sizes(model)
    width = jnp.dtype(model.dtype).itemsize
    heads = 2 * (config.n_heads + config.n_kv_heads) * config.head_dim
    split = 4 * config.d_mlp + 2 * heads
    scores = config.n_heads * length * (2 * 4 + width)  # and probabilities, of a query
    block = width * (10 * config.d_model + split // tensor) + scores // tensor
    # Blocks that are run again are held one at a time, with the gradients beside.
    kept = config.n_layers * (width * config.d_model if remat else block) + block
    logits = 3 * 4 * config.vocab_size // tensor
    return -(-rows // data) * (length * kept + targets * logits)


def orthonormal_rows(directions: ArrayLike | None, width: int) -> np.ndarray:
    """An orthonormal basis of the span of `directions` `[K, D]`, float64; None spans nothing.

    It is padded with zeros to 8 rows or a larger power of two.

    Raises:
        ValueError: for another shape, numbers that are not finite, or dependent directions.
    """
    if directions is None:
        return np.zeros((8, width))
    wide = np.asarray(directions, np.float64)
    if wide.ndim != 2 or wide.shape[1] != width or not 1 <= len(wide) < width:
        raise ValueError(f"directions: got shape {wide.shape}, expected [K, {width}]")
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    if not (np.isfinite(lengths).all() and lengths.all()):
        raise ValueError("directions: got zeros or NaN, expected directions")
    q, r = np.linalg.qr((wide / lengths).T)
    if np.abs(np.diag(r)).min() < 1e-5:
        raise ValueError("directions: got dependent ones, expected linearly independent ones")
    rows = max(8, 1 << (len(wide) - 1).bit_length())
    return np.pad(q.T, ((0, rows - len(wide)), (0, 0)))


def _check(
    model: Model,
    targets: Targets,
    layers: Sequence[int],
    seeds: Sequence[int],
    norm: ArrayLike,
    steps: int,
    rows_per_step: int,
) -> np.ndarray:
    """The radius at each layer, float `[len(layers)]`, if everything fits together."""
    check_batch(targets.batch, model.config)
    check_layers("layers", layers, model.config)
    for name, values in (("layers", layers), ("seeds", seeds)):
        if not values or len(set(values)) < len(values):
            raise ValueError(f"{name}: got {list(values)}, expected distinct numbers")
    int32s("seeds", list(seeds))
    for name, value in (("steps", steps), ("rows_per_step", rows_per_step)):
        if value < 1:
            raise ValueError(f"{name}: got {value}, expected at least 1")
    radius = np.asarray(norm, np.float64)
    if radius.shape not in ((), (len(layers),)):
        raise ValueError(f"norm: got shape {radius.shape}, expected a number or [{len(layers)}]")
    radius = np.broadcast_to(radius, len(layers))
    if not (np.isfinite(radius).all() and (radius > 0).all()):
        raise ValueError(f"norm: got {norm!r}, expected lengths above 0")
    return radius


def _minibatches(targets: Targets, rows: int, steps: int) -> Iterator[Targets]:
    """`rows` texts at a time: each once before any comes again, in random order."""
    random, host = np.random.default_rng(0), jax.device_get(targets)
    count = len(targets.prompt_length)
    order = np.concatenate([random.permutation(count) for _ in range(-(-rows * steps // count))])
    for step in range(steps):
        yield jax.tree.map(jnp.asarray, host.take(order[step * rows : (step + 1) * rows]))


def _at_once(model: Model, targets: Targets, *, rows: int, directions: int, remat: bool) -> int:
    """How many directions fit into memory at once."""
    length, most = targets.batch.tokens.shape[1], targets.position.shape[1]
    each = step_bytes(model, rows=rows, length=length, targets=most, remat=remat)
    return int(np.clip(usable_bytes(model) // each, 1, directions))


def _steered(vector: jax.Array, layer: jax.Array, width: int, site: str) -> Steering:
    """`vector` `[D]` added at a layer that is data."""
    plain = add(np.zeros(width), layer=0, coeff=1.0, site=site)
    at_layer = plain.layer.at[0, 0].set(layer)
    return replace(plain, vector=vector[None], layer=at_layer)


def _over_directions(one: Callable[[Any], Any], args: Any, at_once: int) -> Any:
    """`vmap` over directions, in groups of `at_once` if not all fit into memory."""
    if at_once >= len(args[0]):
        return jax.vmap(one)(args)
    return jax.lax.map(one, args, batch_size=at_once)


@functools.partial(jax.jit, static_argnames=("site", "remat", "at_once"))
def _step(
    model: Model,
    chunk: Targets,
    state: tuple[jax.Array, ...],
    basis: jax.Array,
    rate: jax.Array,
    *,
    site: str,
    remat: bool,
    at_once: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One step of all directions: new vectors and momenta `[R, D]`, losses before it `[R]`."""
    count = jnp.sum(chunk.position > 0)

    def complement(x: jax.Array) -> jax.Array:
        exact = jax.lax.Precision.HIGHEST
        along = jnp.matmul(basis, x, precision=exact)
        return x - jnp.matmul(along, basis, precision=exact)

    def one(args: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
        vector, momentum, layer, radius = args

        def loss(vector: jax.Array) -> jax.Array:
            steering = _steered(vector, layer, vector.shape[-1], site)
            logprobs = target_logprobs(model, chunk, steering=steering, remat=remat)
            return -jnp.sum(logprobs) / count

        value, gradient = jax.value_and_grad(loss)(vector)
        gradient = complement(gradient)
        gradient /= jnp.maximum(jnp.linalg.norm(gradient), 1e-30)
        momentum = _MOMENTUM * momentum + (1 - _MOMENTUM) * gradient
        move = momentum / jnp.maximum(jnp.linalg.norm(momentum), 1e-30)
        moved = complement(vector - rate * radius * move)
        moved = optax.projections.projection_l2_ball(moved, radius)
        return moved, momentum, value

    return _over_directions(one, state, at_once)


@functools.partial(jax.jit, static_argnames=("site", "at_once"))
def _read(
    model: Model,
    chunk: Targets,
    vectors: jax.Array,
    layers: jax.Array,
    *,
    site: str,
    at_once: int,
) -> jax.Array:
    """Log-probability of each target under each vector, `[R, B, P]`."""

    def one(args: tuple[jax.Array, jax.Array]) -> jax.Array:
        vector, layer = args
        steering = _steered(vector, layer, vector.shape[-1], site)
        return target_logprobs(model, chunk, steering=steering)

    return _over_directions(one, (vectors, layers), at_once)

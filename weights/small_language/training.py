"""Training several small models in one program: members under `vmap`, resumable, with curves.

A *member* is one model in training. Parameters are held with the layers stacked, `[M, L, ...]`, so
that Muon orthogonalises all layers and members of a matrix in a handful of kernels.
"""

import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib
from orbax.checkpoint import v1
from tqdm import tqdm

from jaxsteer.config import LlamaConfig
from jaxsteer.llama import Model, forward, init, xla_attention

Tree = Any  # a pytree of arrays
_MATRIX_AXES = {  # which axes a matrix reduces over and gives, after the layer axis
    "q_proj": (1, (2, 3)),
    "k_proj": (1, (2, 3)),
    "v_proj": (1, (2, 3)),
    "o_proj": ((1, 2), 3),
    "gate_proj": (1, 2),
    "up_proj": (1, 2),
    "down_proj": (1, 2),
}


@dataclass(frozen=True)
class Phase:
    """One training run of all members together."""

    name: str
    steps: int
    rows: int  # documents a member sees in a step
    muon_lr: float  # matrices
    adam_lr: float  # embedding, head, norms
    warmup: int  # steps from 0 to the peak; from there linearly to 0
    steps_per_call: int  # steps between two points of the curve

    def __post_init__(self) -> None:
        if self.steps_per_call < 1 or self.steps % self.steps_per_call:
            raise ValueError(
                f"steps of the phase {self.name}: got {self.steps}, expected a multiple of "
                f"steps_per_call={self.steps_per_call}"
            )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Texts:
    """K corpora of equal size on the device."""

    tokens: jax.Array  # int16 [K, N, T], padded on the right with 0
    first: jax.Array  # int16 [K, N], first token that the loss counts


def stack_layers(params: Tree) -> Tree:
    """Put the layers' arrays, one tree per layer, into one tree of `[L, ...]`."""
    layers = [params["layers"][i] for i in sorted(params["layers"])]
    return params | {"layers": jax.tree.map(lambda *x: jnp.stack(x), *layers)}


def unstack_layers(stacked: Tree) -> Tree:
    """The inverse of `stack_layers`."""
    n_layers = len(jax.tree.leaves(stacked["layers"])[0])
    layers = {i: jax.tree.map(lambda x, i=i: x[i], stacked["layers"]) for i in range(n_layers)}
    return stacked | {"layers": layers}


def initial_members(config: LlamaConfig, seeds: Sequence[int]) -> Tree:
    """Random float32 weights, one member per seed."""
    trees = [stack_layers(init(config, seed=seed).params) for seed in seeds]
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


def nll(
    params: Tree, tokens: jax.Array, first: jax.Array, *, config: LlamaConfig, dtype: Any
) -> jax.Array:
    """Mean cross-entropy in nats of the counted tokens of rows `[B, T]`; `dtype` computes."""
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    tokens = tokens.astype(jnp.int32)
    # The embedding's gradient is a scatter of all tokens into few rows, in `dtype`: slow on GPUs
    # and coarse in bf16. So the rows are laid out in reading order by a matrix product first, and
    # the look-up only counts up.
    one_hot = jax.nn.one_hot(tokens, config.vocab_size, dtype=dtype)
    rows = jnp.einsum("BTV,VD->BTD", one_hot, params["embed"]["embedding"])
    if config.tie_embeddings:
        raise ValueError("tie_embeddings: got True, expected a head of its own")
    inner = unstack_layers(params) | {"embed": {"embedding": rows.reshape(-1, config.d_model)}}
    order = jnp.arange(tokens.size, dtype=jnp.int32).reshape(tokens.shape)
    logits = forward(Model(inner, config, xla_attention), order).logits[:, :-1]
    targets = tokens[:, 1:]
    # Padding on the right needs no attention mask: no real token comes after it.
    counted = (targets != 0) & (jnp.arange(1, tokens.shape[1]) >= first[:, None])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return jnp.sum(losses * counted) / jnp.maximum(jnp.sum(counted), 1)


def optimizer(phase: Phase) -> optax.GradientTransformation:
    """Muon for the layers' matrices, Adam for the rest; both warm up, then fall to zero."""

    def schedule(peak: float) -> optax.Schedule:
        up = optax.linear_schedule(0.0, peak, phase.warmup)
        down = optax.linear_schedule(peak, 0.0, max(phase.steps - phase.warmup, 1))
        return optax.join_schedules([up, down], [phase.warmup])

    def axes(params: Tree) -> Tree:
        def of(path: Any, _: Any) -> contrib.MuonDimensionNumbers | None:
            numbers = _MATRIX_AXES.get(path[-1].key)
            return contrib.MuonDimensionNumbers(*numbers) if numbers else None

        return jax.tree_util.tree_map_with_path(of, params)

    return contrib.muon(
        schedule(phase.muon_lr),
        adam_learning_rate=schedule(phase.adam_lr),
        muon_weight_dimension_numbers=axes,
    )


def evaluate(params: Tree, texts: Texts, *, config: LlamaConfig, dtype: Any) -> np.ndarray:
    """Mean loss of every member on every corpus, `[M, K]`."""

    def member(params: Tree) -> jax.Array:
        def corpus(rows: tuple[jax.Array, jax.Array]) -> jax.Array:
            return nll(params, *rows, config=config, dtype=dtype)

        return jax.lax.map(corpus, (texts.tokens, texts.first))

    return np.asarray(jax.jit(partial(jax.lax.map, member))(params))


def train(
    phase: Phase,
    params: Tree,
    *,
    seeds: Sequence[int],
    which: Sequence[int],
    texts: Texts,
    heldout: Texts,
    config: LlamaConfig,
    dtype: Any,
    folder: Path,
    save_every: float = 60.0,
) -> tuple[Tree, np.ndarray]:
    """Train all members; start again where the last checkpoint in `folder` stands.

    Args:
        phase: how long and how fast.
        params: float32 `[M, ...]`, layers stacked.
        seeds: each member's stream of documents.
        which: each member's corpus, an index into the K of `texts` and `heldout`.
        texts: what to learn from, drawn with replacement.
        heldout: what to measure on at every point of the curve.
        config: the members' shape.
        dtype: dtype of the computation; the weights stay float32.
        folder: checkpoints; the newest is kept.
        save_every: seconds between checkpoints.

    Returns:
        The trained parameters and the curve, float32 `[calls, M, 2]`: training loss (mean over
        the call's steps) and held-out loss.
    """
    calls = phase.steps // phase.steps_per_call
    state = {
        "step": jnp.zeros((), jnp.int32),
        "params": params,
        "opt": jax.vmap(optimizer(phase).init)(params),
        "curve": jnp.zeros((calls, len(seeds), 2), jnp.float32),
    }
    # Committed to the device as a restored one is, so that both run the same compiled program.
    state = jax.device_put(_restore(folder, state), jax.devices()[0])
    call = _program(phase, tuple(seeds), tuple(which), config, dtype)
    saved = time.monotonic()
    done = int(state["step"])
    with tqdm(total=phase.steps, initial=done, desc=phase.name, unit="step") as progress:
        while done < phase.steps:
            state = call(state, texts, heldout)
            done += phase.steps_per_call
            point = np.asarray(state["curve"][done // phase.steps_per_call - 1]).mean(axis=0)
            progress.set_postfix(loss=f"{point[0]:.4f}", heldout=f"{point[1]:.4f}", refresh=False)
            progress.update(phase.steps_per_call)
            if not np.isfinite(point).all():
                raise FloatingPointError(f"{phase.name}: loss {point[0]} at step {done}")
            if done == phase.steps or time.monotonic() - saved >= save_every:
                _save(folder, state, done)
                saved = time.monotonic()
    return state["params"], np.asarray(state["curve"])


@cache  # so that a run of the same shape in one process does not compile again
def _program(
    phase: Phase, seeds: tuple[int, ...], which: tuple[int, ...], config: LlamaConfig, dtype: Any
) -> Callable[[Tree, Texts, Texts], Tree]:
    """The compiled program: `steps_per_call` steps, then one point of the curve."""
    tuner = optimizer(phase)
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    corpus = jnp.asarray(which)
    loss = partial(nll, config=config, dtype=dtype)

    def member_step(
        params: Tree, opt: Tree, key: jax.Array, k: jax.Array, step: jax.Array, texts: Texts
    ) -> tuple[Tree, Tree, jax.Array]:
        n_documents = texts.tokens.shape[1]
        drawn = jax.random.randint(jax.random.fold_in(key, step), (phase.rows,), 0, n_documents)
        value, gradient = jax.value_and_grad(loss)(
            params, texts.tokens[k, drawn], texts.first[k, drawn]
        )
        update, opt = tuner.update(gradient, opt, params)
        return optax.apply_updates(params, update), opt, value

    def call(state: Tree, texts: Texts, heldout: Texts) -> Tree:
        def step(carry: tuple[Tree, Tree], number: jax.Array) -> tuple[tuple[Tree, Tree], Any]:
            every = jax.vmap(member_step, in_axes=(0, 0, 0, 0, None, None))
            params, opt, losses = every(*carry, keys, corpus, number, texts)
            return (params, opt), losses

        numbers = state["step"] + jnp.arange(phase.steps_per_call)
        (params, opt), losses = jax.lax.scan(step, (state["params"], state["opt"]), numbers)
        measured = jax.vmap(lambda p, k: loss(p, heldout.tokens[k], heldout.first[k]))(
            params, corpus
        )
        point = jnp.stack([losses.mean(axis=0), measured], axis=-1)
        return {
            "step": state["step"] + phase.steps_per_call,
            "params": params,
            "opt": opt,
            "curve": state["curve"].at[state["step"] // phase.steps_per_call].set(point),
        }

    return jax.jit(call, donate_argnums=0)


def _save(folder: Path, state: Tree, step: int) -> None:
    """Write a checkpoint, then delete the older ones; Orbax makes it appear whole or not at all."""
    # Optimizer states are trees of classes; their leaves in order are all that has to be kept.
    leaves = {f"{i:04d}": leaf for i, leaf in enumerate(jax.tree.leaves(state))}
    v1.save(folder.absolute() / str(step), leaves, overwrite=True)
    for old in _checkpoints(folder)[:-1]:
        shutil.rmtree(folder / str(old))


def _restore(folder: Path, state: Tree) -> Tree:
    checkpoints = _checkpoints(folder)
    if not checkpoints:
        return state
    leaves, structure = jax.tree.flatten(state)
    abstract = {
        f"{i:04d}": jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
        for i, leaf in enumerate(leaves)
    }
    loaded = v1.load(folder.absolute() / str(checkpoints[-1]), abstract)
    return jax.tree.unflatten(structure, [loaded[name] for name in abstract])


def _checkpoints(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if re.fullmatch(r"\d+", path.name))

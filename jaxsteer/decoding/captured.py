"""Activations of generated tokens, read in the decode step that runs anyway.

    out = generate(model, batch, max_new_tokens=100, capture=Capture(layers=(10,)))
    out.captured.values["resid_post"]      # [L, B, S, D]
    out.captured.positions                 # [B, S]

`CapturePlan` says what is captured. `CaptureBuffers` holds it, in slots that are allocated
beforehand; the tokens of a row that the capture selects fill them in order:

    generated      t0  t1  t2  t3  t4        every = 2, a prompt of 9 tokens
    slot            0       1       2
    position        9      11      13

A token is read when it goes through the model, one step after it was sampled. So the loop makes one
more step, for the last token of each row. The activations are those that a second pass over the
finished text would read with the same steering.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxsteer.config import LlamaConfig
from jaxsteer.llama import Model, TokenBatch
from jaxsteer.steering import (
    Above,
    All,
    At,
    Capture,
    Project,
    Reader,
    RowFacts,
    RowSums,
    Scope,
    check_places,
    generated,
    layers_of,
    site_width,
)

_SLOTS = 8  # slots are rounded up to a multiple of it, so that few shapes are compiled


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CapturePlan:
    """What is captured of every row: a `Capture` that `plan_capture` has checked.

    One plan serves all rows: its arrays have a leading axis of 1.
    """

    scope: Scope
    array: jax.Array | None  # float32 [1, R, D] directions, [1, T, G] weights, or None: raw
    above: Above | None
    kind: type = field(metadata={"static": True})  # All, Project or RowSums
    sites: tuple[str, ...] = field(metadata={"static": True})
    layers: tuple[int, ...] = field(metadata={"static": True})
    every: int = field(metadata={"static": True})
    powers: int = field(metadata={"static": True})  # 2: sums of squares, too
    slots: int = field(metadata={"static": True})  # S, tokens of a row that there is room for
    prompt_slots: int = field(metadata={"static": True})  # those that prompts may take; 0: none


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CaptureBuffers:
    """The activations captured so far; the first axis of every array is the row."""

    # By site: [B, S, L, D] raw, [B, S, L, R] products, [B, L, powers, G, D] sums.
    values: dict[str, jax.Array]
    position: jax.Array  # int32 [B, S], -1 in slots that are free
    count: jax.Array  # int32 [B]: tokens chosen, those past the last slot included
    read: jax.Array  # int32 [B]: generated tokens that have been through the model


@dataclass(frozen=True)
class Captured:
    """Activations of generated tokens, on the host; those of a single row lack the axis B.

    Values are by site: `[L, B, S, D]` raw, `[L, R, B, S]` products with directions, `[L, B, G, D]`
    sums, or `[L, 2, B, G, D]` with sums of squares. S counts the captured tokens, in order; rows
    with fewer tokens are padded with NaN.
    """

    values: Mapping[str, NDArray[Any]]
    positions: NDArray[np.int32]  # [B, S], counted from the row's first token; -1 for none
    count: NDArray[np.int32]  # [B]: tokens chosen, also those for which `most` left no room


def plan_capture(
    capture: Capture, model: Model, batch: TokenBatch, most: np.ndarray
) -> CapturePlan:
    """Check a capture against a model and the prompts, and count the slots that it needs.

    `most` `[B]` is the number of tokens that each row may generate.

    Raises:
        ValueError: naming what does not fit, and what only serves a single pass.
    """
    config = model.config
    if not isinstance(capture, Capture):
        raise ValueError(f"capture: got {type(capture).__name__}, expected a Capture")
    check_places(capture, config)
    layers = layers_of(capture, config)
    scope = generated() if capture.where is None else capture.where
    if not isinstance(scope, Scope):
        raise ValueError(f"capture.where: got {type(scope).__name__}, expected a Scope")
    if (rows := scope.excluded.shape[0]) != 1:
        raise ValueError(f"capture.where: got {rows} rows, expected one for all")
    _check_above(capture, layers, config)
    chosen, of_prompt = _most_chosen(scope, capture.every, np.asarray(batch.lengths), most)
    if of_prompt and capture.above is not None:
        raise ValueError("capture.above: got one with prompt tokens, expected generated ones only")
    slots = _rounded(max(1, chosen)) if capture.most is None else min(capture.most, chosen)
    return CapturePlan(
        scope=scope,
        array=_array(capture, config),
        above=capture.above,
        kind=type(capture.read),
        sites=capture.sites,
        layers=layers,
        every=capture.every,
        powers=2 if getattr(capture.read, "squares", False) else 1,
        slots=max(1, slots),
        prompt_slots=min(_rounded(of_prompt), slots),
    )


def _check_above(capture: Capture, layers: tuple[int, ...], config: LlamaConfig) -> None:
    above = capture.above
    if above is None:
        return
    if above.site not in capture.sites or above.layer not in layers:
        raise ValueError(
            f"capture.above: got {above.site} of layer {above.layer}, expected one that is "
            f"captured: {', '.join(capture.sites)} of {', '.join(map(str, layers))}"
        )
    if (width := above.direction.shape[-1]) != (expected := site_width(above.site, config)):
        raise ValueError(f"capture.above: got width {width}, expected {expected} at {above.site}")


def _array(capture: Capture, config: LlamaConfig) -> jax.Array | None:
    """The reader's directions or weights with an axis of 1 before them."""
    read = capture.read
    if isinstance(read, Project):
        read.check(capture.sites, config)
        return jnp.asarray(read.directions, jnp.float32)[None]
    if isinstance(read, RowSums):
        weights = jnp.atleast_2d(jnp.asarray(read.weights, jnp.float32))
        if weights.ndim != 2 or not weights.size:
            raise ValueError(f"capture.weights: got {weights.shape}, expected [T, G] or [G]")
        return weights[None]
    if isinstance(read, All):
        return None
    other = "where=scope.positions(…)" if isinstance(read, At) else "RowSums"
    raise ValueError(f"capture.read: got {type(read).__name__}, expected {other} in `generate`")


def _most_chosen(
    scope: Scope, every: int, lengths: np.ndarray, most: np.ndarray
) -> tuple[int, int]:
    """The most tokens that the capture may select of any row, and how many of these are prompt."""
    B, longest = len(lengths), int(np.max(lengths + most))
    position = np.broadcast_to(np.arange(longest), (B, longest))
    covered = np.array(scope.may_cover(jnp.asarray(position), jnp.asarray(lengths)))
    covered &= (position - lengths[:, None]) % every == 0
    covered &= position < (lengths + most)[:, None]
    prompt = covered & (position < lengths[:, None])
    return int(covered.sum(axis=1).max()), int(prompt.sum(axis=1).max())


def _rounded(slots: int) -> int:
    return -(-slots // _SLOTS) * _SLOTS


def capture_bytes(plan: CapturePlan | None, model: Model) -> int:
    """Bytes of the buffers of one row."""
    if plan is None:
        return 0
    total = 0
    for site in plan.sites:
        shape, dtype = _shape(plan, site_width(site, model.config), model)
        total += int(np.prod(shape)) * jnp.dtype(dtype).itemsize
    return total + 4 * plan.slots


def _shape(plan: CapturePlan, width: int, model: Model) -> tuple[tuple[int, ...], Any]:
    """Shape of one row's values, and their dtype."""
    L, S = len(plan.layers), plan.slots
    if plan.kind is All:
        return (S, L, width), model.dtype
    assert plan.array is not None
    if plan.kind is Project:
        return (S, L, plan.array.shape[1]), jnp.float32
    return (L, plan.powers, plan.array.shape[2], width), jnp.float32


def empty_buffers(plan: CapturePlan, model: Model, *, rows: int) -> CaptureBuffers:
    """Buffers without activations: NaN, or 0 where there are sums; pure."""
    values = {}
    for site in plan.sites:
        shape, dtype = _shape(plan, site_width(site, model.config), model)
        fill = 0 if plan.kind is RowSums else jnp.nan
        values[site] = jnp.full((rows, *shape), fill, dtype)
    none = jnp.zeros((rows,), jnp.int32)
    return CaptureBuffers(values, jnp.full((rows, plan.slots), -1, jnp.int32), none, none)


def stream_plans(plan: CapturePlan) -> tuple[CapturePlan, CapturePlan]:
    """The plans of a stream, which hands out activations at once: of the prompts, and of a step.

    Raises:
        ValueError: for sums, which a single step does not have.
    """
    if plan.kind is RowSums:
        raise ValueError("capture.read: got RowSums, expected All or Project in a stream")
    return replace(plan, slots=plan.prompt_slots or 1), replace(plan, slots=1)


def step_capture(plan: CapturePlan | None) -> Capture | None:
    """What a decode step reads: raw activations, which `write_step` reduces in one product."""
    return None if plan is None else Capture(plan.sites, plan.layers)


def write_step(
    buffers: CaptureBuffers,
    plan: CapturePlan,
    captured: dict[str, jax.Array],
    length: jax.Array,
    facts: RowFacts,
) -> CaptureBuffers:
    """`buffers` with the token that a step has read, in rows that had not read it before; pure.

    Args:
        buffers: the activations so far.
        plan: the plan.
        captured: `[L, B, 1, D]` by site, as `step_capture` asks for it.
        length: int32 `[B]`, generated tokens before the step sampled another; the step has read the
            last of them.
        facts: those of each row.
    """
    prompt_length, thinking = facts["prompt_length"], facts["thinking"]
    assert prompt_length is not None
    position = prompt_length + length - 1
    chosen = plan.scope.covers(position[:, None], prompt_length, thinking)[:, 0]
    chosen &= (length - 1) % plan.every == 0
    chosen &= buffers.read < length
    if (above := plan.above) is not None:
        x = captured[above.site][plan.layers.index(above.layer), :, 0].astype(jnp.float32)
        along = jnp.matmul(x, above.direction, precision=jax.lax.Precision.HIGHEST)
        chosen &= along > above.threshold
    # Tokens that are not selected are written past the last slot, which drops them. A select would
    # copy all slots at each step.
    slot = jnp.where(chosen, buffers.count, plan.slots)
    row = jnp.arange(len(slot))

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        return old.at[row, slot].set(new.astype(old.dtype), mode="drop", unique_indices=True)

    values = {}
    for site, x in captured.items():
        x = jnp.moveaxis(x[:, :, 0], 0, 1)  # [B, L, D]
        if plan.kind is All:
            values[site] = put(buffers.values[site], x)
        elif plan.kind is Project:
            values[site] = put(buffers.values[site], _products(x, plan))
        else:
            counts = chosen & (buffers.count < plan.slots)
            weight = jnp.where(counts[:, None], _weights(buffers.count, plan), 0.0)
            values[site] = buffers.values[site] + _weighted(x[:, None], weight[:, None], plan)
    return CaptureBuffers(
        values,
        position=put(buffers.position, position),
        count=buffers.count + chosen,
        read=jnp.maximum(buffers.read, length),
    )


@dataclass(frozen=True)
class PromptTokens:
    """Which tokens of the prompts are captured, and where."""

    chosen: jax.Array  # bool [B, T]
    column: jax.Array  # int32 [B, S]: the token of each slot, T for none
    position: jax.Array  # int32 [B, S]: its position, -1 for none


def prompt_tokens(plan: CapturePlan, mask: jax.Array, facts: RowFacts) -> PromptTokens:
    """The prompts' tokens that are captured; `mask` `[B, T]` is True on real ones. Pure."""
    T = mask.shape[1]
    prompt_length = facts["prompt_length"]
    assert prompt_length is not None
    position = jnp.arange(T) - (T - prompt_length[:, None])
    chosen = plan.scope.covers(position, prompt_length, facts["thinking"]) & mask
    chosen &= (position - prompt_length[:, None]) % plan.every == 0
    count = jnp.cumsum(chosen, axis=1)
    wanted = jnp.arange(1, plan.slots + 1)
    column = jax.vmap(lambda row: jnp.searchsorted(row, wanted))(count)
    at = jnp.where(column < T, column - (T - prompt_length[:, None]), -1)
    return PromptTokens(chosen, column.astype(jnp.int32), at.astype(jnp.int32))


def prompt_capture(plan: CapturePlan, tokens: PromptTokens) -> Capture:
    """What the pass over the prompts reads; it is no larger than the buffers."""
    read: Reader
    if plan.kind is All:
        read = At(tokens.position)
    elif plan.kind is Project:
        assert plan.array is not None
        read = Project(plan.array[0])
    else:
        slot = jnp.cumsum(tokens.chosen, axis=1) - 1
        counts = tokens.chosen & (slot < plan.slots)
        weights = jnp.where(counts[..., None], _weights(slot, plan), 0.0)
        read = RowSums(weights, squares=plan.powers == 2)
    return Capture(plan.sites, plan.layers, read)


def write_prompt(
    buffers: CaptureBuffers, plan: CapturePlan, tokens: PromptTokens, captured: dict[str, jax.Array]
) -> CaptureBuffers:
    """`buffers`, which is empty, with the activations that `prompt_capture` has read; pure."""
    values = {}
    for site, x in captured.items():
        if plan.kind is All:  # [L, B, S, D]
            values[site] = jnp.moveaxis(x, 0, 2)
        elif plan.kind is Project:  # [L, R, B, T]
            T = x.shape[-1]
            column = jnp.minimum(tokens.column, T - 1)[None, None]
            x = jnp.take_along_axis(x, column, axis=-1)
            x = jnp.where(tokens.column < T, x, jnp.nan)
            values[site] = jnp.transpose(x, (2, 3, 0, 1))
        else:  # [L, B, G, D], or [L, 2, B, G, D]
            x = x if plan.powers == 2 else x[:, None]
            values[site] = jnp.moveaxis(x, 2, 0)
    count = jnp.sum(tokens.chosen, axis=1, dtype=jnp.int32)
    return replace(buffers, values=values, position=tokens.position, count=count)


def captured_of(buffers: CaptureBuffers, plan: CapturePlan) -> Captured:
    """Activations in a host's copy of buffers: of a batch, or of one row without its axis."""
    used = int(min(np.max(buffers.count), plan.slots))
    values = {}
    for site, x in buffers.values.items():
        if plan.kind is All:
            values[site] = np.moveaxis(np.asarray(x)[..., :used, :, :], -2, 0)
        elif plan.kind is Project:
            values[site] = np.moveaxis(np.asarray(x)[..., :used, :, :], (-2, -1), (0, 1))
        else:
            sums = np.moveaxis(np.asarray(x), (-4, -3), (0, 1))
            values[site] = sums if plan.powers == 2 else sums[:, 0]
    return Captured(values, np.asarray(buffers.position)[..., :used], np.asarray(buffers.count))


def _products(x: jax.Array, plan: CapturePlan) -> jax.Array:
    """`[…, L, R]` of the stream `[…, L, D]`, to float32."""
    assert plan.array is not None
    directions = plan.array[0]  # [R, D]
    if x.dtype != jnp.bfloat16:
        exact = jax.lax.Precision.HIGHEST
        return jnp.einsum("...D,RD->...R", x.astype(jnp.float32), directions, precision=exact)
    # A float32 number is the sum of three bfloat16 numbers, whose products with x are exact. So the
    # stream is read once, in bfloat16, and never converted.
    parts, rest = [], directions
    for _ in range(3):
        part = jax.lax.reduce_precision(rest, exponent_bits=8, mantissa_bits=7)
        parts.append(part.astype(jnp.bfloat16))
        rest = rest - part
    products = jnp.einsum(
        "...D,PRD->...PR", x, jnp.stack(parts), preferred_element_type=jnp.float32
    )
    return jnp.sum(products, axis=-2)


def _weights(slot: jax.Array, plan: CapturePlan) -> jax.Array:
    """The weights `[…, G]` of the tokens in some slots; beyond the last weights, the last."""
    assert plan.array is not None
    return plan.array[0][jnp.clip(slot, 0, plan.array.shape[1] - 1)]


def _weighted(x: jax.Array, weights: jax.Array, plan: CapturePlan) -> jax.Array:
    """Sums `[B, L, powers, G, D]` over T tokens, `x` `[B, T, L, D]` and `weights` `[B, T, G]`."""
    wide = x.astype(jnp.float32)
    powers = jnp.stack([wide**p for p in range(1, plan.powers + 1)], axis=3)
    exact = jax.lax.Precision.HIGHEST
    return jnp.einsum("BTG,BTLPD->BLPGD", weights, powers, precision=exact)

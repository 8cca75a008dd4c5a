"""Hybrids of two models of one shape: parts of one in the place of those of the other.

    names = parts(config)      # embed, layers.0.attn, layers.0.mlp, …, head
    hybrid = graft(base, fine_tuned, ["layers.5.mlp", "head"])

A model is a pytree of arrays and a hybrid takes its leaves from either, so nothing is copied, a
hybrid costs no memory beside the two models, and all of them run in the programs that were
compiled for one.
"""

import math
from collections.abc import Iterable
from typing import Any

from jaxsteer.config import LlamaConfig
from jaxsteer.llama import (
    Model,
    ParamPath,
    axes_of,
    dotted,
    flatten,
    is_packed,
    nest,
    shape_of,
)


def parts(config: LlamaConfig) -> tuple[str, ...]:
    """Names of the parts that a model is made of, from the tokens to the logits.

    `embed` is the embedding (which is the output projection too where they are tied),
    `layers.l.attn` and `layers.l.mlp` are those of a block, each with the norm before it, and
    `head` is the final norm with the output projection. Every weight belongs to exactly one.

    >>> parts(LlamaConfig(vocab_size=8, d_model=4, d_mlp=4, n_layers=1, n_heads=1, n_kv_heads=1,
    ...                   head_dim=4, max_positions=8))
    ('embed', 'layers.0.attn', 'layers.0.mlp', 'head')
    """
    blocks = (f"layers.{i}.{name}" for i in range(config.n_layers) for name in ("attn", "mlp"))
    return ("embed", *blocks, "head")


def part_of(path: ParamPath) -> str:
    """The part that a parameter belongs to, by its path.

    >>> part_of(("layers", 3, "mlp_norm", "scale")), part_of(("lm_head", "kernel"))
    ('layers.3.mlp', 'head')
    """
    if path[0] == "layers":
        return dotted((*path[:2], str(path[2]).removesuffix("_norm")))
    return "embed" if path[0] == "embed" else "head"


def graft(into: Model, source: Model, names: Iterable[str]) -> Model:
    """`into` with the named parts of `source`; the weights are shared with both, not copied.

    Raises:
        ValueError: for an unknown part, or models of different config, packing or dtype.
    """
    names = frozenset(names)
    known = parts(into.config)
    if unknown := sorted(names.difference(known)):
        raise ValueError(
            f"names: got {', '.join(map(repr, unknown))}, expected some of "
            f"{known[0]}, layers.0.attn to layers.{into.config.n_layers - 1}.mlp, {known[-1]}"
        )
    _check_alike(into, source)
    theirs: dict[ParamPath, Any] = dict(flatten(source.params))
    mixed = nest(
        (path, theirs[path] if part_of(path) in names else leaf)
        for path, leaf in flatten(into.params)
    )
    return Model(mixed, into.config, into.attention)


def part_sizes(model: Model) -> dict[str, int]:
    """How many weights each part has."""
    sizes = dict.fromkeys(parts(model.config), 0)
    for path, _ in flatten(model.params):
        sizes[part_of(path)] += math.prod(shape_of(axes_of(path), model.config))
    return sizes


def _check_alike(into: Model, source: Model) -> None:
    if into.config != source.config:
        expected, got = vars(into.config), vars(source.config)
        differing = [
            f"{name} {got[name]} (expected {expected[name]})"
            for name in expected
            if got[name] != expected[name]
        ]
        raise ValueError(f"source: got another config than `into`: {', '.join(differing)}")
    if is_packed(into) != is_packed(source):
        one = "packed" if is_packed(source) else "not packed"
        raise ValueError(
            f"source: got a model that is {one}, expected both packed or neither "
            "(jaxsteer.unpack, or load(…, arranged=False))"
        )
    theirs: dict[ParamPath, Any] = dict(flatten(source.params))
    for path, leaf in flatten(into.params):
        if theirs[path].dtype != leaf.dtype:
            raise ValueError(
                f"source: got {theirs[path].dtype} at {dotted(path)}, expected {leaf.dtype}"
            )

"""Parameters as nested dicts, and as pairs of a path and a leaf."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

ParamPath = tuple[str | int, ...]  # as ("layers", 0, "attn", "q_proj"); layers are numbers


def flatten(params: Mapping[Any, Any], prefix: ParamPath = ()) -> Iterator[tuple[ParamPath, Any]]:
    """Paths and leaves of nested dicts, in the dicts' order.

    >>> list(flatten({"layers": {0: {"scale": 1.0}}}))
    [(('layers', 0, 'scale'), 1.0)]
    """
    for key, value in params.items():
        if isinstance(value, Mapping):
            yield from flatten(value, (*prefix, key))
        else:
            yield (*prefix, key), value


def nest(leaves: Iterable[tuple[ParamPath, Any]]) -> dict[Any, Any]:
    """Nested dicts from paths and leaves; the inverse of `flatten`."""
    tree: dict[Any, Any] = {}
    for path, leaf in leaves:
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return tree


def dotted(path: ParamPath) -> str:
    """A path as people write it.

    >>> dotted(("layers", 0, "attn", "q_proj"))
    'layers.0.attn.q_proj'
    """
    return ".".join(map(str, path))

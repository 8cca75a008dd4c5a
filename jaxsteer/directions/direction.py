"""A direction in the residual stream: a vector `[D]`, where it acts and where it comes from."""

import json
import operator
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxsteer.files import LONGEST_NAME, load_json
from jaxsteer.runtime import wrong
from jaxsteer.steering import SITES, site_index


@dataclass(frozen=True, eq=False)
class Direction:
    """A direction in the residual stream: `vector` `[D]` float32, as it is added at coefficient 1.

    `layer` counts blocks from 0; `site` is one of `SITES`, or TransformerLens' name of it;
    `provenance` says where the direction comes from (models, hashes, offsets, label source,
    counts) in JSON types.
    The vector is copied, made read-only and never normalised. Raises ValueError, with the name,
    for a vector that is not one-dimensional, empty or not finite, and for the other fields.
    """

    vector: NDArray[np.float32]
    layer: int
    site: str
    name: str
    provenance: dict[str, Any]

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name or self.name == "__metadata__":
            raise wrong("name", repr(self.name), "a non-empty text")
        if len(self.name) > LONGEST_NAME:
            raise wrong("name", f"{self.name:.80}…", f"at most {LONGEST_NAME} letters")
        if any("\ud800" <= letter <= "\udfff" for letter in self.name):
            raise wrong("name", repr(self.name), "text that UTF-8 can hold")
        # The copy is float32 from here on, so a value too large for it shows up as infinite.
        try:
            if np.iscomplexobj(self.vector):
                raise TypeError
            with np.errstate(over="ignore"):
                vector = np.array(self.vector, dtype=np.float32)
        except (TypeError, ValueError):
            raise wrong(
                f"direction {self.name!r}", f"{self.vector!r:.80}", "real numbers"
            ) from None
        if vector.ndim != 1 or not vector.size:
            raise wrong(f"direction {self.name!r}", vector.shape, "shape [D]")
        if not np.isfinite(vector).all():
            count = int(np.sum(~np.isfinite(vector)))
            raise ValueError(
                f"direction {self.name!r}: {count} of {vector.size} numbers are NaN or infinite"
            )
        try:
            site = SITES[site_index(self.site)]
        except ValueError as error:
            raise ValueError(f"direction {self.name!r}: {error}") from None
        layer = _as_layer(self.layer, self.name)
        if not isinstance(self.provenance, dict):
            raise ValueError(f"direction {self.name!r}: provenance: got {self.provenance!r:.80}")
        try:
            load_json(json.dumps(self.provenance, allow_nan=False))  # or a file could not be read
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"direction {self.name!r}: provenance: {error}") from None
        vector.flags.writeable = False
        object.__setattr__(self, "vector", vector)
        object.__setattr__(self, "layer", layer)
        object.__setattr__(self, "site", site)

    @property
    def width(self) -> int:
        """D, the width of the model it is for."""
        return self.vector.size

    @property
    def norm(self) -> float:
        """The Euclidean length of the vector."""
        return float(np.linalg.norm(self.vector.astype(np.float64)))


def cosine(a: Direction | ArrayLike, b: Direction | ArrayLike) -> float:
    """Return the cosine of the angle between two directions `[D]`, computed in float64.

    Raises ValueError for different widths and for a vector of zeros, which has no direction.

    >>> cosine([1.0, 0.0], [1.0, 1.0])
    0.7071067811865475
    """
    left, right = (
        np.asarray(x.vector if isinstance(x, Direction) else x, dtype=np.float64) for x in (a, b)
    )
    if left.ndim != 1 or left.shape != right.shape:
        raise wrong("cosine", f"shapes {left.shape} and {right.shape}", "two [D]")
    norms = [np.linalg.norm(left), np.linalg.norm(right)]
    for which, norm, x in zip(("first", "second"), norms, (a, b), strict=True):
        if not norm > 0:
            name = f" {x.name!r}" if isinstance(x, Direction) else ""
            raise ValueError(f"cosine: the {which} vector{name} is zero or not a number")
    return float((left / norms[0]) @ (right / norms[1]))


def as_list(directions: Mapping[str, Direction] | Iterable[Direction]) -> list[Direction]:
    """Return a set of directions as a list: at least one, of one width, each with its own name.

    Raises ValueError otherwise.
    """
    if not isinstance(directions, Iterable):
        raise ValueError(f"directions: got a {type(directions).__name__}, expected several")
    items = list(directions.values() if isinstance(directions, Mapping) else directions)
    if not items:
        raise ValueError("directions: there is none")
    for item in items:
        if not isinstance(item, Direction):
            raise ValueError(f"directions: got a {type(item).__name__}, expected a Direction")
    if isinstance(directions, Mapping):
        for key, item in directions.items():
            if key != item.name:
                raise ValueError(f"directions: got {item.name!r} under {key!r}, expected its name")
    seen = set()
    for item in items:
        check_width(item, items[0].width)
        if item.name in seen:
            raise ValueError(f"directions: the name {item.name!r} is used more than once")
        seen.add(item.name)
    return items


def check_width(direction: Direction, width: int | None) -> None:
    """Raise ValueError when the direction's width is not `width` (None: any will do)."""
    if width is not None and direction.width != width:
        raise wrong(f"direction {direction.name!r}", direction.width, f"width {width}")


def make_direction(path: str | os.PathLike[str], **fields: Any) -> Direction:
    """A direction out of a file, which errors then name."""
    try:
        return Direction(**fields)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _as_layer(layer: Any, name: str) -> int:
    try:
        index = -1 if isinstance(layer, bool) else operator.index(layer)
    except TypeError:
        index = -1
    if index < 0:
        raise wrong(f"direction {name!r}: layer", f"{layer!r:.80}", "0 or more")
    return index

"""Files of directions: safetensors with the whole provenance of each direction in the header.

A file holds a set of named directions. Each is a tensor `[D]` float32; layer, site and provenance
stand as JSON in the safetensors header, so any safetensors reader can open the file and nothing in
it is ever unpickled. GGUF control vectors are in `jaxsteer.gguf`.
"""

import json
import math
import operator
import os
import pickle
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safetensors.numpy import save

from jaxsteer.files import sha256, write_atomic
from jaxsteer.header import load_json, read_header
from jaxsteer.sites import SITES

FORMAT = "jaxsteer.directions"
VERSION = 1

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
_REPLICATION_NAME = re.compile(r"(?P<model>base|reasoning)\.(?:union|offset\.(?P<offset>-?\d+))")


@dataclass(frozen=True, eq=False)
class Direction:
    """A direction in the residual stream: `vector` `[D]` float32, as it is added at coefficient 1.

    `layer` counts blocks from 0; `site` is one of `jaxsteer.sites.SITES`; `provenance` says where
    the direction comes from (models, hashes, offsets, label source, counts) in JSON types.
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
            raise ValueError(f"name: expected a non-empty text, found {self.name!r}")
        # The copy is float32 from here on, so a value too large for it shows up as infinite.
        with np.errstate(over="ignore"):
            vector = np.array(self.vector, dtype=np.float32)
        if vector.ndim != 1 or not vector.size:
            raise ValueError(f"direction {self.name!r}: expected shape [D], found {vector.shape}")
        if not np.isfinite(vector).all():
            count = int(np.sum(~np.isfinite(vector)))
            raise ValueError(
                f"direction {self.name!r}: {count} of {vector.size} numbers are NaN or infinite"
            )
        if self.site not in SITES:
            raise ValueError(
                f"direction {self.name!r}: site: expected one of {', '.join(SITES)}, "
                f"found {self.site!r}"
            )
        layer = _as_layer(self.layer, self.name)
        if not isinstance(self.provenance, dict):
            raise ValueError(f"direction {self.name!r}: provenance: got {self.provenance!r:.80}")
        try:
            json.dumps(self.provenance, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"direction {self.name!r}: provenance: {error}") from None
        vector.flags.writeable = False
        object.__setattr__(self, "vector", vector)
        object.__setattr__(self, "layer", layer)

    @property
    def width(self) -> int:
        """D, the width of the model it is for."""
        return self.vector.size

    @property
    def norm(self) -> float:
        """The Euclidean length of the vector."""
        return float(np.linalg.norm(self.vector.astype(np.float64)))


def save_directions(
    path: str | os.PathLike[str], directions: Mapping[str, Direction] | Iterable[Direction]
) -> None:
    """Write a set of directions to one safetensors file, all or nothing.

    Raises ValueError for an empty set, two directions of one name, or unlike widths.
    """
    items = as_list(directions)
    about = {
        item.name: {"layer": item.layer, "site": item.site, "provenance": item.provenance}
        for item in items
    }
    metadata = {"format": FORMAT, "version": str(VERSION), "directions": json.dumps(about)}
    data = save({item.name: item.vector for item in items}, metadata=metadata)
    write_atomic(path, _ordered(data))


def load_directions(
    path: str | os.PathLike[str], *, width: int | None = None, model: str | None = None
) -> dict[str, Direction]:
    """Read a file that `save_directions` wrote: its directions by name, in the order saved.

    Args:
      path: the file.
      width: the width D that the directions must have, or None for any.
      model: a model's hash, which the provenance must name under `models`, or None for any.

    Raises FileNotFoundError, or ValueError naming the file and the direction.
    """
    tensors, metadata = _read_safetensors(path)
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path}: not a file of directions: the header's format is "
            f"{metadata.get('format')!r}, expected {FORMAT!r}"
        )
    if metadata.get("version") != str(VERSION):
        raise ValueError(
            f"{path}: version {metadata.get('version')!r} of the format; this program reads "
            f"{str(VERSION)!r}"
        )
    about = _json_object(metadata.get("directions", ""), path)
    if set(about) != set(tensors):
        odd = sorted(set(about) ^ set(tensors))
        raise ValueError(f"{path}: {odd[0]!r} has a tensor or a description, not both")
    directions = {}
    for name, fields in about.items():
        if not isinstance(fields, dict) or set(fields) != {"layer", "site", "provenance"}:
            raise ValueError(f"{path}: direction {name!r}: expected layer, site and provenance")
        directions[name] = _direction(path, vector=tensors[name], name=name, **fields)
        check_width(directions[name], width)
        models = directions[name].provenance.get("models")
        if model is not None and not (isinstance(models, dict) and model in models.values()):
            raise ValueError(f"{path}: direction {name!r}: from {models!r}, expected {model!r}")
    return directions


def load_replication(path: str | os.PathLike[str]) -> dict[str, Direction]:
    """Read the replication's `dom_layer10.safetensors`.

    The names are the file's own: `base.union`, `reasoning.offset.-13` and so on, the offset in
    tokens before the sentence, the union being the mean over the window. Layer and site come from
    its header (layer 10, `resid_post`: the output of block 10 counted from 0).
    """
    tensors, metadata = _read_safetensors(path)
    for field in ("layer", "site", "union_offsets"):
        if field not in metadata:
            raise ValueError(f"{path}: the header has no {field!r}; not the replication's file")
    try:
        window = [int(offset) for offset in metadata["union_offsets"].split(",")]
        layer = int(metadata["layer"])
        known = [name for name in ("n_sentences", "n_backtracking") if name in metadata]
        counts: dict[str, Any] = {name: int(metadata[name]) for name in known}
    except ValueError as error:
        raise ValueError(f"{path}: the header's numbers: {error}") from None
    digest = sha256(path)
    directions = {}
    for name in sorted(tensors):
        match = _REPLICATION_NAME.fullmatch(name)
        if match is None:
            raise ValueError(
                f"{path}: tensor {name!r}: expected base or reasoning, then .union or .offset.N"
            )
        offset = match["offset"]
        provenance: dict[str, Any] = {
            "source": "PyTorch replication of arXiv 2507.12638",
            "file": Path(path).name,
            "sha256": digest,
            "model": match["model"],
            "offsets": window if offset is None else [int(offset)],
            **counts,
        }
        directions[name] = _direction(
            path,
            vector=tensors[name],
            layer=layer,
            site=metadata["site"].partition(" ")[0],
            name=name,
            provenance=provenance,
        )
    return directions


def load_pt(
    path: str | os.PathLike[str], *, layer: int | None = None, site: str = "resid_post"
) -> dict[str, Direction]:
    """Read the vectors of a PyTorch `.pt` file, with weights-only loading: no code in it is run.

    The file holds one tensor `[D]`, named after the file, or dictionaries of such tensors, whose
    keys are joined by full stops to a name. Other plain values go to the provenance.

    Args:
      path: the file.
      layer: the layer of the directions. May be left out where each tensor's first key is a
        whole number: then that is its layer.
      site: where in the block they belong.

    Raises ModuleNotFoundError when PyTorch is not installed (nothing else in jaxsteer needs it).
    """
    try:
        import torch
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"{path}: reading .pt files needs PyTorch, which is not installed (pip install torch); "
            "or save the vectors as safetensors"
        ) from None
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: not a file of tensors alone: {reason}") from None
    leaves = dict(_leaves(content, ()))
    tensors = {keys: leaf for keys, leaf in leaves.items() if isinstance(leaf, torch.Tensor)}
    if not tensors:
        raise ValueError(f"{path}: no tensor in it")
    other = {".".join(map(str, keys)): str(v) for keys, v in leaves.items() if keys not in tensors}
    provenance: dict[str, Any] = {
        "source": "PyTorch file",
        "file": Path(path).name,
        "sha256": sha256(path),
    }
    if other:
        provenance["values"] = other
    directions = {}
    for keys, tensor in tensors.items():
        name = ".".join(map(str, keys)) or Path(path).stem
        own = keys[0] if keys and isinstance(keys[0], int) else layer
        if own is None:
            raise ValueError(f"{path}: direction {name!r}: give its layer, the file does not say")
        directions[name] = _direction(
            path,
            vector=tensor.to(torch.float32).numpy(),
            layer=own,
            site=site,
            name=name,
            provenance=provenance,
        )
    return directions


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
        raise ValueError(f"cosine: expected two [D], found shapes {left.shape} and {right.shape}")
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
    items = list(directions.values() if isinstance(directions, Mapping) else directions)
    if not items:
        raise ValueError("directions: there is none")
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
        raise ValueError(
            f"direction {direction.name!r}: expected width {width}, found {direction.width}"
        )


def _direction(path: str | os.PathLike[str], **fields: Any) -> Direction:
    try:
        return Direction(**fields)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _as_layer(layer: Any, name: str) -> int:
    try:
        index = operator.index(layer)
    except TypeError:
        index = -1
    if index < 0:
        raise ValueError(f"direction {name!r}: layer: expected 0 or more, found {layer!r}")
    return index


def _ordered(data: bytes) -> bytes:
    """The same file with its metadata in order: the library writes it in a random one.

    Equal directions then make equal files, and a stage made from them is not made again.
    """
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format wants the tensors to start at a multiple of 8
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def _read_safetensors(
    path: str | os.PathLike[str],
) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    header = read_header(path)
    tensors = {}
    for name, entry in header.entries.items():
        if entry.dtype not in _DTYPES:
            raise ValueError(f"{path}: {name!r}: got {entry.dtype}, expected {', '.join(_DTYPES)}")
        count = math.prod(entry.shape)
        x = np.fromfile(path, _DTYPES[entry.dtype], count, offset=entry.begin)
        tensors[name] = x.reshape(entry.shape)
    return tensors, header.metadata


def _json_object(text: str, path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        found = load_json(text)
    except ValueError as error:
        raise ValueError(f"{path}: the header's directions: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: the header's directions: expected an object by name")
    return found


def _leaves(content: Any, keys: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from _leaves(value, (*keys, key))
    else:
        yield keys, content

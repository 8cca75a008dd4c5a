"""Files of directions: safetensors with the whole provenance of each direction in the header.

A file holds a set of named directions. Each is a tensor `[D]` float32; layer, site and provenance
stand as JSON in the safetensors header, so any safetensors reader can open the file and nothing in
it is ever unpickled. Files that other programs wrote are read by `directions.foreign_files`, GGUF
control vectors by `jaxsteer.directions.gguf`.
"""

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from jaxsteer.directions.direction import Direction, as_list, check_width, make_direction
from jaxsteer.directions.gguf import load_gguf
from jaxsteer.files import (
    is_gguf,
    load_json,
    open_regular,
    read_header,
    read_tensors,
    tensor_bytes,
    write_atomic,
)

FORMAT = "jaxsteer.directions"
VERSION = 1


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
    write_atomic(path, tensor_bytes({item.name: item.vector for item in items}, metadata))


def load_directions(
    path: str | os.PathLike[str], *, width: int | None = None, model: str | None = None
) -> dict[str, Direction]:
    """Read a file that `save_directions` wrote, or a GGUF control vector (see `load_gguf`).

    Args:
      path: the file.
      width: the width D that the directions must have, or None for any.
      model: a model's hash, which the provenance must name under `models`, or None for any.

    Returns the directions by name, in the order saved.

    Raises FileNotFoundError, or ValueError naming the file and the direction.
    """
    directions = load_gguf(path) if is_gguf(path) else _read(path)
    for direction in directions.values():
        try:
            check_width(direction, width)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        models = direction.provenance.get("models")
        if model is not None and not (isinstance(models, dict) and model in models.values()):
            raise ValueError(
                f"{path}: direction {direction.name!r}: from {models!r:.80}, expected {model!r}"
            )
    return directions


def _read(path: str | os.PathLike[str]) -> dict[str, Direction]:
    with open_regular(path) as file:
        if file.read(2) == b"PK":
            raise ValueError(f"{path}: a PyTorch file, expected safetensors or GGUF: use load_pt")
    metadata = read_header(path).metadata  # before gigabytes of somebody's weights are read
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path}: not a file of directions: the header's format is "
            f"{metadata.get('format')!r:.80}, expected {FORMAT!r}"
        )
    if metadata.get("version") != str(VERSION):
        raise ValueError(
            f"{path}: version {metadata.get('version')!r:.80} of the format; this program reads "
            f"{str(VERSION)!r}"
        )
    tensors, _ = read_tensors(path)
    about = _json_object(metadata.get("directions", ""), path)
    if set(about) != set(tensors):
        odd = sorted(set(about) ^ set(tensors))
        raise ValueError(f"{path}: {odd[0]!r} has a tensor or a description, not both")
    directions = {}
    for name, fields in about.items():
        if not isinstance(fields, dict) or set(fields) != {"layer", "site", "provenance"}:
            raise ValueError(f"{path}: direction {name!r}: expected layer, site and provenance")
        directions[name] = make_direction(path, vector=tensors[name], name=name, **fields)
    return directions


def _json_object(text: str, path: str | os.PathLike[str]) -> dict[str, Any]:
    value = load_json(text, f"{path}: the header's directions")
    if not isinstance(value, dict):
        raise ValueError(f"{path}: the header's directions: expected an object by name")
    return value

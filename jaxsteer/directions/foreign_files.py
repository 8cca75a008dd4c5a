"""Directions out of files that other programs wrote: PyTorch's, and the replication's."""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from jaxsteer.directions.direction import Direction, make_direction
from jaxsteer.directions.torch_file import joined, read_torch
from jaxsteer.files import check_regular, read_header, read_tensors, sha256

_REPLICATION_NAME = re.compile(
    r"(?P<model>base|reasoning)\.(?:union|offset\.(?P<offset>-?[0-9]{1,9}))"
)


def load_replication(path: str | os.PathLike[str]) -> dict[str, Direction]:
    """Read the replication's `dom_layer10.safetensors`.

    The names are the file's own: `base.union`, `reasoning.offset.-13` and so on, the offset in
    tokens before the sentence, the union being the mean over the window. Layer and site come from
    its header (layer 10, `resid_post`: the output of block 10 counted from 0).
    """
    check_regular(path)
    metadata = read_header(path).metadata
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
    tensors, _ = read_tensors(path)
    directions = {}
    for name in sorted(tensors):
        match = _REPLICATION_NAME.fullmatch(name)
        if match is None:
            raise ValueError(
                f"{path}: tensor {name!r:.80}: expected base or reasoning, then .union or .offset.N"
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
        directions[name] = make_direction(
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
    """Read the vectors of a PyTorch `.pt` file; needs no PyTorch, and runs no code of the file.

    The file holds one tensor `[D]`, named after the file, or dictionaries of such tensors, whose
    keys are joined by full stops to a name. Other plain values go to the provenance.

    Args:
      path: the file, as `torch.save` has written them since PyTorch 1.6.
      layer: the layer of the directions. May be left out where each tensor's first key is a
        whole number: then that is its layer.
      site: where in the block they belong.

    Raises FileNotFoundError, or ValueError naming the file and what is wrong with it.
    """
    leaves = read_torch(path)
    tensors = {keys: leaf for keys, leaf in leaves.items() if isinstance(leaf, np.ndarray)}
    if not tensors:
        raise ValueError(f"{path}: no tensor in it")
    other = {joined(keys): str(v) for keys, v in leaves.items() if keys not in tensors}
    provenance: dict[str, Any] = {
        "source": "PyTorch file",
        "file": Path(path).name,
        "sha256": sha256(path),
    }
    if other:
        provenance["values"] = other
    directions = {}
    for keys, tensor in tensors.items():
        name = joined(keys) or Path(path).stem
        own = keys[0] if keys and isinstance(keys[0], int) else layer
        if own is None:
            raise ValueError(f"{path}: direction {name!r}: give its layer, the file does not say")
        if name in directions:
            raise ValueError(f"{path}: two tensors would have the name {name!r}")
        directions[name] = make_direction(
            path,
            vector=tensor,
            layer=own,
            site=site,
            name=name,
            provenance=provenance,
        )
    return directions

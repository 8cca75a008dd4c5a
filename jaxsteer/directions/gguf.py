"""GGUF control vectors, as llama.cpp, repeng and EasySteer use them, in and out.

How they count: a file holds tensors `direction.N`, and direction N is added to the residual stream
at the output of block N, counted from 0 (llama.cpp's `build_cvec(cur, il)` after the last addition
of block `il`; repeng and EasySteer hook the same place). So `direction.N` is
`layer=N, site="resid_post"` here. EasySteer's files begin with `direction.0`, for the first block.
llama.cpp refuses such a file, and cannot steer the output of block 0.
A word of warning: `llama-cvector-generator` names what it measured at the output of block l
`direction.{l + 1}`, one block later. The file does not tell who wrote it; it is read as llama.cpp
would apply it.

llama.cpp reads float32 tensors of one dimension, one file at a strength that the user gives, and
ignores all metadata; ours keeps names and provenance in a field of its own.

Files are read by `read_gguf_header`, whose bounds hold: the reader of the package `gguf` (0.19)
goes on for ever in a file of 200 bytes that speaks of 2⁶⁰ numbers.
"""

import json
import os
import re
import struct
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxsteer.directions.direction import Direction, as_list, make_direction
from jaxsteer.files import (
    GgufHeader,
    as_path,
    check_regular,
    load_json,
    read_gguf_header,
    sha256,
    write_atomic,
)

ARCHITECTURE = "controlvector"
SITE = "resid_post"

_OURS = "jaxsteer.directions"
_TENSOR = re.compile(r"direction\.(0|[1-9][0-9]{0,8})")
_ALIGNMENT = 32
_UINT32, _STRING = 4, 8
_F32 = 0


def save_gguf(
    path: str | os.PathLike[str],
    directions: Mapping[str, Direction] | Iterable[Direction],
    *,
    model_hint: str = "llama",
) -> None:
    """Write directions as a GGUF control vector, all or nothing: one direction for a layer.

    Args:
      path: the file.
      directions: at the output of blocks 1 and up (`resid_post`), each of another layer. Their
        lengths are kept: llama.cpp's strength is then our coefficient.
      model_hint: llama.cpp's name of the model's architecture. It is not checked by anyone.

    Raises ValueError, with the name, for what the format cannot hold.
    """
    items = sorted(as_list(directions), key=lambda item: item.layer)
    for before, item in zip([None, *items], items, strict=False):
        if item.site != SITE:
            raise ValueError(
                f"direction {item.name!r}: site {item.site!r}; control vectors act at {SITE!r}"
            )
        if item.layer == 0:
            raise ValueError(f"direction {item.name!r}: llama.cpp cannot steer layer 0")
        if before is not None and before.layer == item.layer:
            raise ValueError(
                f"direction {item.name!r}: layer {item.layer} already has {before.name!r}; a "
                "control vector holds one direction for a layer"
            )
    about = {str(i.layer): {"name": i.name, "provenance": i.provenance} for i in items}
    pairs: list[tuple[str, str | int]] = [
        ("general.architecture", ARCHITECTURE),
        (f"{ARCHITECTURE}.model_hint", model_hint),
        (f"{ARCHITECTURE}.layer_count", len(items)),
        (_OURS, json.dumps(about)),
    ]
    head = [b"GGUF", struct.pack("<IQQ", 3, len(items), len(pairs))]
    head += [_string(key) + _value(value) for key, value in pairs]
    body = b""
    for item in items:
        head.append(_string(f"direction.{item.layer}"))
        head.append(struct.pack("<IQIQ", 1, item.width, _F32, len(body)))
        # The last tensor is padded too: llama.cpp reads the whole multiple.
        body += _padded(item.vector.astype("<f4").tobytes())
    write_atomic(path, _padded(b"".join(head)) + body)


def load_gguf(path: str | os.PathLike[str]) -> dict[str, Direction]:
    """Read a GGUF control vector: its directions by name, in the order of their layers.

    A direction that jaxsteer wrote has its name and provenance again; another's is named
    `direction.N` after its tensor. A warning says it where there is a `direction.0`.

    Raises FileNotFoundError, or ValueError for a file that is damaged, is not a control vector, or
    holds other tensors.
    """
    path = as_path(path)
    check_regular(path)
    header = read_gguf_header(path)
    pairs = header.pairs
    if pairs.get("general.architecture") != ARCHITECTURE:
        got = f"{pairs.get('general.architecture')!r:.80}"
        raise ValueError(f"{path}: architecture {got}, expected {ARCHITECTURE!r}")
    about = _ours(pairs, path)
    source = {
        "source": "GGUF control vector",
        "file": Path(path).name,
        "sha256": sha256(path),
        "model_hint": pairs.get(f"{ARCHITECTURE}.model_hint"),
    }
    if "direction.0" in header.tensors:
        source["layers"] = "direction.0 is the output of the first block, as EasySteer counts"
        warnings.warn(f"{path}: {source['layers']}; llama.cpp refuses such a file", stacklevel=2)
    directions = []
    for name, vector in _vectors(path, header).items():
        layer = int(name.removeprefix("direction."))
        own = about.get(str(layer), {})
        directions.append(
            make_direction(
                path,
                vector=vector,
                layer=layer,
                site=SITE,
                name=own.get("name", name),
                provenance=own.get("provenance", source),
            )
        )
    try:
        items = as_list(sorted(directions, key=lambda item: item.layer))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return {item.name: item for item in items}


def _vectors(path: str | os.PathLike[str], header: GgufHeader) -> dict[str, NDArray[np.float32]]:
    """The numbers of every tensor, which lie in the file one behind the other."""
    vectors = {}
    end = 0
    for name, tensor in sorted(header.tensors.items(), key=lambda item: item[1].begin):
        where = f"{path}: tensor {name!r:.80}"
        if not _TENSOR.fullmatch(name):
            raise ValueError(f"{where}: expected direction.N")
        if len(tensor.shape) != 1:
            raise ValueError(f"{where} has {len(tensor.shape)} dimensions, expected 1")
        if tensor.kind != _F32:
            raise ValueError(f"{where} is of GGML type {tensor.kind}, expected {_F32} (float32)")
        if tensor.begin < end:
            raise ValueError(f"{where} overlaps the one before it")
        end = tensor.begin + 4 * tensor.shape[0]
        if end > header.size:
            raise ValueError(f"{where} ends {end - header.size} bytes after the file")
        vectors[name] = np.fromfile(path, "<f4", tensor.shape[0], offset=tensor.begin)
    return vectors


def _ours(pairs: Mapping[str, Any], path: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """Return names and provenance by layer where jaxsteer wrote the file, else nothing."""
    about = load_json(str(pairs.get(_OURS, "{}")), f"{path}: {_OURS}")
    if not isinstance(about, dict) or not all(isinstance(item, dict) for item in about.values()):
        raise ValueError(f"{path}: {_OURS}: expected an object by layer")
    return about


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: str | int) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    return struct.pack("<II", _UINT32, value)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % _ALIGNMENT)

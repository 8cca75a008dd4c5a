"""GGUF control vectors, as llama.cpp and repeng use them, in and out; needs no package.

How llama.cpp counts: a file holds tensors `direction.N`, and direction N is added to the residual
stream at the output of block N, counted from 0 (`build_cvec(cur, il)` after the last addition of
block `il`; repeng hooks the same place). So `direction.N` is `layer=N, site="resid_post"` here.
There is no `direction.0`: the loader refuses it, and the output of block 0 cannot be steered.
A word of warning: `llama-cvector-generator` names what it measured at the output of block l
`direction.{l + 1}`, one block later. The file does not tell who wrote it; it is read as llama.cpp
would apply it.

llama.cpp reads float32 tensors of one dimension, one file at a strength that the user gives, and
ignores all metadata; ours keeps names and provenance in a field of its own.

The format (version 3, little-endian): magic, version, counts, key-value pairs, tensor descriptions,
then the tensors' numbers, each padded to a multiple of 32 bytes.
"""

import json
import os
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxsteer.directions.direction_files import Direction, as_list, make_direction
from jaxsteer.files import as_path, load_json, sha256, write_atomic

ARCHITECTURE = "controlvector"
SITE = "resid_post"

_OURS = "jaxsteer.directions"
_TENSOR = re.compile(r"direction\.([1-9][0-9]{0,8})")
_ALIGNMENT = 32
_UINT32, _STRING, _ARRAY = 4, 8, 9
_SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
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
    `direction.N` after its tensor. Raises ValueError for a file that is damaged, is not a control
    vector, or holds what llama.cpp would refuse.
    """
    if not as_path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        pairs, tensors = _read(as_path(path).read_bytes())
        about = _ours(pairs)
    except (struct.error, ValueError) as error:  # ValueError: also text that is not UTF-8 or JSON
        raise ValueError(f"{path}: not a readable GGUF file: {error}") from None
    if pairs.get("general.architecture") != ARCHITECTURE:
        raise ValueError(
            f"{path}: architecture {pairs.get('general.architecture')!r}, expected {ARCHITECTURE!r}"
        )
    source = {
        "source": "GGUF control vector",
        "file": Path(path).name,
        "sha256": sha256(path),
        "model_hint": pairs.get(f"{ARCHITECTURE}.model_hint"),
    }
    found = []
    for tensor, vector in tensors.items():
        named = _TENSOR.fullmatch(tensor)
        if not named:
            raise ValueError(f"{path}: tensor {tensor!r:.80}: expected direction.N with N from 1")
        own = about.get(named[1], {})
        found.append(
            make_direction(
                path,
                vector=vector,
                layer=int(named[1]),
                site=SITE,
                name=own.get("name", tensor),
                provenance=own.get("provenance", source),
            )
        )
    try:
        items = as_list(sorted(found, key=lambda item: item.layer))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return {item.name: item for item in items}


def _ours(pairs: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return names and provenance by layer where jaxsteer wrote the file, else nothing."""
    about = load_json(str(pairs.get(_OURS, "{}")))
    if not isinstance(about, dict) or not all(isinstance(item, dict) for item in about.values()):
        raise ValueError(f"{_OURS}: expected an object by layer")
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


def _read(data: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the key-value pairs and the tensors of a GGUF file."""
    if data[:4] != b"GGUF":
        raise ValueError("it does not start with GGUF")
    version, n_tensors, n_pairs = struct.unpack_from("<IQQ", data, 4)
    if version not in (2, 3):
        raise ValueError(f"version {version}, expected 2 or 3, little-endian")
    at = 24
    pairs: dict[str, Any] = {}
    for _ in range(n_pairs):
        key, at = _read_string(data, at)
        (kind,) = struct.unpack_from("<I", data, at)
        pairs[key], at = _read_value(data, at + 4, kind)
    places = {}
    for _ in range(n_tensors):
        name, at = _read_string(data, at)
        (rank,) = struct.unpack_from("<I", data, at)
        if rank != 1:
            raise ValueError(f"tensor {name!r} has {rank} dimensions, expected 1")
        width, kind, offset = struct.unpack_from("<QIQ", data, at + 4)
        at += 24
        if kind != _F32:
            raise ValueError(f"tensor {name!r} is of GGML type {kind}, expected {_F32} (float32)")
        if name in places:
            raise ValueError(f"tensor {name!r} is there twice")
        places[name] = (width, offset)
    alignment = pairs.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"general.alignment: {alignment!r}")
    start = at + -at % alignment
    tensors = {}
    for name, (width, offset) in places.items():
        begin, end = start + offset, start + offset + 4 * width
        if end > len(data):
            raise ValueError(f"tensor {name!r} ends {end - len(data)} bytes after the file")
        tensors[name] = np.frombuffer(data[begin:end], dtype="<f4").astype(np.float32)
    return pairs, tensors


def _read_string(data: bytes, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", data, at)
    end = at + 8 + length
    if end > len(data):
        raise ValueError("a text ends after the file")
    return data[at + 8 : end].decode(), end


def _read_value(data: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind == _STRING:
        return _read_string(data, at)
    if kind == _ARRAY:
        item, count = struct.unpack_from("<IQ", data, at)
        if item == _ARRAY:  # llama.cpp reads none either, and a chain of them would not end
            raise ValueError("an array of arrays")
        at, values = at + 12, []
        for _ in range(count):
            value, at = _read_value(data, at, item)
            values.append(value)
        return values, at
    if kind not in _SCALARS:
        raise ValueError(f"a value of unknown type {kind}")
    (value,) = struct.unpack_from("<" + _SCALARS[kind], data, at)
    return value, at + struct.calcsize("<" + _SCALARS[kind])

"""Safetensors files of numpy arrays: equal content makes equal bytes, and reading checks all of it.

Nothing in such a file is ever unpickled.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from jaxsteer.files.atomic import as_path
from jaxsteer.files.safetensors_header import read_header

FLOATS = ("F64", "F32", "F16")
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": jnp.bfloat16, "I32": "<i4"}


def tensor_bytes(tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> bytes:
    """The file with these tensors and this metadata.

    The library writes metadata in a random order; here it is sorted. Equal directions then make
    equal files, and a stage made from them is not made again.
    """
    # The library writes an array's memory as it lies there, whatever the strides say.
    lying = {name: np.ascontiguousarray(x) for name, x in tensors.items()}
    data = save(lying, metadata=dict(metadata))
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format wants the tensors to start at a multiple of 8
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def read_tensors(
    path: str | os.PathLike[str], *, dtypes: Sequence[str] = FLOATS
) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """The tensors of a file by name, and its metadata.

    Raises FileNotFoundError, or ValueError for a file that is damaged or holds other dtypes (of
    F64, F32, F16, BF16 and I32) than are allowed.
    """
    if not as_path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    header = read_header(path)
    tensors = {}
    for name, entry in header.entries.items():
        if entry.dtype not in dtypes:
            raise ValueError(f"{path}: {name!r}: got {entry.dtype}, expected {', '.join(dtypes)}")
        count = math.prod(entry.shape)
        x = np.fromfile(as_path(path), np.dtype(_DTYPES[entry.dtype]), count, offset=entry.begin)
        tensors[name] = x.reshape(entry.shape)
    return tensors, header.metadata

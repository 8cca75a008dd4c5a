"""The header of a safetensors file, read strictly: what is in the file, and where.

    8 bytes   length n of the header, little-endian
    n bytes   JSON: {name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {…}}
    the rest  the tensors, one behind the other, without gaps

Other readers accept a name that occurs twice and keep one of the two tensors. Here the file is
refused unless every byte after the header belongs to exactly one tensor.
"""

import math
import os
from dataclasses import dataclass
from typing import Any

from jaxsteer.files.atomic import open_regular
from jaxsteer.files.untrusted import load_json

# Bytes of one number, by safetensors' names. Its formats of 4 and 6 bits are not read here.
BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
LARGEST = 100_000_000  # bytes of a header; a real one has about 100 a tensor
LONGEST_NAME = 1_000  # letters of a tensor's name
_MOST_AXES = 32
_FIELDS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: what it is, and where its bytes begin and end in the file."""

    dtype: str  # safetensors' name, as "BF16"
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """All tensors of a file by name, and the texts that came with them."""

    entries: dict[str, Entry]
    metadata: dict[str, str]


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read and check the header of a file; no tensor is read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: naming the file and what is wrong with it.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        # A length that lies must not make us read, or ask for, that much memory.
        text = file.read(length) if length <= min(size - 8, LARGEST) else b""
    try:
        return parse_header(length, text, size)
    except ValueError as error:
        raise ValueError(
            f"{path}: damaged or cut short ({size:,} bytes): {error}; fetch or copy it again"
        ) from None


def parse_header(length: int, text: bytes, size: int) -> Header:
    """Check a header: its announced length, its bytes, and the size of the whole file.

    >>> text = b'{"v": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'
    >>> parse_header(len(text), text, 8 + len(text) + 8).entries["v"].shape
    (2,)
    """
    if size < 8:
        raise ValueError("no room for a header")
    if length > size - 8:
        raise ValueError(f"the header says that it has {length:,} bytes, longer than the file")
    if length > LARGEST:
        raise ValueError(f"the header has {length:,} bytes, expected at most {LARGEST:,}")
    data = load_json(text)
    if not text.startswith(b"{"):
        raise ValueError("the header is no object by tensor")
    metadata = data.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("__metadata__: expected texts by name")
    start = 8 + length
    entries = {name: _entry(name, about, start) for name, about in data.items()}
    _check_layout(entries, start, size)
    return Header(entries, metadata)


def _entry(name: str, about: Any, start: int) -> Entry:
    if len(name) > LONGEST_NAME:
        raise ValueError(f"tensor {name!r:.80}…: a name of more than {LONGEST_NAME:,} letters")
    if not isinstance(about, dict) or about.keys() != _FIELDS:
        raise ValueError(f"tensor {name!r}: expected dtype, shape and data_offsets")
    dtype, shape, offsets = about["dtype"], about["shape"], about["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BYTES:
        raise ValueError(f"tensor {name!r}: dtype: got {dtype!r:.80}, expected {', '.join(BYTES)}")
    for field, value in (("shape", shape), ("data_offsets", offsets)):
        if not isinstance(value, list) or not all(_is_size(n) for n in value):
            raise ValueError(f"tensor {name!r}: {field}: got {value!r:.80}, expected whole numbers")
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"tensor {name!r}: data_offsets: got {offsets!r:.80}, expected begin, end")
    if len(shape) > _MOST_AXES:
        raise ValueError(f"tensor {name!r}: shape: got {len(shape)} axes, at most {_MOST_AXES}")
    if 0 in shape and math.prod(n for n in shape if n) >= 2**60:  # numpy refuses that, too
        raise ValueError(f"tensor {name!r}: shape: got {shape!r:.80}, larger than any array")
    needed = math.prod(shape) * BYTES[dtype]
    if needed != offsets[1] - offsets[0]:
        raise ValueError(
            f"tensor {name!r}: {dtype} {shape!r:.80} takes {needed:,} bytes, but the header gives "
            f"it {offsets[1] - offsets[0]:,}"
        )
    return Entry(dtype, tuple(shape), start + offsets[0], start + offsets[1])


def _is_size(n: Any) -> bool:
    return type(n) is int and 0 <= n < 2**63  # True is an int, too


def _check_layout(entries: dict[str, Entry], start: int, size: int) -> None:
    """Tensors must fill the file from the header to its end, without gap or overlap."""
    at = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != at:
            what = "overlaps the one before it" if entry.begin < at else "leaves a gap before it"
            raise ValueError(f"tensor {name!r} {what}")
        at = entry.end
    if at != size:
        raise ValueError(f"the tensors end at byte {at:,} and the file at {size:,}")

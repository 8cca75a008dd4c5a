"""The header of a GGUF file, read strictly: what it says, and where its tensors lie.

    "GGUF", version 3, number of tensors, number of pairs
    pairs     name, type, value
    tensors   name, sizes (the innermost axis first), type, offset of its bytes
    the rest  the tensors, each at a multiple of `general.alignment` (32)

All numbers are little-endian. A length that lies is refused before that much is read.
"""

import os
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

from jaxsteer.files.atomic import open_regular

_ALIGNMENT = 32
_STRING, _ARRAY = 8, 9
_SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_MOST_AXES = 4  # GGML's
_LARGEST = 1 << 26  # bytes of a header; a vocabulary of 256,000 takes some ten million


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of a file; `kind` is GGML's number of its type."""

    shape: tuple[int, ...]  # the outermost axis first, as in numpy
    kind: int
    begin: int  # its first byte in the file


@dataclass(frozen=True)
class GgufHeader:
    """The pairs and tensors of a file by name."""

    pairs: dict[str, Any]
    tensors: dict[str, GgufTensor]
    size: int  # of the file, in bytes


def is_gguf(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as GGUF files do."""
    with open_regular(path) as file:
        return file.read(4) == b"GGUF"


def read_gguf_header(path: str | os.PathLike[str]) -> GgufHeader:
    """Read and check the header of a file; no tensor is read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: naming the file and what is wrong with it.
    """
    with open_regular(path) as file:
        try:
            return _Reader(file).header()
        except (ValueError, struct.error) as error:  # ValueError: also text that is not UTF-8
            raise ValueError(f"{path}: damaged or no GGUF file: {error}") from None


class _Reader:
    """Takes one value after the other from a file, and never more than it has."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.size = os.fstat(file.fileno()).st_size
        self.at = 0

    def header(self) -> GgufHeader:
        if self.size < 4 or self.take(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        version, n_tensors, n_pairs = self.unpack("<IQQ")
        if version not in (2, 3):
            raise ValueError(f"version {version}, expected 2 or 3, little-endian")
        pairs = self.distinct(n_pairs, self.value)
        described = self.distinct(n_tensors, self.tensor)
        alignment = pairs.get("general.alignment", _ALIGNMENT)
        if type(alignment) is not int or alignment < 1:
            raise ValueError(f"general.alignment: got {alignment!r:.80}, expected a whole number")
        start = self.at + -self.at % alignment
        tensors = {
            name: GgufTensor(shape, kind, start + offset)
            for name, (shape, kind, offset) in described.items()
        }
        return GgufHeader(pairs, tensors, self.size)

    def distinct(self, count: int, read: Any) -> dict[str, Any]:
        """So many names with what `read` reads behind each."""
        self.check_count(count, 12)
        values: dict[str, Any] = {}
        for _ in range(count):
            name = self.text()
            if name in values:
                raise ValueError(f"{name!r:.80} is there twice")
            values[name] = read()
        return values

    def value(self, kind: int | None = None) -> Any:
        if kind is None:
            (kind,) = self.unpack("<I")
        if kind == _STRING:
            return self.text()
        if kind in _SCALARS:
            return self.unpack("<" + _SCALARS[kind])[0]
        if kind != _ARRAY:
            raise ValueError(f"a value of unknown type {kind}")
        item, count = self.unpack("<IQ")
        if item == _STRING:
            self.check_count(count, 8)
            return [self.text() for _ in range(count)]
        if item not in _SCALARS:  # llama.cpp reads no arrays of arrays either
            raise ValueError(f"an array of type {item}")
        letter = "<" + _SCALARS[item]
        self.check_count(count, struct.calcsize(letter))
        return list(self.unpack(f"<{count}{letter[1]}"))

    def tensor(self) -> tuple[tuple[int, ...], int, int]:
        (axes,) = self.unpack("<I")
        if not 1 <= axes <= _MOST_AXES:
            raise ValueError(f"a tensor of {axes} axes, expected 1 to {_MOST_AXES}")
        sizes = self.unpack(f"<{axes}Q")
        kind, offset = self.unpack("<IQ")
        return tuple(reversed(sizes)), kind, offset

    def text(self) -> str:
        (length,) = self.unpack("<Q")
        return self.take(length).decode()

    def unpack(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(form, self.take(struct.calcsize(form)))

    def check_count(self, count: int, least_bytes: int) -> None:
        """A count that lies must not make us loop, or ask for, that much."""
        if count * least_bytes > self.size - self.at:
            raise ValueError(f"it says that it holds {count:,} values, more than it has room for")

    def take(self, count: int) -> bytes:
        if count > _LARGEST - self.at:
            raise ValueError(f"the header has more than {_LARGEST:,} bytes")
        if count > self.size - self.at:
            raise ValueError(f"the file ends after {self.size:,} bytes, within its header")
        self.at += count
        return self.file.read(count)

"""A Hugging Face model folder on disk: opened from headers alone, read tensor by tensor."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (numpy knows bfloat16 only when it is there)
import numpy as np

from jaxsteer.config import LlamaConfig, unknown_fields
from jaxsteer.files import (
    Entry,
    as_path,
    check_regular,
    inside,
    is_plain_name,
    read_header,
    read_json_object,
)
from jaxsteer.huggingface import tensor_names as hf
from jaxsteer.huggingface.unusable_weights import check_pointers, why_no_weights
from jaxsteer.tokenizers import TOKENIZERS

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# What is carried along beside the weights, byte for byte: AutoTokenizer reads these.
GENERATION = "generation_config.json"
CONFIGS = ("config.json", GENERATION)
COMPANIONS = (
    *CONFIGS,
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
# safetensors' names of dtypes; others are shown as they are.
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_ROWS_COMPARED = 8192


@dataclass(frozen=True)
class Folder:
    """A folder whose headers were read and fit its config; no tensor was read yet."""

    path: Path
    config: LlamaConfig
    config_json: dict[str, Any]
    shards: tuple[Path, ...]
    headers: dict[str, hf.Header]  # by Hugging Face name
    entries: dict[str, Entry]
    file_of: dict[str, Path]
    companions: tuple[Path, ...]  # tokenizer, chat template and configs that are there

    @property
    def unknown_fields(self) -> dict[str, Any]:
        """Fields of `config.json` whose effect is not known."""
        return unknown_fields(self.config_json)

    @property
    def dtypes(self) -> dict[str, int]:
        """How many tensors of the model have each dtype."""
        count = Counter(self.headers[name].dtype for name in hf.tensors(self.config))
        return dict(sorted(count.items()))

    @property
    def has_tokenizer(self) -> bool:
        """Whether there is a tokenizer's vocabulary."""
        return any(file.name in TOKENIZERS for file in self.companions)

    def check_tied(self) -> None:
        """Raise `ValueError` if a tied model has a head that is not its embedding."""
        if not (self.config.tie_embeddings and hf.HEAD in self.headers):
            return
        for start in range(0, self.config.vocab_size, _ROWS_COMPARED):
            stop = min(start + _ROWS_COMPARED, self.config.vocab_size)
            pair = (self.read_rows(name, start, stop) for name in (hf.HEAD, hf.EMBEDDING))
            try:
                hf.check_tied(*pair)
            except ValueError as error:
                raise ValueError(f"{self.path}: {error}") from None

    def in_file_order(self) -> list[hf.Tensor]:
        """The model's tensors as they stand in the files, shard by shard."""
        return sorted(
            hf.tensors(self.config).values(),
            key=lambda t: (self.file_of[t.name], self.entries[t.name].begin),
        )

    def read(self, name: str) -> np.ndarray:
        """One tensor, in Hugging Face's layout."""
        return self.read_rows(name, 0, (*self.headers[name].shape, 1)[0])

    def read_rows_into(self, out: np.ndarray, name: str, start: int) -> bool:
        """Read rows from `start` on into a contiguous array; False if it has another dtype."""
        if out.dtype.name != self.headers[name].dtype:
            return False
        entry = self.entries[name]
        row_bytes = (entry.end - entry.begin) // self.headers[name].shape[0]
        read_into(
            out.reshape(-1).view(np.uint8), self.file_of[name], entry.begin + start * row_bytes
        )
        return True

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop` of a tensor, along its first axis."""
        header, entry, file = self.headers[name], self.entries[name], self.file_of[name]
        rows = (*header.shape, 1)[0]
        row_bytes = (entry.end - entry.begin) // max(rows, 1)
        shape = (stop - start, *header.shape[1:]) if header.shape else ()
        x = read_bytes(file, entry.begin + start * row_bytes, (stop - start) * row_bytes)
        if header.dtype not in hf.FLOATS:  # an ignored tensor; its bytes can still be compared
            return x
        return x.view(header.dtype).reshape(shape)


def open_folder(path: str | Path, *, strict: bool = False) -> Folder:
    """Open a folder with `config.json` and safetensors, sharded or not.

    Unknown fields of `config.json` are named in a warning, or refused if `strict`.

    Raises:
        FileNotFoundError: the folder, its config, its weights or a shard is missing.
        ValueError: the config asks for what is not implemented, weights are pickled, a file
            is damaged or lies outside the folder, or tensors do not fit the config (all named).
    """
    path = as_path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such folder")
    if not path.is_dir():
        raise ValueError(f"{path}: got a file, expected a folder with config.json and safetensors")
    check_pointers(*(path / name for name in COMPANIONS), *path.glob("*.safetensors"))
    if not (path / "config.json").exists() and (path / "adapter_config.json").exists():
        raise why_no_weights(path, single=SINGLE, index=INDEX)
    config_json = read_json_object(_member(path, "config.json"))
    try:
        config = LlamaConfig.from_hf(config_json, strict=strict)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    shards, index = _find_shards(path)
    entries, file_of = _read_headers(path, shards, index, config)
    headers = {
        name: hf.Header(entry.shape, _DTYPES.get(entry.dtype, entry.dtype))
        for name, entry in entries.items()
    }
    try:
        hf.check(headers, config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    companions = tuple(_member(path, name) for name in COMPANIONS if (path / name).exists())
    return Folder(path, config, config_json, shards, headers, entries, file_of, companions)


def _member(folder: Path, name: str) -> Path:
    """A file of the folder, by a name that may come from a stranger's index.

    Links are followed, because blobs may be on other disks. In a clone of a repository (with
    `.git`) links are untrusted, too, and must stay inside.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: its name leads out of the folder, or it is no regular file.
    """
    if not is_plain_name(name):
        raise ValueError(f"{name!r:.200}: leads out of the folder, or is no name of a file")
    if (folder / ".git").exists():
        return inside(folder, name)
    check_regular(folder / name)
    return folder / name


def _find_shards(folder: Path) -> tuple[tuple[Path, ...], dict[str, str] | None]:
    """The weight files, and which tensor the index says is where (None without an index)."""
    if (folder / SINGLE).exists():  # transformers, too, looks for this one first
        return (_member(folder, SINGLE),), None
    if (folder / INDEX).exists():
        index = read_json_object(_member(folder, INDEX)).get("weight_map")
        names = index.values() if isinstance(index, dict) else ()
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{folder / INDEX}: expected weight_map, a name of a file per tensor")
        return _listed(folder, sorted(set(names))), index
    raise why_no_weights(folder, single=SINGLE, index=INDEX)


def _listed(folder: Path, names: Iterable[str]) -> tuple[Path, ...]:
    """The files that the index lists; all missing ones are named at once."""
    shards, missing = [], []
    for name in names:
        try:
            shards.append(_member(folder, name))
        except FileNotFoundError:
            missing.append(name)
        except ValueError as error:
            raise ValueError(f"{folder / INDEX}: {error}") from None
    if missing:
        raise FileNotFoundError(f"{folder}: {INDEX} lists missing files: {', '.join(missing)}")
    return tuple(shards)


def _read_headers(
    folder: Path,
    shards: tuple[Path, ...],
    index: dict[str, str] | None,
    config: LlamaConfig,
) -> tuple[dict[str, Entry], dict[str, Path]]:
    """Place, shape and dtype of all tensors, and the file of each.

    Index and files must agree on the tensors of the model. Of those that it has no place for, such
    as the head of a tied model, either may be silent.
    """
    entries: dict[str, Entry] = {}
    file_of: dict[str, Path] = {}
    problems = []
    names = {shard: shard.relative_to(folder).as_posix() for shard in shards}
    for shard in shards:
        for name, entry in read_header(shard).entries.items():
            if name in entries:
                problems.append(f"{name}: in {names[file_of[name]]} and in {names[shard]}")
            entries[name], file_of[name] = entry, shard
    if index is not None:
        problems += [
            f"{name}: {INDEX} says it is in {where}, where it is not"
            for name, where in index.items()
            if file_of.get(name) != folder / where and not hf.ignorable(name, config)
        ]
        problems += [
            f"{name}: not in {INDEX}"
            for name in file_of
            if name not in index and not hf.ignorable(name, config)
        ]
    if problems:
        raise ValueError(f"{folder}: the shards do not fit together:\n  " + "\n  ".join(problems))
    return entries, file_of


def read_bytes(file: Path, begin: int, count: int) -> np.ndarray:
    """So many bytes of a file, as uint8."""
    data = np.empty(count, np.uint8)
    read_into(data, file, begin)
    return data


def read_into(data: np.ndarray, file: Path, begin: int) -> None:
    """Fill an array of bytes from a file.

    Read, not mapped: the pages of a mapping would count as memory of this process.
    """
    with open(file, "rb", buffering=0) as opened:
        opened.seek(begin)
        if not _fill(opened, memoryview(data.data)):
            raise ValueError(f"{file}: became shorter while it was read")


def _fill(file: RawIOBase, buffer: memoryview) -> bool:
    """Read until the buffer is full; False if the file ends before. One call reads 2 GB at most."""
    while buffer:
        count = file.readinto(buffer)
        if not count:
            return False
        buffer = buffer[count:]
    return True


def n_bytes(config: LlamaConfig, dtype: str) -> int:
    """Size of the parameters in `dtype`."""
    count = sum(math.prod(t.shape) for t in hf.tensors(config).values())
    return count * np.dtype(dtype).itemsize

"""A Hugging Face model folder on disk: opened from headers alone, read tensor by tensor."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (safetensors reads bfloat16 into numpy only when it is there)
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxsteer.config import LlamaConfig
from weights import hf

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# What is carried along beside the weights, byte for byte: AutoTokenizer reads these.
CONFIGS = ("config.json", "generation_config.json")
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


@dataclass(frozen=True)
class Folder:
    """A folder whose headers were read and fit its config; no tensor was read yet."""

    path: Path
    config: LlamaConfig
    config_json: dict[str, Any]
    shards: tuple[Path, ...]
    headers: dict[str, hf.Header]  # by Hugging Face name
    file_of: dict[str, Path]
    companions: tuple[Path, ...]  # tokenizer, chat template and configs that are there

    @property
    def dtypes(self) -> dict[str, int]:
        """How many tensors of the model have each dtype."""
        found = [self.headers[name].dtype for name in hf.tensors(self.config)]
        return {dtype: found.count(dtype) for dtype in sorted(set(found))}

    def read(self, name: str) -> np.ndarray:
        """One tensor, in Hugging Face's layout."""
        # Opened for each tensor: a mapping that stays open counts its pages as ours for good.
        with safe_open(self.file_of[name], "np") as file:
            return file.get_tensor(name)


def open_folder(path: str | Path) -> Folder:
    """Open a folder with `config.json` and safetensors, sharded or not.

    Raises:
        FileNotFoundError: the folder, its config, its weights or a shard is missing.
        ValueError: the config asks for what is not implemented, weights are pickled, a file
            is damaged or lies outside the folder, or tensors do not fit the config (all named).
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such folder")
    if not path.is_dir():
        raise ValueError(f"{path}: got a file, expected a folder with config.json and safetensors")
    config_json = read_json(member(path, "config.json"))
    try:
        config = LlamaConfig.from_hf(config_json)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    shards, index = _find_shards(path)
    headers, file_of = _read_headers(shards, index)
    try:
        hf.check(headers, config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    companions = tuple(member(path, name) for name in COMPANIONS if (path / name).exists())
    return Folder(path, config, config_json, shards, headers, file_of, companions)


def member(folder: Path, name: str) -> Path:
    """A file of the folder, by its name.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it lies outside the folder, by its name or through a link. (Links from a
            snapshot of the Hugging Face cache to the blobs of the same model are inside.)
    """
    path = folder / name
    home = folder.resolve()
    roots = [home]
    if home.parent.name == "snapshots":
        roots.append(home.parent.parent / "blobs")
    if not any(path.resolve().is_relative_to(root) for root in roots):
        raise ValueError(f"{path}: leads out of the folder, to {path.resolve()}; expected a file")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; `ValueError` names the file when it is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path}: got a {type(data).__name__}, expected a JSON object")
    return data


def _find_shards(folder: Path) -> tuple[tuple[Path, ...], dict[str, str] | None]:
    """The weight files, and which tensor the index says is where (None without an index)."""
    if (folder / SINGLE).exists():  # transformers, too, looks for this one first
        return (member(folder, SINGLE),), None
    if (folder / INDEX).exists():
        index = read_json(member(folder, INDEX)).get("weight_map")
        if not isinstance(index, dict) or not index:
            raise ValueError(f"{folder / INDEX}: expected weight_map, a name of a file per tensor")
        return _listed(folder, sorted({str(name) for name in index.values()})), index
    pickles = sorted(p.name for pattern in PICKLES for p in folder.glob(pattern))
    if pickles:
        raise ValueError(
            f"{folder}: only pickled weights ({', '.join(pickles)}), and a pickle can run code "
            "when it is read. If you trust them, rewrite them as safetensors:\n  "
            'python -c "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; '
            f"[X.from_pretrained('{folder}').save_pretrained('NEW') for X in (M, T)]\""
        )
    raise FileNotFoundError(f"{folder}: no weights, expected {SINGLE} or {INDEX}")


def _listed(folder: Path, names: Iterable[str]) -> tuple[Path, ...]:
    """The files that the index lists; all missing ones are named at once."""
    found, missing = [], []
    for name in names:
        try:
            found.append(member(folder, name))
        except FileNotFoundError:
            missing.append(name)
        except ValueError as error:
            raise ValueError(f"{folder / INDEX}: {error}") from None
    if missing:
        raise FileNotFoundError(f"{folder}: {INDEX} lists missing files: {', '.join(missing)}")
    return tuple(found)


def _read_headers(
    shards: tuple[Path, ...], index: dict[str, str] | None
) -> tuple[dict[str, hf.Header], dict[str, Path]]:
    """Shapes and dtypes of all tensors, and the file of each; index and files must agree."""
    headers: dict[str, hf.Header] = {}
    file_of: dict[str, Path] = {}
    problems = []
    for shard in shards:
        for name, header in _read_header(shard).items():
            if name in headers:
                problems.append(f"{name}: in {file_of[name].name} and in {shard.name}")
            headers[name], file_of[name] = header, shard
    if index is not None:
        problems += [
            f"{name}: {INDEX} says it is in {where}, where it is not"
            for name, where in index.items()
            if name not in file_of or file_of[name].name != Path(where).name
        ]
        problems += [f"{n}: not in {INDEX}" for n in file_of if n not in index]
    if problems:
        raise ValueError("the shards do not fit together:\n  " + "\n  ".join(problems))
    return headers, file_of


def _read_header(file: Path) -> dict[str, hf.Header]:
    """What one safetensors file holds; the library checks offsets and sizes against the file."""
    try:
        with safe_open(file, "np") as opened:
            parts = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            return {
                name: hf.Header(
                    tuple(part.get_shape()), _DTYPES.get(part.get_dtype(), part.get_dtype())
                )
                for name, part in parts.items()
            }
    except SafetensorError as error:
        size = file.stat().st_size
        raise ValueError(
            f"{file}: damaged or cut short ({size:,} bytes): {error}; fetch or copy it again"
        ) from None


def n_bytes(config: LlamaConfig, dtype: str) -> int:
    """Size of the parameters in `dtype`."""
    count = sum(math.prod(t.shape) for t in hf.tensors(config).values())
    return count * np.dtype(dtype).itemsize

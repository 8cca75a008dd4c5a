"""Export a checkpoint of jaxsteer to a Hugging Face folder, which transformers loads.

    python -m weights.export SRC DST

Convert and export give back every tensor byte for byte, unless the conversion changed the dtype.
"""

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file
from tqdm import tqdm

from jaxsteer.checkpoints import checkpoint
from jaxsteer.files import as_path, check_free, new_directory, read_json_object, write_atomic
from jaxsteer.huggingface import INDEX, SINGLE, n_bytes
from jaxsteer.huggingface import tensor_names as hf
from jaxsteer.runtime import guarded

CONFIG = "config.json"


def export(
    src: str | Path,
    dst: str | Path,
    *,
    overwrite: bool = False,
    shard_bytes: int = 5_000_000_000,
    progress: bool = False,
) -> None:
    """Write the checkpoint `src` as a Hugging Face folder `dst`.

    Args:
        src: directory that `weights.convert` or `jaxsteer.save` wrote.
        dst: folder to write; it must not exist.
        overwrite: replace a Hugging Face folder that is at `dst`.
        shard_bytes: begin another file rather than let one grow beyond this.
        progress: show a progress bar.

    Raises:
        FileNotFoundError, ValueError: `src` cannot be read; see `jaxsteer.load`.
        FileExistsError: `dst` exists, or another process is writing it.
    """
    check_free(dst, marker=CONFIG, overwrite=overwrite)
    manifest = checkpoint.read_manifest(src)
    total = n_bytes(manifest.config, manifest.dtype)
    with (
        new_directory(dst, marker=CONFIG, overwrite=overwrite) as folder,
        tqdm(total=total, unit="B", unit_scale=True, disable=not progress) as bar,
    ):
        where: dict[str, int] = {}
        for number, shard in enumerate(_shards(as_path(src), manifest, shard_bytes), start=1):
            _save(shard, folder / _part(number))
            where |= dict.fromkeys(shard, number)
            bar.update(sum(x.nbytes for x in shard.values()))
        _name_shards(folder, where, total)
        for file in checkpoint.companions(src):
            shutil.copyfile(file, folder / file.name)
        _write_config(folder / CONFIG, manifest)


def _save(shard: dict[str, np.ndarray], file: Path) -> None:
    try:
        save_file(shard, file, metadata={"format": "pt"})
    except SafetensorError as error:  # a full disk, among others
        raise OSError(f"{file.parent}: cannot be written: {error}") from None


def _shards(
    src: Path, manifest: checkpoint.Manifest, shard_bytes: int
) -> Iterator[dict[str, np.ndarray]]:
    by_path = {t.path: t for t in hf.tensors(manifest.config).values()}
    shard: dict[str, np.ndarray] = {}
    for path, x in checkpoint.read_leaves(src):
        if shard and sum(y.nbytes for y in shard.values()) + x.nbytes > shard_bytes:
            yield shard
            shard = {}
        shard[by_path[path].name] = np.ascontiguousarray(by_path[path].to_hf(x))
    yield shard


def _name_shards(folder: Path, where: dict[str, int], total: int) -> None:
    """Give the files the names that transformers looks for, now that their count is known."""
    count = max(where.values())
    if count == 1:
        (folder / _part(1)).rename(folder / SINGLE)
        return
    names = {n: f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)}
    for number, name in names.items():
        (folder / _part(number)).rename(folder / name)
    index = {
        "metadata": {"total_size": total},
        "weight_map": {tensor: names[number] for tensor, number in sorted(where.items())},
    }
    write_atomic(folder / INDEX, _json(index))


def _part(number: int) -> str:
    return f"part-{number}.safetensors"


def _write_config(file: Path, manifest: checkpoint.Manifest) -> None:
    """The config as it came, if one came, with the dtype that the weights have now."""
    config = read_json_object(file) if file.is_file() else manifest.config.to_hf()
    key = "torch_dtype" if "torch_dtype" in config else "dtype"
    if config.get(key) != manifest.dtype:
        write_atomic(file, _json({**config, key: manifest.dtype}))


def _json(data: dict[str, Any]) -> bytes:
    return (json.dumps(data, indent=2) + "\n").encode()


@guarded("export")
def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m weights.export", description="jaxsteer checkpoint to Hugging Face folder."
    )
    parser.add_argument("src", help="directory that weights.convert wrote")
    parser.add_argument("dst", help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace a folder at dst")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    export(args.src, args.dst, overwrite=args.overwrite, progress=True)
    print(json.dumps({"folder": args.dst}, indent=1) if args.json else f"{args.dst}: written")
    return 0

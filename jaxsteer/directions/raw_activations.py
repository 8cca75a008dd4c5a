"""Raw activations at chosen sites, layers and positions, in files of several texts each.

    save_activations("acts", model, texts, positions, layers=(10,), rows_per_shard=64)
    for shard in read_activations("acts"):
        shard.activations["resid_post"]            [len(layers), N, D]
        shard.ids[shard.row[n]], shard.position[n]      what the n-th of them is of

A shard is a safetensors file in the stream's dtype, with everything else as JSON in its header. It
is written whole or not at all, and a shard that exists is not computed again.
"""

import functools
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from jaxsteer.files import as_path, load_json, read_header, read_tensors, tensor_bytes, write_atomic
from jaxsteer.llama import Model, TokenBatch, bucket, check_batch, forward, left_pad, spread_rows
from jaxsteer.runtime import hosts, wrong
from jaxsteer.steering import SITES, Capture, check_capture, site_index
from jaxsteer.sweeps import tree_fingerprint, weights_fingerprint

FORMAT = "jaxsteer.activations"
VERSION = 1
_DTYPES = ("F32", "BF16", "F16", "I32")


@dataclass(frozen=True, eq=False)
class Shard:
    """The activations of some texts: N of them, at one site each `[len(layers), N, D]`."""

    ids: tuple[str, ...]  # of the texts
    row: NDArray[np.int32]  # [N], which of them
    position: NDArray[np.int32]  # [N], which token, from 0
    activations: dict[str, NDArray[Any]]  # by site
    layers: tuple[int, ...]  # blocks from 0, in the order of the first axis
    provenance: dict[str, Any]


def save_activations(
    folder: str | os.PathLike[str],
    model: Model,
    texts: Mapping[str, Sequence[int]],
    positions: Mapping[str, Sequence[int]],
    *,
    sites: Sequence[str] = ("resid_post",),
    layers: Sequence[int] | None = None,
    rows_per_shard: int = 64,
    provenance: Mapping[str, Any] | None = None,
    progress: str | None = None,
) -> list[Path]:
    """Write the activations of texts at some of their tokens; returns the files in order.

    Args:
        folder: where to write; shards of an earlier call with the same arguments are kept.
        model: on one device or on a mesh.
        texts: token ids by name.
        positions: for each text, the tokens whose activations are kept, from 0.
        sites: where in the block.
        layers: blocks from 0; all if not given.
        rows_per_shard: texts of a shard, which run in one pass.
        provenance: further facts for the header of every shard, as JSON: the model's hash, say.
        progress: name of a progress bar.

    Raises:
        ValueError: for texts without positions, positions outside their text, or a folder that
            holds activations of other texts, weights, sites, layers or provenance.
    """
    sites = tuple(SITES[site_index(site)] for site in sites)
    layers = tuple(range(model.config.n_layers) if layers is None else layers)
    check_capture(Capture(sites=sites, layers=layers), model.config)
    _check(texts, positions, rows_per_shard)
    names = list(texts)
    count = math.ceil(len(names) / rows_per_shard)
    length = bucket(max(map(len, texts.values())))
    width = bucket(max(len(positions[name]) for name in names), step=16)
    weights = weights_fingerprint(model)
    files = []
    for index in tqdm(range(count), progress, unit="shard", disable=progress is None):
        some = names[index * rows_per_shard : (index + 1) * rows_per_shard]
        file = as_path(folder) / f"activations-{index:05d}-of-{count:05d}.safetensors"
        about = {
            "ids": some,
            "positions": [list(map(int, positions[name])) for name in some],
            "sites": list(sites),
            "layers": list(layers),
            "provenance": dict(provenance or {}),
            "weights": weights,
            "texts": tree_fingerprint([np.asarray(texts[name]) for name in some]),
        }
        metadata = {"format": FORMAT, "version": str(VERSION), "about": json.dumps(about)}
        files.append(file)
        if hosts.from_writer(functools.partial(_is_there, file, metadata)):
            continue
        batch, at = _batch(texts, positions, some, (rows_per_shard, length, width))
        check_batch(batch, model.config)
        placed = spread_rows((batch, jnp.asarray(at)), model)
        activations = hosts.gather(_read(model, *placed, sites=sites, layers=layers))
        kept = at >= 0
        row, _ = np.nonzero(kept)
        tensors = {site: x[:, kept] for site, x in activations.items()}
        tensors |= {"row": row.astype(np.int32), "position": at[kept]}
        if hosts.is_writer():
            write_atomic(file, tensor_bytes(tensors, metadata))
    return files


def load_shard(path: str | os.PathLike[str]) -> Shard:
    """Read one file; raises FileNotFoundError, or ValueError for a file of something else."""
    tensors, metadata = read_tensors(path, dtypes=_DTYPES)
    if (metadata.get("format"), metadata.get("version")) != (FORMAT, str(VERSION)):
        raise ValueError(
            f"{path}: got format {metadata.get('format')!r}, version {metadata.get('version')!r}, "
            f"expected {FORMAT!r}, version {VERSION}"
        )
    about = load_json(metadata["about"])
    return Shard(
        ids=tuple(about["ids"]),
        row=tensors["row"],
        position=tensors["position"],
        activations={site: tensors[site] for site in about["sites"]},
        layers=tuple(about["layers"]),
        provenance=about["provenance"],
    )


def read_activations(folder: str | os.PathLike[str]) -> Iterator[Shard]:
    """The shards of a folder in order, each read when it is asked for.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if some are missing, or are of more than one set.
    """
    files = sorted(as_path(folder).glob("activations-*-of-*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder}: no activations in it")
    count = int(files[0].stem.rpartition("-")[2])
    expected = [f"activations-{i:05d}-of-{count:05d}.safetensors" for i in range(count)]
    if [file.name for file in files] != expected:
        odd = sorted({file.name for file in files} ^ set(expected))
        raise ValueError(f"{folder}: expected {count} files, {odd[0]} is missing or one too many")
    return map(load_shard, files)


@functools.partial(jax.jit, static_argnames=("sites", "layers"))
def _read(
    model: Model,
    batch: TokenBatch,
    positions: jax.Array,
    *,
    sites: tuple[str, ...],
    layers: tuple[int, ...],
) -> dict[str, jax.Array]:
    capture = Capture(sites=sites, layers=layers, positions=positions)
    return forward(model, batch.tokens, mask=batch.mask, capture=capture).captured


def _check(
    texts: Mapping[str, Sequence[int]],
    positions: Mapping[str, Sequence[int]],
    rows_per_shard: int,
) -> None:
    if not texts or rows_per_shard < 1:
        raise ValueError(f"got {len(texts)} texts, {rows_per_shard} a shard: expected at least one")
    if set(texts) != set(positions):
        odd = sorted(set(texts) ^ set(positions))
        raise wrong(repr(odd[0]), "one of the two", "a text and its positions")
    for name, at in positions.items():
        if not len(at) or min(at) < 0 or max(at) >= len(texts[name]):
            raise ValueError(
                f"positions[{name!r}]: got {list(at)[:8]}, expected at least one of 0 to "
                f"{len(texts[name]) - 1}"
            )


def _is_there(file: Path, metadata: dict[str, str]) -> bool:
    """Whether the shard has been written."""
    others = {f.name.rpartition("-")[2] for f in file.parent.glob("activations-*-of-*")}
    if others - {file.name.rpartition("-")[2]}:
        raise ValueError(f"{file.parent}: holds another number of shards")
    if not file.is_file():
        return False
    if read_header(file).metadata != metadata:
        raise ValueError(f"{file}: holds other activations: remove it, or choose another folder")
    return True


def _batch(
    texts: Mapping[str, Sequence[int]],
    positions: Mapping[str, Sequence[int]],
    names: Sequence[str],
    shape: tuple[int, int, int],
) -> tuple[TokenBatch, NDArray[np.int32]]:
    """Tokens and positions of a shard, filled up with rows of one token that are not read."""
    rows, length, width = shape
    fill: list[Sequence[int]] = [[0]] * (rows - len(names))
    at = np.full((rows, width), -1, np.int32)
    for i, name in enumerate(names):
        at[i, : len(positions[name])] = positions[name]
    return left_pad([*(texts[name] for name in names), *fill], length=length), at

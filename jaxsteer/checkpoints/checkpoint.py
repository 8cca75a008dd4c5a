"""Models on disk: an Orbax checkpoint with the config, the tokenizer and its provenance inside.

DIR/jaxsteer.json   format, config, dtype, provenance; size and CRC-32 of every other file
DIR/params/         the weights, an Orbax checkpoint of the tree that `Model.params` is
DIR/huggingface/    tokenizer files and Hugging Face configs, byte for byte as they came
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1

from jaxsteer.checkpoints.writer import Leaves, write_params
from jaxsteer.config import LlamaConfig
from jaxsteer.files import (
    MOST_BYTES,
    absolute,
    as_path,
    check_files,
    check_while,
    checksums,
    inside,
    is_plain_name,
    is_remote,
    load_json,
    new_directory,
    read_whole,
    without_wildcards,
    write_atomic,
)
from jaxsteer.huggingface import COMPANIONS
from jaxsteer.llama import (
    Model,
    ParamPath,
    abstract_params,
    dotted,
    flatten,
    from_params,
    nest,
    params_sharding,
    shard_model,
    unpack_layer,
    without_padding,
)
from jaxsteer.runtime import hosts, timed
from jaxsteer.tokenizers import TOKENIZERS
from jaxsteer.tokenizers import load_tokenizer as read_tokenizer

MANIFEST = "jaxsteer.json"
FORMAT = 1
DTYPES = ("float32", "bfloat16")
SOURCE = "source_sha256"  # in the provenance: hashes of the files that were converted
_PARAMS = "params"
_HUGGINGFACE = "huggingface"

PathLike = str | Path


@dataclass(frozen=True)
class Manifest:
    """What `jaxsteer.json` says about a checkpoint."""

    config: LlamaConfig
    dtype: str
    provenance: dict[str, Any]
    files: dict[str, list[int]]  # by name in the directory: size in bytes, CRC-32

    def to_json(self) -> bytes:
        """The file's content."""
        data = {
            "format": FORMAT,
            "config": self.config.to_dict(),
            "dtype": self.dtype,
            "provenance": self.provenance,
            "files": self.files,
        }
        return (json.dumps(data, indent=1, sort_keys=True) + "\n").encode()


def save(
    path: PathLike,
    model: Model,
    *,
    files: Iterable[PathLike] = (),
    provenance: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a model to a new directory, which appears when it is complete.

    Args:
        path: the directory.
        model: the model; a packed one is written as the separate one it was made of.
        files: tokenizer files and Hugging Face configs to carry along, by their usual names.
        provenance: where the weights came from, JSON-ready; `source_sha256` is for conversions.
        overwrite: replace a checkpoint that is already there.

    Raises:
        FileExistsError: `path` exists (without `overwrite`, or it is no checkpoint).
        ValueError: on many hosts, where one process alone may write, for an object store, or for
            other files.
    """
    if provenance and SOURCE in provenance:
        raise ValueError(
            f"provenance: got {SOURCE}, which says that the weights are those of a source as it "
            "is: leave it out, or give it another name"
        )
    write(
        path,
        model.config,
        _separate(without_padding(model).params),
        dtype=model.dtype.name,
        files=files,
        provenance=provenance,
        overwrite=overwrite,
    )


def write(
    path: PathLike,
    config: LlamaConfig,
    leaves: Leaves,
    *,
    dtype: str,
    files: Iterable[PathLike] = (),
    provenance: Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None = None,
    overwrite: bool = False,
) -> None:
    """`save` for weights that come one at a time and are never all in memory.

    `provenance` may be a function, which is called when the weights are written.

    Raises:
        ValueError: naming the first leaf that the config has no place for, of another shape or
            dtype, or all that did not come.
        FileExistsError, ValueError: as `save`.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype: got {dtype}, expected {' or '.join(DTYPES)}")
    if is_remote(path):
        raise ValueError(
            f"{path}: got an object store, expected a local directory: it appears whole, and can "
            "be copied to the store then (gcloud storage cp --recursive)"
        )
    if hosts.several():  # Orbax would wait for all of them to write the same
        raise ValueError(
            f"{path}: checkpoints are written by one process that works alone: convert models "
            "(jaxsteer convert SRC DST) before many hosts load them"
        )
    carried = [as_path(file) for file in files]
    if other := [file.name for file in carried if file.name not in COMPANIONS]:
        raise ValueError(f"files: got {', '.join(other)}, expected some of {', '.join(COMPANIONS)}")
    with new_directory(path, marker=MANIFEST, overwrite=overwrite) as folder:
        with without_wildcards(folder) as plain:
            write_params(plain / _PARAMS, _checked(leaves, config, dtype))
        (folder / _HUGGINGFACE).mkdir()
        for file in carried:
            shutil.copyfile(file, folder / _HUGGINGFACE / file.name)
        about = provenance() if callable(provenance) else provenance
        with timed("checkpoint/checksums"):
            files_there = checksums(folder)
        manifest = Manifest(config, dtype, dict(about or {}), files_there)
        write_atomic(folder / MANIFEST, manifest.to_json())


def load(
    path: PathLike,
    *,
    dtype: Any = None,
    sharding: Any = None,
    mesh: jax.sharding.Mesh | None = None,
) -> tuple[Model, Any]:
    """Read a model and its tokenizer.

    Args:
        path: a directory that `jaxsteer convert` or `save` wrote; also a copy of it in an
            object store, as `gs://bucket/r1-distill-llama-8b`, whose files are checked by their
            sizes only.
        dtype: dtype of the weights, `"float32"` or `"bfloat16"`; by default as stored.
        sharding: where the weights go: one `jax.sharding.Sharding` for all, or a tree of them
            shaped like `Model.params`; by default the first device.
        mesh: split the model over it (see `sharding`); each device reads its part only.

    Returns:
        The model, and its tokenizer from `transformers` (None if none was saved with it).

    Raises:
        FileNotFoundError: there is no such directory.
        ValueError: it is no checkpoint, files in it are missing or damaged (all named), or the
            model cannot be split over the mesh.
    """
    if sharding is not None and mesh is not None:
        raise ValueError("load: got both sharding and mesh, expected at most one")
    if not (mesh is None or isinstance(mesh, jax.sharding.Mesh)):
        got = type(mesh).__name__
        raise ValueError(f"mesh: got {got}, expected a jax.sharding.Mesh (jaxsteer.make_mesh)")
    model = load_weights(path, dtype=dtype, sharding=sharding, mesh=mesh)
    return model, load_tokenizer(absolute(path))


def load_weights(
    path: PathLike, *, dtype: Any, sharding: Any, mesh: jax.sharding.Mesh | None
) -> Model:
    """The model alone, as `load` reads it."""
    folder = absolute(path)  # Orbax takes no other
    manifest = read_manifest(folder)
    if mesh is not None:
        sharding = params_sharding(manifest.config, mesh)
    wanted = jnp.dtype(dtype_name(dtype or manifest.dtype))

    def restore() -> Any:
        _open(folder)
        return _restore(folder, abstract_params(manifest.config, wanted), sharding)

    model = from_params(check_while(folder, manifest.files, restore), manifest.config)
    return model if mesh is None else shard_model(model, mesh)


def dtype_name(dtype: Any) -> str:
    """The name of a dtype that weights can have; raises `ValueError` for another."""
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = repr(dtype)
    if name not in DTYPES:
        raise ValueError(f"dtype: got {name}, expected {' or '.join(DTYPES)}")
    return name


def load_tokenizer(path: PathLike) -> Any:
    """The tokenizer inside a checkpoint, or None if there is none."""
    folder = as_path(path) / _HUGGINGFACE
    files = companions(path)
    if not any(file.name in TOKENIZERS for file in files):
        return None
    if not is_remote(path):
        return read_tokenizer(folder)
    with tempfile.TemporaryDirectory() as local:
        for file in files:
            (Path(local) / file.name).write_bytes(file.read_bytes())
        tokenizer = read_tokenizer(local)
    tokenizer.name_or_path = str(folder)
    return tokenizer


def read_manifest(path: PathLike) -> Manifest:
    """Config, dtype and provenance of a checkpoint, without its weights.

    Raises:
        FileNotFoundError: there is no such directory.
        ValueError: it is no checkpoint of this format.
    """
    folder = absolute(path)  # Orbax takes no other
    file = folder / MANIFEST
    if not folder.exists():
        raise FileNotFoundError(f"{folder}: no such directory")
    if not file.is_file():
        if (folder / "config.json").is_file():
            raise ValueError(
                f"{folder}: is a Hugging Face folder, expected a converted one; "
                f"convert it first: jaxsteer convert {folder} DST"
            )
        inside = "; one lies in its folder checkpoint" if (folder / "checkpoint").is_dir() else ""
        raise ValueError(f"{folder}: is no checkpoint of jaxsteer (it holds no {MANIFEST}{inside})")
    try:
        data = load_json(read_whole(file, most=MOST_BYTES))
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']!r}, expected {FORMAT}")
        config = LlamaConfig.from_dict(data["config"])
        if data["dtype"] not in DTYPES or not isinstance(data["provenance"], dict):
            raise ValueError(f"dtype {data['dtype']!r} or a provenance that is no object")
        for name, numbers in data["files"].items():
            size, crc = numbers
            if not is_plain_name(name) or not all(type(n) is int and n >= 0 for n in (size, crc)):
                raise ValueError(f"files: got {name!r:.80}: {numbers!r:.80}, expected size, CRC-32")
        if not any(name.startswith(f"{_PARAMS}/") for name in data["files"]):
            raise ValueError("files: got none of the weights, expected the size and CRC of each")
        return Manifest(config, data["dtype"], data["provenance"], data["files"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: damaged or of another version: {error}") from None


def read_leaves(
    path: PathLike, *, layers: int | None = None
) -> Iterator[tuple[ParamPath, np.ndarray]]:
    """The weights as stored, a layer at a time, so that a large model fits a small memory.

    With `layers`, only the first so many layers, and the parameters outside of layers.

    Raises:
        FileNotFoundError, ValueError: as `load`.
    """
    folder = absolute(path)  # Orbax takes no other
    check_files(folder, read_manifest(folder).files)
    manifest = _open(folder)
    cpu = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
    expected = flatten(abstract_params(manifest.config, jnp.dtype(manifest.dtype)))
    groups: dict[ParamPath, list[tuple[ParamPath, Any]]] = {}
    for leaf_path, leaf in expected:
        if layers is None or leaf_path[0] != "layers" or int(leaf_path[1]) < layers:
            groups.setdefault(leaf_path[:2], []).append((leaf_path, leaf))
    for group in groups.values():
        for leaf_path, x in flatten(_restore(folder, nest(group), cpu)):
            yield leaf_path, np.asarray(x)


def companions(path: PathLike) -> tuple[Path, ...]:
    """Tokenizer files and Hugging Face configs inside a checkpoint, and nothing else.

    Raises:
        ValueError: one of them is a link out of the folder.
    """
    folder = as_path(path) / _HUGGINGFACE
    names = [name for name in COMPANIONS if (folder / name).is_file()]
    return tuple(folder / n if is_remote(path) else inside(folder, n) for n in sorted(names))


def _separate(params: dict[Any, Any]) -> Leaves:
    """The weights with separate projections, as checkpoints have them; one layer at a time."""
    for name, part in params.items():
        if name != "layers":
            yield from flatten({name: part})
            continue
        for i, layer in part.items():
            yield from flatten({name: {i: unpack_layer(layer)}})


def _checked(leaves: Leaves, config: LlamaConfig, dtype: str) -> Iterator[tuple[ParamPath, Any]]:
    """The same leaves; raises as soon as one does not fit, or at the end if some are missing."""
    missing = dict(flatten(abstract_params(config, jnp.dtype(dtype))))
    for path, x in leaves:
        expected = missing.pop(path, None)
        if expected is None:
            raise ValueError(f"{dotted(path)}: unexpected, or given twice")
        if tuple(x.shape) != expected.shape or x.dtype != expected.dtype:
            raise ValueError(
                f"{dotted(path)}: got {x.dtype} {list(x.shape)}, "
                f"expected {expected.dtype} {list(expected.shape)}"
            )
        yield path, x
    if missing:
        raise ValueError(f"missing: {', '.join(dotted(path) for path in missing)}")


def _open(folder: Path) -> Manifest:
    """The manifest of a checkpoint whose weights fit its config."""
    manifest = read_manifest(folder)
    try:
        with without_wildcards(folder) as plain:
            metadata = v1.metadata(plain / _PARAMS).metadata
        stored = {dotted(p): x.shape for p, x in flatten(metadata)}
    except Exception as error:  # of any kind, when the directory is not Orbax's
        raise _unreadable(folder, error) from None
    expected = {dotted(p): x.shape for p, x in flatten(abstract_params(manifest.config))}
    problems = [
        f"{name}: got {stored.get(name, 'none')}, expected {expected.get(name, 'none')}"
        for name in sorted(stored.keys() | expected.keys())
        if stored.get(name) != expected.get(name)
    ]
    if problems:
        raise ValueError(f"{folder}: weights and config differ:\n  " + "\n  ".join(problems))
    return manifest


@timed("checkpoint/restore")
def _restore(folder: Path, abstract: dict[Any, Any], sharding: Any) -> dict[Any, Any]:
    """Read the leaves of `abstract`, which may be a part of the tree, straight into place."""
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    if isinstance(sharding, jax.sharding.Sharding):
        sharding = jax.tree.map(lambda _, one=sharding: one, abstract)
    placed = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), abstract, sharding
    )
    context = v1.Context()
    context.pytree.loading.partial_load = True
    try:
        with context, without_wildcards(folder) as plain:
            return v1.load(plain / _PARAMS, placed)
    except Exception as error:  # of any kind, when the directory is damaged
        raise _unreadable(folder, error) from error


def _unreadable(folder: Path, error: Exception) -> ValueError:
    reason = str(error).partition("\n")[0][:300]
    return ValueError(f"{folder}: its weights cannot be read: {reason}")

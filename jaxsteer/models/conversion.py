"""Convert a Hugging Face Llama, Qwen or Mistral into a checkpoint of jaxsteer.

    python -m weights.convert SRC DST [--dtype bfloat16|float32|keep]

SRC is a folder with `config.json`, safetensors and a tokenizer, a hub id like
`meta-llama/Llama-3.1-8B`, or a `.gguf` file. Everything that can be checked is checked before the
first tensor is read; DST appears when it is complete, or not at all.
"""

import argparse
import hashlib
import json
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from jaxsteer.checkpoints import checkpoint
from jaxsteer.files import as_path, check_free
from jaxsteer.huggingface import (
    CONFIGS,
    Folder,
    GgufModel,
    Source,
    n_bytes,
    open_source,
    tensors_as_ours,
)
from jaxsteer.llama import ParamPath, dotted
from jaxsteer.runtime import guarded, timed
from jaxsteer.tokenizers import (
    TOKENIZERS,
    check_tokenizer,
    difference,
    gguf_tokenizer,
    load_tokenizer,
    named_tokens,
    prompt_facts,
)

_PACKAGES = ("jaxsteer", "jax", "orbax-checkpoint", "transformers", "safetensors", "numpy")


def convert(
    src: str | Path,
    dst: str | Path,
    *,
    dtype: str = "keep",
    overwrite: bool = False,
    allow_nonfinite: bool = False,
    tokenizer: bool = True,
    revision: str | None = None,
    strict: bool = False,
    progress: bool = False,
) -> None:
    """Convert a Hugging Face folder, hub id or GGUF file `src` into the checkpoint `dst`.

    Args:
        src: folder with safetensors, hub id, or `.gguf` file.
        dst: directory to write; it must not exist.
        dtype: of the weights: `"bfloat16"`, `"float32"`, or `"keep"` (of a GGUF file: float32).
        overwrite: replace a checkpoint that is at `dst`.
        allow_nonfinite: take weights that are NaN or infinite.
        tokenizer: prove the tokenizer and take it along; without, only weights and config.
        revision: branch, tag or commit on the hub.
        strict: refuse fields of `config.json` of which it is not known what they do; by default
            they are named in a warning and kept in the provenance.
        progress: show a progress bar.

    Raises:
        FileNotFoundError: `src`, or a file that it needs, is not there.
        FileExistsError: `dst` exists, or another process is writing it.
        ValueError: anything in `src` that cannot be used; see `open_folder`, `check_tokenizer`.
        OSError: the disk has not enough room.
    """
    if not str(dst):
        raise ValueError("destination: got an empty text, expected a directory to write")
    check_free(dst, marker=checkpoint.MANIFEST, overwrite=overwrite)
    opened, source = open_source(src, revision=revision, strict=strict)
    named_tokens(opened.companions, vocab_size=opened.config.vocab_size)
    target = target_dtype(opened, dtype)
    _check_room(as_path(dst), n_bytes(opened.config, target))
    opened.check_tied()
    files = opened.companions
    if not tokenizer:  # what is not proved is not carried along
        files = tuple(file for file in files if file.name in CONFIGS)
    stopped = threading.Event()
    with ThreadPoolExecutor() as pool:
        # Beside the rest, which then finds the files in the system's cache: importing what loads a
        # tokenizer takes seconds, in which the disk would wait.
        hashes = {
            file.relative_to(source.folder).as_posix(): pool.submit(_sha256, file, stopped)
            for file in opened.shards + files
        }
        try:
            proved = proved_tokenizer(opened, required=True) if tokenizer else None
            with _carried(opened, files, proved) as files:
                facts: dict[str, Any] = {}
                if proved is not None:
                    facts = prompt_facts(files, proved, vocab_size=opened.config.vocab_size)
                checkpoint.write(
                    dst,
                    opened.config,
                    _leaves(opened, target, allow_nonfinite=allow_nonfinite, progress=progress),
                    dtype=target,
                    files=files,
                    provenance=lambda: _provenance(source, opened, hashes) | facts,
                    overwrite=overwrite,
                )
        except BaseException:
            stopped.set()
            raise


@contextmanager
def _carried(
    opened: Folder | GgufModel, files: tuple[Path, ...], tokenizer: Any
) -> Iterator[tuple[Path, ...]]:
    """The files to carry along; a GGUF file has none, so they are made of what its header says."""
    if isinstance(opened, Folder):
        yield files
        return
    with tempfile.TemporaryDirectory() as made:
        (Path(made) / CONFIGS[0]).write_text(json.dumps(opened.config_json, indent=2) + "\n")
        if tokenizer is not None:
            tokenizer.save_pretrained(made)
        yield tuple(sorted(Path(made).iterdir()))


def _leaves(
    folder: Folder | GgufModel, dtype: str, *, allow_nonfinite: bool, progress: bool
) -> Iterator[tuple[ParamPath, np.ndarray]]:
    """All tensors in our layout, one at a time; names all that are not finite."""
    bad = []
    size = n_bytes(folder.config, dtype)
    with tqdm(total=size, unit="B", unit_scale=True, disable=not progress) as bar:
        for tensor, x, finite in tensors_as_ours(folder, dtype):
            if not (finite or allow_nonfinite):
                bad.append(f"{tensor.name} ({dotted(tensor.path)})")
            if not bad:  # once one is bad nothing is written, only the other names are found
                yield tensor.path, x
            bar.update(x.nbytes)
    if bad:
        raise ValueError(
            f"{folder.path}: NaN or infinite as {dtype} (allow with --allow-nonfinite):\n  "
            + "\n  ".join(bad)
        )


def target_dtype(folder: Folder | GgufModel, dtype: str) -> str:
    """The dtype that weights are to have: `dtype`, or for `"keep"` the one that all have.

    Of a GGUF file, which is unpacked, `"keep"` makes float32.

    Raises:
        ValueError: it is no dtype of ours, or the folder's weights have none to keep.
    """
    if dtype in checkpoint.DTYPES:
        return dtype
    if dtype != "keep":
        raise ValueError(f"dtype: got {dtype!r}, expected keep or {' or '.join(checkpoint.DTYPES)}")
    if isinstance(folder, GgufModel):
        return "float32"
    dtypes = folder.dtypes
    if len(dtypes) > 1 or not set(dtypes) <= set(checkpoint.DTYPES):
        counts = ", ".join(f"{name} ({count} tensors)" for name, count in dtypes.items())
        raise ValueError(
            f"{folder.path}: weights are {counts}; expected one of "
            f"{' or '.join(checkpoint.DTYPES)} to keep: choose with dtype=… (--dtype …)"
        )
    return next(iter(dtypes))


@timed("convert/tokenizer")
def proved_tokenizer(opened: Folder | GgufModel, *, required: bool = False) -> Any:
    """The tokenizer, which was seen to keep what it encodes; None if there is none.

    Raises:
        FileNotFoundError: there is none, and one is `required`.
        ValueError: it does not load, or loses something; see `check_tokenizer`.
    """
    if isinstance(opened, GgufModel):
        tokenizer = gguf_tokenizer(opened.pairs, opened.path)
    elif opened.has_tokenizer:
        tokenizer = load_tokenizer(opened.path)
    elif required:
        raise FileNotFoundError(
            f"{opened.path}: no tokenizer, expected {' or '.join(TOKENIZERS)} "
            "(convert the weights alone with --no-tokenizer)"
        )
    else:
        return None
    check_tokenizer(tokenizer, opened.config)
    return tokenizer


@timed("convert/threads/hash")
def _sha256(file: Path, stopped: threading.Event) -> str:
    """The file's SHA-256; of a part of it once `stopped` is set, for nobody waits for it then."""
    digest = hashlib.sha256()
    block = memoryview(bytearray(1 << 20))
    with open(file, "rb", buffering=0) as opened:
        while not stopped.is_set() and (count := opened.readinto(block)):
            digest.update(block[:count])
    return digest.hexdigest()


def _check_room(dst: Path, needed: int) -> None:
    parent = dst.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise FileExistsError(f"{dst}: {parent} is a file, expected a folder")
    free = shutil.disk_usage(parent).free
    if free < needed * 1.01:
        raise OSError(f"{dst}: needs {needed:,} bytes, {parent} has {free:,} free")


def _provenance(
    source: Source, folder: Folder | GgufModel, hashes: Mapping[str, Future[str]]
) -> dict[str, Any]:
    return {
        "source": source.name,
        "revision": source.revision,
        "source_dtypes": folder.dtypes,
        "unknown_config_fields": folder.unknown_fields,
        checkpoint.SOURCE: _results(hashes),
        "versions": {name: _version(name) for name in _PACKAGES},
    }


@timed("convert/wait for the hashes")
def _results(hashes: Mapping[str, Future[str]]) -> dict[str, str]:
    return {name: future.result() for name, future in hashes.items()}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return None


@guarded("convert")
def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m weights.convert", description="Hugging Face to jaxsteer checkpoint."
    )
    parser.add_argument("src", help="folder with safetensors, hub id, or .gguf file")
    parser.add_argument("dst", help="directory to write")
    parser.add_argument("--dtype", choices=("keep", *checkpoint.DTYPES), default="keep")
    parser.add_argument("--revision", help="branch, tag or commit on the hub")
    parser.add_argument("--overwrite", action="store_true", help="replace a checkpoint at dst")
    parser.add_argument("--allow-nonfinite", action="store_true", help="take NaN and infinity")
    parser.add_argument("--strict", action="store_true", help="refuse unknown config.json fields")
    parser.add_argument("--no-tokenizer", action="store_true", help="weights and config alone")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    convert(
        args.src,
        args.dst,
        dtype=args.dtype,
        overwrite=args.overwrite,
        allow_nonfinite=args.allow_nonfinite,
        tokenizer=not args.no_tokenizer,
        revision=args.revision,
        strict=args.strict,
        progress=True,
    )
    manifest = checkpoint.read_manifest(args.dst)
    note = difference(manifest.provenance.get("special_tokens", {}))
    if args.json:
        print(json.dumps({"checkpoint": args.dst, "dtype": manifest.dtype, "note": note}, indent=1))
        return 0
    if note:
        print(f"{note}. Texts end at any EOS that is named")
    check = f" Check it: jaxsteer verify {args.src} {args.dst}"
    print(f"{args.dst}: written.{'' if args.src.endswith('.gguf') else check}")
    return 0

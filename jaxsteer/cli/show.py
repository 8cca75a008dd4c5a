"""`jaxsteer show`: what is in a file or folder, from headers where they are enough."""

from collections import Counter
from pathlib import Path
from typing import Any

import click
import numpy as np

from jaxsteer.checkpoints import read_manifest
from jaxsteer.cli.options import examples, json_option
from jaxsteer.cli.terminal import as_gigabytes, print_fields, print_json
from jaxsteer.config import LlamaConfig
from jaxsteer.directions import load_directions
from jaxsteer.files import as_path, is_gguf, is_remote, read_gguf_header
from jaxsteer.huggingface import n_bytes, open_source
from jaxsteer.runtime import escaped_line, guarded
from jaxsteer.texts import Texts

_KNOWN = "a file of directions, texts.jsonl, a .gguf file, or the folder of a model"


@click.command(
    "show",
    epilog=examples(
        "jaxsteer show weights/small/reasoning", "jaxsteer show doubt.safetensors --json"
    ),
)
@click.argument("path")
@json_option
@guarded("show")
def show_command(path: str, as_json: bool) -> int:
    """Summarise a file, a checkpoint or a model.

    PATH is a file of directions, a checkpoint, a Hugging Face folder, a .gguf file or texts.jsonl.
    """
    facts = summary(path)
    if as_json:
        print_json(facts)
        return 0
    lines = facts.pop("lines", [])
    print_fields(facts)
    for line in lines:
        print(
            "  " + escaped_line(", ".join(f"{key} {_plain(value)}" for key, value in line.items()))
        )
    return 0


def summary(name: str) -> dict[str, Any]:
    """What a path holds, JSON-ready; details a line each under `lines`.

    Raises:
        FileNotFoundError, ValueError: there is nothing, or nothing that is known.
    """
    path = as_path(name)
    if is_remote(name) or (path / "jaxsteer.json").is_file():
        return _checkpoint(path)
    if path.is_dir():
        return _model(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if path.suffix == ".jsonl":
        return _texts(path)
    if (
        is_gguf(path)
        and read_gguf_header(path).pairs.get("general.architecture") != "controlvector"
    ):
        return _model(path)
    with open(path, "rb") as file:
        start = file.read(9)
    if not start.startswith((b"GGUF", b"PK")) and start[8:] != b"{":
        raise ValueError(f"{path}: got another kind of file, expected {_KNOWN}")
    return _directions(path)


def _checkpoint(path: Path) -> dict[str, Any]:
    manifest = read_manifest(path)
    size = sum(entry[0] for entry in manifest.files.values())
    return {
        "kind": "checkpoint",
        **_shape(manifest.config, manifest.dtype),
        "files": f"{len(manifest.files)}, {as_gigabytes(size)}",
        "source": manifest.provenance.get("source"),
    }


def _model(path: Path) -> dict[str, Any]:
    opened, _ = open_source(path)
    kind = "Hugging Face folder" if path.is_dir() else "GGUF model"
    facts = {"kind": kind, **_shape(opened.config), "tensors by dtype": opened.dtypes}
    if opened.unknown_fields:
        facts["unknown fields"] = sorted(opened.unknown_fields)
    return facts


def _shape(config: LlamaConfig, dtype: str | None = None) -> dict[str, Any]:
    heads = f"{config.n_heads} query, {config.n_kv_heads} key and value, of {config.head_dim}"
    shape = {
        "parameters": f"{n_bytes(config, 'float32') // 4:,}",
        "layers": config.n_layers,
        "width": config.d_model,
        "heads": heads,
        "MLP": config.d_mlp,
        "vocabulary": config.vocab_size,
        "positions": config.max_positions,
    }
    return shape if dtype is None else {**shape, "dtype": dtype}


def _texts(path: Path) -> dict[str, Any]:
    texts = Texts.load(path)
    lines = []
    for cell in texts.cells():
        rows = list(texts.where(**cell))
        ends = Counter(row.end for row in rows)
        mean = round(float(np.mean([len(row.tokens) for row in rows])), 1)
        lines.append({**cell, "texts": len(rows), "tokens a text": mean, **ends})
    return {
        "kind": "texts",
        "texts": len(texts),
        "cells": len(texts.cells()),
        "prompts": len({row.prompt for row in texts}),
        "model": (texts.about.get("model") or {}).get("path"),
        "lines": lines,
    }


def _directions(path: Path) -> dict[str, Any]:
    directions = load_directions(path)
    lines = [
        {
            "name": d.name,
            "layer": d.layer,
            "site": d.site,
            "norm": round(d.norm, 4),
            **{k: d.provenance[k] for k in ("reliability", "auroc") if k in d.provenance},
        }
        for d in directions.values()
    ]
    first = next(iter(directions.values()))
    return {
        "kind": "directions",
        "directions": len(lines),
        "width": first.width,
        "method": first.provenance.get("method"),
        "lines": lines,
    }


def _plain(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)

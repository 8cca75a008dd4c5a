"""The configuration of a sweep's file, in a file beside it: only the same sweep may go on."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from jaxsteer.decoding import Request
from jaxsteer.files import MOST_DATA, as_path, load_json, read_json, write_atomic
from jaxsteer.llama import Model, TokenBatch
from jaxsteer.runtime import VERSION
from jaxsteer.steering import as_tuple
from jaxsteer.sweeps.cells import Cell
from jaxsteer.sweeps.fingerprints import (
    describe,
    differences,
    tree_fingerprint,
    weights_fingerprint,
)

_EXACT = 2.0**53  # below it a float is one whole number
_SHOWN = 5  # differences that a refusal names


def config_path(path: str | os.PathLike[str]) -> Path:
    """The path of the configuration of the rows in `path`."""
    return as_path(path).with_name(as_path(path).name + ".config.json")


def configuration(
    model: Model,
    batch: TokenBatch,
    cells: Sequence[Cell],
    request: Request,
    *,
    prompt_ids: Sequence[str | int],
    identity: Mapping[str, Any],
    functions: Mapping[str, Callable[..., Any] | None],
) -> dict[str, Any]:
    """Everything that decides what the rows hold, as JSON; of `functions` those not given are None.

    Raises:
        ValueError: for an identity, ids or labels that are no JSON.
    """
    config = {
        "jaxsteer": VERSION,
        "model": model.config.to_dict(),
        "dtype": np.dtype(model.dtype).name,
        "weights": weights_fingerprint(model),
        "identity": dict(identity),
        "prompt_ids": list(prompt_ids),
        "prompts": describe(batch),
        "max_new_tokens": request.max_new_tokens,
        "request": describe(request),
        "functions": {
            name: getattr(function, "__qualname__", type(function).__name__)
            for name, function in functions.items()
            if function is not None
        },
        "cells": {key_of(cell.labels): _steering_fingerprint(cell) for cell in cells},
    }
    if (plan := request.capture) is not None:
        config["capture"] = {
            field.name: getattr(plan, field.name)
            for field in fields(plan)
            if field.metadata.get("static") and field.name != "kind"
        } | {"read": plan.kind.__name__}
    return as_json(config, "identity and prompt_ids")


def _steering_fingerprint(cell: Cell) -> list[str]:
    return [f"{' '.join(one.sites)} {tree_fingerprint(one)}" for one in as_tuple(cell.steering)]


def agree(path: Path, config: dict[str, Any], *, rows: int) -> None:
    """Write the configuration of a new file, or check that that of an existing file is the same.

    Cells may be added or left out, but cells with the same labels must be the same.

    Raises:
        ValueError: if the file has rows of another configuration, or of none that is known.
    """
    beside = config_path(path)
    if rows:
        try:
            recorded = read_json(beside, most=MOST_DATA)
            before = {key_of(load_json(key)): value for key, value in recorded["cells"].items()}
        except FileNotFoundError:
            raise ValueError(
                f"{path}: has {rows} rows, but {beside.name} is missing, which says what they were "
                "made with; choose another file"
            ) from None
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ValueError(f"{beside}: damaged; choose another file for this sweep") from None
        recorded["cells"] = before
        config = {**config, "cells": before | config["cells"]}
        known = {key: config["cells"][key] for key in before}
        changes = list(differences(recorded, {**config, "cells": known}))
        if changes:
            more = f"\n  and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
            lines = "\n  ".join(changes[:_SHOWN]) + more
            raise ValueError(
                f"{path}: its rows were made with another configuration; choose another file:\n  "
                f"{lines}"
            )
        if config == recorded:
            return
    write_atomic(beside, json.dumps(config, indent=1, ensure_ascii=False).encode())


def key_of(labels: Mapping[str, Any]) -> str:
    """Labels as one string, whatever their order and their kinds of numbers: 1 is 1.0.

    >>> key_of({"coeff": 1.0, "layer": 10}) == key_of({"layer": 10, "coeff": 1})
    True
    """
    plain = _with_whole_numbers(as_json(dict(labels), "labels"))
    return json.dumps(plain, sort_keys=True, ensure_ascii=False)


def _with_whole_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_whole_numbers(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_with_whole_numbers(item) for item in value]
    whole = isinstance(value, float) and value.is_integer() and abs(value) < _EXACT
    return int(value) if whole else value


def as_json(value: Any, name: str) -> Any:
    """`value` as it comes back from a JSON file; numpy's numbers are numbers, too.

    Raises:
        ValueError: for what is no JSON, NaN among it.
    """

    def plain(x: Any) -> Any:
        if isinstance(x, np.generic | np.ndarray):
            return x.tolist()
        raise TypeError(f"got {type(x).__name__}, expected JSON")

    try:
        return json.loads(json.dumps(value, default=plain, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{name}: {error}") from None

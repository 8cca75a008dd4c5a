"""What options of several commands refer to: prompts, directions, metrics, a model, files."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxsteer.analysis import repetition
from jaxsteer.directions import Direction, load_directions
from jaxsteer.files import MOST_DATA, as_path, read_whole
from jaxsteer.llama import make_mesh
from jaxsteer.texts import LanguageModel, Metric, contains, load, perplexity, words

TEXTS, PAGE = "texts.jsonl", "report.html"  # files in a sweep's folder
_METRICS = {"perplexity": perplexity, "repetition": repetition, "words": words}


def load_model(
    model: str,
    dtype: str | None,
    revision: str | None,
    mesh: str | None,
    warm: Callable[[LanguageModel], Any] | None = None,
) -> LanguageModel:
    """Load a model, onto DATAxTENSOR chips if `mesh` says so, and print its notes to stderr."""
    data, tensor = mesh_shape(mesh)
    chips = None if mesh is None else make_mesh(data=data, tensor=tensor)
    lm = load(model, dtype=dtype, revision=revision, mesh=chips, warm=warm)
    for note in lm.notes:
        print(f"note: {note}", file=sys.stderr)
    return lm


def mesh_shape(mesh: str | None) -> tuple[int, int]:
    """The sizes in DATAxTENSOR, by default of one device.

    >>> mesh_shape("2x4"), mesh_shape(None)
    ((2, 4), (1, 1))
    """
    data, tensor = (mesh or "1x1").split("x")
    return int(data), int(tensor)


def read_prompts(prompts: Sequence[str], file: str | None, chat: bool) -> list[Any]:
    """Prompts of the command line, then those of the file."""
    texts = [*prompts, *([] if file is None else read_lines(file))]
    if not texts:
        raise ValueError("prompts: got none, expected PROMPT or --prompts FILE")
    return conversations(texts, chat)


def read_lines(path: str) -> list[str]:
    """The non-empty lines of a UTF-8 file."""
    try:
        text = read_whole(path, most=MOST_DATA).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8, one text per line ({error})") from None
    lines = [line.rstrip("\r") for line in text.split("\n") if line.strip()]
    if not lines:
        raise ValueError(f"{path}: got no text, expected one per line")
    return lines


def conversations(texts: Sequence[str], chat: bool) -> list[Any]:
    """Texts to continue as they are; or, for a chat, each as a user's message."""
    return [[{"role": "user", "content": text}] for text in texts] if chat else list(texts)


def choose_directions(path: str, name: str | None, layers: Sequence[int]) -> list[Direction]:
    """The directions of a file that `--name` and `--layer` select.

    `doubt` means `doubt.0`, `doubt.1`, …, the directions of all layers. One direction can be added
    at any layer; of several, those of the layers are taken.

    Raises:
        ValueError: if the file has none of this name, or none of a layer.
    """
    every = load_directions(path).values()
    named = [d for d in every if name in (None, d.name, d.name.rpartition(".")[0])]
    if not named:
        known = ", ".join(d.name for d in every)
        raise ValueError(f"--name: got {name!r}, expected one of {path}: {known}")
    if len(named) == 1 or not layers:
        return named
    known_layers = sorted({d.layer for d in named})
    if missing := sorted(set(layers) - set(known_layers)):
        raise ValueError(f"--layer: got {missing}, expected some of {known_layers} of {path}")
    return [d for d in named if d.layer in layers]


def measures_of(wanted: Sequence[str], metrics: Sequence[str]) -> list[Metric]:
    """The metrics that `--contains` and `--metric` select; by default repetition."""
    chosen = [contains(*phrase.split(",")) for phrase in wanted]
    return chosen + [_METRICS[metric] for metric in metrics] or [repetition]


def check_new(path: str | Path | None, overwrite: bool) -> None:
    """Refuse to replace a file, before any work."""
    if path is not None and not overwrite and as_path(path).exists():
        raise FileExistsError(f"{path}: exists already; --overwrite replaces it")

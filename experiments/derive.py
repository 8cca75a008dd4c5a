"""Stage 3: activations of both models over the same traces, and the directions of Eq. 3."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import jaxsteer
from experiments import label, rollouts
from experiments.formats import unseen_tokens
from experiments.run import Run, command
from experiments.settings import Direction
from experiments.stages import fingerprint
from jaxsteer import directions as dirs
from jaxsteer.annotate import Sentence, token_spans
from jaxsteer.directions import Sums, Trace
from jaxsteer.files import write_atomic
from jaxsteer.jsonl import read_rows
from jaxsteer.model import Model
from jaxsteer.tokens import bucket
from jaxsteer.vectors import Direction as SavedDirection
from jaxsteer.vectors import cosine, save_directions

FILE = "directions.safetensors"
FACTS = "directions.json"


def read_traces(tokenizer: Any, traces_file: Path, sentences_file: Path) -> list[Trace]:
    """Traces as tokens, the text of prompt and answer encoded once more, with its sentences.

    Tokens come from the tokenizer's own offset mapping, so a sentence starts at the token that
    holds its first character, whatever tokens the model chose when it wrote the text.
    """
    marks = {row["id"]: row["sentences"] for row in read_rows(sentences_file)}
    traces = []
    for row in read_rows(traces_file):
        whole = row["prompt"] + row["text"]
        behind = len(row["prompt"])
        encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
        sentences = [
            Sentence(behind + start, behind + stop, whole[behind + start : behind + stop])
            for start, stop, _ in marks[row["id"]]
        ]
        spans = token_spans(encoded["offset_mapping"], sentences)
        prompt_length = sum(1 for _, stop in encoded["offset_mapping"] if stop <= behind)
        traces.append(
            Trace(
                tokens=encoded["input_ids"],
                prompt_length=prompt_length,
                starts=[first for first, _ in spans],
                positive=[positive for _, _, positive in marks[row["id"]]],
            )
        )
    return traces


def sums_over(
    model: Model,
    traces: Sequence[Trace],
    *,
    offsets: Sequence[int],
    site: str,
    rows: int = 32,
    name: str = "activations",
) -> Sums:
    """Sums at the offsets over all traces, in batches of one shape."""
    length = bucket(max(len(trace.tokens) for trace in traces))
    empty = Trace(tokens=traces[0].tokens[:1], prompt_length=1, starts=[], positive=[])
    parts = []
    for first in tqdm(range(0, len(traces), rows), desc=name, unit="batch"):
        batch = [*traces[first : first + rows]]
        batch += [empty] * (rows - len(batch))
        parts.append(dirs.activation_sums(model, batch, offsets=offsets, site=site, length=length))
    return dirs.total_sums(parts)


def sums_of_halves(
    model: Model, traces: Sequence[Trace], *, offsets: Sequence[int], site: str, name: str
) -> list[Sums]:
    """Sums over every second trace, from the first and from the second."""
    return [
        sums_over(model, traces[half::2], offsets=offsets, site=site, name=f"{name}, {half + 1}/2")
        for half in range(2)
    ]


def write_directions(
    folder: Path,
    halves: dict[str, list[Sums]],
    *,
    direction: Direction,
    offsets: Sequence[int],
    provenance: dict[str, Any],
) -> dict[str, Any]:
    """Write `directions.safetensors` and what is known of them in `directions.json`.

    Names, for every layer: `{model}.{layer}.union`, the mean over the window;
    `{model}.{layer}.offset.{offset}` for every offset with a backtracking sentence;
    `{model}.{layer}.mean`, the mean activation over the window's positions. `halves` are the sums
    at `offsets` over each half of the traces, by model.
    """
    sums = {role: dirs.total_sums(parts) for role, parts in halves.items()}
    saved = [
        item
        for role, one in sums.items()
        for item in _of_model(role, one, direction, offsets, provenance)
    ]
    save_directions(folder / FILE, saved)
    window = {role: _window(one, direction, offsets) for role, one in sums.items()}
    by_offset = {role: _by_offset(one) for role, one in sums.items()}
    unions = {role: dirs.window_direction(one) for role, one in window.items()}
    facts = {
        "direction": asdict(direction),
        "offsets": list(offsets),
        "behaviours": ["backtracking"],
        "residual_norm": {role: dirs.residual_norm(one).tolist() for role, one in window.items()},
        "norm": {role: [float(np.linalg.norm(v)) for v in one] for role, one in unions.items()},
        "cosine": [cosine(a, b) for a, b in zip(unions["base"], unions["reasoning"], strict=True)],
        "cosine_map": _cosines(by_offset["base"], by_offset["reasoning"]),
        "reliability": {
            role: _cosines(*(_by_offset(part) for part in parts)) for role, parts in halves.items()
        },
        "n_backtracking": window["base"].n_positive.tolist(),
        "n_sentences": window["base"].n_total.tolist(),
        "n_backtracking_by_offset": sums["base"].n_positive.tolist(),
        "n_sentences_by_offset": sums["base"].n_total.tolist(),
        "format": provenance.get("format"),
        "unseen_by_base": provenance.get("unseen_by_base"),
        "jaxsteer": jaxsteer.__version__,
    }
    write_atomic(folder / FACTS, json.dumps(facts, indent=1).encode())
    return facts


def _window(sums: Sums, direction: Direction, offsets: Sequence[int]) -> Sums:
    return dirs.at_offsets(sums, [offsets.index(offset) for offset in direction.offsets])


def _by_offset(sums: Sums) -> list[np.ndarray | None]:
    """Eq. 3 at each offset, `[L, D]`; None where no backtracking sentence has a token there."""
    return [
        dirs.difference_of_means(dirs.at_offsets(sums, [o]))[:, 0] if sums.n_positive[o] else None
        for o in range(len(sums.n_positive))
    ]


def _cosines(
    a: Sequence[np.ndarray | None], b: Sequence[np.ndarray | None]
) -> list[list[float | None]]:
    """Cosine of two directions by layer and offset; None where either of them is not there."""
    layers = next(len(one) for one in a if one is not None)
    return [
        [
            None if x is None or y is None else cosine(x[layer], y[layer])
            for x, y in zip(a, b, strict=True)
        ]
        for layer in range(layers)
    ]


def _of_model(
    role: str,
    sums: Sums,
    direction: Direction,
    offsets: Sequence[int],
    provenance: dict[str, Any],
) -> list[SavedDirection]:
    def about(read: Sequence[int], kind: str) -> dict[str, Any]:
        found = dirs.at_offsets(sums, [offsets.index(offset) for offset in read])
        counts = {
            "sentences": dict(zip(map(str, read), found.n_total.tolist(), strict=True)),
            "backtracking": dict(zip(map(str, read), found.n_positive.tolist(), strict=True)),
        }
        return {**provenance, "model": role, "kind": kind, "offsets": list(read), "counts": counts}

    window = _window(sums, direction, offsets)
    difference = "mean(D+) - mean(D)"
    named = [
        ("union", dirs.window_direction(window), about(direction.offsets, difference)),
        ("mean", dirs.mean_activation(window), about(direction.offsets, "mean(D)")),
        *(
            (f"offset.{offset}", vectors, about([offset], difference))
            for offset, vectors in zip(offsets, _by_offset(sums), strict=True)
            if vectors is not None
        ),
    ]
    return [
        SavedDirection(
            vector=vector,
            layer=layer,
            site=direction.site,
            name=f"{role}.{layer}.{name}",
            provenance=origin,
        )
        for name, vectors, origin in named
        for layer, vector in enumerate(vectors)
    ]


def stage(run: Run) -> Path:
    """The folder with `directions.safetensors` and `directions.json`."""
    traces, labels = rollouts.stage(run), label.stage(run)
    direction = run.settings.direction
    offsets = sorted({*run.settings.activations.offsets, *direction.offsets})
    provenance = {
        "models": {role: run.model_print(role) for role in ("base", "reasoning")},
        "traces": fingerprint(traces),
        "labels": fingerprint(labels),
        "label_source": label.label_source(run.settings.labels),
        "format": run.settings.prompts.form("reasoning"),  # of the traces, which both models read
        "unseen_by_base": unseen_tokens(run.tokenizer("base"), run.tokenizer("reasoning")),
        "jaxsteer": jaxsteer.__version__,
    }

    def work(folder: Path) -> None:
        # Both models read one tokenisation, whose special tokens the base model has never seen.
        tokenizer = run.tokenizer("reasoning")
        marked = read_traces(tokenizer, traces / rollouts.FILE, labels / label.FILE)
        halves = {
            role: sums_of_halves(
                run.load(role)[0],
                marked,
                offsets=offsets,
                site=direction.site,
                name=f"activations, {role} model",
            )
            for role in ("base", "reasoning")
        }
        write_directions(
            folder, halves, direction=direction, offsets=offsets, provenance=provenance
        )

    inputs = {**provenance, "settings": asdict(direction), "offsets": offsets}
    return run.stage("directions", inputs, work)


if __name__ == "__main__":
    sys.exit(command("derive", "Stage 3: activations and directions.", stage))

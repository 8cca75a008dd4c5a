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


def write_directions(
    folder: Path,
    sums: dict[str, Sums],
    *,
    direction: Direction,
    provenance: dict[str, Any],
) -> dict[str, Any]:
    """Write `directions.safetensors` and what is known of them in `directions.json`.

    Names are `{model}.{layer}.union`, the mean over the window, for every layer, and
    `{model}.{layer}.offset.{offset}` for the layer that is steered.
    """
    offsets, saved = direction.offsets, []
    for role, one in sums.items():
        counts = {
            "sentences": dict(zip(map(str, offsets), one.n_total.tolist(), strict=True)),
            "backtracking": dict(zip(map(str, offsets), one.n_positive.tolist(), strict=True)),
        }
        about = {**provenance, "model": role, "offsets": offsets, "counts": counts}
        named = [
            (f"{role}.{layer}.union", layer, vector)
            for layer, vector in enumerate(dirs.window_direction(one))
        ]
        by_offset = dirs.difference_of_means(one)[direction.layer]
        named += [
            (f"{role}.{direction.layer}.offset.{offset}", direction.layer, vector)
            for offset, vector in zip(offsets, by_offset, strict=True)
        ]
        saved += [
            SavedDirection(
                vector=vector, layer=layer, site=direction.site, name=name, provenance=about
            )
            for name, layer, vector in named
        ]
    save_directions(folder / FILE, saved)
    vectors = {item.name: item.vector for item in saved}
    layers = range(len(dirs.residual_norm(next(iter(sums.values())))))
    facts = {
        "direction": asdict(direction),
        "residual_norm": {role: dirs.residual_norm(one).tolist() for role, one in sums.items()},
        "norm": {
            role: [float(np.linalg.norm(vectors[f"{role}.{layer}.union"])) for layer in layers]
            for role in sums
        },
        "cosine": [
            cosine(vectors[f"base.{layer}.union"], vectors[f"reasoning.{layer}.union"])
            for layer in layers
        ],
        "n_backtracking": sums["base"].n_positive.tolist(),
        "n_sentences": sums["base"].n_total.tolist(),
        "format": provenance.get("format"),
        "unseen_by_base": provenance.get("unseen_by_base"),
        "jaxsteer": jaxsteer.__version__,
    }
    write_atomic(folder / FACTS, json.dumps(facts, indent=1).encode())
    return facts


def stage(run: Run) -> Path:
    """The folder with `directions.safetensors` and `directions.json`."""
    traces, labels = rollouts.stage(run), label.stage(run)
    direction = run.settings.direction
    provenance = {
        "models": {role: run.model_print(role) for role in ("base", "reasoning")},
        "traces": fingerprint(traces),
        "labels": fingerprint(labels),
        "label_source": label.label_source(run.settings.labels),
        "format": run.settings.prompts.form("reasoning"),  # of the traces, which both models read
        "unseen_by_base": unseen_tokens(run.tokenizer("base"), run.tokenizer("reasoning")),
    }

    def work(folder: Path) -> None:
        # Both models read one tokenisation, whose special tokens the base model has never seen.
        tokenizer = run.tokenizer("reasoning")
        marked = read_traces(tokenizer, traces / rollouts.FILE, labels / label.FILE)
        sums = {
            role: sums_over(
                run.load(role)[0],
                marked,
                offsets=direction.offsets,
                site=direction.site,
                name=f"activations, {role} model",
            )
            for role in ("base", "reasoning")
        }
        write_directions(folder, sums, direction=direction, provenance=provenance)

    return run.stage("directions", {**provenance, "settings": asdict(direction)}, work)


if __name__ == "__main__":
    sys.exit(command("derive", "Stage 3: activations and directions.", stage))

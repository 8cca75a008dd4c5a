"""Stage 3: activations of both models over the same traces, and the directions of Eq. 3.

`directions.safetensors` has, for each model (`base`, `reasoning`) and every layer:

    {model}.{layer}.union               Eq. 3 for backtracking, the mean over the window
    {model}.{layer}.offset.{offset}     the same at one offset of the pass
    {model}.{layer}.against_rest        mean(D+) - mean(D-) instead, the mean over the window
    {model}.{layer}.{behaviour}.union   Eq. 3 for another behaviour, with `MIN_SENTENCES` of it
    {model}.{layer}.mean                mean activation over D, the mean over the window

A sentence counts at an offset only where that is neither in the prompt nor behind the text.
`directions.json` has what is known of them: `count_by_offset` and `left_out_by_offset` by label,
cosines, lengths, standard errors (Euclidean length, over the coordinates; sentences of one trace go
together) and split-half reliability, whose halves are every second trace; by layer and offset, null
where a half has none.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import jaxsteer
from experiments.pipeline.formats import unseen_tokens
from experiments.pipeline.run import Run, command
from experiments.pipeline.settings import Direction
from experiments.pipeline.stage_runner import fingerprint
from experiments.stages import label, rollouts
from jaxsteer.analysis import OTHER, Sentence, token_spans
from jaxsteer.directions import Direction as SavedDirection
from jaxsteer.directions import (
    Moments,
    Trace,
    activation_moments,
    cosines,
    equal_rows,
    save_directions,
)
from jaxsteer.directions import moments as stats
from jaxsteer.files import read_rows, write_atomic
from jaxsteer.llama import Model, bucket

FILE = "directions.safetensors"
FACTS = "directions.json"
BACKTRACKING = "backtracking"
MIN_SENTENCES = 10  # of another behaviour, at every offset of the window


def read_traces(tokenizer: Any, traces_file: Path, sentences_file: Path) -> list[Trace]:
    """Traces as tokens, the text of prompt and answer encoded once more, with its sentences.

    Tokens come from the tokenizer's own offset mapping, so a sentence starts at the token that
    holds its first character, whatever tokens the model chose when it wrote the text.
    """
    marks = {row["id"]: row for row in read_rows(sentences_file)}
    traces = []
    for row in read_rows(traces_file):
        whole = row["prompt"] + row["text"]
        behind = len(row["prompt"])
        encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
        sentences = [
            Sentence(behind + start, behind + stop, whole[behind + start : behind + stop])
            for start, stop, _ in marks[row["id"]]["sentences"]
        ]
        spans = token_spans(encoded["offset_mapping"], sentences)
        prompt_length = sum(1 for _, stop in encoded["offset_mapping"] if stop <= behind)
        traces.append(
            Trace(
                tokens=encoded["input_ids"],
                prompt_length=prompt_length,
                starts=[first for first, _ in spans],
                labels=marks[row["id"]]["labels"],
            )
        )
    return traces


PARTS = 4  # of the traces: two and two are the halves of reliability, all four give errors


def moments_of_parts(
    model: Model,
    traces: Sequence[Trace],
    *,
    offsets: Sequence[int],
    site: str,
    name: str = "activations",
) -> list[Moments]:
    """Moments of every `PARTS`th trace, from each of the first ones on.

    Labels are those that occur, backtracking first.
    """
    behaviours = {label for trace in traces for label in trace.labels} - {BACKTRACKING}
    parts = [traces[part::PARTS] for part in range(min(PARTS, len(traces)))]
    length = bucket(max(len(trace.tokens) for trace in traces))
    return [
        activation_moments(
            model,
            part,
            labels=(BACKTRACKING, *sorted(behaviours)),
            offsets=offsets,
            site=site,
            rows=equal_rows(model, len(parts[0]), length),
            length=length,
            progress=f"{name}, {i}/{len(parts)}",
        )
        for i, part in enumerate(parts, start=1)
    ]


def write_directions(
    folder: Path,
    parts: dict[str, list[Moments]],
    *,
    direction: Direction,
    provenance: dict[str, Any],
) -> dict[str, Any]:
    """Write `directions.safetensors` and `directions.json`; returns what is in the latter.

    Args:
        folder: where to.
        parts: moments of the parts of the traces, by model; see `moments_of_parts`.
        direction: the window, the site and the layer that will be steered.
        provenance: of every direction; what differs between them is added.
    """
    whole = {role: stats.add_up(some) for role, some in parts.items()}
    window = {role: one.at(direction.offsets) for role, one in whole.items()}
    behaviours = _behaviours(window["base"])
    saved = [
        item
        for role in whole
        for item in _of_model(role, whole[role], window[role], behaviours, direction, provenance)
    ]
    save_directions(folder / FILE, saved)
    by_offset = {role: stats.difference_of_means(m, BACKTRACKING) for role, m in whole.items()}
    union = {role: stats.window_direction(m, BACKTRACKING) for role, m in window.items()}
    base = whole["base"]
    facts = {
        "direction": asdict(direction),
        "offsets": list(base.offsets),
        "behaviours": list(behaviours),
        "residual_norm": {role: _listed(stats.residual_norm(m)) for role, m in window.items()},
        "norm": {role: _lengths(vectors) for role, vectors in union.items()},
        "norm_by_offset": {role: _lengths(vectors) for role, vectors in by_offset.items()},
        "standard_error_by_offset": {
            role: _lengths(stats.standard_error(some, BACKTRACKING)) for role, some in parts.items()
        },
        "cosine": _listed(cosines(union["base"], union["reasoning"])),
        "cosine_map": _listed(cosines(by_offset["base"], by_offset["reasoning"])),
        "reliability": {role: _reliability(some) for role, some in parts.items()},
        "reliability_window": {
            role: _window_reliability(some, direction) for role, some in parts.items()
        },
        "n_backtracking": window["base"].count[0].tolist(),
        "n_sentences": window["base"].count.sum(axis=0).tolist(),
        "labels": dict(zip(base.labels, base.sentences.tolist(), strict=True)),
        "count_by_offset": dict(zip(base.labels, base.count.tolist(), strict=True)),
        "left_out_by_offset": dict(
            zip(base.labels, (base.sentences[:, None] - base.count).tolist(), strict=True)
        ),
        "format": provenance.get("format"),
        "beginning": provenance.get("beginning"),
        "unseen_by_base": provenance.get("unseen_by_base"),
        "jaxsteer": jaxsteer.__version__,
    }
    write_atomic(folder / FACTS, json.dumps(facts, indent=1).encode())
    return facts


def read_facts(folder: Path) -> dict[str, Any]:
    """What `directions.json` in the folder of the stage says."""
    return json.loads((folder / FACTS).read_text())


def _behaviours(window: Moments) -> list[str]:
    """Backtracking, and the other behaviours with sentences enough for a direction."""
    enough = window.count.min(axis=1) >= MIN_SENTENCES
    named = zip(window.labels, enough, strict=True)
    return [BACKTRACKING, *(k for k, ok in named if ok and k not in (BACKTRACKING, OTHER))]


def _of_model(
    role: str,
    whole: Moments,
    window: Moments,
    behaviours: Sequence[str],
    direction: Direction,
    provenance: dict[str, Any],
) -> list[SavedDirection]:
    """A model's directions, with the provenance of each."""
    difference, rest = "mean(D+) - mean(D)", "mean(D+) - mean(D-)"
    kinds = [
        ("union", stats.window_direction(window, BACKTRACKING), window, BACKTRACKING, difference),
        (
            "against_rest",
            stats.window_direction(window, BACKTRACKING, against="rest"),
            window,
            BACKTRACKING,
            rest,
        ),
        ("mean", stats.mean_activation(window), window, None, "mean(D)"),
    ]
    kinds += [
        (f"{name}.union", stats.window_direction(window, name), window, name, difference)
        for name in behaviours
        if name != BACKTRACKING
    ]
    by_offset = stats.difference_of_means(whole, BACKTRACKING)
    kinds += [
        (f"offset.{offset}", by_offset[:, o], whole.at([offset]), BACKTRACKING, difference)
        for o, offset in enumerate(whole.offsets)
        if whole.count[0, o]
    ]
    return [
        SavedDirection(
            vector=vector,
            layer=layer,
            site=direction.site,
            name=f"{role}.{layer}.{name}",
            provenance={
                **provenance,
                "model": role,
                "kind": kind,
                "offsets": list(read.offsets),
                "counts": _counts(read, label),
                "norm": float(np.linalg.norm(vector)),
            },
        )
        for name, vectors, read, label, kind in kinds
        for layer, vector in enumerate(vectors)
    ]


def _counts(read: Moments, label: str | None) -> dict[str, dict[str, int]]:
    """Activations in D, and in D+, by offset."""
    keys = [str(offset) for offset in read.offsets]
    counts = {"sentences": dict(zip(keys, read.count.sum(axis=0).tolist(), strict=True))}
    if label is not None:
        of_label = read.count[read.labels.index(label)].tolist()
        counts[label] = dict(zip(keys, of_label, strict=True))
    return counts


def _halves(parts: Sequence[Moments]) -> list[Moments]:
    return [stats.add_up(parts[half::2]) for half in range(min(2, len(parts)))]


def _reliability(parts: Sequence[Moments]) -> list[Any] | None:
    if len(parts) < 2:
        return None
    first, second = _halves(parts)
    return _listed(stats.split_half_reliability(first, second, BACKTRACKING))


def _window_reliability(parts: Sequence[Moments], direction: Direction) -> list[Any] | None:
    """Cosine of both halves' window directions by layer."""
    windows = _halves([part.at(direction.offsets) for part in parts])
    if len(windows) < 2 or not all(half.count[0].all() for half in windows):
        return None
    return _listed(cosines(*(stats.window_direction(half, BACKTRACKING) for half in windows)))


def _lengths(vectors: np.ndarray) -> list[Any]:
    return _listed(np.linalg.norm(vectors, axis=-1))


def _listed(x: np.ndarray) -> list[Any]:
    """As lists for JSON, which has no NaN: None in its place."""
    array = x.astype(object)
    array[np.isnan(x)] = None
    return array.tolist()


def stage(run: Run) -> Path:
    """The folder with `directions.safetensors` and `directions.json`."""
    traces, labels = rollouts.stage(run), label.stage(run)
    direction = run.settings.direction
    offsets = sorted({*run.settings.activations.offsets, *direction.offsets})
    provenance = {
        "models": {role: run.model_fingerprint(role) for role in ("base", "reasoning")},
        "traces": fingerprint(traces),
        "labels": fingerprint(labels),
        "label_source": label.label_source(run.settings.labels),
        "format": run.settings.prompts.form("reasoning"),  # of the traces, which both models read
        "beginning": run.prompt_rule("reasoning"),
        "unseen_by_base": unseen_tokens(run.tokenizer("base"), run.tokenizer("reasoning")),
        "jaxsteer": jaxsteer.__version__,
    }

    def work(folder: Path) -> None:
        # Both models read one tokenisation, whose special tokens the base model has never seen.
        tokenizer = run.tokenizer("reasoning")
        marked = read_traces(tokenizer, traces / rollouts.FILE, labels / label.FILE)
        parts = {
            role: moments_of_parts(
                run.load(role)[0],
                marked,
                offsets=offsets,
                site=direction.site,
                name=f"activations, {role} model",
            )
            for role in ("base", "reasoning")
        }
        write_directions(folder, parts, direction=direction, provenance=provenance)

    inputs = {**provenance, "settings": asdict(direction), "offsets": offsets}
    return run.stage("directions", inputs, work)


if __name__ == "__main__":
    sys.exit(command("derive", "Stage 3: activations and directions.", stage))

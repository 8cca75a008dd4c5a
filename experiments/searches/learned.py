"""Directions found otherwise than by a difference of means, against it at equal length.

    learned-vectors/learned.safetensors   {reasoning}.{layer}.learned.{seed}, {base}.{layer}.pca, …
    learned-texts/sweep.jsonl             what the reasoning model writes when steered with them
    learned/learned.{png,svg,csv,json}    what both show

Learned directions raise the log-probability of backtracking sentences in the reasoning model's own
traces (`directions.learned`), bounded in length by the coefficient at which all are compared. The
principal component and the probe (`directions.probe`) read the base model's activations at the
window before backtracking sentences and before as many others of the same traces. All three see
the traces to learn from only; the difference of means saw all of them.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from experiments.figures import frame
from experiments.pipeline.run import Run, command
from experiments.pipeline.stage_runner import fingerprint
from experiments.searches import equal_lengths, learned_figure
from experiments.searches.continuations import (
    Texts,
    answer_targets,
    event_activations,
    event_pairs,
    sentence_targets,
    spans,
    split,
    within,
)
from experiments.stages import derive, label, rollouts, steer
from experiments.stages.outcome import CellOutcome, to_csv
from jaxsteer.analysis import bootstrap_interval
from jaxsteer.directions import (
    Direction,
    cosine,
    first_component,
    learn_directions,
    load_directions,
    logistic_probe,
    logprobs_under,
    random_directions,
    rescale,
    save_directions,
)
from jaxsteer.files import read_rows, write_json
from jaxsteer.llama import Model
from jaxsteer.sweeps import Cell

STEM = "learned"
FILE, FACTS = "learned.safetensors", "learned.json"
_ON_TEXT = "held-out text"


def read_texts(run: Run) -> Texts:
    """The run's traces with a backtracking sentence, to learn from and to judge by."""
    traces = derive.read_traces(
        run.tokenizer("reasoning"),
        rollouts.stage(run) / rollouts.FILE,
        label.stage(run) / label.FILE,
    )
    search = run.settings.search
    return split(traces, tokens=search.tokens, held_out=search.held_out)


def layers_of(run: Run) -> list[int]:
    """The steered layer, then the others."""
    return [run.settings.direction.layer, *run.settings.search.other_layers]


def vectors(run: Run) -> Path:
    """The folder with `learned.safetensors` and, in `learned.json`, the losses on the way."""
    settings, coeff = run.settings, equal_lengths.main_coeff(run.settings)  # or no work at all
    search, site, layers = settings.search, settings.direction.site, layers_of(run)
    directions = derive.stage(run)
    inputs: dict[str, Any] = {
        "models": {role: run.model_fingerprint(role) for role in ("base", "reasoning")},
        "traces": fingerprint(rollouts.stage(run)),
        "labels": fingerprint(label.stage(run)),
        "directions": fingerprint(directions),
        "search": asdict(search),
        "direction": asdict(settings.direction),
        "coeff": coeff,
        "unit": settings.steering.unit,
    }

    def work(folder: Path) -> None:
        texts = read_texts(run)
        units = equal_lengths.unit_lengths(directions, settings)
        radii = [coeff * units[layer] for layer in layers]
        about = {
            "models": inputs["models"],
            "traces": inputs["traces"],
            "labels": inputs["labels"],
            "label_source": label.label_source(settings.labels),
            "texts": len(texts.learn),
        }
        learned = learn_directions(
            run.load("reasoning")[0],
            sentence_targets(texts.learn, tokens=search.tokens),
            layers=layers,
            seeds=range(search.seeds),
            norm=radii,
            steps=search.steps,
            rows_per_step=search.rows,
            site=site,
            remat=remat(),
            progress="learning directions",
        )
        how = {"method": "gradient", "model": "reasoning", "steps": search.steps}
        saved = [
            Direction(
                vector,
                int(layer),
                site,
                f"reasoning.{layer}.learned.{seed}",
                {**about, **how, "norm": radii[layers.index(layer)], "seed": int(seed)},
            )
            for vector, layer, seed in zip(
                learned.vectors, learned.layers, learned.seeds, strict=True
            )
        ]
        saved += _from_activations(run.load("base")[0], texts, run, about)
        save_directions(folder / FILE, saved)
        facts = {
            "learned_from": len(texts.learn),
            "held_out": len(texts.judge),
            "losses": {
                f"reasoning.{layer}.learned.{seed}": losses.tolist()
                for layer, seed, losses in zip(
                    learned.layers, learned.seeds, learned.losses.T, strict=True
                )
            },
        }
        write_json(folder / FACTS, facts)

    return run.stage("learned-vectors", inputs, work)


def remat() -> bool:
    """Whether blocks run again on the way back: where a model's activations may not fit."""
    import jax

    return jax.default_backend() != "cpu"


def _from_activations(
    model: Model, texts: Texts, run: Run, about: dict[str, Any]
) -> list[Direction]:
    """Principal component and probe at each layer, from the base model's activations."""
    direction, layers = run.settings.direction, layers_of(run)
    events, others = event_pairs(texts.learn, direction.offsets)
    positive, reference = (
        event_activations(
            model,
            texts.learn,
            sentences,
            offsets=direction.offsets,
            layers=layers,
            site=direction.site,
        )
        for sentences in (events, others)
    )
    how = {"model": "base", "offsets": direction.offsets, "pairs": positive.shape[1]}
    saved = []
    for layer, left, right in zip(layers, positive, reference, strict=True):
        for name, vector, scale in (
            ("pca", first_component(left, right), "length 1"),
            ("probe", logistic_probe(left, right), "log-odds per unit"),
        ):
            facts = {**about, **how, "method": name, "scale": scale}
            saved.append(Direction(vector, layer, direction.site, f"base.{layer}.{name}", facts))
    return saved


def named_vectors(run: Run) -> dict[str, np.ndarray]:
    """Everything that is compared at the steered layer, by source."""
    layer = run.settings.direction.layer
    by_means = load_directions(derive.stage(run) / derive.FILE)
    directions = load_directions(vectors(run) / FILE)
    learned = {
        f"learned-{seed}": directions[f"reasoning.{layer}.learned.{seed}"].vector
        for seed in range(run.settings.search.seeds)
    }
    return {
        "base": by_means[f"base.{layer}.union"].vector,
        "reasoning": by_means[f"reasoning.{layer}.union"].vector,
        "pca": directions[f"base.{layer}.pca"].vector,
        "probe": directions[f"base.{layer}.probe"].vector,
        **learned,
    }


def gains_on_text(run: Run, named: dict[str, np.ndarray], seeds: int = 2) -> list[dict[str, Any]]:
    """What each direction does to held-out text, at the coefficient at which all are compared.

    Of each, with a 95% bootstrap interval over texts: `gain`, in nats a backtracking sentence, and
    `others`, in nats a token of the rest of the answer: what steering costs there.
    """
    settings, search = run.settings, run.settings.search
    layer, texts = settings.direction.layer, read_texts(run).judge
    unit = equal_lengths.unit_lengths(derive.stage(run), settings)[layer]
    length = equal_lengths.main_coeff(settings) * unit
    width = len(next(iter(named.values())))
    drawn = {f"random-{i}": v for i, v in enumerate(random_directions(seeds, width))}
    every = {**named, **drawn}
    added = [np.zeros(width), *(rescale(vector, length) for vector in every.values())]
    targets = answer_targets(texts, tokens=search.tokens)
    read = logprobs_under(
        run.load("reasoning")[0],
        targets,
        np.stack(added),
        [layer] * len(added),
        site=settings.direction.site,
        progress=_ON_TEXT,
    ).astype(np.float64)
    spans_of_texts = [spans(trace, tokens=search.tokens) for trace in texts]
    inside = within(targets, spans_of_texts)
    outside = (np.asarray(targets.position) >= 0) & ~inside
    sentences, tokens = np.array([len(f) for f in spans_of_texts]), outside.sum(axis=1)
    return [
        {
            "source": source,
            "gain": _ratio(((steered - read[0]) * inside).sum(axis=1), sentences),
            "others": _ratio(((steered - read[0]) * outside).sum(axis=1), tokens),
        }
        for source, steered in zip(every, read[1:], strict=True)
    ]


def _ratio(tops: np.ndarray, bottoms: np.ndarray) -> dict[str, Any]:
    low, high = bootstrap_interval(tops, bottoms)
    mean = float(tops.sum() / bottoms.sum())
    return {"mean": mean, "low": low, "high": high, "n": int((bottoms > 0).sum())}


def make_cells(run: Run) -> list[Cell]:
    """What the main sweep has not: everything at the main coefficient, one curve of smaller ones.

    The curve is that of the first seed; the other layers' directions of the first seed are named
    `learned-0@{layer}`.
    """
    settings = run.settings
    layer, site = settings.direction.layer, settings.direction.site
    units = equal_lengths.unit_lengths(derive.stage(run), settings)
    main = equal_lengths.main_coeff(settings)
    common: dict[str, Any] = {"layer": layer, "site": site, "unit": units[layer]}
    named = named_vectors(run)
    smaller = [c for c in settings.steering.coeffs if 0 < c < main]
    cells = [
        equal_lengths.cell("learned-0", named["learned-0"], coeff=coeff, **common)
        for coeff in [*smaller, main]
    ]
    cells += [
        equal_lengths.cell(source, vector, coeff=main, **common)
        for source, vector in named.items()
        if source not in ("base", "reasoning", "learned-0")
    ]
    directions = load_directions(vectors(run) / FILE)
    return cells + [
        equal_lengths.cell(
            f"learned-0@{other}",
            directions[f"reasoning.{other}.learned.0"].vector,
            layer=other,
            site=site,
            coeff=main,
            unit=units[other],
        )
        for other in settings.search.other_layers
    ]


def texts(run: Run) -> Path:
    """The folder with `sweep.jsonl`."""
    inputs = {
        **equal_lengths.text_inputs(run),
        "vectors": fingerprint(vectors(run)),
        "directions": fingerprint(derive.stage(run)),
        "coeffs": run.settings.steering.coeffs,
        "coeff": equal_lengths.main_coeff(run.settings),
    }
    return run.stage(
        "learned-texts",
        inputs,
        lambda folder: equal_lengths.write_texts(run, folder, make_cells(run)),
    )


def summary(table: list[CellOutcome], gains: list[dict[str, Any]], coeff: float) -> str:
    """What the numbers say, in a paragraph."""
    at = {c.source: c for c in table if c.coeff == coeff or c.source == "none"}
    told = {g["source"]: g["gain"] for g in gains}
    parts = [
        f"{source} {c.backtracking_rate.mean:.3f} [{c.backtracking_rate.low:.3f}, "
        f"{c.backtracking_rate.high:.3f}] at coherence {c.coherence.mean:.3f}"
        for source, c in at.items()
    ]
    nats = [f"{s} {g['mean']:+.2f} [{g['low']:+.2f}, {g['high']:+.2f}]" for s, g in told.items()]
    return (
        f"Backtracking sentences per sentence at coefficient {coeff:g}, all directions of one "
        f"length at a layer: {'; '.join(parts)}. Log-probability of a held-out backtracking "
        f"sentence against the unsteered model, in nats: {'; '.join(nats)}."
    )


def stage(run: Run) -> Path:
    """The folder with `learned.{png,svg,csv,json}`."""
    settings, coeff = run.settings, equal_lengths.main_coeff(run.settings)
    main = steer.stage(run)[equal_lengths.TARGET]
    folder_of_vectors, own = vectors(run), texts(run)

    def work(folder: Path) -> None:
        named = named_vectors(run)
        _, table = equal_lengths.judge(read_rows(own / steer.FILE), main / steer.FILE, settings)
        gains = gains_on_text(run, named)
        cosines = [[cosine(a, b) for b in named.values()] for a in named.values()]
        numbers = {
            "coeff": coeff,
            "unit": settings.steering.unit,
            "layer": settings.direction.layer,
            **json.loads((folder_of_vectors / FACTS).read_text()),
            "on_text": gains,
            "cosines": {"sources": list(named), "table": cosines},
            "cells": [asdict(one) for one in table],
            "summary": summary(table, gains, coeff),
        }
        frame.write_numbers(folder, STEM, to_csv(table), numbers)
        learned_figure.draw(table, numbers, folder, report=settings.report)

    inputs = {
        "vectors": fingerprint(folder_of_vectors),
        "texts": fingerprint(own),
        "main": fingerprint(main),
        "report": asdict(settings.report),
        "keywords": settings.labels.keywords,
    }
    return run.stage(STEM, inputs, work)


if __name__ == "__main__":
    sys.exit(command("learned", "Directions found by gradient, PCA and probe.", stage))

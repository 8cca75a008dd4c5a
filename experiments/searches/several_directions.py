"""A search for several directions that mediate backtracking together: a question of the paper.

A search that learns a direction by gradient, projects it out, and learns the next in what is left:

    several-vectors/several.safetensors   {reasoning}.{layer}.several.{i}, orthogonal to each other
    several-texts/sweep.jsonl             what the reasoning model writes
    several/several.{png,svg,csv,json}    what it shows, and a paragraph made from the numbers

The first direction is `experiments.learned`'s of seed 0. Sources in the sweep, c being the
coefficient at which everything is compared and k the number of directions:

    single-1 … single-k       each alone at c
    together                  all of them, at c together
    together-long             each at c, so the square root of k times as long
    single-long               the first one as long as that
    random-together, random-together-long
                              a set of k random orthogonal directions, likewise
    ablate-1 … ablate-k       nothing added: the span of the first so many taken out at the layer
    ablate-means              the base-derived difference of means taken out
    ablate-random-0 …         spans of k random directions taken out
"""

import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from experiments.figures import frame
from experiments.pipeline.run import Run, command
from experiments.pipeline.stage_runner import fingerprint
from experiments.searches import equal_lengths, learned, several_figure
from experiments.searches.continuations import sentence_targets
from experiments.searches.several_figure import paragraph
from experiments.stages import derive, steer
from experiments.stages.outcome import Key, paired, to_csv
from experiments.stages.text_scores import Scores
from jaxsteer.directions import (
    Direction,
    learn_directions,
    load_directions,
    orthonormal_rows,
    random_directions,
    rescale,
    save_directions,
)
from jaxsteer.files import read_rows
from jaxsteer.steering import ablate
from jaxsteer.sweeps import Cell

STEM = "several"
FILE = "several.safetensors"


def vectors(run: Run) -> Path:
    """The folder with `several.safetensors`."""
    settings, first, directions = run.settings, learned.vectors(run), derive.stage(run)
    search, layer, site = settings.search, settings.direction.layer, settings.direction.site
    coeff = equal_lengths.main_coeff(settings)

    def work(folder: Path) -> None:
        start = load_directions(first / learned.FILE)[f"reasoning.{layer}.learned.0"]
        radius = coeff * equal_lengths.unit_lengths(directions, settings)[layer]
        targets = sentence_targets(learned.read_texts(run).learn, tokens=search.tokens)
        model, _ = run.load("reasoning")
        learned_so_far = [start.vector]
        for i in range(1, search.directions):
            one = learn_directions(
                model,
                targets,
                layers=[layer],
                seeds=[i],
                norm=radius,
                steps=search.steps,
                rows_per_step=search.rows,
                orthogonal_to=np.stack(learned_so_far),
                site=site,
                remat=learned.remat(),
                progress=f"learning direction {i + 1} of {search.directions}",
            )
            learned_so_far.append(one.vectors[0])
        save_directions(
            folder / FILE,
            [
                Direction(
                    vector,
                    layer,
                    site,
                    f"reasoning.{layer}.several.{i}",
                    {**start.provenance, "seed": i, "orthogonal_to": list(range(i))},
                )
                for i, vector in enumerate(learned_so_far)
            ],
        )

    inputs = {
        "learned": fingerprint(first),
        "directions": fingerprint(directions),
        "search": asdict(search),
        "coeff": coeff,
    }
    return run.stage("several-vectors", inputs, work)


def load_set(run: Run) -> np.ndarray:
    """The directions found, float32 `[k, D]`, each of length 1."""
    layer = run.settings.direction.layer
    saved = load_directions(vectors(run) / FILE)
    every = [saved[f"reasoning.{layer}.several.{i}"].vector for i in range(len(saved))]
    return np.stack([rescale(vector, 1.0) for vector in every])


def random_set(count: int, width: int, *, seed: int) -> np.ndarray:
    """Random orthogonal directions of length 1, float32 `[count, width]`."""
    drawn = random_directions(count, width, seed=seed)
    return orthonormal_rows(drawn, width)[:count].astype(np.float32)


def make_cells(
    vectors: np.ndarray,
    means: np.ndarray,
    *,
    layer: int,
    site: str,
    coeff: float,
    unit: float,
    random_spans: int,
) -> list[Cell]:
    """The cells of the sweep; see the module. `found` `[k, D]` and `means` `[D]`.

    The first direction alone has been run by `experiments.learned`.
    """
    k, width = vectors.shape
    long = coeff * math.sqrt(k)

    def added(source: str, vector: np.ndarray, length: float) -> Cell:
        return equal_lengths.cell(source, vector, layer=layer, site=site, coeff=length, unit=unit)

    def without(source: str, span: np.ndarray) -> Cell:
        labels = {"source": source, "coeff": 0.0, "length": 0.0}
        return Cell(labels, ablate(span, layer=layer, site=site))

    drawn = random_set(k, width, seed=1)
    cells = [added(f"single-{i + 1}", vectors[i], coeff) for i in range(1, k)]
    for name, directions in (("together", vectors), ("random-together", drawn)):
        cells += [
            added(name, directions.sum(axis=0), coeff),
            added(f"{name}-long", directions.sum(axis=0), long),
        ]
    cells.append(added("single-long", vectors[0], long))
    cells += [without(f"ablate-{i + 1}", vectors[: i + 1]) for i in range(k)]
    cells.append(without("ablate-means", means))
    return cells + [
        without(f"ablate-random-{i}", random_set(k, width, seed=2 + i)) for i in range(random_spans)
    ]


def texts(run: Run) -> Path:
    """The folder with `sweep.jsonl`."""
    settings, folder_of_vectors, directions = run.settings, vectors(run), derive.stage(run)
    layer, site = settings.direction.layer, settings.direction.site

    def work(folder: Path) -> None:
        cells = make_cells(
            load_set(run),
            load_directions(directions / derive.FILE)[f"base.{layer}.union"].vector,
            layer=layer,
            site=site,
            coeff=equal_lengths.main_coeff(settings),
            unit=equal_lengths.unit_lengths(directions, settings)[layer],
            random_spans=settings.search.random_spans,
        )
        equal_lengths.write_texts(run, folder, cells)

    inputs = {
        **equal_lengths.text_inputs(run),
        "vectors": fingerprint(folder_of_vectors),
        "directions": fingerprint(directions),
        "coeff": equal_lengths.main_coeff(settings),
        "random_spans": settings.search.random_spans,
    }
    return run.stage("several-texts", inputs, work)


def read_texts(run: Run) -> list[dict[str, Any]]:
    """The rows of the sweep, the first direction alone among them."""
    alone = [
        {**row, "source": "single-1"}
        for row in read_rows(learned.texts(run) / steer.FILE)
        if (row["source"], row["coeff"]) == ("learned-0", equal_lengths.main_coeff(run.settings))
    ]
    return [*alone, *read_rows(texts(run) / steer.FILE)]


def comparisons(scores: dict[Key, dict[str, Scores]], k: int) -> dict[str, Any]:
    """Paired differences in backtracking sentences per sentence between cells, by prompt.

    `ablated` is the span of all k against the mean of the random spans, prompt by prompt.
    """
    by_source = {source: measures for (_, source, _), measures in scores.items()}

    def shares(source: str) -> np.ndarray:
        return np.array([by_source[source][p].judged for p in by_source["together"]])

    measures = {
        "together": paired(shares("together"), shares("single-1")),
        "together-long": paired(shares("together-long"), shares("single-long")),
        "together-random": paired(shares("together"), shares("random-together")),
    }
    spans = [source for source in by_source if source.startswith("ablate-random")]
    if spans:
        mean = np.mean([shares(source) for source in spans], axis=0)
        measures["ablated"] = paired(shares(f"ablate-{k}"), mean)
    return {name: asdict(one) for name, one in measures.items()}


def on_text(run: Run) -> list[dict[str, Any]]:
    """What each direction alone and all together do to held-out text; see `experiments.learned`."""
    vectors = load_set(run)
    named = {f"single-{i + 1}": vector for i, vector in enumerate(vectors)}
    return learned.gains_on_text(run, {**named, "together": vectors.sum(axis=0)})


def stage(run: Run) -> Path:
    """The folder with `several.{png,svg,csv,json}`."""
    settings, coeff = run.settings, equal_lengths.main_coeff(run.settings)
    main, own = steer.stage(run)[equal_lengths.TARGET], texts(run)
    first = learned.texts(run)

    def work(folder: Path) -> None:
        k = settings.search.directions
        scores, table = equal_lengths.judge(read_texts(run), main / steer.FILE, settings)
        numbers: dict[str, Any] = {
            "directions": k,
            "coeff": coeff,
            "unit": settings.steering.unit,
            "layer": settings.direction.layer,
            "on_text": on_text(run),
            "comparisons": comparisons(scores, k),
            "cells": [asdict(one) for one in table],
        }
        numbers["summary"] = paragraph(table, numbers, margin=settings.report.margin)
        frame.write_numbers(folder, STEM, to_csv(table), numbers)
        several_figure.draw(table, numbers, folder, report=settings.report)

    inputs = {
        "texts": [fingerprint(first), fingerprint(own)],
        "vectors": fingerprint(vectors(run)),
        "main": fingerprint(main),
        "search": asdict(settings.search),
        "report": asdict(settings.report),
        "keywords": settings.labels.keywords,
    }
    return run.stage(STEM, inputs, work)


if __name__ == "__main__":
    sys.exit(command("several_directions", "A search for several directions.", stage))

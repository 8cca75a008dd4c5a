"""The direction of stable backtracking events beside that of all, at one length.

Eq. 3 for some events D+ is their mean less that of D, all sentences. Beside the stable ones stand
the others, as many of all events as are stable, at random, and all of them weighted by stability.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.claims.contrasts import mean_of
from experiments.pipeline.run import Run
from experiments.searches import equal_lengths
from experiments.stages import steer
from experiments.stages.groups import ROLES
from experiments.stages.outcome import Key, select
from experiments.stages.text_scores import Scores
from jaxsteer.analysis import OTHER
from jaxsteer.directions import (
    Direction,
    Moments,
    Trace,
    activation_moments,
    cosine,
    load_directions,
    save_directions,
)
from jaxsteer.files import read_rows

FILE = "directions.safetensors"
_SEED = 5

Shares = Mapping[tuple[str, int], float]  # stability by trace and sentence


def marked_by_stability(traces: Mapping[str, Trace], shares: Shares, stable: float) -> list[Trace]:
    """The traces with what is known of each event as its label: `0.7.drawn`.

    The first part is its stability. As many events as are stable, at random, are "drawn", the rest
    "left". Sentences that do not backtrack, or were not resampled, are "other".
    """
    keys = list(shares)
    count = sum(share >= stable for share in shares.values())
    drawn = np.random.default_rng(_SEED).choice(len(keys), count, replace=False)
    lot = dict.fromkeys(keys, "left") | {keys[i]: "drawn" for i in drawn}

    def name(key: tuple[str, int]) -> str:
        return f"{shares[key]:.6g}.{lot[key]}" if key in shares else OTHER

    return [
        replace(trace, labels=[name((id, i)) for i in range(len(trace.starts))])
        for id, trace in traces.items()
    ]


def directions_of(moments: Moments, stable: float) -> dict[str, NDArray[np.float64]]:
    """Eq. 3 at one layer, the mean over the offsets, `[D]`, by which events are D+.

    Those without an event at some offset are left out.
    """
    events = [label for label in moments.labels if label != OTHER]
    share = {label: float(label.rpartition(".")[0]) for label in events}
    weights = {
        "all": dict.fromkeys(events, 1.0),
        "stable": {label: float(share[label] >= stable) for label in events},
        "unstable": {label: float(share[label] < stable) for label in events},
        "drawn": {label: float(label.endswith(".drawn")) for label in events},
        "weighted": share,
    }
    whole = moments.total[0].sum(axis=0) / moments.count.sum(axis=0)[:, None]  # [O, D]
    directions = {}
    for name, by_label in weights.items():
        weight = np.array([by_label.get(label, 0.0) for label in moments.labels])
        of = weight @ moments.count  # [O]
        if of.all():
            mean = np.einsum("K,KOD->OD", weight, moments.total[0]) / of[:, None]
            directions[name] = (mean - whole).mean(axis=0)
    return directions


def inputs(run: Run) -> dict[str, Any]:
    """What decides the steered texts beside the labels."""
    settings = run.settings
    return {
        **equal_lengths.text_inputs(run),
        "direction": asdict(settings.direction),
        "coeff": equal_lengths.main_coeff(settings),
        "coherence": settings.report.coherence,
    }


def compare(
    run: Run,
    folder: Path,
    traces: Mapping[str, Trace],
    shares: Shares,
    *,
    directions: Path,
    main: Path,
    stable: float,
) -> dict[str, Any]:
    """Make the directions, add the base-derived ones to the reasoning model, and compare.

    Writes `directions.safetensors` and `sweep.jsonl`. Returns, by events, the cosines and lengths
    of both models' directions and the outcome of the steered texts.
    """
    settings = run.settings
    layer, site = settings.direction.layer, settings.direction.site
    coeff = equal_lengths.main_coeff(settings)
    unit = equal_lengths.unit_lengths(directions, settings)[layer]
    marked = marked_by_stability(traces, shares, stable)
    labels = sorted({label for trace in marked for label in trace.labels})
    by_role = {
        role: directions_of(
            activation_moments(
                run.load(role)[0],
                marked,
                labels=labels,
                offsets=settings.direction.offsets,
                site=site,
                layers=[layer],
                progress=f"stable events, {role} model",
            ),
            stable,
        )
        for role in ROLES
    }
    save_directions(
        folder / FILE,
        [
            Direction(
                vector=vector.astype(np.float32),
                layer=layer,
                site=site,
                name=f"{role}.{layer}.{name}",
                provenance={"model": role, "events": name, "stable_from": stable},
            )
            for role, by_name in by_role.items()
            for name, vector in by_name.items()
        ],
    )
    saved = load_directions(folder / FILE)
    cells = [
        equal_lengths.cell(
            name,
            saved[f"base.{layer}.{name}"].vector,
            layer=layer,
            site=site,
            coeff=coeff,
            unit=unit,
        )
        for name in by_role["base"]
    ]
    equal_lengths.write_texts(run, folder, cells)
    own = list(read_rows(folder / steer.FILE))
    scores, table = equal_lengths.judge(own, main / steer.FILE, settings)
    return {
        "coeff": coeff,
        "counts": _counts(shares, stable),
        "cosines": _cosines(by_role),
        "unsteered": asdict(select(table, "reasoning", "none")[0]),
        "cells": [asdict(c) for c in table if c.source in by_role["base"]],
        "stable_less": _less(scores, coeff, list(by_role["base"])),
        "lengths": {
            role: {name: float(np.linalg.norm(v)) for name, v in by_name.items()}
            for role, by_name in by_role.items()
        },
    }


def _less(
    scores: Mapping[Key, Mapping[str, Scores]], coeff: float, names: Sequence[str]
) -> dict[str, Any]:
    """The judged share under the stable events' direction less that under others, by prompt."""
    shares = {
        name: {p: one.judged for p, one in scores["reasoning", name, coeff].items()}
        for name in names
    }
    stable = shares.get("stable", {})
    return {
        name: asdict(mean_of([share - shares[name][p] for p, share in stable.items()]))
        for name in ("all", "drawn")
        if stable and name in shares
    }


def _counts(shares: Shares, stable: float) -> dict[str, int]:
    n = sum(share >= stable for share in shares.values())
    return {
        "all": len(shares),
        "stable": n,
        "unstable": len(shares) - n,
        "drawn": n,
        "weighted": len(shares),
    }


def _cosines(directions: Mapping[str, Mapping[str, NDArray]]) -> dict[str, dict[str, float]]:
    """Of each base-derived direction with that of all events, and with the reasoning model's."""
    base, reasoning = directions["base"], directions["reasoning"]
    return {
        name: {
            "with_all": cosine(vector, base["all"]),
            "with_reasoning": cosine(vector, reasoning[name]),
        }
        for name, vector in base.items()
    }


def words(numbers: dict[str, Any]) -> list[str]:
    """A table of the directions, as Markdown."""
    plain = numbers["unsteered"]
    rows = [
        f"At coefficient {numbers['coeff']:g}, all of one length, added to the reasoning model at "
        "the held-out prompts. Unsteered: share of distinct backtracking sentences "
        f"{between(plain['judged'])}, coherence {three(plain['coherence']['mean'])}. *Drawn* are "
        "as many events as are stable, at random.",
        "",
        "| events | of them | cosine with all | base with reasoning | judged share | change | "
        "coherence |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for cell in numbers["cells"]:
        name, change = cell["source"], cell["difference"]
        cosines = numbers["cosines"][name]
        rows.append(
            f"| {name} | {numbers['counts'][name]} | {three(cosines['with_all'])} "
            f"| {three(cosines['with_reasoning'])} | {between(cell['judged'])} "
            f"| {between(change, 'diff')} | {three(cell['coherence']['mean'])} |"
        )
    less = [
        f"that of *{name}* by {between(one, 'value')} (n = {one['n']})"
        for name, one in numbers["stable_less"].items()
    ]
    if less:
        rows += ["", f"By prompt the share of *stable* differs from {', and from '.join(less)}."]
    return rows


def between(one: dict[str, Any], value: str = "mean") -> str:
    """A value with its interval."""
    return f"{three(one[value])} [{three(one['low'])}, {three(one['high'])}]"


def three(value: float | None) -> str:
    """Three digits; a dash for what is unknown, which JSON has as null.

    >>> three(0.25), three(None), three(float("nan"))
    ('0.250', '–', '–')
    """
    return "–" if value is None or math.isnan(value) else f"{value:.3f}"

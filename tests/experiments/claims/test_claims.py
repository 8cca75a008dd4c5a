"""The claims table on made-up sweeps: every row, its numbers, and what is missing."""

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from experiments.claims import claims as module
from experiments.claims.claims import Claim, claims, to_csv, to_markdown
from experiments.claims.evidence import (
    Evidence,
    base_cells,
    baseline_coeff,
    measure,
    ratio_of_gains,
    text_counts,
    text_gains,
    versus_baselines,
)
from experiments.claims.rules import Verdict
from experiments.claims.seeds import overall
from experiments.stages import outcome
from experiments.stages.outcome import outcomes_of, scores_by_cell
from jaxsteer.analysis.metrics import paired_difference
from jaxsteer.analysis.sentences import KEYWORDS

CALM = "one two three four ."
WAIT = "wait . " + CALM
BROKEN = "no no no no no no no no no no ."
N = 64
FACTS = {"cosine": [0.1, 0.74], "n_backtracking": [131, 131], "n_sentences": [4000, 4000]}
BASELINES = ("mean", "noise", "self", "behaviour-planning", "random-0")


def texts(share: float, n: int = N, other: str = CALM) -> list[str]:
    """So many texts, a share of them with a backtracking sentence, the first ones."""
    return [WAIT if i < share * n else other for i in range(n)]


def effect() -> dict[tuple[str, str, float], Sequence[str]]:
    """What the paper says: only the reasoning model responds, to either direction."""
    cells: dict[tuple[str, str, float], Sequence[str]] = {
        ("reasoning", "none", 0.0): texts(0.25),
        ("reasoning", "base", -1.0): texts(0.0),
        ("reasoning", "base", 1.0): texts(0.5),
        ("reasoning", "base", 2.0): texts(0.75),
        ("reasoning", "base", 3.0): texts(0.9, other=BROKEN),
        ("reasoning", "reasoning", 2.0): texts(0.7),
        ("base", "none", 0.0): texts(0.0, 256),
        ("base", "base", 2.0): texts(0.0, 256),
        ("base", "reasoning", 2.0): texts(0.0, 256),
        ("control", "none", 0.0): texts(0.25),
        ("control", "base", 2.0): texts(0.25),
    }
    return cells | {("reasoning", name, 2.0): texts(0.25) for name in BASELINES}


def found(cells: dict[tuple[str, str, float], Sequence[str]], **fields: Any) -> Evidence:
    rows = [
        {"target": t, "source": s, "coeff": c, "prompt": i, "text": text, "stopped": True}
        for (t, s, c), written in cells.items()
        for i, text in enumerate(written)
    ]
    scores = scores_by_cell(rows, keywords=KEYWORDS, grammar=None)
    table = outcomes_of(scores, {key: abs(key[2]) for key in scores})
    defaults = {"margin": 0.05, "layer": 1, "directions": FACTS}
    return Evidence(table=table, scores=scores, **{**defaults, **fields})


def by_id(evidence: Evidence) -> dict[str, Claim]:
    rows = claims(evidence)
    table = {row.id: row for row in rows}
    assert len(table) == len(rows)
    return table


@pytest.fixture(scope="module", autouse=True)
def fewer_draws() -> Iterator[None]:
    """Sign flips and resamples are most of the work, and no verdict here is near its edge."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outcome, "RESAMPLES", 300)
        patch.setattr(outcome, "paired_difference", partial(paired_difference, n_permutations=300))
        yield


@pytest.fixture(scope="module")
def paper() -> Evidence:
    interval = {"low": 0.6, "high": 0.8}
    share = {"share": 0.3, "low": 0.2, "high": 0.4, "n": 50}
    gain = {"value": 0.1, "low": 0.05, "high": 0.15, "n": 32}
    words = [{"token": " wait", "rank": 90, "logit": 0.1}, {"token": " hmm", "rank": 40}]
    return found(
        effect(),
        figure2={
            "optimum": {"layer": 1, "offset": -9, "cells": 96, "gain": gain, "difference": gain}
        },
        figure5={"directions": {"base.1.union": {"base": {"keywords": words, "vocab_size": 369}}}},
        figure6={
            "auroc": {"base": {**interval, "mean": 0.7, "n_events": 60, "n_other": 900}},
            "without_direction": share,
            "without_backtracking": share,
        },
    )


def test_the_papers_effect_is_reproduced_in_every_row(paper: Evidence) -> None:
    table = by_id(paper)
    assert list(table) == ["C1", "C2", "C3", "C4", "C5", "C6", "C7", "C8", "S", "N"]
    assert {row.verdict for row in table.values()} == {Verdict.YES}
    assert "layer 1, offset -9" in table["C1"].measured
    assert table["C2"].measured.startswith("at 2, backtracking per sentence 0.200 [")
    assert "n = 64" in table["C2"].measured
    assert "0 of 512, unsteered 0 of 256" in table["C3"].measured
    assert "0 of 768 texts are empty" not in table["C3"].measured  # steered cells only
    assert "0 of 512 texts are empty" in table["C3"].measured
    assert table["C4"].measured.startswith("0.740 at layer 1, from 131")
    assert "strongest of 5" in table["C5"].measured
    assert "base model 40 of 369 (hmm, of 2 tokens)" in table["C6"].measured
    assert "base model 0.700 [0.600, 0.800], 60 events" in table["C7"].measured
    assert "0.300 [0.200, 0.400] of 50 backtracking sentences" in table["C8"].measured


def test_figures_that_were_not_made_are_not_judged() -> None:
    table = by_id(found(effect()))
    absent = {id for id, row in table.items() if row.verdict is Verdict.ABSENT}
    assert absent == {"C1", "C6", "C7", "C8"}
    assert "--full" in table["C1"].measured


def test_effects_that_are_not_there() -> None:
    cells = effect()
    cells["reasoning", "base", 2.0] = texts(0.25)
    cells["control", "base", 2.0] = texts(0.9)
    cells["base", "reasoning", 2.0] = texts(0.5, 256)
    cells["reasoning", "base", -1.0] = texts(0.2)
    table = by_id(found(cells, directions={**FACTS, "cosine": [0.74, 0.2]}))
    for id in ("C2", "C4", "N", "S"):
        assert table[id].verdict is Verdict.NO, id
    assert table["C3"].verdict is Verdict.OPEN  # the reasoning model gains nothing to compare with
    assert table["C5"].verdict is Verdict.OPEN


def test_a_base_model_that_responds() -> None:
    cells = effect()
    cells["base", "reasoning", 2.0] = texts(0.5, 256)
    row = by_id(found(cells))["C3"]
    assert row.verdict is Verdict.NO
    assert "reasoning-derived at 2: 128 of 256" in row.measured


def test_too_few_texts_of_the_base_model_are_said_to_be_too_few() -> None:
    cells = effect()
    for key in [key for key in cells if key[0] == "base"]:
        cells[key] = texts(0.0, 20)
    assert by_id(found(cells))["C3"].verdict is Verdict.OPEN


def test_an_empty_base_model_shows_nothing() -> None:
    cells = effect()
    for key in [key for key in cells if key[0] == "base"]:
        cells[key] = ["", ""]
    row = by_id(found(cells))["C3"]
    assert row.verdict is Verdict.OPEN
    assert "4 of 4 texts are empty" in row.measured


def test_collapsed_cells_of_the_base_model_are_no_evidence() -> None:
    cells = effect()
    cells["base", "base", 3.0] = [BROKEN] * 256
    assert [(c.source, c.coeff) for c in base_cells(found(cells))] == [
        ("base", 2.0),
        ("reasoning", 2.0),
    ]


def test_without_a_coherent_coefficient_nothing_is_judged_by_one() -> None:
    cells = {
        key: [BROKEN] * N if key[2] > 0 and key[0] == "reasoning" else written
        for key, written in effect().items()
    }
    table = by_id(found(cells))
    assert [table[id].verdict for id in ("C2", "C3")] == [Verdict.OPEN] * 2
    assert table["C5"].verdict is Verdict.ABSENT
    assert "N" not in table
    assert "no positive coefficient keeps coherence within 0.05" in table["C2"].measured


def test_targets_and_sources_that_were_not_run() -> None:
    cells = {key: t for key, t in effect().items() if key[0] == "reasoning"}
    table = by_id(found(cells))
    assert table["C3"].verdict is Verdict.ABSENT
    assert "N" not in table
    del cells["reasoning", "reasoning", 2.0]
    table = by_id(found(cells))
    assert table["C2"].verdict is Verdict.OPEN
    assert "the reasoning-derived one was not run" in table["C2"].measured


def test_incoherent_baselines_are_named_and_not_judged() -> None:
    cells = effect()
    cells["reasoning", "mean", 2.0] = [BROKEN] * N
    evidence = found(cells)
    versus, collapsed = versus_baselines(evidence, 2.0)
    assert collapsed == ["mean"]
    assert [v.name for v in versus] == ["noise", "self", "behaviour-planning", "random-0"]
    row = by_id(evidence)["C5"]
    assert row.verdict is Verdict.OPEN
    assert "not judged: mean" in row.measured
    assert "nothing to judge of: mean" in row.measured


def test_baselines_are_judged_where_they_were_run() -> None:
    cells = effect()
    for name in BASELINES:
        cells["reasoning", name, 1.0] = cells.pop(("reasoning", name, 2.0))
    assert baseline_coeff(found(cells)) == 1.0
    cells["reasoning", "noise", 3.0] = texts(0.25)  # beyond the judged coefficient
    assert baseline_coeff(found(cells)) == 1.0


def test_a_cosine_no_higher_than_that_of_other_directions_says_nothing() -> None:
    facts = {**FACTS, "cosine": [0.1, 0.92]}
    alone = by_id(found(effect(), directions=facts))["C4"]
    beside = by_id(found(effect(), directions=facts, other_cosines={"planning": 0.93}))["C4"]
    far = by_id(found(effect(), directions=facts, other_cosines={"planning": 0.3}))["C4"]
    assert [c.verdict for c in (alone, beside, far)] == [Verdict.NO, Verdict.OPEN, Verdict.NO]
    assert "about as close: planning 0.93" in beside.measured
    assert "about as close" not in far.measured


# The numbers behind


def test_gains_of_texts_are_paired_by_prompt() -> None:
    cells = {
        ("reasoning", "none", 0.0): [WAIT, CALM, CALM, "", CALM],
        ("reasoning", "base", 1.0): [WAIT, WAIT, WAIT, WAIT, ""],
    }
    counts = text_counts(found(cells), "reasoning", "base", 1.0)
    assert (counts.n, counts.before, counts.after, counts.both) == (3, 1, 3, 1)
    assert text_gains(found(cells), 1.0) == {"base": pytest.approx(2 / 3)}


def test_ratio_of_gains_with_its_interval() -> None:
    ratio = ratio_of_gains(found(effect()), 2.0)
    assert ratio.value == pytest.approx(0.5 / 0.45, rel=0.05)
    assert ratio.low < ratio.value < ratio.high
    assert ratio.n == N
    cells = effect()
    cells["reasoning", "reasoning", 2.0] = texts(0.1)
    assert math.isnan(ratio_of_gains(found(cells), 2.0).value)


def test_numbers_that_stand_beside_a_verdict(paper: Evidence) -> None:
    share = {"share": 0.2, "low": 0.1, "high": 0.3, "n": 900}
    figure6 = {**(paper.figure6 or {}), "dense": {"base": {"share_above_events": share}}}
    cosines = {"cosine": {"value": 0.74, "low": 0.7, "high": 0.78, "n": 131}}
    table = by_id(replace(paper, figure6=figure6, cosines=cosines))
    assert table["C4"].measured.startswith("0.740 [0.700, 0.780] at layer 1")
    assert table["C7"].measured.endswith("of all tokens, 0.200 [0.100, 0.300] (base model)")
    assert table["C7"].verdict is by_id(paper)["C7"].verdict


def test_a_null_in_json_is_unknown() -> None:
    assert math.isnan(measure(None).value)
    assert math.isnan(measure({"value": None, "low": None, "high": None, "n": 0}).value)


# Writing it down


def test_markdown_and_csv_have_a_line_a_claim(paper: Evidence) -> None:
    rows = claims(paper)
    lines = to_markdown(rows)
    assert len(lines) == len(rows) + 2
    assert all(line.count("|") == 6 for line in lines[2:])
    assert lines[2].endswith("| **reproduced** |")
    read = list(csv.DictReader(io.StringIO(to_csv(rows))))
    assert [row["verdict"] for row in read] == ["reproduced"] * len(rows)
    assert list(read[0]) == list(module.COLUMNS)


def test_the_interval_stands_beside_every_rate(paper: Evidence) -> None:
    row = by_id(replace(paper, figure2=None))["C2"]
    assert row.measured.count("[") >= 4


def test_verdicts_over_seeds() -> None:
    assert overall(["reproduced"] * 3) == "reproduced in 3 of 3"
    assert overall(["a", "b", "a"]) == "a in 2 of 3, b in 1"

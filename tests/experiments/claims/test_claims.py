"""The claims table on made-up sweeps: every row, its numbers, and what is missing."""

import csv
import io
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from claims_helpers import BROKEN, CALM, SHARE, WAIT, Cells, by_id, evidence_of, texts

from experiments.claims import claims as module
from experiments.claims.claims import claims, to_csv, to_markdown
from experiments.claims.contrasts import Verdict
from experiments.claims.evidence import (
    Evidence,
    base_cells,
    baseline_coeff,
    gains,
    measure,
    ratio_of_gains,
)
from experiments.claims.seeds import overall
from experiments.stages import outcome
from jaxsteer.analysis.metrics import paired_difference

BASELINES = ("mean", "noise", "self", "behaviour-planning", "random-0")
OFFSETS = [-12, -9, -6, -3, 0, 3]


def effect() -> Cells:
    """What the paper says: only the reasoning model responds, to either direction."""
    cells: Cells = {
        ("reasoning", "none", 0.0): texts(0.25),
        ("reasoning", "base", -1.0): texts(0.0),
        ("reasoning", "base", 1.0): texts(0.5),
        ("reasoning", "base", 2.0): texts(0.75),
        ("reasoning", "base", 3.0): texts(0.9, other=BROKEN),
        ("reasoning", "reasoning", 2.0): texts(0.7),
        ("base", "none", 0.0): texts(0.0, 512),
        ("base", "base", 2.0): texts(0.0, 512),
        ("base", "reasoning", 2.0): texts(0.0, 512),
        ("control", "none", 0.0): texts(0.25),
        ("control", "base", -1.0): texts(0.25),
        ("control", "base", 2.0): texts(0.25),
    }
    return cells | {("reasoning", name, 2.0): texts(0.25) for name in BASELINES}


@pytest.fixture(scope="module", autouse=True)
def fewer_draws() -> Iterator[None]:
    """Sign flips and resamples are most of the work, and no verdict rests on them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outcome, "RESAMPLES", 300)
        patch.setattr(outcome, "paired_difference", partial(paired_difference, n_permutations=300))
        yield


def figures() -> dict[str, Any]:
    """The numbers of the figures, as in the paper."""
    gain = np.random.default_rng(0).normal(0, 0.02, (32, 3, len(OFFSETS)))
    gain[:, 1:, 1] += 0.2
    table = {"layers": [0, 1, 2], "offsets": OFFSETS, "gains": gain.tolist(), "coherent": 18}
    share = {"share": 0.3, "low": 0.2, "high": 0.4, "n": 50}
    words = [{"token": " wait", "rank": 90, "logit": 0.1}, {"token": " hmm", "rank": 40}]
    area = {"mean": 0.7, "low": 0.65, "high": 0.75, "n_events": 60, "n_other": 900, "n_texts": 99}
    return {
        "figure2": {"table": {**table, "best": {"layer": 1, "offset": -9}}},
        "cosines": {
            "cosine": {"value": 0.74, "low": 0.7, "high": 0.78, "n": 131},
            "random": {"cosines": [0.2, 0.3, 0.25]},
        },
        "figure5": {
            "directions": {"base.1.union": {"base": {"keywords": words, "vocab_size": 369}}},
            "best_rank": {"base.1.union": {"base": {"value": 40, "low": 20, "high": 90, "n": 20}}},
        },
        "figure6": {
            "auroc": {"base": area, "reasoning": area},
            "dense": {role: {"share_above_events": share} for role in ("base", "reasoning")},
            "without_direction": share,
            "without_backtracking": share,
            "prevalence": 0.05,
        },
    }


@pytest.fixture(scope="module")
def paper() -> Evidence:
    return evidence_of(effect(), **figures())


def test_the_papers_effect_is_reproduced_in_every_row(paper: Evidence) -> None:
    table = by_id(paper)
    assert list(table) == ["C1", "C2", "C3", "C4", "C5", "C6", "C7", "C8", "S", "N"]
    assert {id: row.verdict for id, row in table.items()} == dict.fromkeys(table, Verdict.YES)
    assert "layer 1, offset -9" in table["C1"].measured
    assert table["C2"].measured.startswith("at 2, share of distinct backtracking sentences 0.050 [")
    assert "gain 0.100 [" in table["C2"].measured
    assert "n = 64" in table["C2"].measured
    assert table["C3"].measured.startswith("0 of 1024 steered texts that count backtrack, in 2 of")
    assert "0 of 1024 texts are empty" in table["C3"].measured
    assert table["C4"].measured.startswith("0.740 [0.700, 0.780] at layer 1, from 131")
    assert "strongest of 5" in table["C5"].measured
    assert "base model 40 [20, 90] of 369 (hmm, of 2 tokens)" in table["C6"].measured
    assert "base model 0.700 [0.650, 0.750], 60 events" in table["C7"].measured
    assert "0.300 [0.200, 0.400] of 50 backtracking sentences" in table["C8"].measured
    assert not any("Undecided" in row.measured for row in table.values())


def test_figures_that_were_not_made_are_not_judged() -> None:
    table = by_id(evidence_of(effect()))
    absent = {id for id, row in table.items() if row.verdict is Verdict.ABSENT}
    assert absent == {"C1", "C4", "C6", "C7", "C8"}
    assert "--full" in table["C1"].measured


def test_effects_that_are_not_there() -> None:
    cells = effect()
    cells["reasoning", "base", 2.0] = texts(0.25)
    cells["reasoning", "base", -1.0] = texts(0.25)
    cells["base", "reasoning", 2.0] = texts(0.5, 512)
    table = by_id(evidence_of(cells, **figures()))
    assert table["C2"].verdict is table["S"].verdict is Verdict.NO
    # Without an effect in the reasoning model there is nothing to compare with, or to detect.
    for id in ("C3", "C5", "C6", "C7", "C8", "N"):
        assert table[id].verdict is Verdict.OPEN, id
    assert "Undecided: the direction's own gain" in table["C7"].measured


def test_a_base_model_and_a_control_that_respond() -> None:
    cells = effect()
    cells["base", "reasoning", 2.0] = texts(0.5, 512)
    cells["control", "base", 2.0] = texts(0.9)
    table = by_id(evidence_of(cells))
    assert table["C3"].verdict is table["N"].verdict is Verdict.NO
    assert table["C3"].measured.startswith("256 of 1024")
    assert "(reasoning-derived at 2;" in table["C3"].measured


def test_too_few_texts_of_the_base_model_are_said_to_be_too_few() -> None:
    cells = effect()
    for key in [key for key in cells if key[0] == "base"]:
        cells[key] = texts(0.0, 20)
    row = by_id(evidence_of(cells))["C3"]
    assert row.verdict is Verdict.OPEN
    assert "prompts would decide" in row.measured


def test_an_empty_base_model_shows_nothing() -> None:
    cells = effect()
    for key in [key for key in cells if key[0] == "base"]:
        cells[key] = ["", ""]
    row = by_id(evidence_of(cells))["C3"]
    assert row.verdict is Verdict.OPEN
    assert "4 of 4 texts are empty" in row.measured


def test_without_a_coherent_coefficient_nothing_is_judged_by_one() -> None:
    cells = {
        key: [BROKEN] * 64 if key[2] > 0 and key[0] == "reasoning" else written
        for key, written in effect().items()
    }
    table = by_id(evidence_of(cells))
    assert [table[id].verdict for id in ("C2", "C3")] == [Verdict.OPEN] * 2
    assert table["C5"].verdict is Verdict.ABSENT
    assert "N" not in table
    assert "no positive coefficient keeps coherence within 0.05" in table["C2"].measured


def test_targets_and_sources_that_were_not_run() -> None:
    cells = {key: t for key, t in effect().items() if key[0] == "reasoning"}
    table = by_id(evidence_of(cells))
    assert table["C3"].verdict is Verdict.ABSENT
    assert "N" not in table
    del cells["reasoning", "reasoning", 2.0]
    table = by_id(evidence_of(cells))
    assert table["C2"].verdict is Verdict.OPEN
    assert "the reasoning-derived one was not run" in table["C2"].measured


def test_degenerate_baselines_are_named_and_not_judged() -> None:
    cells = effect()
    cells["reasoning", "mean", 2.0] = [BROKEN] * 64
    row = by_id(evidence_of(cells))["C5"]
    assert row.verdict is Verdict.OPEN
    assert "strongest of 4" in row.measured
    assert "degenerate text and so not judged: mean" in row.measured


def test_baselines_are_judged_where_they_were_run() -> None:
    cells = effect()
    for name in BASELINES:
        cells["reasoning", name, 1.0] = cells.pop(("reasoning", name, 2.0))
    assert baseline_coeff(evidence_of(cells)) == 1.0
    cells["reasoning", "noise", 3.0] = texts(0.25)  # beyond the judged coefficient
    assert baseline_coeff(evidence_of(cells)) == 1.0


# The numbers behind


def test_shares_and_gains_are_paired_by_prompt() -> None:
    cells = {
        ("reasoning", "none", 0.0): [WAIT, CALM, CALM, "", *[CALM] * 8],
        ("reasoning", "base", 1.0): [WAIT, WAIT, WAIT, WAIT, "", *[CALM] * 7],
        ("base", "none", 0.0): [CALM] * 3,
        ("base", "base", 1.0): [CALM, "", CALM],
    }
    found = evidence_of(cells)
    np.testing.assert_array_equal(
        found.shares("reasoning", "base", 1.0), [SHARE] * 4 + [math.nan] + [0] * 7
    )
    gain = gains(found, 1.0)["base"]
    assert (gain.value, gain.n) == (pytest.approx(2 * SHARE / 10), 10)
    (cell,) = base_cells(found)
    np.testing.assert_array_equal(cell.after, [0, math.nan, 0])


def test_the_rows_of_c2_are_of_one_estimand(paper: Evidence) -> None:
    """Mean of shares on either side, and their difference the gain."""
    before, after, gain = (
        float(part.split(" [")[0])
        for part in (
            by_id(paper)["C2"]
            .measured.removeprefix("at 2, share of distinct backtracking sentences ")
            .replace(" → ", "|")
            .replace(", gain ", "|")
            .split("|")
        )[:3]
    )
    assert after - before == pytest.approx(gain, abs=1e-3)


def test_ratio_of_gains_is_where_the_contrasts_turn() -> None:
    ratio = ratio_of_gains(evidence_of(effect()), 2.0)
    assert ratio.value == pytest.approx(0.5 / 0.45, rel=0.05)
    assert 0.5 < ratio.low < ratio.value < ratio.high < 2
    cells = effect()
    cells["reasoning", "reasoning", 2.0] = texts(0.25)
    assert math.isinf(ratio_of_gains(evidence_of(cells), 2.0).high)


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

"""Figure 4: which cells it shows, in which order, with which p-values; files that repeat."""

import csv
import io
import json
import math
from pathlib import Path

import pytest

from experiments.figures import fig4_baselines
from experiments.stages.outcome import CellOutcome, Measured, Paired
from jaxsteer.analysis.metrics import holm

P_VALUES = {"mean": 0.01, "noise": 0.04, "self": 0.03, "random-0": math.nan}


def measure(mean: float, n: int = 20) -> Measured:
    return Measured(mean, 0.01, mean - 0.02, mean + 0.02, n, 0)


def cell(source: str, coeff: float, *, rate=0.03, coherence=0.9, target="reasoning"):
    p_value = P_VALUES.get(source, 0.001)
    difference = Paired(rate - 0.03, 0.01, p_value, rate - 0.05, rate - 0.01, 20, 0)
    nothing = Measured(math.nan, math.nan, math.nan, math.nan, 0, 20)
    measures = {
        "keyword_rate": measure(rate / 10),
        "keyword_matches": measure(rate / 10),
        "backtracking_rate": measure(rate),
        "judged": measure(rate),
        "texts_with": measure(rate),
        "coherence": measure(coherence),
        "repetition": measure(0.1),
        "grammar": measure(coherence),
        "perplexity": nothing,
    }
    facts = {"length": 7 * abs(coeff), "n_empty": 0, "empty_share": 0.0, "excluded": {"short": 2}}
    return CellOutcome(target, source, coeff, difference=difference, **measures, **facts)


def table() -> list[CellOutcome]:
    found = [cell("none", 0.0), cell("none", 0.0, target="base"), cell("base", 0.5, target="base")]
    sources = ("random-0", "self", "reasoning", "noise", "mean", "base", "raw-mean", "behaviour-x")
    found += [cell(source, coeff, rate=0.1) for source in sources for coeff in (0.25, 0.5)]
    return [*found, cell("base", 1.0, rate=0.2, coherence=0.5), cell("mean", 1.0, coherence=0.8)]


def test_holm_is_its_definition() -> None:
    assert holm([]).tolist() == []
    assert holm([0.5]).tolist() == [0.5]
    assert holm([0.01, 0.02, 0.03, 0.9]).tolist() == pytest.approx([0.04, 0.06, 0.06, 0.9])
    assert holm([0.6, 0.5]).tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match=r"p_values: got .*, expected 0 to 1"):
        holm([1.5])


def test_the_bars_and_their_order() -> None:
    made = fig4_baselines.bars(table(), 0.5)
    order = ["none", "base", "reasoning", "mean", "noise", "self", "behaviour-x", "random-0"]
    assert [bar.source for bar in made] == [*order, "raw-mean"]
    assert all(bar.cell.target == "reasoning" for bar in made)
    # Corrected over the baselines that were tested: neither the directions nor those without p.
    corrected = {bar.source: bar.p_holm for bar in made if not math.isnan(bar.p_holm)}
    assert corrected == pytest.approx(
        {"mean": 0.03, "noise": 0.06, "self": 0.06, "behaviour-x": 0.005, "raw-mean": 0.005}
    )


def test_the_coefficient_that_is_drawn() -> None:
    assert fig4_baselines.shown_at(table(), 0.03) == 0.5  # 1.0 is not coherent
    assert fig4_baselines.shown_at(table(), 0.6) == 1.0
    low = [c for c in table() if c.source != "base"]
    assert fig4_baselines.shown_at(low, 0.03) == 0.25  # nothing to judge at
    directions = [c for c in table() if c.source in ("none", "base", "reasoning")]
    assert fig4_baselines.shown_at(directions, 0.03) is None
    assert fig4_baselines.to_markdown(directions, margin=0.03) == ["No baseline was run."]


def test_every_coefficient_is_in_the_numbers_and_one_in_the_table() -> None:
    found = fig4_baselines.numbers(table(), margin=0.03)
    assert [bar["coeff"] for bar in found["bars"]] == [0.25] * 9 + [0.5] * 9 + [1.0] * 3
    rows = list(csv.DictReader(io.StringIO(fig4_baselines.to_csv(found))))
    assert len(rows) == len(found["bars"])
    assert rows[10]["source"] == "base"
    assert float(rows[10]["backtracking_rate"]) == 0.1
    assert float(rows[10]["backtracking_rate.low"]) == pytest.approx(0.08)
    assert rows[10]["backtracking_rate.n"] == "20"
    lines = fig4_baselines.to_markdown(table(), margin=0.03)
    assert lines[0].startswith("At coefficient 0.5,")
    assert len(lines) == 4 + 9
    assert lines[4].startswith("| nothing | 0 | 0.030 [0.010, 0.050] |")
    assert lines[7] == (
        "| mean | 3.5 | 0.100 [0.080, 0.120] | 0.100 [0.080, 0.120] | 0.0100 [-0.0100, 0.0300] "
        "| 0.900 [0.880, 0.920] |  | 0.01 | 0.03 | 20 | 2 |"
    )


def test_the_same_numbers_give_the_same_files(tmp_path: Path) -> None:
    made = fig4_baselines.bars(table(), 0.5)
    files = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        paths = fig4_baselines.draw(
            made, tmp_path / name, margin=0.03, unit="vector", coherence="1 − r"
        )
        assert [path.name for path in paths] == ["figure4.png", "figure4.svg"]
        files.append([path.read_bytes() for path in paths])
    assert files[0] == files[1]


def test_a_run_has_the_figure(finished) -> None:
    folder = finished.out / "figure4"
    found = json.loads((folder / "figure4.json").read_text())
    sources = {bar["source"] for bar in found["bars"]}
    assert {"none", "base", "reasoning", "mean", "noise", "self", "random-0"} <= sources
    assert {file.suffix for file in folder.glob("figure4.*")} == {
        ".png", ".svg", ".csv", ".json", ".md",
    }  # fmt: skip

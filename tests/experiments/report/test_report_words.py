"""The words of the report: numbers of large figures as small tables, texts that figures bring."""

import json
from pathlib import Path

from experiments.report.figure_list import FIGURES, Figure
from experiments.report.text import _figure, _short, words_of

SHARE = {"share": 0.25, "low": 0.2, "high": None, "n": 40}


def a_figure(name: str) -> Figure:
    return Figure(name, "A title", lambda run: Path(), "A caption.")


def test_numbers_stand_beside_their_intervals() -> None:
    dense = {"base": {"share_above_events": SHARE}}
    auroc = {"base": {"mean": 0.75, "low": 0.7, "high": 0.8, "n_events": 9, "n_other": 90}}
    lines = words_of(
        "figure6",
        {
            "auroc": auroc,
            "dense": dense,
            "without_direction": SHARE,
            "without_backtracking": {**SHARE, "share": None},
            "prevalence": 0.04,
        },
    )
    assert lines[2] == "| base | 0.750 [0.700, 0.800] | 9 and 90 | 0.250 [0.200, ?] |"
    assert "0.250 [0.200, ?] come without the direction (n = 40;" in lines[-1]
    assert "where it is strongest – do not backtrack (n = 40; 0, by chance 0.960)" in lines[-1]
    assert words_of("figure3", {}) == []


def test_tokens_break_no_table() -> None:
    lens = {
        "keywords": [{"token": " Wait", "rank": 7}, {"token": "wait", "rank": 90}],
        "top": [["|", 2.0], ["\n", 1.0], [" so", 0.5]],
        "vocab_size": 128256,
    }
    random = {"median": 100.0, "low": 2.0, "high": 900.0}
    numbers = {"directions": {"base.10.union": {"base": lens}}, "random": {"base": random}}
    (line,) = words_of("figure5", numbers)[2:]
    assert line.count("|") == 7
    assert "`U+7C`, `U+A`, `so` | `Wait`: 7 | 128256 | 100 [2, 900] |" in line


def test_a_figure_brings_its_own_words(tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text("{}")
    (tmp_path / "own.md").write_text("# Own\n\n![x](own.png)\n\n## Part\n\nIts words.\n")
    lines = _figure(a_figure("own"), tmp_path)
    assert lines[:3] == ["## A title", "", "A caption."]  # without a picture that is not there
    assert "#### Part" in lines
    assert "Its words." in lines
    assert not any("own.png" in line for line in lines)
    (tmp_path / "said.json").write_text(json.dumps({"summary": "It says so."}))
    (tmp_path / "said.png").touch()
    lines = _figure(a_figure("said"), tmp_path)
    assert "![A title](said.png)" in lines
    assert "It says so." in lines


def test_small_tables_are_shown_and_large_ones_are_not(tmp_path: Path) -> None:
    (tmp_path / "few.json").write_text("{}")
    (tmp_path / "few.csv").write_text("name,value\na,0.123456\n")
    assert "| a | 0.1235 |" in _figure(a_figure("few"), tmp_path)
    (tmp_path / "few.csv").write_text("name,value\n" + "a,1\n" * 60)
    assert not any(line.startswith("| a") for line in _figure(a_figure("few"), tmp_path))
    assert _short("nan") == "nan"


def test_names_of_figures_are_distinct() -> None:
    names = [figure.name for figure in FIGURES]
    assert len(set(names)) == len(names)
    assert names[0] == "headline"

"""Agreement of two judges: counts by hand, intervals, and files beside."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from experiments.judges.agreement import ALL, cohens_kappa, compare, main
from jaxsteer.analysis.labels import SentenceLabel, write_labels

SHORT = {"b": "backtracking", "d": "deduction", "i": "initializing", "o": "other"}


def labels(**traces: str) -> list[SentenceLabel]:
    """One letter of `SHORT` a sentence; a dot is a sentence without a label."""
    return [
        SentenceLabel(trace=trace, start=10 * i, stop=10 * i + 9, label=SHORT[letter])
        for trace, letters in traces.items()
        for i, letter in enumerate(letters)
        if letter != "."
    ]


FIRST = labels(one="bbod", two="obbb.o")
SECOND = labels(one="bddd", two="obbob.")


def test_counts_and_measures_by_hand() -> None:
    found = compare(FIRST, SECOND, n_resamples=200)
    assert (found.sentences, found.traces, found.only_first, found.only_second) == (8, 2, 1, 1)
    row = found.rows[0]
    assert (row.label, row.n, row.n_first, row.n_second, row.n_both) == ("backtracking", 8, 5, 3, 3)
    assert row.measures["precision"][0] == 3 / 5
    assert row.measures["recall"][0] == 1.0
    assert row.measures["f1"][0] == 6 / 8
    # Both agree on 6 of 8; by chance on 5/8 * 3/8 + 3/8 * 5/8.
    assert row.measures["kappa"][0] == pytest.approx((6 / 8 - 30 / 64) / (1 - 30 / 64))
    assert found.confusion == {
        "deduction": {"deduction": 1},
        "backtracking": {"deduction": 1, "backtracking": 3, "other": 1},
        "other": {"deduction": 1, "other": 1},
    }
    whole = found.rows[-1]
    assert (whole.label, whole.n_both, list(whole.measures)) == (ALL, 5, ["kappa"])


def test_the_other_way_round_precision_and_recall_change_places() -> None:
    there, back = compare(FIRST, SECOND).rows[0], compare(SECOND, FIRST).rows[0]
    assert there.measures["precision"] == back.measures["recall"]
    assert there.measures["kappa"] == back.measures["kappa"]


def test_kappa_is_1_0_and_below() -> None:
    same = labels(a="bod", b="bob")
    value, low, high = compare(same, same).rows[0].measures["kappa"]
    assert (value, high) == (1.0, 1.0)
    assert -1 <= low < 1  # no more is known of texts that were not seen
    assert cohens_kappa(np.full((3, 3), 5.0)) == 0.0
    assert cohens_kappa(np.array([[0.0, 4.0], [4.0, 0.0]])) == -1.0
    assert np.isnan(cohens_kappa(np.array([[7.0, 0.0], [0.0, 0.0]])))


def test_intervals_agree_with_drawing_traces_by_hand() -> None:
    rng = np.random.default_rng(0)
    first = {f"t{i}": "".join(rng.choice(list("bo"), 12)) for i in range(15)}
    second = {
        id: "".join(c if rng.random() < 0.8 else "o" for c in text) for id, text in first.items()
    }
    row = compare(labels(**first), labels(**second), n_resamples=4000).rows[0]
    f1s = []
    for _ in range(4000):
        drawn = rng.choice(list(first), len(first))
        one, other = "".join(first[id] for id in drawn), "".join(second[id] for id in drawn)
        both = sum(a == b == "b" for a, b in zip(one, other, strict=True))
        f1s.append(2 * both / (one.count("b") + other.count("b")))
    low, high = np.quantile(f1s, [0.025, 0.975])
    assert row.measures["f1"][1:] == (pytest.approx(low, abs=0.01), pytest.approx(high, abs=0.01))


def test_a_judge_that_never_says_it_has_no_precision() -> None:
    row = compare(labels(a="ooo"), labels(a="bod")).rows[0]
    assert row.label == "backtracking"
    assert np.isnan(row.measures["precision"]).all()
    assert row.measures["recall"][0] == row.measures["f1"][0] == 0.0


def test_judges_of_other_sentences_and_labels_given_twice() -> None:
    with pytest.raises(ValueError, match=r"no sentence is labelled by both judges \(1 and 1 sent"):
        compare(labels(a="b"), labels(c="b"))
    with pytest.raises(ValueError, match="the second judge labels trace 'a' 0:9 twice"):
        compare(labels(a="b"), labels(a="b") * 2)
    with pytest.raises(ValueError, match="level: got 95, expected a share"):
        compare(FIRST, SECOND, level=95)
    with pytest.raises(ValueError, match="n_resamples: got 0, expected at least 1"):
        compare(FIRST, SECOND, n_resamples=0)


def test_the_command_writes_csv_and_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = tmp_path / "keywords.jsonl", tmp_path / "hand.jsonl"
    write_labels(a, FIRST)
    write_labels(b, SECOND)
    assert main([str(a), str(b), "--resamples", "100"]) == 0
    assert "8 sentences of 2 traces labelled by both (1 by" in capsys.readouterr().out
    found = compare(FIRST, SECOND, n_resamples=100)
    told = json.loads((tmp_path / "agreement-keywords-hand.json").read_text())
    assert told["first"]["file"] == "keywords.jsonl"
    assert told["rows"][0]["measures"]["f1"] == list(found.rows[0].measures["f1"])
    with open(tmp_path / "agreement-keywords-hand.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == [row.label for row in found.rows]
    assert float(rows[0]["precision"]) == found.rows[0].measures["precision"][0]
    assert rows[-1]["precision"] == ""
    assert main([str(a), str(b), "--out", str(tmp_path / "x" / "y")]) == 0
    assert (tmp_path / "x" / "y.json").is_file()
    assert main([str(a), str(tmp_path / "none.jsonl")]) == 1
    assert "none.jsonl" in capsys.readouterr().err

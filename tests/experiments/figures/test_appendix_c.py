"""Appendix C: the keywords against the grammar that made the text, or against given labels."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from pipeline_helpers import Finished, change

from experiments.figures.appendix_c import (
    agreements,
    grammar_labels,
    has_better_judge,
    stage,
    steered_texts,
    to_csv,
)
from experiments.pipeline.run import open_run
from jaxsteer.analysis.sentences import KEYWORDS, split_sentences
from jaxsteer.files.jsonl import append_rows, read_rows

REAL = "wait , that does not look right ."
OTHERS = "the wait was long . therefore 3 plus 4 is exactly 7 ."


def test_the_grammar_knows_what_backtracks_whatever_the_words() -> None:
    texts = {"a": split_sentences(f"{REAL} {OTHERS}")}
    assert grammar_labels(texts) == {"a": ["backtracking", "other", "other"]}
    row = agreements({"natural": (texts, grammar_labels(texts))}, KEYWORDS)["natural"]
    assert (row.n, row.n_first, row.n_second, row.n_both) == (3, 2, 1, 1)
    assert row.measures["precision"][0] == 0.5
    assert row.measures["recall"][0] == 1


def test_steered_texts_are_those_of_both_directions_at_positive_coefficients() -> None:
    rows = [
        {"source": source, "coeff": coeff, "prompt": "p", "text": "wait . cut", "stopped": False}
        for source, coeff in [("none", 0.0), ("base", 0.5), ("base", -1.0), ("random-0", 0.5)]
    ]
    texts = steered_texts(rows)
    assert list(texts) == ["base-derived, +0.5"]
    assert [s.text.strip() for s in texts["base-derived, +0.5"]["p"]] == ["wait ."]


def test_texts_without_sentences_are_left_out() -> None:
    assert agreements({"empty": ({"a": []}, {"a": []})}, KEYWORDS) == {}


def test_the_csv_has_every_measure_with_its_interval() -> None:
    texts = {name: split_sentences(REAL + " " + OTHERS) for name in "abc"}
    found = agreements({"natural": (texts, grammar_labels(texts))}, KEYWORDS)
    (line,) = csv.DictReader(to_csv(found).splitlines())
    assert (line["texts"], line["n"], line["recall"]) == ("natural", "9", "1.0")
    # Three texts that agree in all: the interval is the exact bound, not the value alone.
    assert float(line["f1_low"]) < float(line["f1"]) < float(line["f1_high"])


def test_other_pairs_are_compared_with_the_labels_of_a_file(
    finished: Finished, tmp_path: Path
) -> None:
    plain = change(finished.settings, "plain.toml", report={"coherence": "repetition"})
    out = Path(shutil.copytree(finished.out, tmp_path / "run"))
    run = open_run(out, plain)
    assert not has_better_judge(run.settings)
    with pytest.raises(ValueError, match="keywords only, expected a file"):
        stage(run)
    marks = {row["id"]: row["sentences"] for row in read_rows(out / "labels/sentences.jsonl")}
    names = {True: "backtracking", False: "deduction"}
    rows = [
        {"trace": id, "start": start, "stop": stop, "label": names[positive]}
        for id, sentences in marks.items()
        for start, stop, positive in sentences
    ]
    append_rows(tmp_path / "labels.jsonl", rows)
    labelled = change(plain, "labelled.toml", labels={"file": str(tmp_path / "labels.jsonl")})
    numbers = json.loads((stage(open_run(out, labelled)) / "appendix-c.json").read_text())
    assert numbers["judge"] == "labels.jsonl"
    assert list(numbers["texts"]) == ["natural traces"]
    assert numbers["texts"]["natural traces"]["kappa"]["value"] == 1

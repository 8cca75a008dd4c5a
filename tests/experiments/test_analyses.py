"""Figures 5 and 6, the cosines and the sensitivity of a finished run on the tiny pair."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pipeline_helpers import Finished

from experiments.pipeline.run import Run, open_run
from experiments.searches import sensitivity
from jaxsteer.analysis.derivatives import _slopes
from jaxsteer.analysis.sentences import split_sentences
from jaxsteer.files.jsonl import read_rows


def read(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / f"{name}/{name}.json").read_text())


def test_figure_6_counts_the_sentences_that_were_labelled(finished: Finished) -> None:
    figure6 = read(finished.out, "figure6")
    labels = json.loads((finished.out / "labels/counts.json").read_text())
    for role in ("base", "reasoning"):
        one = figure6["auroc"][role]
        assert 0 < one["n_events"] <= labels["backtracking"]
        assert one["n_events"] + one["n_other"] <= labels["sentences"]
        assert one == figure6["detail"][role]["base"]["auroc"]
        histogram = figure6["detail"][role]["base"]["histogram"]
        assert sum(histogram["sentences_backtracking"]) == one["n_events"]
        assert sum(histogram["sentences_other"]) == one["n_other"]
    found = figure6["without_direction"]
    assert found["low"] <= found["share"] <= found["high"]
    assert found["n"] == figure6["auroc"]["reasoning"]["n_events"]


def test_the_coloured_trace_is_the_trace(finished: Finished) -> None:
    trace = read(finished.out, "figure6")["trace"]
    rows = {row["id"]: row for row in read_rows(finished.out / "rollouts/traces.jsonl")}
    row = rows[trace["id"]]
    assert "".join(token["text"] for token in trace["tokens"]) == row["prompt"] + row["text"]
    prompt = [token for token in trace["tokens"] if token["score"] is None]
    assert "".join(token["text"] for token in prompt) == row["prompt"]
    page = (finished.out / "figure6/figure6-trace.html").read_text()
    assert page.count("<span") == len(trace["tokens"])
    assert 0 < page.count('class="on"') == sum(token["on"] for token in trace["tokens"])


def test_figure_5_has_the_same_rank_wherever_it_says_it(finished: Finished) -> None:
    figure5 = read(finished.out, "figure5")
    lines = list(csv.DictReader((finished.out / "figure5/figure5.csv").read_text().splitlines()))
    for role in ("base", "reasoning"):
        found = figure5["directions"]["base.1.union"][role]
        ranks = {word["token"]: word["rank"] for word in found["keywords"]}
        assert {token.strip() for token in ranks} == {"wait", "hmm"}
        assert figure5["layers"]["base.1.union"][role]["rank"] == min(ranks.values())
        written = {
            line["token"]: int(line["rank"])
            for line in lines
            if (line["model"], line["lens"], line["direction"]) == (role, "normed", "base.1.union")
        }
        assert written == ranks
        logits = [logit for _, logit in found["top"]]
        assert logits == sorted(logits, reverse=True)
        tops = [text for text, _ in found["top"]]
        assert [t for t, rank in ranks.items() if rank < len(tops)] == [
            t for t in ranks if t in tops
        ]


def test_the_cosine_of_the_groups_is_that_of_the_directions(finished: Finished) -> None:
    """Two passes over the traces: all layers and offsets, and the steered layer by group."""
    found = read(finished.out, "cosines")
    facts = json.loads((finished.out / "directions/directions.json").read_text())
    assert found["cosine"]["value"] == pytest.approx(facts["cosine"][1], abs=1e-5)
    assert found["map"]["cosine"] == facts["cosine_map"]
    assert found["offsets"] == facts["offsets"]


@pytest.fixture(scope="module")
def run(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("analyses") / "run"
    shutil.copytree(finished.out, out)
    return open_run(out, finished.settings)


def test_sensitivity_of_every_target_in_one_program(run: Run, finished: Finished) -> None:
    before = _slopes._cache_size()
    folder = sensitivity.stage(run)
    assert _slopes._cache_size() <= before + 1
    found = json.loads((folder / "sensitivity.json").read_text())
    facts = json.loads((finished.out / "directions/directions.json").read_text())
    assert found["columns"][-1] == "window"
    assert {int(c) for c in found["columns"][:-1]} <= set(facts["offsets"])
    assert set(found["targets"]) == {"reasoning", "base", "control"}
    norm = np.array(facts["residual_norm"]["reasoning"])[:, None]
    for one in found["targets"].values():
        per_length = np.array(one["per_length"]["mean"])
        assert per_length.shape == (2, len(found["columns"]))
        assert np.abs(per_length).min() > 0
        np.testing.assert_allclose(one["per_residual"]["mean"], per_length * norm, rtol=1e-5)
    assert (folder / "sensitivity.png").read_bytes().startswith(b"\x89PNG")


def test_texts_are_asked_before_each_sentence_but_the_first(run: Run) -> None:
    """Words are tokens here, so the token before a sentence is found by counting words."""
    sweep = run.out / "sweep-reasoning/sweep.jsonl"
    texts = sensitivity.read_texts(
        run.tokenizer("reasoning"), run.evaluate_prompts, sweep, form="chat", template=""
    )
    rows = [row for row in read_rows(sweep) if row["source"] == "none"]
    expected = []
    for row in rows:
        starts = [len(row["text"][: s.start].split()) for s in split_sentences(row["text"])]
        if any(starts):
            expected.append([start - 1 for start in starts if start])
    assert [[p - t.prompt_length for p in t.before] for t in texts] == expected

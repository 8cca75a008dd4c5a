"""Stability of backtracking boundaries: where they are, what is told of them, one small run."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pipeline_helpers import Finished

from experiments.pipeline.run import open_run
from experiments.searches import stability, stable_directions
from experiments.searches.stability import (
    Choice,
    boundaries_of,
    known_boundaries,
    summary,
    truth,
    words,
)
from experiments.searches.stable_directions import directions_of, marked_by_stability
from jaxsteer.analysis.labels import labels_from_file
from jaxsteer.analysis.sentences import Sentence
from jaxsteer.directions.activations import Trace
from jaxsteer.directions.direction_files import load_directions
from jaxsteer.directions.moments import Moments, window_direction
from jaxsteer.files.jsonl import append_rows, read_rows
from weights.small_language.tokenizer import vocabulary

B, OTHER = "backtracking", "other"


def trace(labels: list[str]) -> Trace:
    """Sentences of three tokens behind a prompt of two."""
    n = len(labels)
    return Trace(list(range(2 + 3 * n)), 2, [2 + 3 * i for i in range(n)], labels)


TRACES = {"a": trace([OTHER, B, OTHER, B]), "b": trace([OTHER, OTHER]), "c": trace([B, OTHER])}


def rows_of(again: dict[tuple[str, int], list[int]], doubt: Any = None) -> list[dict[str, Any]]:
    return [
        {"trace": t, "sentence": i, "again": bool(a), "doubt": doubt and doubt[t, i]}
        for (t, i), one in again.items()
        for a in one
    ]


def test_a_boundary_is_the_text_before_a_backtracking_sentence() -> None:
    found = boundaries_of(TRACES)
    assert [(b.trace, b.sentence, list(b.prefix)) for b in found] == [
        ("a", 1, [*range(5)]), ("a", 3, [*range(11)]), ("c", 0, [0, 1]),
    ]  # fmt: skip
    some = boundaries_of(TRACES, 2)
    assert len(some) == 2
    assert some == boundaries_of(TRACES, 2)
    assert all(b in found for b in some)


def test_where_the_hidden_state_is_known_backtracking_comes_by_a_coin() -> None:
    found = known_boundaries(40, room=140)
    assert len(found) == 40
    assert {b.doubt for b in found} == {True, False}
    words = {i: word for word, i in vocabulary().items()}
    for boundary in found:
        assert len(boundary.prefix) <= 140
        text = " ".join(words[i] for i in boundary.prefix)
        assert "<think>" in text
        assert text.endswith(".")
        assert "wait" not in text.split("<think>")[1]  # it is the first of its text
    assert found == known_boundaries(40, room=140)


def test_shares_and_their_intervals_are_over_traces() -> None:
    again = {("a", 1): [1, 1, 1, 1], ("a", 3): [0, 0, 0, 0], ("c", 0): [1, 0, 1, 0]}
    found = summary(rows_of(again))
    assert (found["boundaries"], found["samples"]) == (3, 4)
    assert (found["again"]["value"], found["again"]["n"]) == (0.5, 2)
    assert found["stable"]["share"] == pytest.approx(2 / 3)
    assert found["never"]["share"] == pytest.approx(1 / 3)
    assert sum(found["histogram"]) == 3


def test_stability_against_the_hidden_state() -> None:
    again = {(str(i), 1): [1] * (i % 5) + [0] * (5 - i % 5) for i in range(20)}
    doubt = {key: int(key[0]) % 5 >= 3 for key in again}
    found = truth(rows_of(again, doubt))
    assert found is not None
    assert found["auroc"]["mean"] == 1.0
    assert (found["auroc"]["n_events"], found["auroc"]["n_other"]) == (8, 12)
    assert found["histogram"]["under_doubt"] == [0, 0, 0, 0, 0, 0, 4, 0, 4, 0, 0]
    assert found["again"] == {"under_doubt": pytest.approx(0.7), "without": pytest.approx(0.2)}
    assert truth([]) is None


# Directions

SHARES = {("a", 1): 1.0, ("a", 3): 0.1, ("c", 0): 0.5}


def test_events_are_marked_by_their_stability_and_a_lot() -> None:
    labels = [t.labels for t in marked_by_stability(TRACES, SHARES, 0.5)]
    assert [label.rpartition(".")[0] for label in labels[0]] == ["", "1", "", "0.1"]
    assert labels[1] == [OTHER, OTHER]
    flat = [label for some in labels for label in some]
    assert sum(label.endswith("drawn") for label in flat) == 2  # as many as are stable
    assert sum(label.endswith("left") for label in flat) == 1


def test_directions_by_which_events_count() -> None:
    rng = np.random.default_rng(0)
    labels = ("0.1.left", "0.5.drawn", "1.drawn", OTHER)
    count = np.array([[3, 3], [2, 2], [4, 4], [9, 8]])
    total = rng.normal(size=(1, 4, 2, 5)) * count[None, ..., None]
    moments = Moments(labels, (-3, -2), count.max(axis=1), count, total, total**2)
    found = directions_of(moments, 0.5)
    whole = total[0].sum(axis=0) / count.sum(axis=0)[:, None]

    def by_hand(weights: list[float]) -> np.ndarray:
        top = sum(w * total[0, k] for k, w in enumerate(weights))
        return np.mean(top / (np.array(weights) @ count[:3])[:, None] - whole, axis=0)

    np.testing.assert_allclose(found["all"], by_hand([1, 1, 1]))
    np.testing.assert_allclose(found["stable"], by_hand([0, 1, 1]))
    np.testing.assert_allclose(found["unstable"], by_hand([1, 0, 0]))
    np.testing.assert_allclose(found["drawn"], by_hand([0, 1, 1]))
    np.testing.assert_allclose(found["weighted"], by_hand([0.1, 0.5, 1]))
    # All events are the direction of Eq. 3.
    joined = Moments(
        (B, OTHER), (-3, -2), np.array([9, 9]), np.stack([count[:3].sum(axis=0), count[3]]),
        np.stack([total[:, :3].sum(axis=1), total[:, 3]], axis=1),
        np.zeros((1, 2, 2, 5)),
    )  # fmt: skip
    np.testing.assert_allclose(found["all"], window_direction(joined, B)[0], rtol=1e-5)
    assert "unstable" not in directions_of(moments, 0.05)


# One run on the tiny pair

CHOICE = Choice(samples=3, boundaries=6, known=3, tokens=5, temperature=1.0)


@pytest.fixture(scope="module")
def ran(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stability") / "run"
    shutil.copytree(finished.out, out)
    return stability.stage(open_run(out, finished.settings), CHOICE)


def test_every_boundary_is_resampled_and_judged_by_its_first_sentence(ran: Path) -> None:
    rows = read_rows(ran.parent / "resamples" / stability.FILE)
    assert len(rows) == (6 + 3) * 3
    assert len({(r["trace"], r["sentence"], r["sample"]) for r in rows}) == len(rows)
    assert sum(r["doubt"] is not None for r in rows) == 9
    for row in rows:
        first = row["text"].split(".")[0].split()
        assert row["again"] == bool({"wait", "hmm"} & set(first))
    assert len({row["text"] for row in rows}) > len(rows) / 2  # draws of their own


def test_what_is_written_of_a_run(ran: Path) -> None:
    found = json.loads((ran / "stability.json").read_text())
    assert found["traces"]["boundaries"] == 6
    assert found["choice"]["samples"] == 3
    cells = {cell["source"]: cell for cell in found["directions"]["cells"]}
    assert {"all", "weighted"} <= cells.keys()
    lengths = [cell["length"] for cell in cells.values()]
    np.testing.assert_allclose(lengths, lengths[0])
    assert found["directions"]["cosines"]["all"]["with_all"] == pytest.approx(1)
    saved = load_directions(ran / stable_directions.FILE)
    assert {"base.1.all", "reasoning.1.all"} <= saved.keys()
    assert "keyword boundaries, each resampled 3 times" in (ran / "stability.md").read_text()
    told = words(found)
    assert all(any(line.startswith(f"| {name} | ") for line in told) for name in cells)
    less = found["directions"]["stable_less"]
    for name in less:
        value = cells["stable"]["judged"]["mean"] - cells[name]["judged"]["mean"]
        if less[name]["n"] == cells["stable"]["judged"]["n"] == cells[name]["judged"]["n"]:
            assert less[name]["value"] == pytest.approx(value)
    assert (ran / "stability.png").stat().st_size > 10_000


def test_the_labels_are_for_labels_file(ran: Path) -> None:
    marks = {r["id"]: r["sentences"] for r in read_rows(ran.parent / "labels/sentences.jsonl")}
    sentences = {id: [Sentence(a, b, "") for a, b, _ in rows] for id, rows in marks.items()}
    labels = labels_from_file(ran / "labels.jsonl", sentences)
    stable = sum(one.count(B) for one in labels.values())
    found = json.loads((ran / "stability.json").read_text())
    assert stable == found["directions"]["counts"]["stable"]


def test_an_interrupted_resampling_goes_on_with_the_same_texts(
    finished: Finished, ran: Path, tmp_path: Path
) -> None:
    run = open_run(ran.parent, finished.settings)
    rows = read_rows(ran.parent / "resamples" / stability.FILE)
    append_rows(tmp_path / stability.FILE, rows[:7])
    model, tokenizer = run.load("reasoning")
    marked = stability._marked(run, ran.parent / "rollouts", ran.parent / "labels")
    boundaries = boundaries_of(marked, CHOICE.boundaries)
    room = model.config.max_positions - CHOICE.tokens
    stability.resample(
        tmp_path,
        model,
        tokenizer,
        boundaries + known_boundaries(CHOICE.known, room=room),
        choice=CHOICE,
        stops=run.stop_tokens("reasoning"),
        keywords=["wait", "hmm"],
    )

    def by_key(some: list[dict[str, Any]]) -> dict[tuple, str]:
        return {(r["trace"], r["sentence"], r["sample"]): r["text"] for r in some}

    assert by_key(read_rows(tmp_path / stability.FILE)) == by_key(rows)

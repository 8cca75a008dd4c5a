"""Directions learned from a run's traces: targets, events, cells, words, and the stages on it."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from oracle import SHALLOW, random_model, random_rows, relative_error, run
from pipeline_helpers import Finished, change

from experiments.pipeline.run import open_run
from experiments.searches import continuations, equal_lengths, learned, several_directions
from experiments.searches.continuations import event_activations, event_pairs, spans, split, within
from experiments.searches.several_figure import induces, paragraph
from experiments.stages.outcome import CellOutcome, Measured, Paired
from jaxsteer.directions.activations import Trace
from jaxsteer.directions.direction_files import load_directions
from jaxsteer.files.jsonl import read_rows
from jaxsteer.llama.tokens import left_pad
from jaxsteer.steering.capture import Capture

D = SHALLOW.d_model
BACK, OTHER = "backtracking", "other"


def trace(labels: list[str], *, seed: int = 0, prompt: int = 3) -> Trace:
    """Sentences of 4 tokens each behind a prompt."""
    tokens = random_rows([prompt + 4 * len(labels)], SHALLOW.vocab_size, seed=seed)[0]
    return Trace(tokens, prompt, [prompt + 4 * i for i in range(len(labels))], labels)


TRACES = [
    trace([OTHER, BACK, OTHER, BACK, OTHER]),
    trace([OTHER, OTHER, OTHER], seed=1),
    trace([BACK, OTHER, OTHER, BACK], seed=2),
    trace([OTHER, OTHER, BACK], seed=3, prompt=5),
]


def test_a_span_is_a_backtracking_sentence_that_ends_in_time():
    assert spans(TRACES[0], tokens=23) == [(7, 11), (15, 19)]
    assert spans(TRACES[0], tokens=18) == [(7, 11)]
    assert spans(TRACES[2], tokens=99)[-1] == (15, 19)  # to the end of the text
    assert spans(TRACES[1], tokens=99) == []


def test_texts_without_a_span_are_left_out_and_none_is_on_both_sides():
    texts = split(TRACES * 2, tokens=99, held_out=3)
    assert [len(texts.learn), len(texts.judge)] == [4, 2]
    assert texts.judge == [TRACES[3], TRACES[3]]
    assert TRACES[1] not in texts.learn
    with pytest.raises(ValueError, match="1 texts have a backtracking sentence within 9 tokens"):
        split(TRACES, tokens=9, held_out=2)


def test_targets_of_sentences_are_among_those_of_the_answer():
    texts = split(TRACES, tokens=99, held_out=2).learn
    some = continuations.sentence_targets(texts, tokens=99)
    every = continuations.answer_targets(texts, tokens=99)
    found = [spans(text, tokens=99) for text in texts]
    inside = within(every, found)
    for row in range(len(texts)):
        position = np.asarray(some.position[row])
        expected = position[position >= 0].tolist()
        assert np.asarray(every.position[row])[inside[row]].tolist() == expected
        assert expected == [p for start, stop in found[row] for p in range(start, stop)]


def test_events_and_others_come_in_pairs_of_one_trace():
    offsets = [-3, -2]
    events, others = event_pairs(TRACES, offsets)
    assert events == [[1, 3], [], [3], [2]]  # the first of the third trace has only the prompt
    for text, left, right in zip(TRACES, events, others, strict=True):
        assert len(left) == len(right) == len(set(right))
        assert all(text.labels[i] == OTHER for i in right)
    drawn = [event_pairs(TRACES, offsets, seed=seed)[1] for seed in range(4)]
    assert any(again != others for again in drawn)


def test_activations_are_means_over_the_offsets_that_lie_in_the_answer():
    model, offsets = random_model(SHALLOW), [-6, -2]
    sentences = [[1, 3], [], [3], [2]]
    found = event_activations(
        model,
        TRACES,
        sentences,
        offsets=offsets,
        layers=(1, 0),
        site="resid_post",
        rows=2,
    )
    assert found.shape == (2, 4, D)
    batch = left_pad([text.tokens for text in TRACES], length=24)
    out = run(model, batch.tokens, mask=batch.mask, capture=Capture())
    stream, expected = np.asarray(out.captured["resid_post"]), []
    for row, (text, of_trace) in enumerate(zip(TRACES, sentences, strict=True)):
        padding = 24 - len(text.tokens)
        for i in of_trace:
            at = [text.starts[i] + o for o in offsets if text.starts[i] + o >= text.prompt_length]
            expected.append(stream[:, row, [padding + p for p in at]].mean(axis=1))
    assert relative_error(found, np.stack(expected, axis=1)[::-1]) < 1e-5


def test_every_cell_that_adds_has_the_length_it_says():
    found = several_directions.random_set(3, D, seed=0)
    np.testing.assert_allclose(found @ found.T, np.eye(3), atol=1e-6)
    cells = several_directions.make_cells(
        found,
        np.arange(D) + 1.0,
        layer=1,
        site="resid_post",
        coeff=0.5,
        unit=4.0,
        random_spans=2,
    )
    named = {cell.labels["source"]: cell for cell in cells}
    ranks = {}
    assert len(named) == len(cells) == 2 + 4 + 1 + 3 + 1 + 2
    for source, cell in named.items():
        added = cell.steering.coeff[0] * cell.steering.vector[0]
        length = cell.labels["length"]
        if source.startswith("ablate"):
            assert length == 0
            assert not np.any(added)
            ranks[source] = np.linalg.matrix_rank(cell.steering.basis[0])
        else:
            assert np.linalg.norm(added) == pytest.approx(length)
            assert length == pytest.approx(2 * (math.sqrt(3) if "long" in source else 1))
    spans_of = {f"ablate-{i}": i for i in (1, 2, 3)} | {f"ablate-random-{i}": 3 for i in (0, 1)}
    assert ranks == spans_of | {"ablate-means": 1}
    together = named["together"].steering.vector[0]
    np.testing.assert_allclose(together @ found.T, [4 / math.sqrt(3)] * 3, rtol=1e-5)


def cell(source: str, rate: float, *, low: float = 0.01, coherence: float = 0.99) -> CellOutcome:
    def around(mean: float) -> Measured:
        return Measured(mean, 0.0, mean - 0.01, mean + 0.01, 10, 0)

    one = around(rate)
    return CellOutcome(
        target="reasoning",
        source=source,
        coeff=0.25,
        length=1.0,
        keyword_rate=one,
        keyword_matches=one,
        backtracking_rate=one,
        judged=one,
        texts_with=one,
        coherence=around(coherence),
        repetition=one,
        grammar=one,
        perplexity=one,
        difference=Paired(rate, 0.0, 0.5, low, 0.5, 10, 0),
        n_empty=0,
        empty_share=0.0,
        excluded={},
    )


def test_a_cell_induces_if_its_interval_is_above_zero_and_it_is_coherent():
    unsteered = cell("none", 0.02)
    assert induces(cell("a", 0.1), unsteered, margin=0.03)
    assert not induces(cell("a", 0.1, low=0.0), unsteered, margin=0.03)
    assert not induces(cell("a", 0.1, coherence=0.95), unsteered, margin=0.03)


def test_the_paragraph_says_which_way_the_numbers_go():
    sources = ["together", "together-long", "random-together", "ablate-2", "ablate-means"]
    sources.append("single-long")
    table = [cell("none", 0.02), cell("single-1", 0.1), cell("single-2", 0.05, low=-0.01)]
    table += [cell(source, 0.07) for source in sources]
    table[4] = replace(table[4], coherence=cell("", 0, coherence=0.8).coherence)
    numbers = {
        "directions": 2,
        "coeff": 0.25,
        "layer": 4,
        "comparisons": {
            "together": {"diff": -0.03, "low": -0.04, "high": -0.01},
            "together-long": {"diff": 0.03, "low": 0.01, "high": 0.04},
            "ablated": {"diff": 0.0, "low": -0.01, "high": 0.01},
        },
    }
    text = paragraph(table, numbers, margin=0.03)
    assert "1 induces backtracking alone at coefficient 0.25 (number 1)" in text
    assert "less (-0.030 [-0.040, -0.010]) than the first alone" in text
    assert "at coherence 0.800, too low to count, more (+0.030" in text
    assert "not told apart (+0.000 [-0.010, +0.010]) from random spans" in text


@pytest.fixture(scope="module")
def searched(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both stages on a copy of the finished run."""
    out = Path(shutil.copytree(finished.out, tmp_path_factory.mktemp("searched") / "run"))
    search = {
        "other_layers": [0],
        "seeds": 1,
        "steps": 2,
        "rows": 2,
        "directions": 2,
        "random_spans": 1,
    }
    settings = change(finished.settings, "search.toml", search={**search, "held_out": 3})
    several_directions.stage(open_run(out, settings))
    learned.stage(open_run(out, settings))
    return out


def test_the_stage_leaves_directions_with_their_provenance(searched: Path) -> None:
    found = load_directions(searched / "learned-vectors" / learned.FILE)
    kinds = [f"{role}.{layer}" for role in ("reasoning", "base") for layer in (1, 0)]
    names = [f"{kind}.learned.0" for kind in kinds[:2]]
    names += [f"{kind}.{how}" for kind in kinds[2:] for how in ("pca", "probe")]
    assert sorted(found) == sorted(names)
    for name, direction in found.items():
        assert direction.layer == int(name.split(".")[1])
        facts = direction.provenance
        assert facts["texts"] > 0
        assert facts.get("norm", direction.norm) >= direction.norm * (1 - 1e-5)
    several = load_directions(searched / "several-vectors" / several_directions.FILE)
    first, second = several.values()
    np.testing.assert_array_equal(first.vector, found["reasoning.1.learned.0"].vector)
    assert abs(first.vector @ second.vector) < 1e-4 * first.norm * second.norm


def test_the_stages_compare_with_the_main_sweep(searched: Path) -> None:
    for name, own in (
        ("learned", {"learned-0", "learned-0@0", "pca", "probe"}),
        (
            "several",
            {"single-1", "single-2", "together", "ablate-2", "ablate-random-0"},
        ),
    ):
        numbers = json.loads((searched / name / f"{name}.json").read_text())
        sources = {one["source"] for one in numbers["cells"]}
        assert own | {"none", "base", "random-0"} <= sources
        assert {one["source"] for one in numbers["on_text"]} >= {"random-0", "random-1"}
        assert numbers["summary"]
        assert {f.suffix for f in (searched / name).glob(f"{name}.*")} >= {".png", ".svg", ".csv"}
    cosines = json.loads((searched / "learned" / "learned.json").read_text())["cosines"]
    np.testing.assert_allclose(np.diag(cosines["table"]), 1)
    rows = read_rows(searched / "learned-texts" / "sweep.jsonl")
    assert len({row["length"] for row in rows if "@" not in row["source"]}) == 1


def test_the_coefficient_is_the_baselines(finished: Finished) -> None:
    settings = open_run(finished.out, finished.settings).settings
    assert equal_lengths.main_coeff(settings) == 0.5
    plain = replace(settings.steering, baseline_coeffs=[])
    assert equal_lengths.main_coeff(replace(settings, steering=plain)) == 1.0
    asked = replace(settings.search, coeff=1.0)
    assert equal_lengths.main_coeff(replace(settings, search=asked)) == 1.0

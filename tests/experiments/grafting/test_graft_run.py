"""Grafting on a tiny pair: what is measured, against plain recomputation, and the whole stage."""

import csv
import io
import itertools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import oracle
import pytest
from pipeline_helpers import CONFIG, change, write_tiny_pair

from experiments.grafting import graft
from experiments.grafting.response import NONE, Bench, _read_out, read_starts
from experiments.grafting.text import markdown
from experiments.pipeline.run import open_run
from experiments.stages import derive, rollouts, steer
from jaxsteer.analysis.grafting import graft as hybrid
from jaxsteer.analysis.grafting import parts
from jaxsteer.directions.direction import Direction
from jaxsteer.directions.direction_files import save_directions
from jaxsteer.files.jsonl import append_rows, read_rows
from jaxsteer.steering.interventions import add
from jaxsteer.sweeps.chunks import _run_cells
from weights.small_language.tokenizer import encode, vocabulary

TEXTS = (
    " so far gus has 12 pears . wait , that is 9 . clearly the answer is 9 .",
    " gus has 9 pears . gus has 9 pears .",
)
COEFF = 0.5
WAIT = vocabulary()["wait"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny pair and the files that the stage reads, written by hand."""
    folder = tmp_path_factory.mktemp("graft")
    settings = change(
        write_tiny_pair(folder),
        "graft.toml",
        grafting={"traces": 3, "random_sets": 4, "generated_sets": 1, "prompts": 3},
    )
    run = open_run(folder / "run", settings)

    def rows(key, prompts):
        texts = itertools.cycle(TEXTS)
        return [{key: p.id, "source": "none", "text": next(texts)} for p in prompts]

    def directions(folder):
        # What the reasoning model's own head reads as "wait", at the last layer.
        kernel = np.array(run.load("reasoning")[0].params["lm_head"]["kernel"][:, WAIT])
        kernel[0] = 0.0
        one = Direction(kernel, layer=1, site="resid_post", name="base.1.union", provenance={})
        save_directions(folder / derive.FILE, [one])
        facts = {"residual_norm": {"reasoning": [9.0, 9.0]}}
        (folder / derive.FACTS).write_text(json.dumps(facts))

    traces, sweep = rows("id", run.derive_prompts), rows("prompt", run.evaluate_prompts)
    run.stage("rollouts", {}, lambda folder: append_rows(folder / rollouts.FILE, traces))
    run.stage("sweep", {}, lambda folder: append_rows(folder / steer.FILE, sweep))
    run.stage("directions", {}, directions)
    return run


def make_bench(run, file: Path, coeff: float = COEFF) -> Bench:
    folders = {name: run.out / name for name in ("sweep", "directions")}
    return graft.make_bench(run, file, traces=run.out / "rollouts", coeff=coeff, **folders)


@pytest.fixture(scope="module")
def bench(run, tmp_path_factory) -> Bench:
    return make_bench(run, tmp_path_factory.mktemp("bench") / "responses.jsonl")


def test_starts_are_the_tokens_before_a_sentence_but_the_first(run):
    """Words are tokens here."""
    prompt = "<bos> question : gus has 3 pears . solution :"
    (found,) = read_starts(
        run.tokenizer("reasoning"), [(prompt, text) for text in TEXTS], tokens=99
    )
    behind = len(prompt.split())
    assert found.prompt_length.tolist() == [behind] * 2
    ids = [encode(prompt + text) for text in TEXTS]
    rows = zip(found.batch.tokens, found.batch.mask, strict=True)
    assert [row[mask].tolist() for row, mask in rows] == ids
    starts = [[at for at in row if at >= 0] for row in found.positions.tolist()]
    assert starts[0] == [behind + 6, behind + 12]
    assert starts[1] == [behind + 4]
    for row, probes, following in zip(ids, found.probes, found.following, strict=True):
        here = probes >= 0
        assert probes[here].tolist() == list(range(behind, len(row) - 1))
        assert following[here].tolist() == row[behind + 1 :]


def test_texts_are_cut_and_batches_filled_to_one_shape(run):
    texts = [("<bos> question :", TEXTS[0])] * 3
    tokenizer = run.tokenizer("reasoning")
    found = read_starts(tokenizer, texts, tokens=14, at_once=32)
    assert [one.batch.tokens.shape for one in found] == [(2, 16)] * 2
    assert found[1].positions[1].tolist() == [-1] * 8
    assert [(one.positions >= 0).sum().item() for one in found] == [2, 1]
    with pytest.raises(ValueError, match="within which no text has a second sentence"):
        read_starts(tokenizer, texts, tokens=9)


def test_masses_are_those_of_a_plain_forward_pass(bench):
    """Of the row alone, with neither padding nor a batch."""
    some = frozenset(("head", "layers.1.mlp"))
    (batch,) = bench.texts["judge chat"]
    found = bench.mass(some, texts="judge chat", direction="base")
    tokens = batch.batch.tokens[1][batch.batch.mask[1]][None]
    behind = int(batch.prompt_length[1])
    vector = bench.directions["base"].vector[0]
    assert np.linalg.norm(vector) == pytest.approx(9.0)
    logits = oracle.run(
        hybrid(bench.base, bench.reasoning, some),
        tokens,
        steering=add(vector, layer=1, coeff=COEFF),
        prompt_length=np.array([behind], np.int32),
    ).logits[0]
    chances = np.asarray(jax.nn.softmax(logits))
    at = [i for i in batch.positions[1].tolist() if i >= 0]
    assert found.starts[1] == len(at) == 1
    assert set(bench.keyword_ids) == {WAIT, vocabulary()["hmm"]}
    assert found.mass[1] == pytest.approx(chances[at][:, list(bench.keyword_ids)].sum(), rel=1e-4)
    read = np.arange(behind, tokens.shape[1] - 1)
    assert found.tokens[1] == len(read)
    logs = np.log(chances[read, np.asarray(tokens)[0, read + 1]])
    assert found.logprob[1] == pytest.approx(logs.sum(), rel=1e-4)
    plain = bench.mass(some, texts="judge chat")
    assert plain.mass[1] < found.mass[1]


def test_every_hybrid_and_direction_runs_in_one_program(bench):
    bench.rise(frozenset(), texts="search continuation")
    before = _read_out._cache_size()
    for name in parts(CONFIG):
        for direction in bench.directions:
            bench.mass(frozenset((name,)), texts="search continuation", direction=direction)
    assert _read_out._cache_size() == before


def test_what_was_measured_is_known_after_a_kill(bench):
    some = frozenset(("head",))
    expected = bench.response(some, texts="search continuation")
    again = replace(bench, base=None, reasoning=None, known={}).recover()
    assert again.response(some, texts="search continuation") == expected
    measured = [row for row in read_rows(bench.file) if row["tuned"] == ["head"]]
    assert len(measured) == len({(row["texts"], row["direction"]) for row in measured})


@pytest.fixture(scope="module")
def measured(run):
    """The stage, given the folders written by hand, and how many programs generated its text."""
    before = _run_cells._cache_size()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollouts, "stage", lambda run: run.out / "rollouts")
        patch.setattr(derive, "stage", lambda run: run.out / "directions")
        patch.setattr(steer, "stage", lambda run: {"reasoning": run.out / "sweep"})
        patch.setattr(graft, "sweep_table", lambda run: (SimpleNamespace(cells=[]), {}))
        patch.setattr(graft, "judged_at", lambda cells, margin: None)
        folder = graft.stage(run)
    numbers = json.loads((folder / graft.NUMBERS).read_text())
    return numbers, folder, _run_cells._cache_size() - before


def test_the_whole_run_finds_the_part_that_reads_the_direction(run, measured, bench):
    numbers, _, programs = measured
    assert programs <= 1
    assert numbers["responding"][0] == "head"  # it is the head's own column
    assert numbers["responds"]
    everything = frozenset(parts(CONFIG))
    form = numbers["format"]
    assert form == "continuation"
    texts = f"search {form}"
    target = numbers["searched"] * numbers["ceilings"][form]
    assert bench.rise(frozenset(numbers["responding"]), texts=texts) >= target
    assert set(numbers["hybrids"]["put back"]) == everything - set(numbers["responding"])
    size = len(numbers["responding"])
    drawn = [frozenset(row["tuned"]) for row in numbers["judged"][form]["random"]]
    assert {len(some) for some in drawn} == {size}
    assert len(set(drawn)) == len(drawn) == 4
    assert any("head" in some for some in drawn) == (size > 1)
    by_part = {row["part"]: row for row in numbers["parts"]}
    assert by_part["head"]["grafted"] == bench.rise(frozenset(("head",)), texts=texts)
    rest = everything - {"layers.0.attn", "layers.0.mlp"}
    assert by_part["layers.0"]["put_back"] == bench.rise(rest, texts=texts)
    depth = {row["layer"]: row for row in numbers["depth"]}
    assert depth[2]["grafted"] == by_part["head"]["grafted"]
    assert depth[0]["put_back"] == by_part["embed"]["grafted"]
    # Three prompts decide nothing, and the run says so.
    assert {one["holds"] for one in numbers["answers"][:-1]} == {None}


def test_text_table_and_figure_are_made_of_the_numbers(measured):
    numbers, folder, _ = measured
    text = (folder / graft.TEXT).read_text()
    assert text == "\n".join(markdown(numbers)) + "\n"
    assert "**cannot be told**" in text
    assert text.count("| base model") >= 2
    table = list(csv.DictReader(io.StringIO((folder / graft.TABLE).read_text())))
    found = {(r["texts"], r["direction"], r["tuned"]): float(r["mean_probability"]) for r in table}
    assert len(found) == len(table)
    here = f"search {numbers['format']}"
    rise = found[here, "base", "head"] - found[here, NONE, "head"]
    (head,) = (row for row in numbers["parts"] if row["part"] == "head")
    assert rise == pytest.approx(head["grafted"])
    assert {"graft.png", "graft.svg"} <= {path.name for path in folder.iterdir()}
    fitting = numbers["fitting"]["reasoning"]
    assert fitting["backtracking"][1] + fitting["other"][1] > 0


def test_where_the_reasoning_model_does_not_respond_there_is_nothing_to_find(run, tmp_path):
    bench = make_bench(run, tmp_path / "responses.jsonl", coeff=-COEFF)
    numbers = graft.measure(run, tmp_path, bench, coeff=-COEFF)
    assert "responding" not in numbers
    (line,) = [line for line in markdown(numbers) if "cannot be told" in line]
    assert "the reasoning model itself does not" in line
    assert not (tmp_path / "hybrids").exists()

"""What the tiny run's directions, labels and cells hold, against plain recomputation."""

import json
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from pipeline_helpers import Finished, change

from experiments.pipeline.run import Run, open_run
from experiments.pipeline.settings import Labels, Steering, load_settings
from experiments.pipeline.text import Prompt
from experiments.stages import activations, derive, label, rollouts, steer
from jaxsteer.analysis.sentences import keyword_labels, split_sentences
from jaxsteer.directions.direction_files import load_directions
from jaxsteer.directions.raw_activations import read_activations
from jaxsteer.files.jsonl import append_rows, read_rows
from jaxsteer.steering.steering import NO_LAYER
from weights.small_language.tokenizer import encode

OFFSETS = (-3, -2)
READ = range(-30, 5)


@pytest.fixture(scope="module")
def run(finished: Finished) -> Run:
    return open_run(finished.out, finished.settings)


@pytest.fixture(scope="module")
def traces(finished: Finished) -> list[dict[str, Any]]:
    """Each trace with its sentences, as the run left them."""
    marks = {row["id"]: row["sentences"] for row in read_rows(finished.out / "labels" / label.FILE)}
    rows = read_rows(finished.out / "rollouts" / rollouts.FILE)
    return [{**row, "sentences": marks[row["id"]]} for row in rows]


def layers_of(folder: Path, tokens: list[list[int]]) -> list[np.ndarray]:
    """Every block's output for each row, float64 `[L, T, D]`, by transformers."""
    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found: list[torch.Tensor] = []
    for block in model.model.layers:
        block.register_forward_hook(lambda _, __, out: found.append(out[0]))
    arrays = []
    with torch.no_grad():
        for row in tokens:
            found.clear()
            model(torch.tensor([row]))
            arrays.append(torch.stack(found).reshape(len(found), len(row), -1).double().numpy())
    return arrays


def test_labels_are_those_of_the_sentences_that_are_in_the_traces(
    traces: list[dict[str, Any]],
) -> None:
    for trace in traces:
        sentences = split_sentences(trace["text"])
        assert [[s.start, s.stop] for s in sentences] == [m[:2] for m in trace["sentences"]]
        assert [m[2] for m in trace["sentences"]] == keyword_labels(sentences)
        for start, stop, positive in trace["sentences"]:
            assert positive == bool({"wait", "hmm"} & set(trace["text"][start:stop].split()))


@pytest.mark.parametrize("role", ["base", "reasoning"])
def test_directions_equal_those_of_raw_activations_at_the_right_tokens(
    finished: Finished, traces: list[dict[str, Any]], role: str
) -> None:
    """Words are tokens here, so the token that a sentence starts at is found by counting words."""
    texts = [trace["prompt"] + trace["text"] for trace in traces]
    outputs = layers_of(finished.settings.parent / role, [encode(text) for text in texts])
    read: dict[int, list[tuple[np.ndarray, bool]]] = {offset: [] for offset in READ}
    for trace, output in zip(traces, outputs, strict=True):
        behind = len(trace["prompt"].split())
        for start, _, positive in trace["sentences"]:
            first = behind + len(trace["text"][:start].split())
            for offset in READ:
                if behind <= first + offset < output.shape[1]:
                    read[offset].append((output[:, first + offset], positive))
    by_offset = {}
    for offset, items in read.items():
        if not any(positive for _, positive in items):
            continue
        everything = np.mean([x for x, _ in items], axis=0)
        by_offset[offset] = np.mean([x for x, positive in items if positive], axis=0) - everything
    saved = load_directions(finished.out / "directions" / derive.FILE)
    facts = json.loads((finished.out / "directions" / derive.FACTS).read_text())
    window = np.mean([by_offset[offset] for offset in OFFSETS], axis=0)
    scale = np.abs(window).max()
    for layer in range(2):
        found = saved[f"{role}.{layer}.union"]
        np.testing.assert_allclose(found.vector, window[layer], atol=1e-4 * scale)
        assert (found.layer, found.site) == (layer, "resid_post")
        assert facts["norm"][role][layer] == pytest.approx(np.linalg.norm(window[layer]), rel=1e-4)
    for layer, offset in product(range(2), READ):
        name = f"{role}.{layer}.offset.{offset}"
        if offset not in by_offset:
            assert name not in saved
            continue
        found = saved[name]
        np.testing.assert_allclose(found.vector, by_offset[offset][layer], atol=1e-4 * scale)
        counts = {"sentences": len(read[offset]), "backtracking": sum(p for _, p in read[offset])}
        assert found.provenance["offsets"] == [offset]
        expected = {name: {str(offset): n} for name, n in counts.items()}
        assert found.provenance["counts"] == expected
    squares = [np.mean([np.sum(x**2, axis=-1) for x, _ in read[o]], axis=0) for o in OFFSETS]
    lengths = np.sqrt(np.mean(squares, axis=0))
    np.testing.assert_allclose(facts["residual_norm"][role], lengths, rtol=1e-4)
    assert facts["n_sentences"] == [len(read[offset]) for offset in OFFSETS]
    assert facts["n_backtracking"] == [sum(p for _, p in read[offset]) for offset in OFFSETS]
    provenance = saved[f"{role}.1.union"].provenance
    assert provenance["counts"]["sentences"] == {str(o): len(read[o]) for o in OFFSETS}
    assert provenance["model"] == role
    mean = np.mean([np.mean([x for x, _ in read[o]], axis=0) for o in OFFSETS], axis=0)
    np.testing.assert_allclose(saved[f"{role}.0.mean"].vector, mean[0], rtol=1e-4, atol=1e-4)
    left_out = facts["left_out_by_offset"]["backtracking"]
    total = sum(p for trace in traces for _, _, p in trace["sentences"])
    assert left_out == [total - sum(p for _, p in read[offset]) for offset in READ]


def test_traces_are_read_with_the_token_that_holds_a_sentences_first_character(
    run: Run, finished: Finished, traces: list[dict[str, Any]]
) -> None:
    marked = derive.read_traces(
        run.tokenizer("reasoning"),
        finished.out / "rollouts" / rollouts.FILE,
        finished.out / "labels" / label.FILE,
    )
    for one, trace in zip(marked, traces, strict=True):
        assert list(one.tokens) == encode(trace["prompt"] + trace["text"])
        assert one.prompt_length == len(trace["prompt"].split())
        words = (trace["prompt"] + trace["text"]).split()
        for first, (start, _, _) in zip(one.starts, trace["sentences"], strict=True):
            assert first >= one.prompt_length
            assert trace["text"][start:].startswith(words[first])


def test_activations_of_a_run_at_offsets_from_its_sentences(
    finished: Finished, traces: list[dict[str, Any]], tmp_path: Path
) -> None:
    out = Path(shutil.copytree(finished.out, tmp_path / "run"))
    asked = "--layers 1 0 --offsets -2 1 --rows-per-shard 5 --models base".split()
    command = ["--out", str(out), "--config", str(finished.settings), *asked]
    assert activations.main(command) == 0
    texts = [trace["prompt"] + trace["text"] for trace in traces]
    right = layers_of(finished.settings.parent / "base", [encode(text) for text in texts])
    by_id = {trace["id"]: (trace, x) for trace, x in zip(traces, right, strict=True)}
    folder = out / "activations-base"
    marks = {row["id"]: row for row in read_rows(folder / activations.SENTENCES)}
    seen = 0
    for shard in read_activations(folder):
        assert shard.provenance["model"] == "base"
        assert shard.provenance["offsets"] == [-2, 1]
        for row, id in enumerate(shard.ids):
            trace, x = by_id[id]
            behind = len(trace["prompt"].split())
            starts = marks[id]["starts"]
            at = {start + offset for start in starts for offset in (-2, 1)}
            expected = sorted(a for a in at if behind <= a < x.shape[1])
            mine = shard.row == row
            assert shard.position[mine].tolist() == expected
            found = shard.activations["resid_post"][:, mine]
            np.testing.assert_allclose(found, x[[1, 0]][:, expected], rtol=1e-3, atol=1e-4)
            seen += 1
    assert seen == len(marks) > 5


def test_every_trace_has_random_numbers_of_its_own(run: Run, tmp_path: Path) -> None:
    """In three chunks: one prompt never repeats what another one got in an earlier chunk."""
    text = max(run.derive_prompts, key=lambda prompt: len(prompt.text.split())).text
    prompts = [Prompt(str(i), text) for i in range(13)]
    rollouts.write_rollouts(
        tmp_path,
        *run.load("reasoning"),
        prompts,
        stops=run.stop_tokens("reasoning"),
        decoding=run.settings.rollouts,
    )
    found = read_rows(tmp_path / rollouts.FILE)
    assert [row["id"] for row in found] == [prompt.id for prompt in prompts]
    assert len({row["text"] for row in found}) == len(prompts)


def cells(unit: str, **options: Any) -> dict[tuple[str, float], Any]:
    rng = np.random.default_rng(0)
    vectors = {
        "base": rng.normal(size=8).astype(np.float32),
        "reasoning": 3 * rng.normal(size=8).astype(np.float32),
    }
    steering = Steering(
        coeffs=[-2.0, 0.5], unit=unit, random_directions=2, baselines=[], baseline_coeffs=[0.5]
    )
    made = steer.make_cells(
        vectors, layer=1, site="resid_mid", residual_norm=7.0, steering=steering, **options
    )
    found = {(cell.labels["source"], cell.labels["coeff"]): cell for cell in made}
    assert len(found) == len(made)
    return found


def added(cell: Any) -> np.ndarray:
    return np.asarray(cell.steering.coeff[0] * cell.steering.vector[0])


def test_cells_of_a_sweep() -> None:
    found = cells("vector")
    assert list(found) == [
        ("none", 0.0), ("base", -2.0), ("base", 0.5), ("reasoning", -2.0), ("reasoning", 0.5),
        ("random-0", 0.5), ("random-1", 0.5),
    ]  # fmt: skip
    assert not added(found["none", 0.0]).any()
    for cell in found.values():
        assert cell.steering.sites == ("resid_mid",)
        assert set(cell.steering.layer.ravel().tolist()) == {1, NO_LAYER}
        assert cell.labels["length"] == pytest.approx(np.linalg.norm(added(cell)))
    without = cells("vector", sources=("base",), baselines=False)
    assert list(without) == [("none", 0.0), ("base", -2.0), ("base", 0.5)]


def test_the_unit_vector_adds_the_direction_as_it_was_found() -> None:
    found = cells("vector")
    base = np.random.default_rng(0).normal(size=8).astype(np.float32)
    np.testing.assert_allclose(added(found["base", -2.0]), -2 * base, rtol=1e-6)
    for i in range(2):
        length = np.linalg.norm(added(found[f"random-{i}", 0.5]))
        assert length == pytest.approx(np.linalg.norm(base) / 2, rel=1e-5)


def test_the_unit_residual_adds_lengths_of_the_stream() -> None:
    for (source, coeff), cell in cells("residual").items():
        assert np.linalg.norm(added(cell)) == pytest.approx(abs(coeff) * 7.0, rel=1e-5)
        assert np.isfinite(added(cell)).all(), source


def test_lengths_in_the_sweep_are_those_of_the_reasoning_models_stream(finished: Finished) -> None:
    facts = json.loads((finished.out / "directions" / derive.FACTS).read_text())
    unit = facts["residual_norm"]["reasoning"][1]
    assert unit != pytest.approx(facts["residual_norm"]["base"][1], rel=1e-3)
    for target in ("base", "reasoning", "control"):
        for row in read_rows(finished.out / f"sweep-{target}" / steer.FILE):
            assert row["length"] == pytest.approx(abs(row["coeff"]) * unit, rel=1e-5)


def test_the_sweeps_of_all_models_share_their_programs(finished: Finished) -> None:
    """Nothing is compiled again between cells, chunks or models of one shape.

    The sweep of the reasoning model has a baseline that draws noise, and the other two, which run
    one after the other, have none: a program without noise draws no numbers.
    """
    assert finished.programs == 2


def test_a_labels_file_replaces_the_keywords(tmp_path: Path) -> None:
    text = "wait, no. So it is 4. Fine."
    traces = tmp_path / "traces.jsonl"
    append_rows(traces, [{"id": "a", "text": text}])
    assert label.write_labels(tmp_path, traces, Labels())["backtracking"] == 1
    file = tmp_path / "labels.jsonl"
    names = ("deduction", "backtracking", "backtracking")
    append_rows(
        file,
        [
            {"trace": "a", "start": s.start, "stop": s.stop, "label": name}
            for s, name in zip(split_sentences(text), names, strict=True)
        ],
    )
    counts = label.write_labels(tmp_path, traces, Labels(file=str(file)))
    assert counts == {"traces": 1, "sentences": 3, "backtracking": 2}
    (row,) = read_rows(tmp_path / label.FILE)
    assert [positive for _, _, positive in row["sentences"]] == [False, True, True]


def test_the_grammar_names_other_kinds_and_leaves_backtracking_to_the_keywords(
    tmp_path: Path,
) -> None:
    lines = {
        "now 3 plus 4 is exactly 9 .": "deduction",
        "hmm , that is not right .": "backtracking",
        "mia had to wait in front of the barn .": "backtracking",  # narrative, with a keyword
        "4 plus therefore 3 .": "other",
        "we look at what happens next .": "planning",
    }
    traces = tmp_path / "traces.jsonl"
    append_rows(traces, [{"id": "a", "text": " " + " ".join(lines)}])
    label.write_labels(tmp_path, traces, Labels(source="grammar"))
    (row,) = read_rows(tmp_path / label.FILE)
    assert row["labels"] == list(lines.values())
    marks = [positive for _, _, positive in row["sentences"]]
    label.write_labels(tmp_path, traces, Labels())
    (row,) = read_rows(tmp_path / label.FILE)
    assert [positive for _, _, positive in row["sentences"]] == marks
    # What the grammar alone calls backtracking stays what the keywords say.
    label.write_labels(tmp_path, traces, Labels(keywords=["wait"], source="grammar"))
    (row,) = read_rows(tmp_path / label.FILE)
    assert row["labels"][1] == "other"


def test_a_labels_file_counts_by_its_content_not_by_its_place(
    finished: Finished, traces: list[dict[str, Any]], tmp_path: Path
) -> None:
    rows = [
        {
            "trace": t["id"],
            "start": start,
            "stop": stop,
            "label": "backtracking" if p else "deduction",
        }
        for t in traces
        for start, stop, p in t["sentences"]
    ]
    prints = []
    for place in ("here", "there"):
        file = tmp_path / place / "labels.jsonl"
        file.parent.mkdir()
        append_rows(file, rows)
        settings = change(finished.settings, "labelled.toml", labels={"file": str(file)})
        out = Path(shutil.copytree(finished.out, tmp_path / f"run-{place}"))
        folder = derive.stage(open_run(out, settings))
        saved = load_directions(folder / derive.FILE)["base.1.union"]
        assert saved.provenance["label_source"] == "labels.jsonl"
        prints.append(json.loads((folder / "stage.json").read_text())["inputs"])
    assert prints[0] == prints[1]
    # The same labels as the keywords gave, so the same sentences and the same direction.
    kept = load_directions(finished.out / "directions" / derive.FILE)["base.1.union"]
    assert np.array_equal(saved.vector, kept.vector)


@pytest.mark.parametrize("text", ["No. Yes.", "Wait. Hmm.", ""])
def test_labels_of_one_kind_only_are_refused_and_not_written(tmp_path: Path, text: str) -> None:
    append_rows(tmp_path / "traces.jsonl", [{"id": "a", "text": text}])
    with pytest.raises(ValueError, match="a difference of means needs some of either kind"):
        label.write_labels(tmp_path, tmp_path / "traces.jsonl", Labels())
    assert not (tmp_path / label.FILE).exists()


def test_limits_take_the_first_prompts(finished: Finished) -> None:
    prompts = {"derive_limit": 3, "evaluate_limit": 2}
    file = change(finished.settings, "limits.toml", prompts=prompts)
    run = open_run(finished.out, file)
    assert [p.id for p in run.derive_prompts] == ["dom-0-0", "dom-0-1", "dom-0-2"]
    assert [p.id for p in run.evaluate_prompts] == ["eval-0-0", "eval-0-1"]
    assert load_settings(file).prompts.derive_limit == 3

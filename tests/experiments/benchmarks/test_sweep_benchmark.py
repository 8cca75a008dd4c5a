"""experiments.benchmarks.sweep: every case is measured, by both engines, on the same work."""

import json

import numpy as np
import pytest
import torch

from experiments.benchmarks import sweep, sweep_transformers
from experiments.benchmarks.sweep_work import Work, make_work
from jaxsteer.config.shape import LlamaConfig

ARGUMENTS = ["--preset", "tiny", "--cells", "2", "--prompts", "2", "--new-tokens", "4"]
WORK = Work(config=LlamaConfig.tiny(), cells=2, prompts=3, prompt_length=8, new_tokens=4, layer=1)


@pytest.fixture
def lines(monkeypatch, capsys):
    """What a command prints, with each engine in this process instead of one of its own."""
    monkeypatch.setattr(sweep, "read_bandwidth", lambda: 1e10)
    monkeypatch.setattr(sweep, "matrix_rate", lambda: 1e11)

    def child(argv):
        assert sweep.main(argv) == 0
        yield from capsys.readouterr().out.splitlines(keepends=True)

    def run(*argv):
        monkeypatch.setattr(sweep, "_child", child)
        assert sweep.main([*ARGUMENTS, *argv]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


def test_every_case_has_its_line(lines):
    found = lines("--steps", "3", "--repeats", "1", "--transformers-tokens", "2")
    machine, *cases = found
    assert machine["read_GB_s"] == 10
    names = [case["case"] for case in cases]
    assert names == [
        "figure 3", "figure 3 again", "rows", "vmapped", "sweep, transformers with a hook",
        "compared",
    ]  # fmt: skip
    figure, again, rows, vmapped, theirs, compared = cases
    assert [figure["loops_compiled"], again["loops_compiled"]] == [1, 0]
    assert figure["compile_s"] < figure["seconds"]
    assert figure["tokens_per_s"] == pytest.approx(2 * 2 * 4 / figure["seconds"], rel=1e-2)
    assert rows["rows"] == vmapped["rows"] == 4
    ratio = vmapped["step_ms"] / rows["step_ms"]
    assert vmapped["ratio_to_rows"] == pytest.approx(ratio, rel=1e-2)
    assert theirs["tokens_timed"] == 2
    assert theirs["seconds_extrapolated"] == pytest.approx(2 * theirs["seconds"], rel=1e-2)
    assert compared["transformers_s_is"] == "extrapolated"
    faster = theirs["seconds_extrapolated"] / figure["seconds"]
    assert compared["times_faster"] == pytest.approx(faster, rel=1e-2)


def test_the_hook_steers_each_row_by_its_cell():
    """A vector that is large enough decides the tokens, and in its own cell only."""
    model = sweep_transformers.random_model(WORK.config, "cpu").float()
    prompts, mask, _, _ = make_work(WORK)
    ids, attend = torch.tensor(prompts), torch.tensor(mask, dtype=torch.long)
    shift = torch.zeros(2, WORK.config.d_model)
    shift[1] = 100 * torch.randn(WORK.config.d_model, generator=torch.manual_seed(1))
    options = {"layer": 1, "tokens": 4}
    both = sweep_transformers.run_cells(model, ids, attend, shift, **options)
    alone = sweep_transformers.run_cells(model, ids, attend, shift[:1], **options)
    assert both.shape == (6, 4)
    assert torch.equal(both[:3], alone)
    assert torch.equal(both[3:, 0], both[:3, 0])  # the first token is the prompt's
    assert not torch.equal(both[3:, 1:], both[:3, 1:])


def test_batches_hold_whole_cells(monkeypatch):
    sizes = []
    real = sweep_transformers.run_cells

    def count(model, ids, mask, shift, **options):
        sizes.append((len(shift), options["tokens"]))
        return real(model, ids, mask, shift, **options)

    monkeypatch.setattr(sweep_transformers, "run_cells", count)
    (found,) = sweep_transformers.measure(WORK, batch=5, tokens=4)
    assert sizes == [(1, 2), (1, 4), (1, 4)]  # a warm-up, then each batch
    assert (found["batches"], found["rows_per_batch"]) == (2, 3)
    assert "seconds_extrapolated" not in found
    assert found["tokens_per_s"] == pytest.approx(2 * 3 * 4 / found["seconds"])


def test_prompts_are_ragged_and_the_longest_is_whole():
    prompts, mask, vectors, coeffs = make_work(WORK)
    assert prompts.shape == mask.shape == (3, 8)
    assert mask[0].all()
    assert mask.sum(axis=1).min() >= 4
    assert not prompts[~mask].any()
    assert vectors.shape == (2, WORK.config.d_model)
    assert np.unique(coeffs).size == 2


def test_a_child_that_fails_is_an_error():
    with pytest.raises(RuntimeError, match="--preset none: ended with exit code 2"):
        list(sweep._child(["--preset", "none"]))

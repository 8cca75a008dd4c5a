"""experiments.report.page: what a finished run's page has, all of it from the run's files."""

import contextlib
import io
from pathlib import Path

import pytest
from pipeline_helpers import Finished

from experiments.pipeline.run import Run, open_run
from experiments.report import page
from experiments.report.page_code import shown_path
from experiments.stages import perplexity, steer, tokens
from experiments.stages.sweep_table import sweep_table
from jaxsteer import pages
from jaxsteer.files import read_rows


@pytest.fixture(scope="module")
def run(finished: Finished) -> Run:
    return open_run(finished.out, finished.settings)


@pytest.fixture(scope="module")
def made(run: Run) -> pages.Page:
    def never(*args: object) -> None:
        raise AssertionError("loaded a model for the page")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Run, "load", never)
        table, _ = sweep_table(run)
        return page.page_of(run, table, run.out / "report", run.out / "tokens")


def test_every_text_of_the_sweeps_is_there(run: Run, made: pages.Page) -> None:
    rows = [
        row for role in run.sources for row in read_rows(run.out / f"sweep-{role}" / steer.FILE)
    ]
    assert len(made.texts) == len(rows)
    assert [text.text for text in made.texts] == [row["text"] for row in rows]
    cells = [(made.cells[text.cell].coeff, made.prompts[text.prompt].name) for text in made.texts]
    assert cells == [(row["coeff"], row["prompt"]) for row in rows]
    assert {cell.panel for cell in made.cells} == {
        "reasoning model", "base model", "negative control",
    }  # fmt: skip
    assert made.cells[0].panel == "reasoning model"  # on which it opens, with the first series
    assert made.series[0].name == "base-derived direction"
    assert all(cell.strength == pytest.approx(cell.coeff, rel=1e-3) for cell in made.cells)


def test_tokens_are_those_of_the_text(run: Run, made: pages.Page) -> None:
    key = ("target", "source", "coeff", "prompt")
    scored = {
        tuple(row[k] for k in key): row
        for row in read_rows(run.out / "perplexity" / perplexity.FILE)
    }
    for row in read_rows(run.out / "tokens" / tokens.FILE):
        one = scored[tuple(row[k] for k in key)]
        assert len(row["ends"]) == len(row["projections"]) == one["n_tokens"]
    for text in made.texts:
        assert len(text.ends) == len(text.logprobs) == len(text.projections)
        if text.text:
            assert text.ends[-1] == len(text.text)
        assert all(text.text[a:b].lower() in ("wait", "hmm") for a, b in text.marks)
        assert text.effect == 0 or text.marks or not text.text


def test_lines_of_a_cell_write_its_text_again(
    run: Run, made: pages.Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.out.parent)  # where the models and the run are
    sources = {"base-derived direction", "mean activation", "noise per token", "random direction 1"}
    seen = set()
    for text in made.texts:
        cell = made.cells[text.cell]
        name = (cell.panel, cell.series)
        if name in seen or cell.coeff < 0 or (cell.series and cell.series not in sources):
            continue
        if cell.panel == "negative control" or (cell.panel == "base model" and not cell.series):
            continue
        seen.add(name)
        assert cell.python
        problem = made.prompts[text.prompt].text
        lines = cell.python.replace("$TEXT", repr(problem)).replace("$ROW", str(text.row))
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(lines, {})
        words = printed.getvalue().replace("<eos>", "").split()
        assert words == text.text.split(), lines
    assert len(seen) == 6


def test_claims_lead_to_figures_and_cells(made: pages.Page) -> None:
    names = {figure.name for figure in made.figures}
    assert {"headline", "figure3", "figure6"} <= names
    assert all("<svg" in figure.svg and figure.csv.count("\n") > 1 for figure in made.figures)
    by_id = {claim.id: claim for claim in made.claims}
    assert by_id["C1"].figure is None  # made with --full
    assert by_id["C3"].figure == "headline"
    assert all(claim.figure in {*names, None} for claim in made.claims)
    assert not any("nan" in claim.measured.split() for claim in made.claims)
    shown = made.cells[by_id["C2"].cell or 0]
    assert (shown.panel, shown.series) == ("reasoning model", "base-derived direction")


def test_paths_are_shown_from_the_checkout_or_the_folder(
    made: pages.Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shown_path(page.__file__) == "experiments/report/page.py"
    monkeypatch.chdir(tmp_path)
    assert shown_path(tmp_path / "a" / ".." / "b") == "b"
    assert shown_path("/elsewhere/b") == "b"
    assert not any(str(value).startswith("/") for value in made.about["Settings"].values())

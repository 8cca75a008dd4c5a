"""The page of a run: its claims, cells, texts and figures in the form that `jaxsteer.pages` takes.

It is made from the files of finished stages alone, so that it can be made again without a model.
"""

import hashlib
import json
import math
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import jaxsteer
from experiments.claims.claims import Claim
from experiments.figures import frame
from experiments.pipeline.run import Run
from experiments.pipeline.stage_runner import fingerprint
from experiments.report import stage as report
from experiments.report.figure_list import chosen
from experiments.report.page_code import lines, shown_path
from experiments.stages import derive, label, perplexity, steer, tokens
from experiments.stages.outcome import CellOutcome, Measured, coherent, judged_at
from experiments.stages.perplexity import key_of
from experiments.stages.sweep_table import SweepTable, sweep_table
from experiments.stages.text_scores import REASONS, Scores
from jaxsteer import pages
from jaxsteer.analysis import OTHER, keyword_pattern, split_sentences
from jaxsteer.checkpoints import read_manifest
from jaxsteer.directions import load_directions
from jaxsteer.files import read_json, read_rows

FILE = "report.html"
_FIGURES = {
    "C1": "figure2", "C2": "figure3", "C3": "headline", "C4": "cosines", "C5": "figure4",
    "C6": "figure5", "C7": "figure6", "C8": "figure6", "S": "headline", "N": "headline",
}  # fmt: skip
_SHAPES = {
    "o": "circle", "s": "square", "D": "diamond", "^": "triangle-up", "v": "triangle-down",
    "x": "cross", "P": "cross",
}  # fmt: skip
_NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")


def stage(run: Run) -> Path | None:
    """The folder with `report.html`; none without the package that draws the page's plots."""
    folder, read = report.stage(run), tokens.stage(run)
    if not pages.is_installed():
        print(f"[page] left out: {pages.EXTRA}")
        return None
    table, inputs = sweep_table(run)

    def work(here: Path) -> None:
        pages.write_page(here / FILE, page_of(run, table, folder, read))

    return run.stage(
        "page",
        {
            **inputs,
            "report": fingerprint(folder),
            "tokens": fingerprint(read),
            "code": hashlib.sha256(b"".join(map(_bytes, _code()))).hexdigest(),
        },
        work,
        alone=True,
    )


def _code() -> list[Path]:
    """Files that decide what a page is, so that another version of them makes another page."""
    here, library = Path(__file__), Path(str(pages.__file__)).parent
    return [
        here,
        here.with_name("page_code.py"),
        *sorted(f for f in library.iterdir() if f.is_file()),
    ]


def _bytes(file: Path) -> bytes:
    return file.read_bytes()


def page_of(run: Run, table: SweepTable, folder: Path, read: Path) -> pages.Page:
    """The page, from the folders of the stages `report` and `tokens`."""
    settings = run.settings
    facts = derive.read_facts(run.out / "directions")
    saved = set(load_directions(run.out / "directions" / derive.FILE))
    problems = {p.id: p.text for role in run.sources for p in run.prompts_for(role)}
    answers = _answers(Path(settings.prompts.file))
    names = list(problems)
    cells = sorted(table.cells, key=lambda cell: list(frame.TARGETS).index(cell.target))
    numbers = {(c.target, c.source, c.coeff): i for i, c in enumerate(cells)}
    claims = [Claim(**row) for row in read_json(folder / "claims.json")]
    drawn = [f for f in chosen(run) if (folder / f"{f.name}.svg").is_file()]
    layer, some = settings.direction.layer, settings.perplexity.prompts
    return pages.Page(
        title="Steering backtracking",
        summary=_summary(run, table),
        effect="backtracking sentences per sentence",
        coherence=frame.coherence_name(settings.report.coherence),
        event="backtracks",
        margin=settings.report.margin,
        unit=("residual norms" if settings.steering.unit == "residual" else "times the direction"),
        series=_series(cells),
        cells=[_cell(run, cell, facts, saved) for cell in cells],
        prompts=[pages.PagePrompt(name, problems[name], answers.get(name)) for name in names],
        texts=_texts(run, table, numbers, {name: i for i, name in enumerate(names)}, answers, read),
        claims=_claims(claims, table, settings.report.margin, numbers, {f.name for f in drawn}),
        figures=[
            pages.PageFigure(
                f.name,
                f.title,
                f.caption.replace("`", ""),
                (folder / f"{f.name}.svg").read_text(),
                (folder / f"{f.name}.csv").read_text(),
            )
            for f in drawn
        ],
        about=_about(run, facts),
        notes=[
            "Sentence labels: " + label.label_source(_text_labels(run)) + ".",
            f"Claims do not count texts that are {', '.join(REASONS[:-1])} or {REASONS[-1]}; the "
            "list marks them.",
            "An answer is right where the last number of a finished text is that of the prompt's "
            "file."
            if answers
            else "The prompts' file has no answers to compare with.",
        ],
        tint=(
            "Tint: the projection of each token on the base-derived direction at layer "
            f"{layer}, the text read once more without steering; orange is above, blue below the "
            "mean of the unsteered texts, in full at 3 standard deviations."
            + ("" if some is None else f" Read were texts of each model's first {some} prompts.")
        ),
        logprobs=(
            "Log-probabilities and perplexity are the unsteered model's, of the finished text."
        ),
    )


def _summary(run: Run, table: SweepTable) -> str:
    counts = {role: len(run.prompts_for(role)) for role in frame.TARGETS if role in run.sources}
    texts = sum(len(by_prompt) for by_prompt in table.scores.values())
    models = ", ".join(f"{role} {n}" for role, n in counts.items())
    direction = run.settings.direction
    return (
        f"{len(table.cells)} cells, {texts:,} texts; prompts: {models}; "
        f"steered: {direction.site} of layer {direction.layer}"
    )


def _name(source: str) -> str:
    """What a source is called: a kind's name, or its own where there are several."""
    if source == "none":
        return ""
    kind, _, rest = source.partition("-")
    if kind == "random":
        return f"random direction {rest}"
    if kind == "behaviour":
        return f"direction of {rest}"
    return frame.kind_of(source)[0]


def _series(cells: Sequence[CellOutcome]) -> list[pages.Series]:
    series = {}
    for source in dict.fromkeys(c.source for c in cells if c.source != "none"):
        _, colour, marker = frame.kind_of(source)
        series[_name(source)] = pages.Series(
            _name(source), colour, _SHAPES.get(marker, "circle"), source in ("base", "reasoning")
        )
    return list(series.values())


def _cell(run: Run, cell: CellOutcome, facts: dict[str, Any], saved: set[str]) -> pages.PageCell:
    norm = facts["residual_norm"]["reasoning"][run.settings.direction.layer]
    numbers = {
        "judged share": cell.judged,
        "keywords per word": cell.keyword_matches,
        "repetition": cell.repetition,
        "perplexity": cell.perplexity,
    }
    return pages.PageCell(
        panel=frame.TARGETS[cell.target],
        series=_name(cell.source),
        coeff=cell.coeff,
        effect=_band(cell.backtracking_rate),
        coherence=_band(cell.coherence),
        strength=math.copysign(cell.length / norm, cell.coeff),
        numbers={name: band for name, one in numbers.items() if (band := _band(one))},
        python=lines(run, cell, facts, saved),
    )


def _band(one: Measured) -> pages.Band | None:
    return pages.Band(one.mean, one.low, one.high, one.n) if one.n else None


def _claims(
    claims: Sequence[Claim],
    table: SweepTable,
    margin: float,
    numbers: Mapping[tuple[str, str, float], int],
    figures: set[str],
) -> list[pages.PageClaim]:
    shown = _claimed(table, margin)
    return [
        pages.PageClaim(
            claim.id,
            claim.claim,
            f"paper: {claim.paper}",
            claim.measured,
            str(claim.verdict),
            figure=name if (name := _FIGURES.get(claim.id)) in figures else None,
            cell=numbers.get(shown[claim.id]) if claim.id in shown else None,
        )
        for claim in claims
    ]


def _claimed(table: SweepTable, margin: float) -> dict[str, tuple[str, str, float]]:
    """By claim the cell whose texts show it best."""
    coeff = judged_at(table.cells, margin)
    if coeff is None:
        return {}
    cells = {
        "C2": ("reasoning", "base", coeff),
        "C3": ("base", "base", coeff),
        "N": ("control", "base", coeff),
    }
    able = coherent(table.cells, "reasoning", margin)
    if back := [c.coeff for c in able if c.source == "base" and c.coeff < 0]:
        cells["S"] = ("reasoning", "base", min(back))
    others = [c for c in able if c.source not in ("base", "reasoning") and 0 < c.coeff <= coeff]
    if others:
        best = max(others, key=lambda c: c.judged.mean if c.judged.n else -1)
        cells["C5"] = (best.target, best.source, best.coeff)
    return cells


def _texts(
    run: Run,
    table: SweepTable,
    numbers: Mapping[tuple[str, str, float], int],
    places: Mapping[str, int],
    answers: Mapping[str, str],
    read: Path,
) -> list[pages.PageText]:
    ends = {key_of(row): row for row in read_rows(read / tokens.FILE)}
    scored = {key_of(row): row for row in read_rows(run.out / "perplexity" / perplexity.FILE)}
    keywords = keyword_pattern(tuple(run.settings.labels.keywords))
    made = []
    for role in run.sources:
        rows_of = {prompt.id: i for i, prompt in enumerate(run.prompts_for(role))}
        rows = read_rows(run.out / f"sweep-{role}" / steer.FILE)
        labels = _labels(run, [row["text"] for row in rows])
        for row, sentences in zip(rows, labels, strict=True):
            text, logprobs = row["text"], scored.get(key_of(row), {}).get("logprobs", [])
            one = ends.get(key_of(row), {"ends": [], "projections": []})
            if len(logprobs) != len(one["ends"]):
                logprobs = []
            scores = table.scores[role, row["source"], row["coeff"]][row["prompt"]]
            made.append(
                pages.PageText(
                    cell=numbers[role, row["source"], row["coeff"]],
                    prompt=places[row["prompt"]],
                    sample=0,
                    row=rows_of[row["prompt"]],
                    text=text,
                    ended="end token" if row["stopped"] else "cut off",
                    ends=one["ends"],
                    logprobs=logprobs,
                    projections=one["projections"],
                    sentences=sentences,
                    marks=[match.span() for match in keywords.finditer(text)],
                    right=_right(text, answers.get(row["prompt"])) if row["stopped"] else None,
                    **_measures(scores, logprobs),
                )
            )
    return made


def _measures(scores: Scores, logprobs: Sequence[float]) -> dict[str, Any]:
    return {
        "effect": scores.backtracking / scores.sentences if scores.sentences else math.nan,
        "coherence": scores.coherent / scores.coherence_of if scores.coherence_of else math.nan,
        "repetition": scores.repetition,
        "perplexity": math.exp(-sum(logprobs) / len(logprobs)) if logprobs else math.nan,
        "left_out": scores.excluded,
    }


def _text_labels(run: Run) -> Any:
    """How sentences of the sweeps are labelled: as the traces', if that asks no judge or file."""
    labels = run.settings.labels
    return type(labels)(keywords=labels.keywords, source=labels.source)


def _labels(run: Run, texts: Sequence[str]) -> list[list[tuple[int, int, str]]]:
    """Sentences of each text with their labels; "" for others where there are but two."""
    labels = _text_labels(run)
    sentences = {str(i): split_sentences(text) for i, text in enumerate(texts)}
    names = label.names_of(sentences, labels, run.out / label.CACHE)
    two = labels.source == "keywords"
    return [
        [
            (s.start, s.stop, "" if two and name == OTHER else name)
            for s, name in zip(sentences_of, names[id], strict=True)
        ]
        for id, sentences_of in sentences.items()
    ]


def _answers(file: Path) -> dict[str, str]:
    """The answers in a prompts file, by id; none where it has none."""
    entries = [entry for entry in read_json(file) if isinstance(entry, dict)]
    return {
        str(entry["id"]): str(entry["answer"])
        for entry in entries
        if "id" in entry and isinstance(entry.get("answer"), str | int | float)
    }


def _right(text: str, answer: str | None) -> bool | None:
    """Whether the last number of a text is the answer; None where there is nothing to compare.

    >>> _right("9 and 7 make 1,600 .", "1600"), _right("so 7 .", "8"), _right("so 7 .", None)
    (True, False, None)
    """
    wanted = _NUMBER.findall(answer or "")
    if not wanted:
        return None
    numbers = _NUMBER.findall(text)
    return bool(numbers) and _value(numbers[-1]) == _value(wanted[-1])


def _value(number: str) -> float:
    return float(number.replace(",", ""))


def _about(run: Run, facts: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    settings, layer = run.settings, run.settings.direction.layer
    models = {}
    for role in run.sources:
        manifest = read_manifest(run.checkpoint(role))
        models[role] = shown_path(run.sources[role])
        sources = manifest.provenance.get("source_sha256") or {}
        models |= {
            f"{role}: {file}": f"sha256 {sha}" for file, sha in sources.items() if "." in file
        }
        models[f"{role}: prompts"] = run.prompt_rule(role)
    direction = {
        "method": "difference of means (Eq. 3)",
        "layer": layer,
        "site": settings.direction.site,
        "offsets": settings.direction.offsets,
        "backtracking sentences": facts["n_backtracking"][0],
        "sentences": facts["n_sentences"][0],
        "length, base-derived": round(facts["norm"]["base"][layer], 4),
        "length, reasoning-derived": round(facts["norm"]["reasoning"][layer], 4),
        "residual norm there": round(facts["residual_norm"]["reasoning"][layer], 4),
        "cosine of the two": round(facts["cosine"][layer], 4),
        "labels": label.label_source(settings.labels),
    }
    packages = ("jax", "jaxlib", "flax", "transformers", "numpy", "vl-convert-python")
    versions = {"jaxsteer": jaxsteer.__version__, "python": platform.python_version()}
    versions |= {name: metadata.version(name) for name in packages}
    return {
        "Settings": _flat(json.loads(json.dumps(asdict(settings)))),
        "Direction": direction,
        "Models": models,
        "Versions that made this page": versions,
    }


_PATHS = ("models.base", "models.reasoning", "models.control", "prompts.file", "labels.file")


def _flat(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Settings by `section.key`; those that are not set are left out."""
    flat = {
        f"{section}.{key}": value
        for section, values in sections.items()
        for key, value in values.items()
        if value is not None
    }
    return {key: shown_path(value) if key in _PATHS else value for key, value in flat.items()}

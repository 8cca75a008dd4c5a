"""The words of the report: the figures with their numbers, the judging, the claims table."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jaxsteer
from experiments.claims import claims as claims_table
from experiments.claims.claims import Claim
from experiments.pipeline.run import Run
from experiments.pipeline.settings import Settings
from experiments.pipeline.tables import interval, markdown_table
from experiments.report.figure_list import Figure, chosen, left_out
from experiments.stages import text_scores
from experiments.stages.outcome import CellOutcome, Measured, judged_at, select, sources_of
from experiments.stages.sweep_table import SweepTable

_ROWS, _COLUMNS = 24, 9  # of a figure's numbers, up to which the report shows them


def markdown(
    found: Sequence[Claim],
    table: SweepTable,
    facts: dict[str, Any],
    run: Run,
    folder: Path,
) -> str:
    """The report of a run, whose figures lie in `folder`."""
    settings = run.settings
    lines = ["# Steering backtracking", ""]
    for figure in chosen(run):
        lines += [*_figure(figure, folder), ""]
        if figure.name == "figure3":
            lines += [*_cells(table.cells), ""]
    lines += ["## The direction", "", _direction(facts, settings), ""]
    if missing := left_out(run):
        names = "; ".join(figure.title for figure in missing)
        lines += [f"Left to `--full`: {names}.", ""]
    lines += ["## How it was judged", "", *_judging(table.cells, settings, _beginnings(run)), ""]
    lines += ["## Claims", "", *claims_table.to_markdown(found), ""]
    lines.append(f"Made by jaxsteer {jaxsteer.__version__}.\n")
    return "\n".join(lines)


def _figure(figure: Figure, folder: Path) -> list[str]:
    """Picture, caption, what the figure says of itself in words, small tables."""
    name = figure.name
    lines = [f"## {figure.title}", ""]
    if (folder / f"{name}.png").is_file():
        lines += [f"![{figure.title}]({name}.png)", ""]
    lines += [figure.caption, "", *_words(folder, name), *_numbers(folder / f"{name}.csv")]
    return [*lines, f"Numbers: `{name}.csv`, `{name}.json`."]


def _words(folder: Path, name: str) -> list[str]:
    """The text of `{name}.md` without its heading, or the words for `{name}.json`."""
    own, numbers = folder / f"{name}.md", folder / f"{name}.json"
    if own.is_file():
        lines = own.read_text(encoding="utf-8").splitlines()
        pictures = ("![", "# ")
        kept = [line for line in lines if not line.startswith(pictures)]
        return [f"##{line}" if line.startswith("#") else line for line in kept] + [""]
    data = json.loads(numbers.read_text(encoding="utf-8"))
    if isinstance(data.get("summary"), str):
        return [data["summary"], ""]
    lines = words_of(name, data)
    return [*lines, ""] if lines else []


def _numbers(file: Path) -> list[str]:
    """A small CSV as a table; nothing of a large one."""
    if not file.is_file():
        return []
    rows = list(csv.reader(file.read_text().splitlines()))
    if len(rows) > _ROWS + 1 or len(rows[0]) > _COLUMNS:
        return []
    head, *body = [[_short(value) for value in row] for row in rows]
    return [*markdown_table(head, body), ""]


def _short(value: str) -> str:
    """A number of a CSV with four digits.

    >>> _short("0.123456"), _short("12"), _short("base"), _short("-0.00001234")
    ('0.1235', '12', 'base', '-1.234e-05')
    """
    try:
        return value if value.lstrip("-").isdigit() else f"{float(value):.4g}"
    except ValueError:
        return value


def _direction(facts: dict[str, Any], settings: Settings) -> str:
    layer, window = settings.direction.layer, settings.direction.offsets
    return (
        f"Difference of means (Eq. 3) over the window of {window[0]} to {window[-1]} tokens before "
        f"the sentence: {facts['n_backtracking'][0]} backtracking sentences of "
        f"{facts['n_sentences'][0]}. Length {facts['norm']['base'][layer]:.3f} (base-derived) and "
        f"{facts['norm']['reasoning'][layer]:.3f} (reasoning-derived), in a stream of length "
        f"{facts['residual_norm']['reasoning'][layer]:.3f}; their cosine is "
        f"{facts['cosine'][layer]:.3f}."
    )


def _beginnings(run: Run) -> dict[str, str]:
    return {role: run.prompt_rule(role) for role in run.sources}


def _judging(
    table: Sequence[CellOutcome], settings: Settings, beginnings: Mapping[str, str]
) -> list[str]:
    margin, coeff = settings.report.margin, judged_at(table, settings.report.margin)
    at = "none in this run" if coeff is None else f"{coeff:g} in this run"
    unit = (
        "times the direction as found"
        if settings.steering.unit == "vector"
        else "in root-mean-square lengths of the reasoning model's stream at the layer"
    )
    return [
        "The rules are in `experiments/claims/rules.py`, fixed before the run, and their error "
        "rates in `docs/paper/calibration.md`. Effects are judged at the "
        "largest positive coefficient of the base-derived direction at which coherence is at most "
        f"{margin:g} below the unsteered model's ({at}). Coefficients are {unit}; the sum is made "
        f"at `{settings.direction.site}` of layer {settings.direction.layer}, at generated "
        "positions.",
        "",
        "What is judged is a text's share of distinct backtracking sentences, at most "
        f"{text_scores.MOST_SHARE:g}, and its mean over the prompts. A text counts with at least "
        f"{text_scores.LEAST_WORDS} words and {text_scores.LEAST_SENTENCES} sentences, if at most "
        f"{text_scores.MOST_REPETITION:g} of its word 4-grams repeat an earlier one and at most "
        f"{text_scores.MOST_REPEATED:g} of its backtracking sentences do; how many do not is in "
        "the tables. These bounds, the smallest effects that count and the margin of coherence "
        "were fixed on an independent replication's texts and, for the small pair, on an earlier "
        "run of other prompts and another seed. Intervals in the claims table are those that "
        "decide: Student's over prompts, exact where few prompts differ. Those of figures and "
        "other tables are 95% percentile bootstrap over prompts, or, where all prompts agree, the "
        "exact one-sided bound; p-values are of a sign-flip test of the differences to coefficient "
        "0 by prompt. Texts without a word are left out of the means. The base model is given "
        f"problems in the {settings.prompts.base_format} format, the others in the "
        f"{settings.prompts.reasoning_format} format. Their beginnings: "
        + "; ".join(f"{role} model, {rule}" for role, rule in beginnings.items())
        + ".",
    ]


def _cells(table: Sequence[CellOutcome]) -> list[str]:
    lines = []
    for target in dict.fromkeys(cell.target for cell in table):
        lines += [f"### Target: {target}", "", *_cell_table(table, target), ""]
    return lines


def _cell_table(table: Sequence[CellOutcome], target: str) -> list[str]:
    cells = select(table, target, "none")
    for source in sources_of(table, target):
        cells += [cell for cell in select(table, target, source) if cell.source == source]
    scored = any(cell.perplexity.n for cell in cells)
    head = [
        "source", "coefficient", "words with a keyword", "keywords per word",
        "backtracking per sentence", "coherence", "repetition",
        *(["perplexity"] if scored else []), "judged share", "its change, paired with 0", "p",
        "texts", "not counted",
    ]  # fmt: skip
    return markdown_table(head, [_row(cell, scored=scored) for cell in cells])


def _row(cell: CellOutcome, *, scored: bool) -> list[str]:
    steered, change = cell.source != "none", cell.difference
    return [
        cell.source,
        f"{cell.coeff:g}",
        _plain(cell.keyword_rate, 4),
        _plain(cell.keyword_matches, 4),
        _plain(cell.backtracking_rate),
        _plain(cell.coherence),
        _plain(cell.repetition),
        *([_plain(cell.perplexity, 2)] if scored else []),
        _plain(cell.judged),
        f"{change.diff:+.3f} [{change.low:+.3f}, {change.high:+.3f}]" if steered else "",
        f"{change.p_value:.2g}" if steered else "",
        str(cell.keyword_rate.n + cell.keyword_rate.n_empty),
        ", ".join(f"{n} {why}" for why, n in cell.excluded.items() if n) or "0",
    ]


def _plain(one: Measured, digits: int = 3) -> str:
    return interval(one.mean, one.low, one.high, digits) if one.n else "–"


def words_of(name: str, numbers: dict[str, Any]) -> list[str]:
    """Lines of Markdown from a figure's JSON; none for figures that are not known here."""
    known = {
        "figure5": _logit_lens,
        "figure6": _projections,
        "cosines": _cosines,
        "appendix-c": _judges,
    }
    return known[name](numbers) if name in known else []


def _between(one: dict[str, Any], value: str = "value", digits: int = 3) -> str:
    """A value with its interval; a dash where it has no meaning."""
    numbers = [one[key] for key in (value, "low", "high")]
    if numbers[0] is None:
        return "–"
    middle, *ends = ["?" if x is None else f"{x:.{digits}f}" for x in numbers]
    return f"{middle} [{ends[0]}, {ends[1]}]"


def _token(text: str) -> str:
    """A token in a cell of a table, in which no bar, back quote or new line may stand.

    >>> _token(" wait"), _token("|"), _token(chr(10))
    ('`wait`', '`U+7C`', '`U+A`')
    """
    plain = text.strip()
    if not plain or set(plain) & set("|`") or not plain.isprintable():
        plain = " ".join(f"U+{ord(c):X}" for c in text)
    return f"`{plain}`"


def _logit_lens(numbers: dict[str, Any]) -> list[str]:
    rows = []
    for direction, by_model in numbers["directions"].items():
        for model, one in by_model.items():
            best = min(one["keywords"], key=lambda word: word["rank"], default=None)
            random = numbers["random"][model]
            rows.append(
                [
                    f"`{direction}`",
                    model,
                    ", ".join(_token(token) for token, _ in one["top"]),
                    f"{_token(best['token'])}: {best['rank']}" if best else "–",
                    str(one["vocab_size"]),
                    f"{random['median']:.0f} [{random['low']:.0f}, {random['high']:.0f}]",
                ]
            )
    head = [
        "direction", "unembedding of", "top tokens", "best keyword: rank from 0", "of",
        "the same of random directions",
    ]  # fmt: skip
    return markdown_table(head, rows)


def _projections(numbers: dict[str, Any]) -> list[str]:
    rows = [
        [
            model,
            _between(one, "mean"),
            f"{one['n_events']} and {one['n_other']}",
            _between(numbers["dense"][model]["share_above_events"], "share"),
        ]
        for model, one in numbers["auroc"].items()
    ]
    head = [
        "model", "AUROC", "sentences that backtrack, and others",
        "share of all tokens above the median before backtracking",
    ]  # fmt: skip
    exceptions = (
        f"Of the backtracking sentences {_between(numbers['without_direction'], 'share')} come "
        f"without the direction (n = {numbers['without_direction']['n']}; a perfect detector "
        "leaves 0, chance .5). Of as many sentences where it is strongest "
        f"{_between(numbers['without_backtracking'], 'share')} do not backtrack "
        f"(n = {numbers['without_backtracking']['n']}; 0, by chance "
        f"{1 - numbers['prevalence']:.3f})."
    )
    return [*markdown_table(head, rows), "", exceptions]


def _cosines(numbers: dict[str, Any]) -> list[str]:
    one, random = numbers["cosine"], numbers["random"]["mean"]
    halves = ", ".join(
        f"{found['halves']:.3f} ({model} model)"
        for model, found in numbers["reliability"].items()
        if found["halves"] is not None
    )
    by_chance = "" if random is None else f"; of as many other sentences at random {random:.3f}"
    return [
        f"At layer {one['layer']} the cosine is {_between(one)} (n = {one['n']}){by_chance}. "
        f"Between the directions of two halves of the traces it is {halves or 'unknown'}."
    ]


def _judges(numbers: dict[str, Any]) -> list[str]:
    rows = [
        [
            name,
            str(one["n"]),
            str(one["n_keywords"]),
            str(one["n_judge"]),
            *(_between(one[measure]) for measure in ("precision", "recall", "f1", "kappa")),
        ]
        for name, one in numbers["texts"].items()
    ]
    head = ["texts", "sentences", "keywords", "judge", "precision", "recall", "F1", "Cohen's κ"]
    return [f"The better judge: {numbers['judge']}.", "", *markdown_table(head, rows)]

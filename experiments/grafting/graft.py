"""Grafting: the fine-tuned weights that the direction needs to induce backtracking.

    python -m experiments.graft --out runs/small

Base and reasoning model have one shape, so parts of one (embedding, attention and MLP of each
layer, final norm with head) can take the place of the other's: `jaxsteer.graft`. Parts are data:
all hybrids run in one compiled program for the responses and one for generated text, and share
their weights with the two models, which must both be in memory.

1. A map: the response (`graft_response`) of the base model with each part or layer of the
   reasoning model alone, of the reasoning model with it put back to the base's; and by depth.
2. A search (`graft_search`) for few parts with which the base model responds, and then for those
   that its text needs to be coherent as well, on the prompts that the direction is from.
3. The judgement (`graft_judge`), on the other prompts: responses, and text generated with and
   without the direction by the base model with the parts found, by the reasoning model with them
   put back, and with as many random parts. The rules are in `verdict`.

**Format.** A hybrid is a base model with some other parts, so it is given problems in the base
model's format, all of whose tokens the base model knows: in a chat format, its untrained embeddings
would decide what parts seem to matter. If the reasoning model responds there less than half as much
as in its own format, its own is used. The responses in the other format stand beside.

`graft.json` has all numbers, `graft.csv` a row for each measurement, `graft.md` what the report
includes.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Any

from tqdm import tqdm

from experiments.grafting import figure as graft_figure
from experiments.grafting.judge import Writer, judge_responses, named_hybrids, other_directions
from experiments.grafting.response import Bench, Starts, Tuned, make_directions, read_starts
from experiments.grafting.search import (
    SEARCHED,
    Found,
    Measures,
    above,
    blocks,
    random_sets,
    search,
)
from experiments.grafting.text import markdown, to_csv
from experiments.grafting.verdict import REASONING, RESPONDING, answers, choose_form, no_response
from experiments.pipeline.run import Run, command
from experiments.pipeline.stage_runner import fingerprint
from experiments.pipeline.text import put
from experiments.stages import derive, rollouts, steer
from experiments.stages.outcome import judged_at
from experiments.stages.sweep_table import sweep_table
from jaxsteer.analysis import keyword_tokens, part_sizes, parts
from jaxsteer.directions import load_directions, rescale
from jaxsteer.files import read_rows, write_atomic, write_json

NUMBERS, TABLE, TEXT = "graft.json", "graft.csv", "graft.md"
RESPONSES = "responses.jsonl"


def forms(run: Run) -> tuple[str, ...]:
    """The formats to measure in, the base model's first."""
    prompts = run.settings.prompts
    return tuple(dict.fromkeys((prompts.base_format, prompts.reasoning_format)))


def read_texts(run: Run, rows: Sequence[dict[str, Any]], form: str) -> list[Starts]:
    """Traces (`id` and `text`) behind their prompts in a format, as many as the settings say."""
    settings, tokenizer = run.settings, run.tokenizer("reasoning")
    problems = {p.id: p.text for p in (*run.derive_prompts, *run.evaluate_prompts)}
    template = settings.prompts.base_template

    def prompt(id: str) -> str:
        text = problems[id]
        return put(tokenizer, text, role=REASONING, base_template=template, form=form).text

    texts = [(prompt(row["id"]), row["text"]) for row in rows[: settings.grafting.traces]]
    return read_starts(tokenizer, texts, tokens=settings.grafting.tokens)


def make_bench(
    run: Run, file: Path, *, traces: Path, sweep: Path, directions: Path, coeff: float
) -> Bench:
    """Both models, the traces to search and to judge on, and the directions."""
    settings = run.settings
    layer = settings.direction.layer
    vector = load_directions(directions / derive.FILE)[f"base.{layer}.union"].vector
    if settings.steering.unit == "residual":
        facts = derive.read_facts(directions)
        vector = rescale(vector, facts["residual_norm"]["reasoning"][layer])
    held_out = [row for row in read_rows(sweep / steer.FILE) if row["source"] == "none"]
    texts = {
        "search": read_rows(traces / rollouts.FILE),
        "judge": [{"id": row["prompt"], "text": row["text"]} for row in held_out],
    }
    return Bench(
        base=run.load("base")[0],
        reasoning=run.load("reasoning")[0],
        texts={
            f"{split} {form}": read_texts(run, rows, form)
            for split, rows in texts.items()
            for form in forms(run)
        },
        directions=make_directions(vector, layer=layer, site=settings.direction.site, coeff=coeff),
        keyword_ids=tuple(keyword_tokens(run.tokenizer("reasoning"), settings.labels.keywords)),
        file=file,
    ).recover()


def survey(bench: Bench, names: Sequence[str], *, texts: str) -> dict[str, Any]:
    """The responses with each part and each layer grafted or put back alone, and by depth."""
    everything, n_layers = frozenset(names), bench.base.config.n_layers
    sizes = part_sizes(bench.base)

    def both(some: Tuned) -> dict[str, float]:
        grafted = bench.rise(some, texts=texts)
        return {"grafted": grafted, "put_back": bench.rise(everything - some, texts=texts)}

    alone = {name: frozenset((name,)) for name in names} | blocks(n_layers)
    return {
        "parts": [
            {"part": name, "weights": sum(sizes[part] for part in some), **both(some)}
            for name, some in tqdm(alone.items(), desc="parts alone", unit="part")
        ],
        "depth": [
            {"layer": layer, **both(some)}
            for layer, some in enumerate(tqdm(above(n_layers), desc="by depth", unit="layer"))
        ],
    }


def find(
    bench: Bench, writer: Writer, names: Sequence[str], *, texts: str, largest: int | None
) -> Found:
    """The search, with its progress."""
    everything = frozenset(names)
    with tqdm(desc="search", unit="hybrid") as bar:

        def steered(some: Tuned) -> float:
            bar.update()
            return bench.mass(some, texts=texts, direction="base").mean

        ask = Measures(
            steered=steered,
            rise=lambda some: bench.rise(some, texts=texts),
            fluency=lambda some: bench.fluency(some, texts=texts),
            induces=lambda some: writer.induces(some, everything),
        )
        target = SEARCHED * bench.rise(everything, texts=texts)
        return search(ask, names, target=target, largest=largest)


def draw_sets(names: Sequence[str], result: Found, count: int) -> list[Tuned]:
    """Random sets of as many parts; every other one holds the part that the search took first."""
    size, own = len(result.responding), frozenset(result.responding)
    half = (count + 1) // 2
    first = result.responding[:1]
    holding = random_sets(names, size, count=half, without=own, holding=first, seed=1)
    free = random_sets(names, size, count=count, without=own)
    others = [some for some in free if some not in holding][: count - len(holding)]
    return [some for pair in zip_longest(holding, others) for some in pair if some is not None]


def measure(run: Run, folder: Path, bench: Bench, *, coeff: float) -> dict[str, Any]:
    """Everything that `graft.json` says."""
    settings, grafting = run.settings, run.settings.grafting
    names = parts(bench.base.config)
    everything = frozenset(names)
    ceilings = {form: bench.rise(everything, texts=f"search {form}") for form in forms(run)}
    form = choose_form(ceilings)
    said: dict[str, Any] = {
        "format": form,
        "layer": settings.direction.layer,
        "coeff": coeff,
        "margin": settings.report.margin,
        "ceilings": ceilings,
        "weights": part_sizes(bench.base),
        "searched": SEARCHED,
    }
    if ceilings[form] <= 0:
        return said | {"answers": [asdict(no_response(ceilings[form]))]}
    writer = Writer(run=run, folder=folder / "hybrids", bench=bench, form=form, coeff=coeff)
    surveyed = survey(bench, names, texts=f"search {form}")
    result = find(bench, writer, names, texts=f"search {form}", largest=grafting.largest)
    responding, chosen = frozenset(result.responding), frozenset(result.chosen)
    drawn = draw_sets(names, result, grafting.random_sets)
    judged = {
        one: judge_responses(
            bench,
            everything,
            path=result.path if one == form else (),
            responding=responding,
            drawn=drawn if one == form else (),
            texts=f"judge {one}",
        )
        for one in forms(run)
    }
    hybrids = named_hybrids(everything, responding, chosen, drawn[: grafting.generated_sets])
    table = writer.table(hybrids, "judge")
    verdict = answers(
        table,
        responding=len(responding),
        chosen=len(chosen),
        differences=[row["difference"] for row in judged[form]["random"]],
        margin=settings.report.margin,
    )
    two = {REASONING: everything, RESPONDING: responding}
    return said | {
        **asdict(result),
        **surveyed,
        "judged": judged,
        "directions": other_directions(bench, two, texts=f"judge {form}"),
        "hybrids": {name: sorted(some) for name, some in hybrids.items()},
        "generated": [asdict(cell) for cell in table],
        "fitting": writer.fitting(hybrids, "judge")
        if settings.report.coherence == "grammar"
        else None,
        "answers": [asdict(one) for one in verdict],
    }


def stage(run: Run) -> Path:
    """The folder with `graft.json`, `graft.csv`, `graft.md` and the figure."""
    settings = run.settings
    positive = [coeff for coeff in settings.steering.coeffs if coeff > 0]
    if not positive:  # said before any work
        raise ValueError("steering.coeffs: got none above 0, with which grafting could steer")
    directions, traces = derive.stage(run), rollouts.stage(run)
    swept, inputs = sweep_table(run)
    sweep = steer.stage(run)[REASONING]
    # Where nothing is coherent: the least that was tried.
    coeff = judged_at(swept.cells, settings.report.margin) or min(positive)

    def work(folder: Path) -> None:
        bench = make_bench(
            run,
            folder / RESPONSES,
            traces=traces,
            sweep=sweep,
            directions=directions,
            coeff=coeff,
        )
        write_json(folder / NUMBERS, measure(run, folder, bench, coeff=coeff))
        numbers = json.loads((folder / NUMBERS).read_text())
        write_atomic(folder / TABLE, to_csv(read_rows(folder / RESPONSES)).encode())
        write_atomic(folder / TEXT, ("\n".join(markdown(numbers)) + "\n").encode())
        if "responding" in numbers:
            graft_figure.draw(numbers, folder)

    return run.stage(
        "graft",
        inputs
        | {
            "models": {role: run.model_fingerprint(role) for role in ("base", REASONING)},
            "directions": fingerprint(directions),
            "traces": fingerprint(traces),
            "formats": forms(run),
            "base_template": settings.prompts.base_template,
            "coeff": coeff,
            "decoding": asdict(settings.decoding),
            "settings": asdict(settings.grafting),
        },
        work,
    )


if __name__ == "__main__":
    sys.exit(command("graft", "Which fine-tuned weights the direction needs.", stage))

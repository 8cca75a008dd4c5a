"""Stage 4: the steered sweeps of Figure 3, and Figure 4's baselines."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.pipeline.run import Run, command
from experiments.pipeline.settings import Decoding, Steering
from experiments.pipeline.stage_runner import fingerprint
from experiments.pipeline.text import Prompt, decode, default_form, encode_prompts
from experiments.stages import derive
from experiments.stages.baselines import baseline_cells, baseline_vectors
from jaxsteer.decoding import sampling
from jaxsteer.directions import load_directions, rescale
from jaxsteer.llama import Model, bucket, left_pad
from jaxsteer.steering import add
from jaxsteer.sweeps import Cell, CellResult, sweep_to_file

FILE = "sweep.jsonl"


def make_cells(
    vectors: dict[str, np.ndarray],
    *,
    layer: int,
    site: str,
    residual_norm: float,
    steering: Steering,
    sources: Sequence[str] = ("base", "reasoning"),
    baselines: bool = True,
) -> list[Cell]:
    """The cells for one target: unsteered, each source at each coefficient, the baselines.

    Labels are `source` (`none`, `base`, `reasoning`, those of `baselines`), `coeff` and `length`,
    the length of what was added. With the unit "residual" a coefficient counts root-mean-square
    lengths of the reasoning model's stream at the layer; with "vector", lengths of the direction.
    `vectors` are named by source.
    """

    def cell(source: str, vector: np.ndarray, coeff: float) -> Cell:
        if steering.unit == "residual":
            vector = rescale(vector, residual_norm)
        length = abs(coeff) * float(np.linalg.norm(vector))
        labels = {"source": source, "coeff": coeff, "length": length}
        return Cell(labels, add(vector, layer=layer, coeff=coeff, site=site))

    cells = [cell("none", vectors["base"], 0.0)]
    cells += [
        cell(source, vectors[source], coeff) for source in sources for coeff in steering.coeffs
    ]
    if baselines:
        cells += baseline_cells(
            vectors, layer=layer, site=site, residual_norm=residual_norm, steering=steering
        )
    return cells


def write_sweep(
    folder: Path,
    model: Model,
    tokenizer: Any,
    *,
    target: str,
    cells: Sequence[Cell],
    prompt_ids: Sequence[str],
    prompts: Sequence[Sequence[int]],
    length: int,
    stops: Sequence[int],
    decoding: Decoding,
    form: str | None = None,
) -> None:
    """Run the cells on one target and append a row for each cell and prompt to `sweep.jsonl`.

    A row: `target`, the cell's labels, `prompt` (its id), `format` (of the prompt), `text`,
    `tokens`, `stopped`, `logprob` (mean over the tokens, under the steered model). Rows that are
    there already are not run again. A row whose log-probabilities were not finite has no text and
    `"finite": false`: tables count it as empty and leave it out.
    """

    def to_row(result: CellResult) -> dict[str, Any]:
        return {
            "format": form or default_form(target),
            "text": decode(tokenizer, prompts[result.prompt], result.tokens, stops)
            if result.finite
            else "",
            "tokens": len(result.tokens),
            "stopped": bool(result.tokens) and result.tokens[-1] in stops,
            "logprob": float(np.mean(result.logprobs)) if result.logprobs else None,
        }

    sweep_to_file(
        folder / FILE,
        model,
        left_pad(prompts, length=length),
        [replace(cell, labels={"target": target, **cell.labels}) for cell in cells],
        max_new_tokens=decoding.max_new_tokens,
        prompt_ids=prompt_ids,
        to_row=to_row,
        progress=f"steering {target}",
        rows_per_chunk=decoding.rows_per_chunk,
        sampling_params=sampling(
            len(prompts),
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            seed=decoding.seed,
        ),
        stop_tokens=stops,
    )


def write_texts(
    run: Run, folder: Path, target: str, cells: Sequence[Cell], problems: Sequence[Prompt]
) -> None:
    """Texts of one of the run's models for every cell and problem, into `sweep.jsonl`."""
    settings, tokenizer = run.settings, run.prompt_tokenizer(target)
    form = settings.prompts.form(target)
    prompts = encode_prompts(
        tokenizer,
        problems,
        role=target,
        base_template=settings.prompts.base_template,
        form=form,
    )
    write_sweep(
        folder,
        run.load(target)[0],
        tokenizer,
        target=target,
        cells=cells,
        prompt_ids=[prompt.id for prompt in problems],
        prompts=prompts,
        length=bucket(max(map(len, prompts)), step=16),
        stops=run.stop_tokens(target),
        decoding=settings.decoding,
        form=form,
    )


def text_inputs(run: Run, target: str, problems: Sequence[Prompt]) -> dict[str, Any]:
    """What decides these texts beside the cells, for the inputs of a stage."""
    prompts = run.settings.prompts
    form = prompts.form(target)
    template = {"base_template": prompts.base_template} if form == "continuation" else {}
    return {
        "model": run.model_fingerprint(target),
        "prompts": [asdict(prompt) for prompt in problems],
        "format": form,
        "beginning": run.prompt_rule(target),
        "decoding": asdict(run.settings.decoding),
        **template,
    }


def stage(run: Run) -> dict[str, Path]:
    """The folders with `sweep.jsonl`, by target."""
    directions = derive.stage(run)
    return {target: _target_stage(run, target, directions) for target in run.sources}


def _target_stage(run: Run, target: str, directions: Path) -> Path:
    settings = run.settings
    layer, site = settings.direction.layer, settings.direction.site
    problems = run.prompts_for(target)

    def work(folder: Path) -> None:
        facts = derive.read_facts(directions)
        saved = load_directions(directions / derive.FILE)
        derived = ("base", "reasoning")
        vectors = {source: saved[f"{source}.{layer}.union"].vector for source in derived}
        vectors |= baseline_vectors(saved, layer=layer)
        cells = make_cells(
            vectors,
            layer=layer,
            site=site,
            residual_norm=facts["residual_norm"]["reasoning"][layer],
            steering=settings.steering,
            sources=("base",) if target == "control" else ("base", "reasoning"),
            baselines=target == "reasoning",
        )
        write_texts(run, folder, target, cells, problems)

    inputs = {
        "base_template": None,  # of a chat format
        **text_inputs(run, target, problems),
        "directions": fingerprint(directions),
        "steering": asdict(settings.steering),
    }
    return run.stage(f"sweep-{target}", inputs, work)


if __name__ == "__main__":
    sys.exit(command("steer", "Stage 4: the steered sweep.", stage))

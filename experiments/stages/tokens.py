"""Each token of the sweeps' texts: where it ends, and how far along the direction the stream is.

The texts that `perplexity` reads are read by their own target without steering, so that those of
all cells are read alike. `tokens.jsonl` has a row for each of them:

    target, source, coeff, prompt    of the sweep's row
    ends                             where each token ends, in characters of the text
    projections                      of the stream at each token on the base-derived direction, in
                                     root-mean-square lengths of the reasoning model's stream

What is longer than the model's positions is read up to them.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.pipeline.run import Run, command
from experiments.pipeline.stage_runner import fingerprint
from experiments.pipeline.text import put_prompts
from experiments.stages import derive, steer
from experiments.stages.perplexity import FIELDS
from jaxsteer.analysis import project_texts
from jaxsteer.directions import load_directions
from jaxsteer.files import read_rows, write_atomic
from jaxsteer.llama import Model

FILE = "tokens.jsonl"

Encoded = tuple[list[int], list[int]]  # ids of prompt and text, and where the text's tokens end


def encode_text(tokenizer: Any, prompt: str, text: str) -> Encoded:
    """Token ids of a prompt and its text, and where the text's own tokens end in it.

    Both are encoded together; a token is the text's if it reaches beyond the prompt.
    """
    encoded = tokenizer(prompt + text, add_special_tokens=False, return_offsets_mapping=True)
    ends = [stop - len(prompt) for _, stop in encoded["offset_mapping"] if stop > len(prompt)]
    return encoded["input_ids"], ends


def read_again(
    model: Model, encoded: Sequence[Encoded], vector: np.ndarray, *, layer: int, site: str
) -> Iterator[dict[str, Any]]:
    """`ends` of each text's tokens and `projections` on a vector `[D]`; equal texts read once."""
    most = model.config.max_positions
    texts = list({tuple(ids[:most]): None for ids, ends in encoded if ends})
    read = project_texts(model, texts, vector[None], [layer], site=site) if texts else ()
    projected = {text: rows[0] for text, rows in zip(texts, read, strict=True)}
    for ids, ends in encoded:
        kept = max(0, min(most, len(ids)) - (len(ids) - len(ends)))
        values = projected[tuple(ids[:most])] if kept else np.zeros(0)
        projections = [round(float(x), 4) for x in values[len(values) - kept :]]
        yield {"ends": ends[:kept], "projections": projections}


def stage(run: Run) -> Path:
    """The folder with `tokens.jsonl`."""
    sweeps, directions = steer.stage(run), derive.stage(run)
    layer, site = run.settings.direction.layer, run.settings.direction.site

    def work(folder: Path) -> None:
        direction = load_directions(directions / derive.FILE)[f"base.{layer}.union"].vector
        norm = derive.read_facts(directions)["residual_norm"]["reasoning"][layer]
        vector = direction / np.linalg.norm(direction) / norm
        lines: list[str] = []
        for target, sweep in sweeps.items():
            rows, encoded = _texts(run, target, read_rows(sweep / steer.FILE))
            read = read_again(run.load(target)[0], encoded, vector, layer=layer, site=site)
            for row, one in zip(rows, read, strict=True):
                lines.append(json.dumps({**{name: row[name] for name in FIELDS}, **one}) + "\n")
        write_atomic(folder / FILE, "".join(lines).encode())

    inputs = {
        "models": {target: run.model_fingerprint(target) for target in sweeps},
        "sweeps": {target: fingerprint(folder) for target, folder in sweeps.items()},
        "directions": fingerprint(directions),
        "at": [layer, site],
        "prompts": run.settings.perplexity.prompts,
    }
    return run.stage("tokens", inputs, work)


def _texts(
    run: Run, target: str, rows: Sequence[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[Encoded]]:
    """The rows of a sweep that are read, and their texts behind their prompts."""
    tokenizer, prompts = run.prompt_tokenizer(target), run.settings.prompts
    problems = run.prompts_for(target)[: run.settings.perplexity.prompts]
    puted = put_prompts(
        tokenizer,
        problems,
        role=target,
        base_template=prompts.base_template,
        form=prompts.form(target),
    )
    texts = {problem.id: one.text for problem, one in zip(problems, puted, strict=True)}
    kept = [row for row in rows if row["prompt"] in texts]
    return kept, [encode_text(tokenizer, texts[row["prompt"]], row["text"]) for row in kept]


if __name__ == "__main__":
    sys.exit(command("tokens", "Each token of the sweeps' texts, read once more.", stage))

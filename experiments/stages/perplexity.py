"""How likely the unsteered model finds what was written under steering: a measure of coherence.

Every text of the sweeps is read once more by its own target without steering, the prompt given and
the text as it stands (teacher forcing). `perplexity.jsonl` has a row for each text:

    target, source, coeff, prompt    of the sweep's row
    n_tokens, logprob_sum            tokens of the text, and the sum of their log-probabilities
    logprobs                         these, for the page

and `perplexity.json` for each cell the perplexity per token with a 95% bootstrap interval over the
prompts. A text that repeats itself may be *more* likely than an unsteered one, so read it beside
the share of repeated n-grams.
"""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.pipeline.run import Run, command
from experiments.pipeline.stage_runner import fingerprint
from experiments.pipeline.text import Prompt, put
from experiments.stages import steer
from jaxsteer.analysis import bootstrap_interval, score
from jaxsteer.files import append_rows, read_rows, recover_rows, write_json
from jaxsteer.llama import Model, bucket

FILE, SUMMARY = "perplexity.jsonl", "perplexity.json"
FIELDS = ("target", "source", "coeff", "prompt")

_AT_ONCE = 2**12  # texts between two writes


def encode_texts(
    tokenizer: Any, prompts: Sequence[str], texts: Sequence[str]
) -> list[tuple[list[int], int]]:
    """Token ids of each puted prompt and its text, and how many of them are the prompt's.

    Both are encoded together, as in the stage `derive`: a token belongs to the text if it reaches
    beyond the prompt.
    """
    wholes = [prompt + text for prompt, text in zip(prompts, texts, strict=True)]
    encoded = tokenizer(wholes, add_special_tokens=False, return_offsets_mapping=True)
    return [
        (ids, sum(stop <= len(prompt) for _, stop in offsets))
        for prompt, ids, offsets in zip(
            prompts, encoded["input_ids"], encoded["offset_mapping"], strict=True
        )
    ]


def score_rows(
    path: Path,
    model: Model,
    encoded: Sequence[tuple[list[int], int]],
    rows: Sequence[dict[str, Any]],
    *,
    progress: str,
) -> None:
    """Append to `path` what is not there yet of the rows of a sweep; `encoded` are their texts.

    Texts that cells share are read once. What is longer than the model's positions is read up to
    them.
    """
    written = {key_of(row) for row in recover_rows(path)}
    longest = model.config.max_positions
    cut = [(ids[:longest], min(n, longest)) for ids, n in encoded]
    length = min(longest, bucket(max(len(ids) for ids, _ in cut), step=16))
    todo = [i for i, row in enumerate(rows) if key_of(row) not in written]
    for first in range(0, len(todo), _AT_ONCE):
        part = todo[first : first + _AT_ONCE]
        texts = {tuple(cut[i][0]): i for i in part if len(cut[i][0]) > cut[i][1]}
        scores = score(model, list(texts), length=length, progress=progress) if texts else []
        logprobs = dict(zip(texts, scores, strict=True))
        append_rows(path, (_scored(rows[i], *cut[i], logprobs) for i in part))


def _scored(
    row: dict[str, Any], ids: list[int], behind: int, logprobs: dict[tuple[int, ...], Any]
) -> dict[str, Any]:
    named = {name: row[name] for name in FIELDS}
    if len(ids) <= behind:  # nothing was written
        return {**named, "n_tokens": 0, "logprob_sum": 0.0, "logprobs": []}
    own = logprobs[tuple(ids)][behind:]
    each = [round(float(x), 4) for x in own]
    total = float(own.sum(dtype="float64"))
    return {**named, "n_tokens": len(each), "logprob_sum": total, "logprobs": each}


def key_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells a text of the sweeps from all others."""
    return tuple(row[name] for name in FIELDS)


def by_cell(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Perplexity per token of each cell, with its interval; NaN for a cell without text."""
    cells: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        cells.setdefault(key_of(row)[:-1], []).append(row)
    for key, texts in cells.items():
        tokens = [text["n_tokens"] for text in texts]
        surprise = [-text["logprob_sum"] for text in texts]
        low, high = bootstrap_interval(surprise, tokens)
        mean = sum(surprise) / sum(tokens) if sum(tokens) else math.nan
        yield {
            **dict(zip(FIELDS, key, strict=False)),
            "perplexity": math.exp(mean),
            "low": math.exp(low),
            "high": math.exp(high),
            "n": sum(n > 0 for n in tokens),
            "n_empty": sum(n == 0 for n in tokens),
        }


def stage(run: Run) -> Path:
    """The folder with `perplexity.jsonl` and `perplexity.json`."""
    sweeps = steer.stage(run)

    def work(folder: Path) -> None:
        for target, sweep in sweeps.items():
            _score_target(run, target, sweep / steer.FILE, folder / FILE)
        write_json(folder / SUMMARY, {"cells": list(by_cell(read_rows(folder / FILE)))})

    inputs = {
        "models": {target: run.model_fingerprint(target) for target in sweeps},
        "sweeps": {target: fingerprint(folder) for target, folder in sweeps.items()},
        "prompts": run.settings.perplexity.prompts,
    }
    return run.stage("perplexity", inputs, work)


def _score_target(run: Run, target: str, sweep: Path, path: Path) -> None:
    settings, tokenizer = run.settings.prompts, run.prompt_tokenizer(target)
    problems: list[Prompt] = run.prompts_for(target)[: run.settings.perplexity.prompts]
    puted = {
        prompt.id: put(
            tokenizer,
            prompt.text,
            role=target,
            base_template=settings.base_template,
            form=settings.form(target),
        ).text
        for prompt in problems
    }
    rows = [row for row in read_rows(sweep) if row["prompt"] in puted]
    encoded = encode_texts(
        tokenizer, [puted[row["prompt"]] for row in rows], [row["text"] for row in rows]
    )
    model, _ = run.load(target)
    score_rows(path, model, encoded, rows, progress=f"perplexity, {target} model")


if __name__ == "__main__":
    sys.exit(command("perplexity", "Perplexity of the sweeps' texts, unsteered.", stage))

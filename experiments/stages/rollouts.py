"""Stage 1: reasoning traces, written by the unsteered reasoning model."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from experiments.pipeline.run import Run, command
from experiments.pipeline.settings import Decoding
from experiments.pipeline.text import Prompt, decode, default_form, put_prompts
from jaxsteer.decoding import rows_that_fit, sampling
from jaxsteer.files import append_rows, recover_rows, sort_rows
from jaxsteer.llama import Model, bucket, left_pad
from jaxsteer.queues import generate_queue
from jaxsteer.runtime import hosts, preemption

FILE = "traces.jsonl"


def write_rollouts(
    folder: Path,
    model: Model,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    stops: Sequence[int],
    decoding: Decoding,
    form: str | None = None,
    base_template: str | None = None,
) -> None:
    """Generate one trace per prompt and append it to `traces.jsonl`; goes on after a kill.

    A row: `id`, `format` (of the prompt), `prompt` (as rendered), `text` (the trace), `tokens` (how
    many were generated), `stopped` (False if it was cut at the maximum). Rows are written as they
    finish, and put into the order of the prompts when all are there. SIGTERM stops it behind the
    next trace that finishes.
    """
    file = folder / FILE
    encoded = put_prompts(
        tokenizer, prompts, role="reasoning", base_template=base_template, form=form
    )
    ids = [prompt.ids for prompt in encoded]
    written = {row["id"] for row in recover_rows(file)}
    left = [i for i, prompt in enumerate(prompts) if prompt.id not in written]
    bar = tqdm(
        total=len(prompts),
        initial=len(written),
        desc="rollouts",
        unit="trace",
        disable=not hosts.is_writer(),
    )
    with preemption.deferred(), bar:
        for index, tokens in _traces(model, ids, left, stops=stops, decoding=decoding):
            row = {
                "id": prompts[index].id,
                "format": form or default_form("reasoning"),
                "prompt": encoded[index].text,
                "text": decode(tokenizer, ids[index], tokens, stops),
                "tokens": len(tokens),
                "stopped": bool(tokens) and tokens[-1] in stops,
            }
            append_rows(file, [row])
            bar.update()
            written.add(row["id"])
            preemption.stop_if_asked(f"{len(written)} of {len(prompts)} traces are in {file}")
    order = {prompt.id: i for i, prompt in enumerate(prompts)}
    sort_rows(file, key=lambda row: order[row["id"]])


def _traces(
    model: Model,
    ids: Sequence[Sequence[int]],
    left: Sequence[int],
    *,
    stops: Sequence[int],
    decoding: Decoding,
) -> Iterator[tuple[int, list[int]]]:
    """Index and new tokens of each prompt in `left`, as they finish."""
    if not left:
        return
    length = bucket(max(map(len, ids)), step=16)
    slots = decoding.rows_per_chunk or rows_that_fit(
        model, prompt_length=length, new_tokens=decoding.max_new_tokens
    )
    batch = left_pad([ids[i] for i in left], length=length)
    # With a third as many slots as prompts they are busy for nine tenths of the time.
    rows = generate_queue(
        model,
        batch,
        slots=min(slots, -(-len(ids) // 3)),
        max_new_tokens=decoding.max_new_tokens,
        sampling_params=sampling(
            len(left),
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            seed=decoding.seed,
            row=left,
        ),
        stop_tokens=stops,
    )
    for row in rows:
        yield left[row.index], row.tokens


def stage(run: Run) -> Path:
    """The folder with `traces.jsonl`."""
    form, template = run.settings.prompts.form("reasoning"), run.settings.prompts.base_template

    def work(folder: Path) -> None:
        model, tokenizer = run.load("reasoning")
        write_rollouts(
            folder,
            model,
            tokenizer,
            run.derive_prompts,
            stops=run.stop_tokens("reasoning"),
            decoding=run.settings.rollouts,
            form=form,
            base_template=template,
        )

    inputs = {
        "model": run.model_fingerprint("reasoning"),
        "prompts": [asdict(prompt) for prompt in run.derive_prompts],
        "settings": asdict(run.settings.rollouts),
        "format": form,
        "beginning": run.prompt_rule("reasoning"),
        "base_template": template if form == "continuation" else None,
    }
    return run.stage("rollouts", inputs, work)


if __name__ == "__main__":
    sys.exit(command("rollouts", "Stage 1: traces of the reasoning model.", stage))

"""Stage 1: reasoning traces, written by the unsteered reasoning model."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from experiments.run import Run, command
from experiments.settings import Decoding
from experiments.text import Prompt, decode, encode_prompts, stop_tokens
from jaxsteer.generate import generate
from jaxsteer.jsonl import append_rows, read_rows
from jaxsteer.memory import rows_that_fit
from jaxsteer.model import Model
from jaxsteer.sampling import sampling
from jaxsteer.tokens import bucket, left_pad

FILE = "traces.jsonl"


def write_rollouts(
    folder: Path,
    model: Model,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    decoding: Decoding,
) -> None:
    """Generate one trace a prompt and append it to `traces.jsonl`; goes on after a kill.

    A row: `id`, `prompt` (as rendered), `text` (the trace), `tokens` (how many were generated),
    `stopped` (False if it was cut at the maximum).
    """
    ids = encode_prompts(tokenizer, prompts, role="reasoning")
    length = bucket(max(map(len, ids)), step=16)
    stops = stop_tokens(tokenizer)
    chunk = decoding.rows_per_chunk or rows_that_fit(
        model, prompt_length=length, new_tokens=decoding.max_new_tokens
    )
    chunk = min(chunk, len(prompts))
    done = len(read_rows(folder / FILE))  # chunks are written in order, whole
    bar = tqdm(total=len(prompts), initial=done, desc="rollouts", unit="trace")
    for first in range(done, len(prompts), chunk):
        # The last chunk repeats its last prompt: one shape for all.
        padded = [min(i, len(prompts) - 1) for i in range(first, first + chunk)]
        out = generate(
            model,
            left_pad([ids[i] for i in padded], length=length),
            max_new_tokens=decoding.max_new_tokens,
            sampling_params=sampling(
                chunk,
                temperature=decoding.temperature,
                top_p=decoding.top_p,
                seed=decoding.seed,
                row=padded,
            ),
            stop_tokens=stops,
        )
        rows = [
            {
                "id": prompts[i].id,
                "prompt": tokenizer.decode(ids[i], clean_up_tokenization_spaces=False),
                "text": decode(tokenizer, ids[i], tokens, stops),
                "tokens": len(tokens),
                "stopped": bool(tokens) and tokens[-1] in stops,
            }
            for i, tokens in zip(padded[: len(prompts) - first], out.rows(), strict=False)
        ]
        append_rows(folder / FILE, rows)
        bar.update(len(rows))
    bar.close()


def stage(run: Run) -> Path:
    """The folder with `traces.jsonl`."""

    def work(folder: Path) -> None:
        model, tokenizer = run.load("reasoning")
        write_rollouts(folder, model, tokenizer, run.derive_prompts, decoding=run.settings.rollouts)

    inputs = {
        "model": run.model_print("reasoning"),
        "prompts": [asdict(prompt) for prompt in run.derive_prompts],
        "settings": asdict(run.settings.rollouts),
    }
    return run.stage("rollouts", inputs, work)


if __name__ == "__main__":
    sys.exit(command("rollouts", "Stage 1: traces of the reasoning model.", stage))

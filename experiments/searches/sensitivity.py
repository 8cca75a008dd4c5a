"""How much the direction of each layer and offset moves the keywords, with the text held fixed.

d(log-probability that a sentence starts with a keyword) / d(coefficient) at coefficient 0, over
held-out texts of the unsteered reasoning model, which every model reads: the sweep's own cells
without steering. The direction is the base-derived one at each layer and offset (and over the
window), at length 1, added at the generated positions. Forward mode: see `analysis.derivatives`.

Writes `sensitivity.{png,svg,csv,json}`. In the JSON, by target and layer, in the order of `columns`
(offsets, then "window"): `per_length` is mean and se over prompts of the derivative by the length
added; `per_residual` is the same by lengths of the reasoning model's stream at the layer, the unit
of the sweep's coefficients, so that layers compare. `n` is the number of prompts, `starts` that of
the sentence starts.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from experiments.figures import frame
from experiments.pipeline.run import Run, command
from experiments.pipeline.stage_runner import fingerprint
from experiments.pipeline.tables import csv_text
from experiments.pipeline.text import Prompt, put_prompts
from experiments.stages import derive, steer
from jaxsteer.analysis import keyword_tokens, mean_se, sensitivity, split_sentences, token_spans
from jaxsteer.decoding import prompt_token_bytes, usable_bytes
from jaxsteer.directions import Direction, load_directions
from jaxsteer.files import read_rows
from jaxsteer.llama import BLOCK_TOKENS, Model, bucket, left_pad, xla_attention

STEM = "sensitivity"
WINDOW = "window"


@dataclass(frozen=True)
class Text:
    """A prompt and its text as tokens."""

    tokens: list[int]
    prompt_length: int
    before: list[int]  # the token before each sentence that starts behind a generated token


def read_texts(
    tokenizer: Any, prompts: Sequence[Prompt], sweep_file: Path, *, form: str, template: str
) -> list[Text]:
    """The unsteered texts of the reasoning model on the prompts, those with a sentence to ask."""
    encoded = put_prompts(tokenizer, prompts, role="reasoning", form=form, base_template=template)
    heads = {prompt.id: put.text for prompt, put in zip(prompts, encoded, strict=True)}
    texts = []
    for row in read_rows(sweep_file):
        if row["source"] != "none" or row["prompt"] not in heads:
            continue
        head = heads[row["prompt"]]
        encoded = tokenizer(
            head + row["text"], add_special_tokens=False, return_offsets_mapping=True
        )
        offsets = encoded["offset_mapping"]
        length = sum(1 for _, stop in offsets if stop <= len(head))
        moved = [(max(0, a - len(head)), max(0, b - len(head))) for a, b in offsets]
        starts = [first for first, _ in token_spans(moved, split_sentences(row["text"]))]
        # The token before is steered only if it is a generated one.
        before = [first - 1 for first in starts if length < first < len(offsets)]
        if before:
            texts.append(Text(encoded["input_ids"], length, before))
    return texts


def columns_of(saved: dict[str, Direction], offsets: Sequence[int], layers: int) -> list[str]:
    """The offsets that every layer has a base-derived direction for, as names, and the window."""
    read_columns = [
        str(offset)
        for offset in offsets
        if all(f"base.{layer}.offset.{offset}" in saved for layer in range(layers))
    ]
    return [*read_columns, WINDOW]


def unit_directions(
    saved: dict[str, Direction], columns: Sequence[str], layers: int
) -> NDArray[np.float32]:
    """Base-derived directions of length 1, `[L, O, D]`; a vector of zeros stays one."""
    names = [
        [f"base.{layer}.{'union' if c == WINDOW else f'offset.{c}'}" for c in columns]
        for layer in range(layers)
    ]
    vectors = np.array([[saved[name].vector for name in row] for row in names])
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)


def slopes(
    model: Model,
    texts: Sequence[Text],
    directions: NDArray[np.float32],
    tokens: Sequence[int],
    *,
    site: str,
    name: str,
) -> NDArray[np.float32]:
    """The derivative for each text, `[L, O, texts]`, in batches of one shape that fit the device.

    A batch holds a row for each text and, of each, one for each direction.
    """
    length = bucket(max(len(text.tokens) for text in texts), step=32)
    rows = _rows(model, len(texts), length, copies=directions.shape[1] + 1)
    places = bucket(max(len(text.before) for text in texts), step=8)
    parts = []
    for first in tqdm(range(0, len(texts), rows), desc=name, unit="batch"):
        some = list(texts[first : first + rows])
        filled = [*some, *[Text([0], 1, [])] * (rows - len(some))]
        positions = np.full((rows, places), -1)
        for b, text in enumerate(filled):
            positions[b, : len(text.before)] = text.before
        slope = sensitivity(
            model,
            left_pad([text.tokens for text in filled], length=length),
            directions,
            range(len(directions)),
            prompt_length=[text.prompt_length for text in filled],
            positions=positions,
            tokens=tokens,
            site=site,
        )
        parts.append(slope[:, :, : len(some)])
    return np.concatenate(parts, axis=2)


def _rows(model: Model, count: int, length: int, *, copies: int) -> int:
    """Texts of a batch, each of them there `copies` times, in as few equal batches as fit."""
    token = prompt_token_bytes(model.with_attention(xla_attention), prompt_length=length)
    # A value and its derivative are there at once.
    fitting = usable_bytes(model) // (2 * token * length * copies)
    most = max(1, min(BLOCK_TOKENS // (length * copies), fitting))
    return -(-count // -(-count // most))


def summarised(
    by_target: dict[str, NDArray[np.float32]],
    columns: Sequence[str],
    residual_norm: Sequence[float],
    *,
    starts: int,
) -> dict[str, Any]:
    """The JSON, as the module says."""
    scale = np.array(residual_norm)[:, None, None]

    def means(x: NDArray) -> dict[str, list[list[float]]]:
        estimates = [[mean_se(cell) for cell in row] for row in x]
        return {
            name: [[getattr(cell, name) for cell in row] for row in estimates]
            for name in ("mean", "se")
        }

    return {
        "columns": list(columns),
        "residual_norm": list(residual_norm),
        "n": next(iter(by_target.values())).shape[2],
        "starts": starts,
        "targets": {
            target: {"per_length": means(x), "per_residual": means(x * scale)}
            for target, x in by_target.items()
        },
    }


def to_csv(figures: dict[str, Any]) -> str:
    """A row for each target, layer and column."""
    rows = []
    for target, one in figures["targets"].items():
        units = one["per_length"], one["per_residual"]
        for layer in range(len(figures["residual_norm"])):
            for o, column in enumerate(figures["columns"]):
                values = [unit[name][layer][o] for unit in units for name in ("mean", "se")]
                numbers = [f"{value:.6g}" for value in values]
                rows.append([target, layer, column, *numbers, figures["n"]])
    names = ["per_length", "se_per_length", "per_residual", "se_per_residual"]
    return csv_text(["target", "layer", "offset", *names, "n"], rows)


def draw(numbers: dict[str, Any], folder: Path) -> list[Path]:
    """A heat map for each target, on one scale."""
    targets, columns = numbers["targets"], numbers["columns"]
    layers = len(numbers["residual_norm"])
    size = 1.2 + 3.6 * len(targets), 1.9 + 0.22 * max(10, layers)
    figure, axes = frame.panels(1, len(targets), size, squeeze=False)
    limit = max(float(np.abs(one["per_residual"]["mean"]).max()) for one in targets.values())
    for axis, (target, one) in zip(axes[0], targets.items(), strict=True):
        values = np.array(one["per_residual"]["mean"])
        image = axis.imshow(
            values, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", origin="lower"
        )
        axis.set_xticks(range(len(columns)), columns, rotation=90, fontsize=8)
        axis.set_xlabel("offset that the direction is from")
        axis.set_title(frame.TARGETS.get(target, target), fontsize=9.5)
        axis.axvline(len(columns) - 1.5, color="black", lw=0.8)
    axes[0, 0].set_ylabel("layer")
    figure.colorbar(
        image, ax=axes, label="d log P(keyword) per\nlength of the stream added", fraction=0.03
    )
    figure.suptitle(
        "Base-derived directions: how much they move the keywords at sentence starts, the text "
        f"held fixed\n({numbers['n']} texts of held-out prompts, {numbers['starts']} starts)",
        fontsize=10,
    )
    return frame.save(figure, folder, STEM)


def stage(run: Run) -> Path:
    """The folder with the sensitivities."""
    directions, sweep = derive.stage(run), steer.stage(run)["reasoning"]
    settings = run.settings
    form, template = settings.prompts.form("reasoning"), settings.prompts.base_template
    prompts = run.evaluate_prompts[: settings.analyses.sensitivity_texts]

    def work(folder: Path) -> None:
        facts = derive.read_facts(directions)
        saved = load_directions(directions / derive.FILE)
        tokenizer = run.tokenizer("reasoning")
        texts = read_texts(tokenizer, prompts, sweep / steer.FILE, form=form, template=template)
        if not texts:
            raise ValueError("sensitivity: no text of the unsteered model has a second sentence")
        residual_norm = facts["residual_norm"]["reasoning"]
        layers = len(residual_norm)
        offsets = facts["offsets"][:: settings.analyses.sensitivity_stride]
        columns = columns_of(saved, offsets, layers)
        vectors = unit_directions(saved, columns, layers)
        tokens = [*keyword_tokens(tokenizer, settings.labels.keywords)]
        by_target = {
            target: slopes(
                run.load(target)[0],
                texts,
                vectors,
                tokens,
                site=settings.direction.site,
                name=f"sensitivity, {target} model",
            )
            for target in sorted(run.sources, key=list(frame.TARGETS).index)
        }
        starts = sum(len(text.before) for text in texts)
        numbers = summarised(by_target, columns, residual_norm, starts=starts)
        frame.write_numbers(folder, STEM, to_csv(numbers), numbers)
        draw(numbers, folder)

    inputs = {
        "models": {role: run.model_fingerprint(role) for role in run.sources},
        "directions": fingerprint(directions),
        "sweep": fingerprint(sweep),
        "prompts": [asdict(prompt) for prompt in prompts],
        "format": form,
        "base_template": template if form == "continuation" else None,
        "site": settings.direction.site,
        "keywords": settings.labels.keywords,
        "stride": settings.analyses.sensitivity_stride,
    }
    return run.stage("sensitivity", inputs, work)


if __name__ == "__main__":
    sys.exit(command("sensitivity", "How much each direction moves the keywords.", stage))

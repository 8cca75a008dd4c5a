"""`jaxsteer generate`, `direction` and `sweep`: texts in, texts, directions and tables out."""

import io
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from jaxsteer import pages
from jaxsteer.analysis import repetition
from jaxsteer.cli.options import (
    examples,
    json_option,
    loading_options,
    metric_options,
    overwrite_option,
    prompt_options,
    sampling_options,
    steering_options,
)
from jaxsteer.cli.settings_file import settings_options
from jaxsteer.cli.terminal import as_gigabytes, print_json, print_side_by_side
from jaxsteer.directions import Direction, load_directions, save_directions
from jaxsteer.files import MOST_DATA, as_path, read_whole, write_atomic
from jaxsteer.llama import bucket
from jaxsteer.planning import Work, plan, read_config, this_machine
from jaxsteer.runtime import guarded
from jaxsteer.steering import Steering, add
from jaxsteer.texts import (
    LanguageModel,
    LayerDirections,
    Metric,
    Table,
    contains,
    direction,
    load,
    perplexity,
    words,
)

TEXTS = "texts.jsonl"
_METRICS = {"perplexity": perplexity, "repetition": repetition, "words": words}
_TOKENS_OF_A_LETTER = 1 / 3  # of a prompt that no tokenizer has read
# Keys of a sweep's TOML, and the parameters of its command.
_KEYS = {
    "model.path": "model",
    "model.dtype": "dtype",
    "model.revision": "revision",
    "prompts.texts": "texts",
    "prompts.file": "file",
    "prompts.chat": "chat",
    "steering.directions": "directions",
    "steering.name": "name",
    "steering.layers": "layers",
    "steering.coeffs": "coeffs",
    "steering.unit": "unit",
    "steering.baselines": "baselines",
    "metrics.contains": "wanted",
    "metrics.named": "metrics",
    "sampling.samples": "samples",
    "sampling.temperature": "temperature",
    "sampling.top_p": "top_p",
    "sampling.top_k": "top_k",
    "sampling.max_new_tokens": "max_new_tokens",
    "sampling.seed": "seed",
    "output.folder": "out",
}


@click.command(
    "generate",
    epilog=examples(
        'jaxsteer generate weights/small/reasoning "tom has 9 coins ." --chat',
        'jaxsteer generate weights/small/reasoning "tom has 9 coins ." --chat \\\n'
        "    --directions doubt.safetensors --layer 4 --coeff 0 --coeff 0.5",
    ),
)
@click.argument("model")
@click.argument("prompts", nargs=-1, metavar="[PROMPT]...")
@prompt_options
@steering_options
@sampling_options(temperature=0.0)
@loading_options
@click.option("--out", metavar="FILE", help="Write the texts as JSON lines.")
@overwrite_option
@json_option
@guarded("generate")
def generate_command(
    model: str,
    prompts: tuple[str, ...],
    file: str | None,
    chat: bool,
    directions: str | None,
    name: str | None,
    layers: tuple[int, ...],
    coeffs: tuple[float, ...],
    dtype: str | None,
    revision: str | None,
    out: str | None,
    overwrite: bool,
    as_json: bool,
    **sampling: Any,
) -> int:
    """Generate texts, steered and unsteered.

    MODEL is a checkpoint, a Hugging Face folder, a hub id or a .gguf file. It continues each
    PROMPT, or answers it, once a coefficient; the texts stand side by side.
    """
    asked = conversations(read_prompts(prompts, file), chat)
    steering = one_steering(directions, name, layers, coeffs)
    check_new(out, overwrite)
    lm = load_model(model, dtype, revision)
    texts = lm.generate(asked, steering=steering, **sampling)
    if out is not None:
        texts.save(out)
    if as_json:
        print_json({"about": texts.about, "texts": texts.to_dicts()})
    else:
        print_side_by_side(texts)
    return 0


@click.command(
    "direction",
    epilog=examples(
        "jaxsteer direction weights/small/reasoning doubtful.txt certain.txt \\\n"
        "    --position mean --name doubt --out doubt.safetensors",
        "jaxsteer direction checkpoints/qwen yes.txt no.txt --layer 12 --out yes.safetensors",
    ),
)
@click.argument("model")
@click.argument("texts")
@click.argument("other_texts")
@click.option("--out", metavar="FILE", required=True, help="The directions (.safetensors).")
@click.option("--layer", "layers", type=int, multiple=True, help="To write.  [default: all]")
@click.option(
    "--position",
    type=click.Choice(["last", "mean"]),
    default="last",
    show_default=True,
    help="Token of a text that is read, or the mean over all.",
)
@click.option("--name", default="direction", show_default=True, help="Of the direction.")
@click.option("--chat", is_flag=True, help="Texts are messages of a user.")
@loading_options
@overwrite_option
@json_option
@guarded("direction")
def direction_command(
    model: str,
    texts: str,
    other_texts: str,
    out: str,
    layers: tuple[int, ...],
    position: Any,
    name: str,
    chat: bool,
    dtype: str | None,
    revision: str | None,
    overwrite: bool,
    as_json: bool,
) -> int:
    """Derive a direction from two files of texts.

    TEXTS and OTHER_TEXTS have one text per line. The direction is the difference of their means, at
    every layer, in one pass.
    """
    sides = [conversations(read_lines(path), chat) for path in (texts, other_texts)]
    check_new(out, overwrite)
    lm = load_model(model, dtype, revision)
    count = lm.model.config.n_layers
    if wrong := [layer for layer in layers if not 0 <= layer < count]:
        raise ValueError(f"--layer: got {wrong}, expected 0 to {count - 1}")
    made = direction(lm, *sides, position=position, name=name)
    chosen = [with_trust(made, layer) for layer in layers or range(count)]
    save_directions(out, chosen)
    if as_json:
        print_json(
            [{"name": d.name, "layer": d.layer, "norm": d.norm, **d.provenance} for d in chosen]
        )
    else:
        print(made)
        print(f"{out}: {len(chosen)} directions")
    return 0


@click.command(
    "sweep",
    epilog=examples(
        "jaxsteer sweep weights/small/reasoning --prompts questions.txt --chat \\\n"
        "    --directions doubt.safetensors --layer 3 --layer 4 --unit residual \\\n"
        "    --coeff 0 --coeff 0.5 --contains wait,hmm --baseline random --out sweep",
        "jaxsteer sweep --config sweep.toml --set 'steering.coeffs=[-1, 0, 1]' --dry-run",
    ),
)
@click.argument("model")
@click.argument("prompts", nargs=-1, metavar="[PROMPT]...")
@settings_options(_KEYS)
@prompt_options
@click.option("--prompt", "texts", multiple=True, metavar="TEXT", help="The same as PROMPT.")
@steering_options
@click.option(
    "--baseline", "baselines", type=click.Choice(["random", "noise"]), multiple=True, help="Beside."
)
@metric_options
@sampling_options(temperature=1.0)
@loading_options
@click.option("--out", metavar="FOLDER", help="Write texts.jsonl, a plot a metric and the page.")
@overwrite_option
@click.option("--dry-run", is_flag=True, help="Say how much would be run, and run nothing.")
@json_option
@guarded("sweep")
def sweep_command(
    model: str,
    prompts: tuple[str, ...],
    texts: tuple[str, ...],
    file: str | None,
    chat: bool,
    directions: str | None,
    name: str | None,
    layers: tuple[int, ...],
    coeffs: tuple[float, ...],
    wanted: tuple[str, ...],
    metrics: tuple[str, ...],
    dtype: str | None,
    revision: str | None,
    out: str | None,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Measure layers and coefficients over prompts.

    Every direction × layer × coefficient runs on every PROMPT. One line per cell and metric is
    printed, with its interval over prompts. After a kill, the same command goes on in the folder
    of --out.
    """
    asked = conversations(read_prompts((*prompts, *texts), file), chat)
    if directions is None or not coeffs:
        raise ValueError("--directions, --coeff: expected a file and at least one coefficient")
    matching = choose(directions, name, layers)
    measures = measures_of(wanted, metrics)
    target = None if out is None else Path(out)
    if dry_run:
        points = len(layers or {0}) if len(matching) == 1 else len(matching)
        nonzero = sum(coeff != 0 for coeff in coeffs)
        cells = points * nonzero * (1 + len(set(options["baselines"]))) + (nonzero < len(coeffs))
        print_amounts(
            amounts(model, cells, asked, options["samples"], options["max_new_tokens"], dtype),
            as_json,
        )
        return 0
    if target is not None and overwrite:
        for there in target.glob(f"{TEXTS}*"):
            there.unlink()
    lm = load_model(model, dtype, revision)
    table = lm.sweep(
        asked,
        {d.name: d for d in matching},
        layers=layers if len(matching) == 1 and layers else None,
        coeffs=coeffs,
        metrics=measures,
        out=None if target is None else target / TEXTS,
        **options,
    )
    files = [] if target is None else write_sweep(table, target)
    if as_json:
        print_json(table.to_dicts())
    else:
        print(table)
        for written in files:
            print(f"{written}: written")
    return 0


def write_sweep(table: Table, folder: Path) -> list[Path]:
    """Write a plot of each of a sweep's metrics and the page beside its texts; returns the files.

    Without the extra `report` there is no page.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    files = [folder / TEXTS]
    for metric in dict.fromkeys(line.metric for line in table.lines):
        picture = io.BytesIO()
        table.plot(metric).savefig(picture, format="svg")
        files.append(folder / f"{re.sub(r'[^a-z0-9]+', '-', metric.lower()).strip('-')}.svg")
        write_atomic(files[-1], picture.getvalue())
    if pages.is_installed():
        files.append(folder / "report.html")
        table.report(files[-1], title=folder.absolute().name)
    else:
        print(f"report.html: left out: {pages.EXTRA}", file=sys.stderr)
    return files


def measures_of(wanted: Sequence[str], metrics: Sequence[str]) -> list[Metric]:
    """The metrics that options name; repetition, if they name none."""
    chosen = [contains(*phrase.split(",")) for phrase in wanted]
    return chosen + [_METRICS[metric] for metric in metrics] or [repetition]


def amounts(
    model: str, cells: int, prompts: Sequence[Any], samples: int, new: int, dtype: str | None
) -> dict[str, Any]:
    """What a sweep would take here; null where the model's shape is not at hand.

    `seconds` is a floor, without compiling; `bytes` is of a device, for the texts that run at once.
    """
    count = cells * len(prompts) * samples
    found: dict[str, Any] = {"cells": cells, "texts": count, "tokens": count * new}
    letters = max(len(str(prompt)) for prompt in prompts)
    work = Work(count, bucket(int(letters * _TOKENS_OF_A_LETTER)), new, len(prompts) * samples)
    try:
        made = plan(read_config(model), this_machine(), work, dtype=dtype or "bfloat16")
    except (OSError, ValueError):
        return found | {"seconds": None, "bytes": None}
    return found | {"seconds": made.seconds(), "bytes": made.memory.total}


def print_amounts(found: Mapping[str, Any], as_json: bool) -> None:
    """Print what a sweep would take."""
    if as_json:
        print_json(found)
        return
    print(
        f"{found['cells']} cells, {found['texts']:,} texts, at most {found['tokens']:,} new tokens"
    )
    if found["seconds"] is not None:
        print(
            f"here at least {found['seconds']:.1f} s and compiling once; "
            f"{as_gigabytes(found['bytes'])} of a device's memory"
        )


def load_model(model: str, dtype: str | None, revision: str | None) -> LanguageModel:
    """Load a model; what is unusual about it goes to stderr."""
    lm = load(model, dtype=dtype, revision=revision)
    for note in lm.notes:
        print(f"note: {note}", file=sys.stderr)
    return lm


def read_prompts(prompts: Sequence[str], file: str | None) -> list[str]:
    """Prompts of the command line, then those of the file."""
    texts = [*prompts, *([] if file is None else read_lines(file))]
    if not texts:
        raise ValueError("prompts: got none, expected PROMPT or --prompts FILE")
    return texts


def read_lines(path: str) -> list[str]:
    """The lines of a file of texts that are not empty."""
    try:
        text = read_whole(path, most=MOST_DATA).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8, one text per line ({error})") from None
    lines = [line.rstrip("\r") for line in text.split("\n") if line.strip()]
    if not lines:
        raise ValueError(f"{path}: got no text, expected one per line")
    return lines


def conversations(texts: Sequence[str], chat: bool) -> list[Any]:
    """Texts to continue as they are; or, for a chat, each as a user's message."""
    return [[{"role": "user", "content": text}] for text in texts] if chat else list(texts)


def choose(path: str, name: str | None, layers: Sequence[int]) -> list[Direction]:
    """The directions of a file that a name and layers mean.

    `doubt` means `doubt.0`, `doubt.1`, …, the directions of all layers. One direction can be added
    at any layer; of several, those of the layers are taken.

    Raises:
        ValueError: if the file has none of this name, or none of a layer.
    """
    every = load_directions(path).values()
    named = [d for d in every if name in (None, d.name, d.name.rpartition(".")[0])]
    if not named:
        known = ", ".join(d.name for d in every)
        raise ValueError(f"--name: got {name!r}, expected one of {path}: {known}")
    if len(named) == 1 or not layers:
        return named
    known_layers = sorted({d.layer for d in named})
    if missing := sorted(set(layers) - set(known_layers)):
        raise ValueError(f"--layer: got {missing}, expected some of {known_layers} of {path}")
    return [d for d in named if d.layer in layers]


def one_steering(
    path: str | None, name: str | None, layers: Sequence[int], coeffs: Sequence[float]
) -> Steering | None:
    """A row a coefficient of one direction; none without a file."""
    if path is None:
        given = {"--name": name, "--layer": layers, "--coeff": coeffs}
        if idle := [option for option, value in given.items() if value]:
            raise ValueError(f"{', '.join(idle)}: expected --directions FILE beside")
        return None
    if not coeffs:
        raise ValueError("--coeff: got none, expected at least one")
    if len(layers) > 1:
        raise ValueError(f"--layer: got {list(layers)}, expected one")
    matching = choose(path, name, layers)
    if len(matching) > 1:
        names = ", ".join(d.name for d in matching)
        raise ValueError(f"{path}: expected --name or --layer to mean one of {names}")
    chosen = replace(matching[0], layer=layers[0]) if layers else matching[0]
    return add(chosen, coeff=list(coeffs))


def with_trust(made: LayerDirections, layer: int) -> Direction:
    """A layer's direction, with how far to trust it in its provenance."""
    trust: Mapping[str, float] = {
        "reliability": float(made.reliability[layer]),
        "auroc": float(made.auroc[layer]),
    }
    finite = {name: value if value == value else None for name, value in trust.items()}
    return replace(made[layer], provenance={**made[layer].provenance, **finite})


def check_new(path: str | Path | None, overwrite: bool) -> None:
    """Refuse to replace a file, before any work."""
    if path is not None and not overwrite and as_path(path).exists():
        raise FileExistsError(f"{path}: exists already; --overwrite replaces it")

"""`jaxsteer sweep`: layers × coefficients over prompts; a table, texts, plots and a page out."""

import io
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from jaxsteer import pages
from jaxsteer.cli.inputs import (
    PAGE,
    TEXTS,
    choose_directions,
    load_model,
    measures_of,
    mesh_shape,
    read_prompts,
)
from jaxsteer.cli.options import (
    examples,
    loading_options,
    metric_options,
    output_options,
    prompt_options,
    sampling_options,
    steering_options,
)
from jaxsteer.cli.settings_file import settings_options
from jaxsteer.cli.terminal import as_gigabytes, print_json
from jaxsteer.files import write_atomic
from jaxsteer.llama import bucket
from jaxsteer.planning import Work, plan, read_config, this_machine
from jaxsteer.runtime import guarded
from jaxsteer.texts import LanguageModel, Table

_TOKENS_OF_A_LETTER = 1 / 3  # of a prompt that no tokenizer has read
# Keys of a sweep's TOML, and the parameters of its command.
_KEYS = {
    "model.path": "model",
    "model.dtype": "dtype",
    "model.revision": "revision",
    "model.mesh": "mesh",
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
@click.option("--dry-run", is_flag=True, help="Say how much would be run, and run nothing.")
@output_options("Write texts.jsonl, one plot per metric and the page.", metavar="FOLDER")
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
    mesh: str | None,
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
    asked = read_prompts((*prompts, *texts), file, chat)
    if directions is None or not coeffs:
        raise ValueError("--directions, --coeff: expected a file and at least one coefficient")
    matching = choose_directions(directions, name, layers)
    measures = measures_of(wanted, metrics)
    target = None if out is None else Path(out)
    if dry_run:
        points = len(layers or {0}) if len(matching) == 1 else len(matching)
        nonzero = sum(coeff != 0 for coeff in coeffs)
        cells = points * nonzero * (1 + len(set(options["baselines"]))) + (nonzero < len(coeffs))
        samples, new = options["samples"], options["max_new_tokens"]
        print_amounts(amounts_of(model, cells, asked, samples, new, dtype, mesh), as_json)
        return 0
    if target is not None and overwrite:
        for old in target.glob(f"{TEXTS}*"):
            old.unlink()

    def work(lm: LanguageModel) -> Table:
        return lm.sweep(
            asked,
            {d.name: d for d in matching},
            layers=layers if len(matching) == 1 and layers else None,
            coeffs=coeffs,
            metrics=measures,
            out=None if target is None else target / TEXTS,
            **options,
        )

    table = work(load_model(model, dtype, revision, mesh, warm=work))
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
        files.append(folder / PAGE)
        table.report(files[-1], title=folder.absolute().name)
    else:
        print(f"{PAGE}: left out: {pages.EXTRA}", file=sys.stderr)
    return files


def amounts_of(
    model: str,
    cells: int,
    prompts: Sequence[Any],
    samples: int,
    new: int,
    dtype: str | None,
    mesh: str | None,
) -> dict[str, Any]:
    """Size, time and memory of a sweep on this machine; both None where no config is at hand.

    `seconds` is a floor, without compiling; `bytes` is of a device, for the texts that run at once.
    """
    count = cells * len(prompts) * samples
    amounts: dict[str, Any] = {"cells": cells, "texts": count, "tokens": count * new}
    letters = max(len(str(prompt)) for prompt in prompts)
    work = Work(count, bucket(int(letters * _TOKENS_OF_A_LETTER)), new, len(prompts) * samples)
    try:
        config = read_config(model)
    except (OSError, ValueError):
        return amounts | {"seconds": None, "bytes": None}
    sizes = mesh_shape(mesh)
    machine = replace(this_machine(), chips=math.prod(sizes))
    made = plan(config, machine, work, dtype=dtype or "bfloat16", mesh=sizes)
    return amounts | {"seconds": made.seconds(), "bytes": made.memory.total}


def print_amounts(amounts: Mapping[str, Any], as_json: bool) -> None:
    """Print what `--dry-run` counted."""
    if as_json:
        print_json(amounts)
        return
    print(
        f"{amounts['cells']} cells, {amounts['texts']:,} texts, "
        f"at most {amounts['tokens']:,} new tokens"
    )
    if amounts["seconds"] is not None:
        print(
            f"here at least {amounts['seconds']:.1f} s and compiling once; "
            f"{as_gigabytes(amounts['bytes'])} of a device's memory"
        )

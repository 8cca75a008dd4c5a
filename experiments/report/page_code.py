"""The lines of Python that write a text of a sweep again, for readers of the page to copy."""

import json
import os
from pathlib import Path
from typing import Any

from experiments.pipeline.run import Run
from experiments.stages import derive
from experiments.stages.baselines import BEHAVIOUR, RAW
from experiments.stages.outcome import CellOutcome

ROOT = Path(__file__).parents[2]


def shown_path(path: str | Path) -> str:
    """A path as a page shows it: from the checkout, or from the current folder, if it is in one.

    >>> shown_path(ROOT / "weights" / "small")
    'weights/small'
    """
    absolute = Path(os.path.normpath(Path(path).absolute()))
    for folder in (ROOT, Path.cwd()):
        if absolute.is_relative_to(folder):
            return str(absolute.relative_to(folder))
    return absolute.name


def lines(run: Run, cell: CellOutcome, facts: dict[str, Any], saved: set[str]) -> str | None:
    """Lines for a cell, with $TEXT and $ROW for problem and row; None where few lines do not do.

    `facts` are those of the directions, `saved` the names of those in the file.
    """
    vector = _vector(run, cell.source, saved)
    if cell.source != "none" and vector is None:
        return None
    settings, target = run.settings, cell.target
    layer, site = settings.direction.layer, settings.direction.site
    where = f"layer={layer}, site={json.dumps(site)}"
    norm = facts["residual_norm"]["reasoning"][layer]
    own = facts["norm"]["base"][layer]
    length = norm if settings.steering.unit == "residual" else own
    scaled = settings.steering.unit == "residual" or cell.source not in ("base", "reasoning")
    width = "lm.model.config.d_model"
    steering = {
        "none": "None",
        "noise": f"js.noise({length!r}, coeff={cell.coeff!r}, width={width}, {where})",
        "self": f"js.amplify(length={length!r}, coeff={cell.coeff!r}, width={width}, {where})",
    }.get(cell.source, f"js.add(v, coeff={cell.coeff!r}, {where})")
    decoding = settings.decoding
    code = [
        "import jaxsteer as js",
        *(["from jaxsteer.directions import random_directions, rescale"] if vector else []),
        "",
        f"lm = js.load({_text(shown_path(run.sources[target]))}, "
        f"dtype={_text(settings.models.dtype)})",
        *([f"v = {vector}"] if vector else []),
        *([f"v = rescale(v, {length!r})  # coefficient 1"] if vector and scaled else []),
        f"text = {_put(run, target)}",
        "prompt = js.encode(lm.tokenizer, text)",
        "out = js.generate(",
        "    lm.model,",
        "    js.left_pad([prompt.ids]),",
        f"    max_new_tokens={decoding.max_new_tokens},",
        f"    steering={steering},",
        f"    sampling_params=js.sampling(1, temperature={decoding.temperature!r}, "
        f"top_p={decoding.top_p!r}, seed={decoding.seed}, row=[$ROW]),",
        "    stop_tokens=lm.end_tokens,",
        ")",
        "print(lm.tokenizer.decode(out.rows()[0]))",
    ]
    return "\n".join(code)


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def _vector(run: Run, source: str, saved: set[str]) -> str | None:
    """An expression for the vector that a source adds; "" where there is none to add."""
    layer = run.settings.direction.layer
    if source in ("noise", "self"):
        return ""
    if source.startswith(RAW):
        return None
    if source.startswith("random-"):
        count = run.settings.steering.random_directions
        return f"random_directions({count}, lm.model.config.d_model)[{int(source[7:])}]"
    name = {
        "base": f"base.{layer}.union",
        "reasoning": f"reasoning.{layer}.union",
        "mean": f"base.{layer}.mean",
    }.get(source, f"base.{layer}.{source.removeprefix(BEHAVIOUR)}.union")
    if name not in saved:
        return None
    folder = shown_path(run.out)  # its name, where it lies elsewhere
    return (
        f"js.load_directions({_text(f'{folder}/directions/{derive.FILE}')})[{_text(name)}].vector"
    )


def _put(run: Run, target: str) -> str:
    """An expression for what a model is given; the problem is $TEXT."""
    prompts = run.settings.prompts
    if prompts.form(target) == "chat":
        return '[{"role": "user", "content": $TEXT}]'
    before, after = prompts.base_template.split("{prompt}", 1)
    return f"{_text(before)} + $TEXT + {_text(after)}"

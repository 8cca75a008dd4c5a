"""`jaxsteer generate`: prompts in; texts, steered and unsteered, side by side."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import click

from jaxsteer.cli.inputs import check_new, choose_directions, load_model, read_prompts
from jaxsteer.cli.options import (
    examples,
    loading_options,
    output_options,
    prompt_options,
    sampling_options,
    steering_options,
)
from jaxsteer.cli.terminal import print_json, print_side_by_side
from jaxsteer.runtime import guarded
from jaxsteer.steering import Steering, add
from jaxsteer.texts import LanguageModel, Texts


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
@output_options("Write the texts as JSON lines.")
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
    mesh: str | None,
    out: str | None,
    overwrite: bool,
    as_json: bool,
    **sampling: Any,
) -> int:
    """Generate texts, steered and unsteered.

    MODEL is a checkpoint, a Hugging Face folder, a hub id or a .gguf file. It continues each
    PROMPT, or answers it, once per coefficient. The texts are printed side by side.
    """
    asked = read_prompts(prompts, file, chat)
    steering = one_steering(directions, name, layers, coeffs)
    check_new(out, overwrite)

    def work(lm: LanguageModel) -> Texts:
        return lm.generate(asked, steering=steering, **sampling)

    texts = work(load_model(model, dtype, revision, mesh, warm=work))
    if out is not None:
        texts.save(out)
    if as_json:
        print_json({"about": texts.about, "texts": texts.to_dicts()})
    else:
        print_side_by_side(texts)
    return 0


def one_steering(
    path: str | None, name: str | None, layers: Sequence[int], coeffs: Sequence[float]
) -> Steering | None:
    """One direction added with each coefficient, a row each; None without a file of directions."""
    if path is None:
        given = {"--name": name, "--layer": layers, "--coeff": coeffs}
        if idle := [option for option, value in given.items() if value]:
            raise ValueError(f"{', '.join(idle)}: expected --directions FILE beside")
        return None
    if not coeffs:
        raise ValueError("--coeff: got none, expected at least one")
    if len(layers) > 1:
        raise ValueError(f"--layer: got {list(layers)}, expected one")
    matching = choose_directions(path, name, layers)
    if len(matching) > 1:
        names = ", ".join(d.name for d in matching)
        raise ValueError(f"{path}: expected --name or --layer to mean one of {names}")
    chosen = replace(matching[0], layer=layers[0]) if layers else matching[0]
    return add(chosen, coeff=list(coeffs))

"""`jaxsteer direction`: two files of texts in; a direction at every layer out."""

from dataclasses import replace
from typing import Any

import click

from jaxsteer.cli.inputs import check_new, conversations, load_model, read_lines
from jaxsteer.cli.options import examples, loading_options, output_options
from jaxsteer.cli.terminal import print_json
from jaxsteer.directions import Direction, save_directions
from jaxsteer.runtime import guarded
from jaxsteer.texts import LayerDirections, direction


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
@output_options("The directions (.safetensors).", required=True)
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
    mesh: str | None,
    overwrite: bool,
    as_json: bool,
) -> int:
    """Derive a direction from two files of texts.

    TEXTS and OTHER_TEXTS have one text per line. The direction is the difference of their means, at
    every layer, in one pass.
    """
    sides = [conversations(read_lines(path), chat) for path in (texts, other_texts)]
    check_new(out, overwrite)
    lm = load_model(model, dtype, revision, mesh)
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


def with_trust(made: LayerDirections, layer: int) -> Direction:
    """A layer's direction; its provenance also has its reliability and AUROC."""
    trust = {"reliability": float(made.reliability[layer]), "auroc": float(made.auroc[layer])}
    finite = {name: value if value == value else None for name, value in trust.items()}
    return replace(made[layer], provenance={**made[layer].provenance, **finite})

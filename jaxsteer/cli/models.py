"""`jaxsteer convert`, `verify` and `export`: the commands of the room `models`."""

from collections.abc import Callable

import click

from jaxsteer.cli.options import examples, json_option, overwrite_option
from jaxsteer.models import conversion, exporting, verification
from jaxsteer.runtime import without_accelerator, without_torch


def arguments(ctx: click.Context) -> list[str]:
    """What was given to a command, as the words of a command line with the same options."""
    words = []
    for parameter in ctx.command.params:
        value = ctx.params[str(parameter.name)]
        if isinstance(parameter, click.Argument):
            words.append(str(value))
        elif value is True:
            words.append(parameter.opts[0])
        elif value not in (None, False):
            words += [parameter.opts[0], str(value)]
    return words


def passed_on(ctx: click.Context, work: Callable[[list[str]], int]) -> int:
    """Run a command of another room, which checks its own options."""
    return work(arguments(ctx))


@click.command(
    "convert",
    epilog=examples(
        "jaxsteer convert Qwen/Qwen2.5-7B-Instruct checkpoints/qwen",
        "jaxsteer convert model.gguf checkpoints/model --dtype bfloat16",
    ),
)
@click.argument("src")
@click.argument("dst")
@click.option(
    "--dtype",
    type=click.Choice(["keep", "float32", "bfloat16"]),
    default="keep",
    show_default=True,
    help="Of the weights.",
)
@click.option("--revision", help="Branch, tag or commit on the hub.")
@overwrite_option
@click.option("--allow-nonfinite", is_flag=True, help="Take NaN and infinity.")
@click.option("--strict", is_flag=True, help="Refuse unknown fields of config.json.")
@click.option("--no-tokenizer", is_flag=True, help="Weights and config alone.")
@json_option
@click.pass_context
def convert_command(ctx: click.Context, **options: object) -> int:
    """Convert a model into a checkpoint.

    SRC is a Hugging Face folder, a hub id or a .gguf file; DST is the folder to write.
    """
    without_accelerator()
    without_torch()
    return passed_on(ctx, conversion.main)


@click.command(
    "verify",
    epilog=examples(
        "jaxsteer verify Qwen/Qwen2.5-7B-Instruct checkpoints/qwen",
        "jaxsteer verify path/to/folder checkpoints/model --tokens 256 --layers 2",
    ),
)
@click.argument("src")
@click.argument("dst")
@click.option(
    "--tokens", type=click.IntRange(1), default=2048, show_default=True, help="Longest sequence."
)
@click.option("--layers", type=click.IntRange(1), help="Run the first N layers.  [default: all]")
@json_option
@click.pass_context
def verify_command(ctx: click.Context, **options: object) -> int:
    """Compare a checkpoint with its source.

    DST is what `jaxsteer convert` made of SRC. Every layer is held against transformers, which
    needs PyTorch.
    """
    return passed_on(ctx, verification.main)


@click.command(
    "export",
    epilog=examples(
        "jaxsteer export checkpoints/qwen exported/qwen",
        "jaxsteer export checkpoints/qwen exported/qwen --overwrite",
    ),
)
@click.argument("src")
@click.argument("dst")
@overwrite_option
@json_option
@click.pass_context
def export_command(ctx: click.Context, **options: object) -> int:
    """Write a checkpoint as a Hugging Face folder.

    SRC is what `jaxsteer convert` wrote; DST is the folder to write.
    """
    without_accelerator()
    return passed_on(ctx, exporting.main)

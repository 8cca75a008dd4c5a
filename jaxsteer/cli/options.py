"""Options that several subcommands have, each with one name and one meaning."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import click

Decorator = Callable[[Any], Any]

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace what is there.")


def examples(*commands: str) -> str:
    """The end of a command's help."""
    lines = "\n".join(commands).split("\n")
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def together(options: Sequence[Decorator]) -> Decorator:
    """One decorator for several options, which `--help` lists in this order."""

    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def as_mesh(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Refuse what is no mesh, in one line."""
    if value is not None and not re.fullmatch(r"\d+x\d+", value):
        raise click.BadParameter(f"got {value}, expected DATAxTENSOR, as in 2x4")
    return value


def mesh_option(text: str) -> Decorator:
    """`--mesh`, with its help."""
    return click.option("--mesh", metavar="DATAxTENSOR", callback=as_mesh, help=text)


loading_options = together(
    [
        click.option(
            "--dtype",
            type=click.Choice(["bfloat16", "float32"]),
            help="Of the weights.  [default: as stored]",
        ),
        click.option("--revision", help="Branch, tag or commit on the hub."),
        mesh_option("Chips to split rows and weights over.  [default: the first chip]"),
    ]
)

metric_options = together(
    [
        click.option(
            "--contains", "wanted", multiple=True, metavar="WORDS", help='Texts with any: "a,b".'
        ),
        click.option(
            "--metric",
            "metrics",
            type=click.Choice(["perplexity", "repetition", "words"]),
            multiple=True,
        ),
    ]
)

prompt_options = together(
    [
        click.option("--prompts", "file", metavar="FILE", help="More prompts, one per line."),
        click.option("--chat", is_flag=True, help="Prompts are messages of a user."),
    ]
)


def output_options(what: str, *, metavar: str = "FILE", required: bool = False) -> Decorator:
    """Where a command writes, whether it may replace what is there, and JSON in place of text."""
    out = click.option("--out", metavar=metavar, required=required, help=what)
    return together([out, overwrite_option, json_option])


def sampling_options(temperature: float) -> Decorator:
    """How texts are drawn; commands differ in their temperature."""
    return together(
        [
            click.option(
                "--samples",
                type=click.IntRange(1),
                default=1,
                show_default=True,
                help="Texts of each prompt and cell.",
            ),
            click.option(
                "--temperature",
                type=click.FloatRange(0),
                default=temperature,
                show_default=True,
                help="0 takes the likeliest token.",
            ),
            click.option(
                "--top-p",
                type=float,
                default=1.0,
                show_default=True,
                help="Least share of probability drawn from.",
            ),
            click.option(
                "--top-k", type=int, default=0, help="Likeliest tokens drawn from; 0 for all."
            ),
            click.option(
                "--max-new-tokens",
                type=click.IntRange(1),
                default=100,
                show_default=True,
                help="Most tokens of a text.",
            ),
            click.option("--seed", type=int, default=0, help="Of the samples."),
        ]
    )


steering_options = together(
    [
        click.option("--directions", metavar="FILE", help="What `jaxsteer direction` wrote."),
        click.option("--name", help="Of a direction in the file."),
        click.option("--layer", "layers", type=int, multiple=True, help="Where it is added."),
        click.option("--coeff", "coeffs", type=float, multiple=True, help="Factors on it."),
        click.option(
            "--unit",
            type=click.Choice(["vector", "residual"]),
            default="vector",
            show_default=True,
            help="What a coefficient counts: the vector, or lengths of the residual stream.",
        ),
    ]
)

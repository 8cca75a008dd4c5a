"""The console script `jaxsteer`, which completes words without importing JAX.

Importing `jaxsteer` takes a second, which is too long at each press of the tab key. The names that
a shell completes are kept in `names.json`; `python -m jaxsteer_command` writes them anew.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import click
from click.shell_completion import shell_complete

NAMES = Path(__file__).with_name("names.json")
VARIABLE = "_JAXSTEER_COMPLETE"


def main() -> None:
    """Complete if the shell asks for it; else run the command line."""
    if instruction := os.environ.get(VARIABLE):
        names = json.loads(NAMES.read_text())
        sys.exit(shell_complete(group_of(names), {}, "jaxsteer", VARIABLE, instruction))
    from jaxsteer.cli import main as command_line

    command_line()


def names_of(group: click.Group) -> dict[str, list[dict[str, Any]]]:
    """Subcommands and their options, JSON-ready."""
    return {
        name: [
            {
                "names": option.opts,
                "flag": option.is_flag,
                "choices": list(getattr(option.type, "choices", ())),
                "help": option.help,
            }
            for option in command.params
            if isinstance(option, click.Option)
        ]
        for name, command in group.commands.items()
    }


def group_of(names: dict[str, list[dict[str, Any]]]) -> click.Group:
    """Commands that do nothing and have these names."""
    return click.Group(
        "jaxsteer",
        commands={
            name: click.Command(name, params=[_option(option) for option in options])
            for name, options in names.items()
        },
    )


def _option(option: dict[str, Any]) -> click.Option:
    kind = click.Choice(option["choices"]) if option["choices"] else None
    if option["flag"]:
        return click.Option(option["names"], is_flag=True, help=option["help"])
    return click.Option(option["names"], type=kind, multiple=True, help=option["help"])

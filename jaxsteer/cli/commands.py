"""The command `jaxsteer` and its subcommands, and how a wrong option ends it."""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from jaxsteer.cli.direction import direction_command
from jaxsteer.cli.generate import generate_command
from jaxsteer.cli.machine import doctor_command, plan_command
from jaxsteer.cli.models import convert_command, export_command, verify_command
from jaxsteer.cli.options import examples
from jaxsteer.cli.report import report_command
from jaxsteer.cli.show import show_command
from jaxsteer.cli.sweep import sweep_command
from jaxsteer.runtime import VERSION, run

_USAGE = 2  # exit code for options that are wrong


@click.group(
    epilog=examples(
        "jaxsteer doctor",
        'jaxsteer generate Qwen/Qwen2.5-0.5B-Instruct "1 + 1 =" --max-new-tokens 20',
    )
)
@click.version_option(VERSION, prog_name="jaxsteer")
def jaxsteer() -> None:
    """Steer and read the residual stream of Llama, Qwen and Mistral models."""


for _command in (
    convert_command,
    verify_command,
    export_command,
    generate_command,
    direction_command,
    sweep_command,
    report_command,
    show_command,
    plan_command,
    doctor_command,
):
    jaxsteer.add_command(_command)


def command_line(argv: Sequence[str] | None = None) -> int:
    """Run a command line, that of the process if none is given; returns the exit code."""
    try:
        return jaxsteer.main(argv, prog_name="jaxsteer", standalone_mode=False) or 0
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message())
        return _USAGE
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "jaxsteer"
        print(f"{command}: {error.format_message()} ({command} --help)", file=sys.stderr)
        return _USAGE
    except click.Abort:  # what click makes of Ctrl-C
        raise KeyboardInterrupt from None


def main() -> NoReturn:
    """Run the command line of this process and exit."""
    # Or transformers says at each start that there is no PyTorch, which is not needed.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    run(command_line)

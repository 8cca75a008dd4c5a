"""Options of a command from a TOML file, each of which `--set` and the option itself override.

    [steering]
    directions = "doubt.safetensors"
    coeffs = [0, 0.5]

A key that is not known is answered with the nearest one that is.
"""

import difflib
import tomllib
from collections.abc import Mapping
from typing import Any

import click

from jaxsteer.cli.options import Decorator, together
from jaxsteer.files import MOST_DATA, read_whole
from jaxsteer.texts import flattened

_FILE, _SET = "jaxsteer settings file", "jaxsteer settings set"


def settings_options(keys: Mapping[str, str]) -> Decorator:
    """`--config` and `--set` for a command; `keys` are its parameters by dotted key."""

    def read(ctx: click.Context, _: click.Parameter, path: str | None) -> None:
        if path is not None:
            given = tomllib.loads(read_whole(path, most=MOST_DATA).decode())
            _remember(ctx, _FILE, _by_parameter(flattened(given), keys, path))

    def put(ctx: click.Context, _: click.Parameter, pairs: tuple[str, ...]) -> None:
        given = dict(_pair(pair) for pair in pairs)
        _remember(ctx, _SET, _by_parameter(given, keys, "--set"))

    return together(
        [
            click.option(
                "--config",
                metavar="FILE",
                is_eager=True,
                expose_value=False,
                callback=_as_usage_error("--config", read),
                help="TOML; options override it.",
            ),
            click.option(
                "--set",
                multiple=True,
                metavar="KEY=VALUE",
                is_eager=True,
                expose_value=False,
                callback=_as_usage_error("--set", put),
                help='Overrides a key: "steering.coeffs=[0, 1]".',
            ),
        ]
    )


def _as_usage_error(name: str, callback: Any) -> Any:
    """A callback whose errors are those of the option."""

    def inner(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
        try:
            callback(ctx, parameter, value)
        except (OSError, ValueError) as error:
            raise click.UsageError(f"{name}: {error}", ctx) from None

    return inner


def _remember(ctx: click.Context, kind: str, options: dict[str, Any]) -> None:
    """Make options defaults of the command, those of `--set` before those of the file."""
    ctx.meta[kind] = options
    ctx.default_map = {**ctx.meta.get(_FILE, {}), **ctx.meta.get(_SET, {})}


def _by_parameter(given: Mapping[str, Any], keys: Mapping[str, str], where: str) -> dict[str, Any]:
    if unknown := [key for key in given if key not in keys]:
        near = difflib.get_close_matches(unknown[0], keys, n=1, cutoff=0.3)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(keys)}"
        raise ValueError(f"{where}: {unknown[0]}: no such key; {hint}")
    return {keys[key]: value for key, value in given.items()}


def _pair(text: str) -> tuple[str, Any]:
    """A key and its value, which is TOML, or a bare word.

    >>> _pair("steering.coeffs=[0, 1]"), _pair("model.path=weights/small/base")
    (('steering.coeffs', [0, 1]), ('model.path', 'weights/small/base'))
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"got {text!r}, expected KEY=VALUE")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()

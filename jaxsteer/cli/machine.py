"""`jaxsteer doctor` and `jaxsteer plan`: what this machine has, and what fits on another."""

import os
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import jax

from jaxsteer.cli.models import passed_on
from jaxsteer.cli.options import examples, json_option, mesh_option
from jaxsteer.cli.terminal import as_gigabytes, print_fields, print_json
from jaxsteer.planning import SWEEPS, mesh_plan
from jaxsteer.runtime import VERSION, guarded

_PACKAGES = ("jax", "jaxlib", "flax", "orbax-checkpoint", "transformers", "numpy")
_OPTIONAL = ("torch", "libtpu", "pandas", "vl-convert-python")


@click.command(
    "plan",
    epilog=examples(
        "jaxsteer plan llama31_8b v5e-8",
        "jaxsteer plan weights/small/reasoning here --rows 32 --prompt 64 --new 100",
    ),
)
@click.argument("model")
@click.argument("topology")
@click.option("--rows", type=int, default=160, show_default=True, help="Decoded together.")
@click.option("--prompt", type=int, default=512, show_default=True, help="Tokens of a prompt.")
@click.option("--new", type=int, default=1024, show_default=True, help="New tokens.")
@click.option("--prompts", type=int, help="That rows share, as samples or cells do.")
@click.option("--capture", type=int, metavar="LAYERS", help="Of each new token.")
@click.option("--directions", type=int, help="Products with them, not raw activations.")
@click.option("--sweep", type=click.Choice(list(SWEEPS)), help="Rows and lengths of a sweep.")
@mesh_option("Instead of the best.")
@click.option(
    "--dtype", type=click.Choice(["bfloat16", "float32"]), default="bfloat16", show_default=True
)
@click.option("--compile", is_flag=True, help="Ask the TPU's compiler (minutes).")
@json_option
@click.pass_context
def plan_command(ctx: click.Context, **options: object) -> int:
    """Say what fits on which chips, and how fast.

    MODEL is a folder, a config.json, or a preset; TOPOLOGY is such as v5e-8, h200-2, or here.
    """
    return passed_on(ctx, mesh_plan.main)


@click.command("doctor", epilog=examples("jaxsteer doctor", "jaxsteer doctor --json"))
@json_option
@guarded("doctor")
def doctor_command(as_json: bool) -> int:
    """Say what this machine has.

    Versions, devices, memory, where compiled programs are kept, free disk.
    """
    facts = {
        "versions": versions(),
        "devices": devices(),
        "memory_bytes": memory_bytes(),
        "cache": cache(),
        "disk_free_bytes": shutil.disk_usage(".").free,
    }
    if as_json:
        print_json(facts)
    else:
        print_fields(as_fields(facts))
    return 0 if facts["devices"] else 1


def versions() -> dict[str, str]:
    """Of Python, this library, and the packages that matter to it."""
    named = {"python": platform.python_version(), "jaxsteer": VERSION}
    for package in (*_PACKAGES, *_OPTIONAL):
        try:
            named[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return named


def devices() -> list[dict[str, Any]]:
    """Those that JAX starts; none, and why on stderr, if it cannot."""
    try:
        started = jax.devices()
    except RuntimeError as error:
        click.echo(f"devices: {error}", err=True)
        return []
    return [
        {
            "id": device.id,
            "platform": device.platform,
            "kind": device.device_kind,
            "memory_bytes": (device.memory_stats() or {}).get("bytes_limit"),
        }
        for device in started
    ]


def memory_bytes() -> int | None:
    """Of the host; None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def cache() -> dict[str, Any]:
    """Where compiled programs are kept, how many, and their bytes; no folder if none are."""
    folder = jax.config.values["jax_compilation_cache_dir"]
    if folder is None:
        return {"folder": None, "programs": 0, "bytes": 0}
    files = [file for file in Path(folder).glob("*") if file.is_file()]
    programs = sum(file.name.endswith("-cache") for file in files)
    size = sum(file.stat().st_size for file in files)
    return {"folder": folder, "programs": programs, "bytes": size}


def as_fields(facts: dict[str, Any]) -> dict[str, str]:
    """The facts as lines for people."""
    fields = dict(facts["versions"])
    for device in facts["devices"]:
        memory = device["memory_bytes"]
        limit = "" if memory is None else f", {as_gigabytes(memory)} for JAX"
        fields[f"device {device['id']}"] = f"{device['kind']} ({device['platform']}){limit}"
    if facts["memory_bytes"] is not None:
        fields["memory"] = as_gigabytes(facts["memory_bytes"])
    kept = facts["cache"]
    fields["compiled programs"] = (
        "are not kept"
        if kept["folder"] is None
        else f"{kept['programs']} in {kept['folder']}, {as_gigabytes(kept['bytes'])}"
    )
    fields["free disk here"] = as_gigabytes(facts["disk_free_bytes"])
    return fields

"""What benchmarks share: models of a preset, memory, compiled programs, and lines of JSON."""

import argparse
import json
import os
from collections.abc import Mapping
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.96")  # 640 rows need it; before JAX

import jax
import jax.numpy as jnp

from jaxsteer.config import PRESETS as PUBLISHED
from jaxsteer.config import LlamaConfig
from jaxsteer.llama import Model, init, pack
from jaxsteer.planning import Machine

PRESETS = (*PUBLISHED, "tiny")
_COMPILED = "/jax/core/compile/backend_compile_duration"


def preset_parser(module: str, *, default: str = "llama31_8b") -> argparse.ArgumentParser:
    """The parser of a benchmark's command, with `--preset`."""
    parser = argparse.ArgumentParser(prog=f"python -m experiments.benchmarks.{module}")
    parser.add_argument("--preset", choices=PRESETS, default=default)
    return parser


def config_of(preset: str) -> LlamaConfig:
    """The shape of a preset."""
    return getattr(LlamaConfig, preset)()


def random_model(config: LlamaConfig, *, packed: bool = True) -> Model:
    """A model with random weights in bf16."""
    model = init(config, dtype=jnp.bfloat16)
    return pack(model, donate=True) if packed else model


def peak_GB() -> float | None:
    """Peak memory of the first device since the process began, in GB; None if it reports none."""
    peak = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return None if peak is None else round(peak / 1e9, 2)


def about(machine: Machine) -> dict[str, Any]:
    """What the first line of a benchmark says of the machine that it ran on."""
    return {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "read_GB_s": machine.bandwidth / 1e9,
        "TFLOP_s": machine.rate / 1e12,
    }


def rounded(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts with their floats rounded to four digits."""
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in facts.items()}


def say(facts: Mapping[str, Any]) -> None:
    """Print a JSON line, its numbers with four digits."""
    print(json.dumps(rounded(facts)), flush=True)


class Compilations:
    """Counts the programs that XLA compiles from now on, and their seconds."""

    def __init__(self) -> None:
        self.count = 0
        self.seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == _COMPILED:
            self.count += 1
            self.seconds += duration_secs

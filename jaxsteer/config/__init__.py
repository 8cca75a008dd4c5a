"""The shape of a model: `LlamaConfig`, presets of published models, and `config.json`.

A parsed `config.json` in, a frozen config out, and back. `shape` has the config and the presets,
`config_json` the fields of each model family, `rope_json` its rotary settings.

Uses nothing of jaxsteer.
"""

from jaxsteer.config.config_json import unknown_fields
from jaxsteer.config.shape import PRESETS, LlamaConfig, RopeScaling

__all__ = [
    "PRESETS",
    "LlamaConfig",
    "RopeScaling",
    "unknown_fields",
]

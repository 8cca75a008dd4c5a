"""Models in and out: load, convert, export, verify.

A folder, GGUF file, hub id or checkpoint in; a model on its devices (`loading`), a checkpoint
(`conversion`) or a Hugging Face folder (`exporting`) out, and the proof that both compute the same
(`verification`).

Uses `huggingface`, `checkpoints` and the rooms that these use.
"""

from jaxsteer.models.conversion import convert
from jaxsteer.models.exporting import export
from jaxsteer.models.loaded_model import Loaded
from jaxsteer.models.loading import load
from jaxsteer.models.verification import different_tensors, float64_errors, layer_errors

__all__ = [
    "Loaded",
    "convert",
    "different_tensors",
    "export",
    "float64_errors",
    "layer_errors",
    "load",
]

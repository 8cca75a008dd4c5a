"""Models in and out: convert, export, verify.

A Hugging Face folder in and a checkpoint out, back again, and the proof that both compute the same.

Uses `huggingface`, `checkpoints` and the rooms that these use.
"""

from jaxsteer.models.conversion import convert
from jaxsteer.models.exporting import export
from jaxsteer.models.verification import different_tensors, layer_errors

__all__ = ["convert", "different_tensors", "export", "layer_errors"]

"""Texts in, texts out: what people type first, on top of the pure functions.

Prompts as strings or conversations in; generated texts with their cell, tokens and end, tables with
intervals, and directions from two lists of texts out. `lm.generate` and `lm.sweep` are in
`language_model`, `direction` in `layer_directions`, tables in `table`.

Uses `models`, `sweeps`, `directions`, `analysis`, `pages`, `tokenizers` and the rooms that these
use.
"""

from jaxsteer.texts.language_model import LanguageModel, load
from jaxsteer.texts.layer_directions import LayerDirections, direction
from jaxsteer.texts.metrics import (
    Measured,
    Metric,
    contains,
    measure,
    on_result,
    perplexity,
    words,
)
from jaxsteer.texts.printing import flattened
from jaxsteer.texts.results import Text, Texts
from jaxsteer.texts.table import Table

__all__ = [
    "LanguageModel",
    "LayerDirections",
    "Measured",
    "Metric",
    "Table",
    "Text",
    "Texts",
    "contains",
    "direction",
    "flattened",
    "load",
    "measure",
    "on_result",
    "perplexity",
    "words",
]

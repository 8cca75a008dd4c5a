"""Where a direction comes from and where it is kept.

Traces and events in, directions out: `moments` has the difference of means (the paper's Eq. 3),
`probe` the logistic probe and the principal component, `learned` vectors found by gradient. Our
files are in `direction_files`, those of other programs in `foreign_files`.

Uses `sweeps` and the rooms that it uses.
"""

from jaxsteer.directions.activations import Trace, activation_moments, equal_rows, event_positions
from jaxsteer.directions.controls import random_directions, rescale
from jaxsteer.directions.direction import Direction, cosine
from jaxsteer.directions.direction_files import load_directions, save_directions
from jaxsteer.directions.foreign_files import load_pt, load_replication
from jaxsteer.directions.gguf import load_gguf, save_gguf
from jaxsteer.directions.learned import (
    learn_directions,
    logprobs_under,
    orthonormal_rows,
    step_bytes,
)
from jaxsteer.directions.moments import (
    Moments,
    cosines,
    difference_of_means,
    split_half_reliability,
    standard_error,
    window_direction,
)
from jaxsteer.directions.probe import first_component, logistic_probe
from jaxsteer.directions.raw_activations import save_activations
from jaxsteer.directions.targets import Targets, make_targets

__all__ = [
    "Direction",
    "Moments",
    "Targets",
    "Trace",
    "activation_moments",
    "cosine",
    "cosines",
    "difference_of_means",
    "equal_rows",
    "event_positions",
    "first_component",
    "learn_directions",
    "load_directions",
    "load_gguf",
    "load_pt",
    "load_replication",
    "logistic_probe",
    "logprobs_under",
    "make_targets",
    "orthonormal_rows",
    "random_directions",
    "rescale",
    "save_activations",
    "save_directions",
    "save_gguf",
    "split_half_reliability",
    "standard_error",
    "step_bytes",
    "window_direction",
]

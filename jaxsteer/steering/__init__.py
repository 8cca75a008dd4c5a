"""What is read and changed in the residual stream, as data.

Vectors, layers, coefficients and positions in; `Steering` and `Capture`, pytrees that a compiled
program takes as arguments, out. Sites are named in `sites`, operations in `interventions`.

Uses `config`.
"""

from jaxsteer.steering.arguments import Vectors, Where, as_arrays, own_layers
from jaxsteer.steering.capture import Capture, check_capture
from jaxsteer.steering.interventions import (
    ablate,
    add,
    amplify,
    clamp,
    head_vector,
    noise,
    replace,
    when,
)
from jaxsteer.steering.scope import Scope, broadcast_rows, from_last_prompt_token
from jaxsteer.steering.sites import SITES, parse_hook_name, site_index, site_width
from jaxsteer.steering.steering import (
    NO_LAYER,
    RowFacts,
    Steering,
    as_tuple,
    check_steering,
    rows,
    stack,
)

__all__ = [
    "NO_LAYER",
    "SITES",
    "Capture",
    "RowFacts",
    "Scope",
    "Steering",
    "Vectors",
    "Where",
    "ablate",
    "add",
    "amplify",
    "as_arrays",
    "as_tuple",
    "broadcast_rows",
    "check_capture",
    "check_steering",
    "clamp",
    "from_last_prompt_token",
    "head_vector",
    "noise",
    "own_layers",
    "parse_hook_name",
    "replace",
    "rows",
    "site_index",
    "site_width",
    "stack",
    "when",
]

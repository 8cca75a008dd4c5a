"""What is read and changed in the residual stream, as data.

Vectors, layers, coefficients and positions in; `Steering` and `Capture`, pytrees that a compiled
program takes as arguments, out. The residual stream's sites are named in `sites`. Operations (add,
ablate, …) are in `interventions`, their arithmetic in `steering`, positions in `scope`. What is
read is in `capture` and `readers`.

Uses `config`.
"""

from jaxsteer.steering.batching import rows, stack
from jaxsteer.steering.capture import (
    Above,
    Capture,
    above,
    check_capture,
    check_places,
    layers_of,
)
from jaxsteer.steering.checks import check_steering, check_steering_unless_traced
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
from jaxsteer.steering.operation_arguments import Vectors, Where, as_arrays, int32s, own_layers
from jaxsteer.steering.readers import All, At, EventSums, Project, Reader, RowSums, TokenSums
from jaxsteer.steering.scope import Scope, broadcast_rows, from_last_prompt_token, generated
from jaxsteer.steering.sites import (
    SITES,
    check_layers,
    parse_hook_name,
    site_index,
    site_width,
)
from jaxsteer.steering.steering import (
    NO_LAYER,
    RowFacts,
    Steering,
    as_tuple,
)

__all__ = [
    "NO_LAYER",
    "SITES",
    "Above",
    "All",
    "At",
    "Capture",
    "EventSums",
    "Project",
    "Reader",
    "RowFacts",
    "RowSums",
    "Scope",
    "Steering",
    "TokenSums",
    "Vectors",
    "Where",
    "ablate",
    "above",
    "add",
    "amplify",
    "as_arrays",
    "as_tuple",
    "broadcast_rows",
    "check_capture",
    "check_layers",
    "check_places",
    "check_steering",
    "check_steering_unless_traced",
    "clamp",
    "from_last_prompt_token",
    "generated",
    "head_vector",
    "int32s",
    "layers_of",
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

"""What fits on which chips and how long it takes, before anyone rents them.

A config and a topology in; memory, mesh, batch and time out.

Uses `sweeps`, `checkpoints` and the rooms that these use.
"""

from jaxsteer.planning.chips import find_topology, this_machine
from jaxsteer.planning.mesh_plan import SWEEPS, Plan, Work, footprint, plan, read_config
from jaxsteer.planning.roofline import Machine, decode_seconds, prefill_operations, step_seconds

__all__ = [
    "SWEEPS",
    "Machine",
    "Plan",
    "Work",
    "decode_seconds",
    "find_topology",
    "footprint",
    "plan",
    "prefill_operations",
    "read_config",
    "step_seconds",
    "this_machine",
]

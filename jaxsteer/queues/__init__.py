"""Many prompts in a fixed number of slots: a slot whose row has ended takes the next prompt.

A batch of any number of prompts in; finished rows out, as they end. Start with `refill`.

Uses `runtime`, `llama`, `decoding`.
"""

from jaxsteer.queues.refill import generate_queue
from jaxsteer.queues.slots import FinishedRow, Occupancy, pool_sizes

__all__ = ["FinishedRow", "Occupancy", "generate_queue", "pool_sizes"]

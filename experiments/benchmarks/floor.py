"""The floor of `jaxsteer.floor`, under the name that the benchmarks use."""

from jaxsteer.floor import (
    Machine,
    decode_seconds,
    prefill_operations,
    step_seconds,
    weights_read,
)

__all__ = ["Machine", "decode_seconds", "prefill_operations", "step_seconds", "weights_read"]

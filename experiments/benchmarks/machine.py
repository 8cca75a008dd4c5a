"""What a run took of the machine: memory, and programs compiled; see also `runtime.rates`."""

import jax

_COMPILED = "/jax/core/compile/backend_compile_duration"


def peak_bytes() -> int | None:
    """The most memory in use on the first device since the process began; None where untold."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use")


class Compilations:
    """Counts what XLA compiles, and for how long, from its making on."""

    def __init__(self) -> None:
        self.count = 0
        self.seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == _COMPILED:
            self.count += 1
            self.seconds += duration_secs

"""Options that make XLA compile for a CPU in half the time; what they compile is slower."""

import functools

import jax

# One piece instead of 32 that are compiled at once, by XLA's older code for CPUs.
_PLAIN = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}


@functools.cache
def plain_options() -> dict[str, bool | int]:
    """Those of the options that this jaxlib knows: the older code is gone in newer ones."""

    def is_known(name: str, value: int) -> bool:
        try:
            jax.jit(lambda: 0).lower().compile({name: value})
        except jax.errors.JaxRuntimeError:
            return False
        return True

    return {name: value for name, value in _PLAIN.items() if is_known(name, value)}


def xla_flags(devices: int = 1) -> str:
    """`XLA_FLAGS` of a process that a test starts, with so many devices."""
    options = {"xla_force_host_platform_device_count": devices, "xla_backend_optimization_level": 0}
    options |= plain_options()
    return " ".join(f"--{name}={str(value).lower()}" for name, value in options.items())

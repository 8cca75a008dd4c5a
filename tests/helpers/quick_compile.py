"""Options that make XLA compile for a CPU in half the time; what they compile is slower."""

# One piece instead of 32 that are compiled at once, by XLA's older code for CPUs.
PLAIN = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}


def xla_flags(devices: int = 1) -> str:
    """`XLA_FLAGS` of a process that a test starts, with so many devices."""
    options = {"xla_force_host_platform_device_count": devices, "xla_backend_optimization_level": 0}
    return " ".join(f"--{name}={str(value).lower()}" for name, value in (options | PLAIN).items())

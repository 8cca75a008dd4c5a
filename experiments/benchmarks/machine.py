"""What the machine can do at best: read bandwidth and matrix rate, measured in the same run."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def seconds(work: Callable[[], Any], *, repeats: int = 5) -> float:
    """The median time of one call, after one that is not counted."""
    jax.block_until_ready(work())
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(work())
        times.append(time.perf_counter() - started)
    return sorted(times)[len(times) // 2]


def read_bandwidth() -> float:
    """Bytes a second that a sum over an array reads, which is larger than any cache."""
    n = 2**27 if jax.default_backend() == "cpu" else 2**31
    x = jax.random.normal(jax.random.key(0), (n,), jnp.bfloat16)
    total = jax.jit(lambda x: jnp.sum(x, dtype=jnp.float32))
    return 2 * n / seconds(lambda: total(x))


def matrix_rate() -> float:
    """Operations a second of a square bf16 matrix product on random data."""
    size = 1024 if jax.default_backend() == "cpu" else 8192
    a, b = jax.random.normal(jax.random.key(0), (2, size, size), jnp.bfloat16)
    product = jax.jit(jnp.matmul)
    return 2 * size**3 / seconds(lambda: product(a, b))

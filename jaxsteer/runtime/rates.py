"""Peak rates of this machine: reading memory, and multiplying matrices."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def seconds(work: Callable[[], Any], *, repeats: int = 5) -> float:
    """The shortest time of one call, after a first one that is not counted."""
    jax.block_until_ready(work())
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(work())
        times.append(time.perf_counter() - started)
    return min(times)


def read_bandwidth(*, passes: int = 20) -> float:
    """Bytes a second that a maximum over an array larger than any cache reads.

    All passes run in one program, each on the result of the one before, so that the start of
    kernels is not measured: single calls give a fifth less on an H200.
    """
    words = 2**24 if jax.default_backend() == "cpu" else 2**30
    x = jax.random.bits(jax.random.key(0), (words,), jnp.uint32)

    def read(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, passes, lambda _, c: c ^ jnp.max(x ^ c), jnp.uint32(0))

    jitted = jax.jit(read)
    return 4 * words * passes / seconds(lambda: jitted(x))


def matrix_rate(*, products: int = 10, dtype: jnp.dtype = jnp.bfloat16) -> float:
    """Operations a second of square matrix products on random data, in one program."""
    size = 1024 if jax.default_backend() == "cpu" else 8192
    a, b = jax.random.normal(jax.random.key(0), (2, size, size), dtype)
    b = b / size**0.5  # so that the numbers stay of one size

    def multiply(a: jax.Array, b: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, products, lambda _, c: c @ b, a)

    jitted = jax.jit(multiply)
    return 2 * size**3 * products / seconds(lambda: jitted(a, b))

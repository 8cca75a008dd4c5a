"""Check cuDNN's attention against the float32 reference, on an NVIDIA GPU.

    python -m experiments.benchmarks.attention

Left padding as a bias, in prefill, decode and under a vmapped cell axis; rows behind prefixes that
they share. Prints one JSON line a case and exits with 1 if an error is larger than bf16 explains.
"""

import json
import sys
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxsteer.llama import Shared, cudnn_attention, xla_attention

TOLERANCE = 1e-2  # bf16 has 8 bits of precision: 4e-3 for a number, some of them for a sum


@dataclass(frozen=True)
class Case:
    """Shapes of one check."""

    name: str
    queries: int  # T
    start: int  # slot of the first query
    cells: int = 0  # a leading vmapped axis, if not 0
    prefixes: int = 0  # which the rows share, in the place of padding


CASES = (
    Case("prefill", queries=256, start=0),
    Case("decode", queries=1, start=300),
    Case("decode in cells", queries=1, start=300, cells=4),
    Case("prefill in cells", queries=256, start=0, cells=2),
    Case("whole texts", queries=512, start=0),
    Case("whole texts in cells", queries=512, start=0, cells=2),
    Case("decode behind a prefix", queries=1, start=300, prefixes=1),
    Case("decode behind prefixes in cells", queries=1, start=300, cells=4, prefixes=8),
    Case("several tokens behind prefixes", queries=3, start=300, prefixes=2),
)


def relative_error(case: Case, *, rows: int = 8, slots: int = 512) -> float:
    """Largest error over largest value, on real queries, for ragged left-padded rows."""
    N, K, H = 32, 8, 128
    lead = (case.cells, rows) if case.cells else (rows,)
    keys = jax.random.split(jax.random.key(0), 3)
    q = jax.random.normal(keys[0], (*lead, case.queries, N, H), jnp.bfloat16)
    k = jax.random.normal(keys[1], (*lead, slots, K, H), jnp.bfloat16)
    v = jax.random.normal(keys[2], (*lead, slots, K, H), jnp.bfloat16)
    padding = jnp.arange(rows) * (0 if case.prefixes else 7)
    valid = jnp.arange(slots) >= padding[:, None]
    start = jnp.int32(case.start)

    shared: list[jax.Array] = []
    if case.prefixes:
        each = jax.random.split(keys[1])
        shape = (case.prefixes, 2 * slots, K, H)
        shared = [jax.random.normal(key, shape, jnp.bfloat16) for key in each]
    lengths = 2 * slots - 5 * jnp.arange(case.prefixes)

    def over_cells(attention, *shared):  # type: ignore[no-untyped-def]
        prefix = {"prefix": Shared(*shared, lengths)} if shared else {}

        def one(q, k, v):  # type: ignore[no-untyped-def]
            return attention(q, k, v, valid=valid, start=start, **prefix)

        return jax.jit(jax.vmap(one) if case.cells else one)

    got = over_cells(cudnn_attention, *shared)(q, k, v).astype(jnp.float32)
    with jax.default_matmul_precision("highest"):
        wide = [x.astype(jnp.float32) for x in (q, k, v, *shared)]
        expected = over_cells(xla_attention, *wide[3:])(*wide[:3])
    real = (case.start + jnp.arange(case.queries) >= padding[:, None])[..., None, None]
    error = jnp.where(real, jnp.abs(got - expected), 0.0).max()
    return float(error / jnp.abs(expected).max())


def main() -> int:
    """Command line; returns the exit code."""
    if jax.default_backend() != "gpu":
        print("error: cuDNN needs an NVIDIA GPU", file=sys.stderr)
        return 2
    errors = {case.name: relative_error(case) for case in CASES}
    for name, error in errors.items():
        print(json.dumps({"case": name, "relative_error": error, "ok": error <= TOLERANCE}))
    return 0 if max(errors.values()) <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())

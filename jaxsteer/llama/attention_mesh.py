"""Attention kernels on a mesh: each device runs them on its own rows and heads.

The compiler cannot split a kernel. What JAX says of cuDNN's (its rule for custom partitioning)
leaves out the lengths of the rows, and folding the cells of a sweep into rows that are split over
devices would gather the cache. Both are done here on what a device holds.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxsteer.llama.cache import Shared

Rows = Callable[..., jax.Array]  # (q, k, v, valid, start) -> out, of rows without cells


def attend_on_each_device(
    attend: Rows, q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array, start: jax.Array
) -> jax.Array:
    """`attend` on a device's own rows and heads; on all of them where there is no mesh.

    The arrays are those of `attention`, or each but `start` has a leading axis C of cells, whose
    rows are folded into one another for `attend`.
    """
    cells = q.ndim == 5

    def local(
        q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array, start: jax.Array
    ) -> jax.Array:
        if not cells:
            return attend(q, k, v, valid, start)
        C = q.shape[0]
        folded = (x.reshape(-1, *x.shape[2:]) for x in (q, k, v, valid))
        # Rows with cursors of their own have the same ones in every cell.
        out = attend(*folded, jnp.tile(start, C) if start.ndim else start)
        return out.reshape(C, -1, *out.shape[1:])

    mesh = jax.typeof(q).sharding.mesh
    if not is_split(mesh):
        return local(q, k, v, valid, start)
    lead = split_rows(q.shape[:-3], mesh.shape["data"])
    heads = P(*lead, None, "tensor", None)
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(heads, heads, heads, P(*lead, None), P(lead[-1]) if start.ndim else P()),
        out_specs=heads,
        check_vma=False,
    )(q, k, v, valid, start)


def attend_with_prefix_on_each_device(
    attend: Rows, q: jax.Array, k: jax.Array, v: jax.Array, start: jax.Array, prefix: Shared
) -> jax.Array:
    """`attend(q, k, v, start, prefix)` on a device's own rows, their prefixes, and its heads.

    Arrays of rows may have a leading axis C of cells. Prefixes are split as the rows are; a single
    one is whole on every device, and so are all where cells are split instead of rows.

    Raises:
        ValueError: if rows are split over `data` and prefixes cannot be.
    """
    mesh = jax.typeof(q).sharding.mesh
    if not is_split(mesh):
        return attend(q, k, v, start, prefix)
    lead = split_rows(q.shape[:-3], mesh.shape["data"])
    count = prefix.length.shape[0]
    rows = lead[-1] if count > 1 else None
    if rows and count % mesh.shape["data"]:
        raise ValueError(
            f"prefixes: got {count}, expected 1 or a multiple of the mesh's "
            f"data={mesh.shape['data']}"
        )

    def local(
        q: jax.Array, k: jax.Array, v: jax.Array, start: jax.Array, prefix: tuple[jax.Array, ...]
    ) -> jax.Array:
        return attend(q, k, v, start, Shared(*prefix))

    own, shared = P(*lead, None, "tensor", None), P(rows, None, "tensor", None)
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(own, own, own, P(lead[-1]) if start.ndim else P(), (shared, shared, P(rows))),
        out_specs=own,
        check_vma=False,
    )(q, k, v, start, tuple(prefix))


def is_split(mesh: Any) -> bool:
    """Whether a mesh has the axes over which rows and heads are split."""
    return {"data", "tensor"} <= set(mesh.axis_names)


def split_rows(shape: tuple[int, ...], data: int) -> tuple[str | None, ...]:
    """Which of `[B]` or `[C, B]` is split over `data`: rows if it divides them, as in a sweep.

    >>> split_rows((4,), 2), split_rows((3, 4), 2), split_rows((4, 3), 2), split_rows((3, 3), 2)
    (('data',), (None, 'data'), ('data', None), (None, None))
    """
    split: list[str | None] = [None] * len(shape)
    axis = next((i for i in reversed(range(len(shape))) if shape[i] % data == 0), None)
    if axis is not None:
        split[axis] = "data"
    return tuple(split)

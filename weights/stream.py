"""Tensors of a folder in our layout, one at a time: read, cast, checked and transposed in strips.

A tensor is cut into strips of rows, and threads work on them beside each other; so a tensor takes
its own size in memory and a few strips, whatever the threads and whatever the dtypes.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from weights import hf
from weights.folder import Folder

_STRIP_BYTES = 1 << 24
_THREADS = 8  # reading and transposing are bound by disk and memory, which a few threads fill


def tensors_as_ours(folder: Folder, dtype: str) -> Iterator[tuple[hf.Tensor, np.ndarray, bool]]:
    """Every tensor in the files' order: what it is, laid out as ours, and whether it is finite.

    The order of the files lets a disk read on without jumps.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        for tensor in _in_file_order(folder):
            x, finite = _one(folder, tensor, dtype, pool)
            yield tensor, x, finite


def _in_file_order(folder: Folder) -> list[hf.Tensor]:
    """The model's tensors as they stand in the files, shard by shard."""
    return sorted(
        hf.tensors(folder.config).values(),
        key=lambda t: (folder.file_of[t.name], folder.entries[t.name].begin),
    )


def _one(
    folder: Folder, tensor: hf.Tensor, dtype: str, pool: ThreadPoolExecutor
) -> tuple[np.ndarray, bool]:
    rows = tensor.hf_shape[0]
    out = np.empty(tensor.hf_shape[::-1] if tensor.transposed else tensor.hf_shape, dtype)
    strip = max(1, _STRIP_BYTES * rows // max(out.nbytes, 1))

    def fill(start: int) -> bool:
        stop = min(start + strip, rows)
        x = hf.cast(folder.read_rows(tensor.name, start, stop), dtype)
        if tensor.transposed:
            hf.transpose_into(out[:, start:stop], x)
        else:
            out[start:stop] = x
        return hf.is_finite(x)

    finite = list(pool.map(fill, range(0, rows, strip)))
    return out.reshape(tensor.shape), all(finite)

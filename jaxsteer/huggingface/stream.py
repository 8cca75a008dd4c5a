"""Tensors of a model's files in our layout, one at a time: read, cast, checked and transposed.

A tensor is cut into strips of rows. Threads work on several strips at once, also on those of the
next tensors. So memory holds the unfinished tensors, whose bytes are bounded, and a few strips,
whatever the dtypes.
"""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from jaxsteer.huggingface import tensor_names as hf
from jaxsteer.huggingface.folder import Folder
from jaxsteer.huggingface.gguf_model import GgufModel
from jaxsteer.runtime import timed

_STRIP_BYTES = 1 << 22  # stays in the cache from reading to transposing
_READ_BYTES = 1 << 24  # of one that is only read: few strips, as each takes the interpreter's lock
_AHEAD_BYTES = 1 << 28  # of tensors that are begun; a larger one is alone
_THREADS = max(4, min(16, os.cpu_count() or 1))


@dataclass(frozen=True)
class _Begun:
    """A tensor that threads work on."""

    tensor: hf.Tensor
    out: np.ndarray  # in our shape
    strips: list[Future[bool]]  # each fills a part of `out` and says whether it is finite


def tensors_as_ours(
    source: Folder | GgufModel, dtype: str, *, contiguous: bool = True
) -> Iterator[tuple[hf.Tensor, np.ndarray, bool]]:
    """Every tensor in the files' order: which one, its array in our layout, whether it is finite.

    In the order of the files a disk reads without jumps. Arrays that need not be `contiguous` are
    views of the files' layout, which are turned on their way to devices (`models.placement`).
    """
    begun: deque[_Begun] = deque()
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            for tensor in source.in_file_order():
                while begun and _bytes(begun) + _n_bytes(tensor, dtype) > _AHEAD_BYTES:
                    yield _ended(begun.popleft())
                begun.append(_begin(source, tensor, dtype, pool, turn=contiguous))
            while begun:
                yield _ended(begun.popleft())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin(
    source: Folder | GgufModel,
    tensor: hf.Tensor,
    dtype: str,
    pool: ThreadPoolExecutor,
    *,
    turn: bool,
) -> _Begun:
    rows = tensor.hf_shape[0]
    turn = turn and tensor.transposed
    out = np.empty(tensor.hf_shape[::-1] if turn else tensor.hf_shape, dtype)
    size = _STRIP_BYTES if turn else _READ_BYTES
    strip = max(1, size * rows // max(out.nbytes, 1))

    def fill(start: int) -> bool:
        stop = min(start + strip, rows)
        place = out[start:stop]
        with timed("convert/threads/read"):
            if not turn and source.read_rows_into(place, tensor.name, start):
                return hf.is_finite(place)
            x = hf.cast(source.read_rows(tensor.name, start, stop), dtype)
        with timed("convert/threads/turn"):
            if turn:
                hf.transpose_into(out[:, start:stop], x)
            else:
                hf.copy_into(place, x)
            return hf.is_finite(x)

    strips = [pool.submit(fill, start) for start in range(0, rows, strip)]
    ours = out.reshape(tensor.shape) if turn else tensor.as_ours(out)
    return _Begun(tensor, ours, strips)


def _ended(begun: _Begun) -> tuple[hf.Tensor, np.ndarray, bool]:
    with timed("convert/wait for a tensor"):
        finite = [strip.result() for strip in begun.strips]
    return begun.tensor, begun.out, all(finite)


def _bytes(begun: deque[_Begun]) -> int:
    return sum(one.out.nbytes for one in begun)


def _n_bytes(tensor: hf.Tensor, dtype: str) -> int:
    return int(np.prod(tensor.shape)) * np.dtype(dtype).itemsize

"""Weights that come one at a time, written as one Orbax checkpoint."""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from orbax.checkpoint import v1

from jaxsteer.llama import ParamPath, flatten, nest
from jaxsteer.runtime import timed

Leaves = Iterable[tuple[ParamPath, Any]]

_BATCH_BYTES = 1 << 29  # arrays that are held in memory until they are written together
_CHUNK_BYTES = 1 << 28  # larger arrays are cut into chunks, if those can be equal and of rows
_CHUNKS = 16  # at most
_FILE_BYTES = 1 << 25  # smaller arrays share files


def write_params(path: Path, leaves: Leaves) -> None:
    """Write leaves as they come, in batches: one is written while the next is made.

    Orbax runs in another thread. So an exception in this one, which a signal may raise at any
    moment, never leaves a write half-started: that thread finishes it first.

    Raises:
        OSError: Orbax cannot write, with the system's reason where there is one.
    """
    with ThreadPoolExecutor(1) as writer:  # one: two would write into one temporary directory
        writing: list[Future[None]] = []
        for batch in _batches(leaves):
            _wait(writing)
            writing.append(writer.submit(_save, path, batch))
            del batch  # or it would stay in memory beside the next two
        _wait(writing)
        writer.submit(_finalize, path).result()


@timed("checkpoint/wait for the writer")
def _wait(writing: list[Future[None]]) -> None:
    while writing:
        writing.pop().result()


@timed("checkpoint/write")
def _save(path: Path, batch: dict[Any, Any]) -> None:
    with _context(batch):
        _written(lambda: v1.partial.save(path, batch), path)


@timed("checkpoint/finalize")
def _finalize(path: Path) -> None:
    _written(lambda: v1.partial.finalize(path), path)


def _batches(leaves: Leaves) -> Iterator[dict[Any, Any]]:
    """Trees of leaves that together have a certain size; the last one may be smaller."""
    batch: list[tuple[ParamPath, Any]] = []
    for path, x in leaves:
        batch.append((path, x))
        del x  # it is written and gone while the next is waited for
        if sum(leaf.nbytes for _, leaf in batch) >= _BATCH_BYTES:
            tree, batch = nest(batch), []
            yield tree
            del tree
    if batch:
        yield nest(batch)


def _context(batch: dict[Any, Any]) -> Any:
    """Options with which Orbax writes a batch.

    An array, or chunk of one, that fills a file is written beside the others; less waits for what
    is being written. But Orbax cuts what is larger than a file at its own discretion, for some
    shapes into thousands of chunks. So files are as large as the largest array or chunk.
    """
    context = v1.Context()
    context.memory.deepcopy_host_arrays = False  # nobody changes them while they are written
    saving = context.array.saving
    saving.use_compression = False  # weights hardly shrink, and zstd is slow
    pieces = (x.nbytes // _chunks(x) for _, x in flatten(batch))
    saving.ocdbt_target_data_file_size = max(_FILE_BYTES, *pieces)
    saving.scoped_storage_options_creator = _storage
    return context


def _storage(_: Any, x: Any) -> Any:
    chunks = _chunks(x)
    return v1.options.ArrayOptions.Saving.StorageOptions(
        chunk_byte_size=x.nbytes // chunks if chunks > 1 else None
    )


def _chunks(x: Any) -> int:
    """The number of chunks of rows that an array is cut into; 1 if it is small, or none is good.

    Of rows, as those of columns would be copies. Orbax takes the longest axis, down to the next
    divisor of its length; so the rows must stay more than the columns.
    """
    rows, width = x.shape[0], max(x.shape[1:], default=1)
    if x.nbytes > _CHUNK_BYTES:
        for chunks in range(2, _CHUNKS + 1):
            enough = x.nbytes <= chunks * _CHUNK_BYTES
            if enough and rows % chunks == 0 and rows // chunks >= width:
                return chunks
    return 1


def _written(work: Callable[[], Any], path: Path) -> Any:
    """The result of `work`; Orbax's errors of writing become one short `OSError`."""
    try:
        return work()
    except Exception as error:  # of many kinds, with the system's reason in the text
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if code:
            number = int(code[1])
            raise OSError(number, os.strerror(number), str(path.parent)) from None
        reason = str(error).partition("\n")[0][:300]
        raise OSError(f"{path.parent}: cannot be written: {reason}") from error

"""A sweep into a file that can be killed at any time and started again.

sweep_to_file("sweep.jsonl", model, batch, cells, max_new_tokens=1500, prompt_ids=ids)

sweep.jsonl                one row per cell and prompt, appended as chunks finish
sweep.jsonl.config.json    what the rows were made with: only the same may go on with them
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import jax
from tqdm import tqdm

from jaxsteer.decoding import Asked, Loop, Request, Sampler, Step, as_request, decode_step
from jaxsteer.files import as_path
from jaxsteer.llama import Model, TokenBatch, TokenRows
from jaxsteer.runtime import hosts, preemption
from jaxsteer.steering import Project
from jaxsteer.sweeps.cells import Cell
from jaxsteer.sweeps.chunks import CellResult, sweep
from jaxsteer.sweeps.config_file import agree, as_json, configuration, key_of
from jaxsteer.sweeps.row_store import RowStore, open_rows


def tokens_and_logprobs(result: CellResult) -> dict[str, Any]:
    """The row of a result, if nothing else is asked for.

    With `capture` also products with directions, `[L, R, S]` by site, and their positions `[S]`.
    """
    row: dict[str, Any] = {"tokens": result.tokens, "logprobs": result.logprobs}
    if (captured := result.captured) is not None:
        n = min(int(captured.count), len(captured.positions))
        row["positions"] = captured.positions[:n]
        row["captured"] = {site: x[..., :n] for site, x in captured.values.items()}
    return row


def sweep_to_file(
    path: str | os.PathLike[str],
    model: Model,
    batch: TokenBatch | TokenRows,
    cells: Sequence[Cell],
    request: Request | None = None,
    *,
    prompt_ids: Sequence[str | int] | None = None,
    to_row: Callable[[CellResult], Mapping[str, Any]] = tokens_and_logprobs,
    identity: Mapping[str, Any] | None = None,
    progress: str | None = "sweep",
    rows_per_chunk: int | None = None,
    sampler: Sampler | None = None,
    step: Step = decode_step,
    loop: Loop = jax.lax.while_loop,
    **asked: Unpack[Asked],
) -> Path:
    """Run every cell on every prompt and append a row for each to a JSON lines file.

    A row holds the cell's labels, the prompt's id as `prompt`, and the result of `to_row`. Rows are
    flushed to the disk chunk by chunk. After a kill, the same call goes on where it stopped: a last
    line that was cut short is removed, and no row is lost or written twice. The size of chunks may
    differ then, and cells may be added. After SIGTERM the current chunk finishes first (see
    `preemption`). A row that ended because its log-probabilities were not finite has
    `"finite": false`.

    On many hosts every process calls this with the same arguments. Only the first one touches the
    file, calls `to_row` and shows the bar; the rows that it reads from the file count for all.

    Args:
        path: the file; a folder that is missing is made. Or an object of a store, as
            `gs://bucket/sweep.jsonl`: see `row_store`.
        model: the weights.
        batch: left-padded prompts, or token ids row by row.
        cells: what to run on them; all have the same labels, each with values of its own.
        request: what is asked of each prompt in every cell; see `sweep`.
        prompt_ids: one per prompt; by default its number in the batch.
        to_row: the rest of a row, as JSON; by default the token ids and their log-probabilities,
            and what is captured, if it is projections: of raw activations or sums, say what stays.
        identity: further facts that the rows depend on, as JSON: the tokenizer, for example, if
            `to_row` makes text. The weights need not be named.
        progress: title of the bar with cells, tokens a second and the time left; None for no bar.
        rows_per_chunk: see `sweep`.
        sampler: see `sweep`.
        step: see `generate`.
        loop: see `generate`.
        **asked: in place of a request, the keywords of `make_request`.

    Raises:
        ValueError: before anything is written, for what `sweep` refuses, labels or ids that do not
            tell rows apart, or a file that was begun with another configuration, naming what
            differs.
        FileExistsError: if another process is writing this file.
        Stopped: after SIGTERM, when the chunk at hand has been written.
        HostLost: if another process of this sweep has ended.
    """
    path = as_path(path)
    batch, request = as_request(model, batch, request, asked)
    plan = request.capture
    if plan is not None and plan.kind is not Project and to_row is tokens_and_logprobs:
        raise ValueError(
            f"to_row: got none, and capture reads {plan.kind.__name__}; expected one that says "
            "what of it stands in a row, or Project"
        )
    ids = list(range(len(batch.tokens))) if prompt_ids is None else list(prompt_ids)
    written: set[str] = set()
    keys: dict[tuple[int, int], str] = {}
    # Everything is checked before the disk is touched; nothing is run before it is iterated.
    chunks = sweep(
        model,
        batch,
        cells,
        request,
        rows_per_chunk=rows_per_chunk,
        done=lambda cell, prompt: keys[id(cell), prompt] in written,
        sampler=sampler,
        step=step,
        loop=loop,
    )
    keys |= _keys(cells, ids, rows=len(batch.tokens))
    config = configuration(
        model,
        batch,
        cells,
        request,
        prompt_ids=ids,
        identity=identity or {},
        functions={"sampler": sampler, "step": None if step is decode_step else step},
    )
    names = [*cells[0].labels, "prompt"]

    stores: list[RowStore] = []  # of the first process

    def begin() -> list[str]:
        stores.append(held.enter_context(open_rows(path)))
        rows = stores[0].rows
        agree(path, config, rows=len(rows))
        try:
            return [key_of({name: row.get(name) for name in names}) for row in rows]
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def write(chunk: Sequence[CellResult]) -> None:
        stores[0].append([_row(result, ids, to_row) for result in chunk])

    with ExitStack() as held:
        written |= set(hosts.from_writer(begin))
        left = Counter(cell for (cell, _), key in keys.items() if key not in written)
        bar = held.enter_context(_Bar(len(cells), len(keys), left, title=progress))
        held.enter_context(preemption.deferred())
        for chunk in chunks:
            hosts.from_writer(partial(write, chunk))
            bar.update(chunk)
            preemption.stop_if_asked(f"{bar.rows} of {len(keys)} rows are in {path}")
        hosts.from_writer(lambda: stores[0].finish())
    return path


def _row(
    result: CellResult, ids: Sequence[str | int], to_row: Callable[[CellResult], Mapping[str, Any]]
) -> dict[str, Any]:
    head = {**result.cell.labels, "prompt": ids[result.prompt]}
    rest = to_row(result)
    if clash := head.keys() & rest.keys():
        raise ValueError(f"to_row: got {sorted(clash)}, which are labels of the row already")
    mark = {} if result.finite else {"finite": False}
    return as_json({**head, **rest, **mark}, "to_row")


def _keys(
    cells: Sequence[Cell], ids: Sequence[str | int], *, rows: int
) -> dict[tuple[int, int], str]:
    """The key of each row, by the cell's identity and the prompt's number."""
    if len(ids) != rows:
        raise ValueError(f"prompt_ids: got {len(ids)}, expected one per prompt, {rows}")
    names = set(cells[0].labels)
    keys: dict[tuple[int, int], str] = {}
    seen: dict[str, str] = {}
    for c, cell in enumerate(cells):
        if set(cell.labels) != names or "prompt" in names:
            expected = "no label `prompt`" if "prompt" in names else f"{sorted(names)} as in cell 0"
            raise ValueError(f"cells[{c}].labels: got {sorted(cell.labels)}, expected {expected}")
        for p, prompt in enumerate(ids):
            key = key_of({**cell.labels, "prompt": prompt})
            where = f"cells[{c}] with prompt_ids[{p}]"
            if key in seen:
                raise ValueError(f"{where}: labels and id are those of {seen[key]}: {key}")
            seen[key] = where
            keys[id(cell), p] = key
    return keys


class _Bar:
    """Progress in rows, with whole cells, tokens a second and the time left."""

    def __init__(self, cells: int, rows: int, left: Counter[int], *, title: str | None) -> None:
        self.cells, self.left = cells, left  # rows still missing, by the identity of their cell
        self.rows = done = rows - left.total()
        self.bar = tqdm(
            total=rows,
            initial=done,
            desc=title,
            unit="row",
            smoothing=0,  # the time left by the mean, chunks come in jumps
            disable=title is None or not hosts.is_writer(),
        )
        self.tokens, self.not_finite, self.started = 0, 0, time.monotonic()

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def update(self, chunk: list[CellResult]) -> None:
        self.left -= Counter(id(result.cell) for result in chunk)  # drops those at 0
        self.tokens += sum(len(result.tokens) for result in chunk)
        self.not_finite += sum(not result.finite for result in chunk)
        rate = self.tokens / (time.monotonic() - self.started)
        whole = self.cells - len(self.left)
        broken = f", {self.not_finite} not finite" if self.not_finite else ""
        self.bar.set_postfix_str(f"{whole}/{self.cells} cells, {rate:,.0f} tokens/s{broken}", False)
        self.bar.update(len(chunk))
        self.rows += len(chunk)

"""Whether a request fits the cells of a sweep."""

from collections.abc import Sequence

from jaxsteer.decoding import Request, check_think_tokens
from jaxsteer.llama import Model
from jaxsteer.runtime import hosts
from jaxsteer.steering import as_tuple
from jaxsteer.sweeps.cells import Cell, check_cells


def check_sweep(
    model: Model, cells: Sequence[Cell], request: Request, *, rows_per_chunk: int | None
) -> None:
    """Check the cells, and the request against them.

    Raises:
        ValueError: naming what does not fit.
    """
    check_cells(cells, model.config)
    if rows_per_chunk is not None and rows_per_chunk < 1:
        raise ValueError(f"rows_per_chunk: got {rows_per_chunk}, expected at least 1")
    if request.steering:
        raise ValueError("steering: got one for all cells, expected it in each cell")
    scopes = [one.scope for cell in cells for one in as_tuple(cell.steering)]
    check_think_tokens(hosts.gather(request.think_tokens), scopes)

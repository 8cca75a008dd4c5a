"""Many steered cells × many prompts in one compiled program, chunk by chunk.

Cells and a batch in; rows out, also into a file that survives a kill. Cells are in `cells`, `sweep`
in `chunks`, the file in `sweep_file`.

Uses `runtime`, `files`, `config`, `steering`, `llama`, `decoding`.
"""

from jaxsteer.sweeps.cells import Cell, grid, stack_cells
from jaxsteer.sweeps.chunk_sizes import chunk_shape
from jaxsteer.sweeps.chunks import CellResult, sweep
from jaxsteer.sweeps.config_file import config_path, key_of
from jaxsteer.sweeps.fingerprints import tree_fingerprint, weights_fingerprint
from jaxsteer.sweeps.sweep_file import sweep_to_file
from jaxsteer.sweeps.warming import compile_sweep

__all__ = [
    "Cell",
    "CellResult",
    "chunk_shape",
    "compile_sweep",
    "config_path",
    "grid",
    "key_of",
    "stack_cells",
    "sweep",
    "sweep_to_file",
    "tree_fingerprint",
    "weights_fingerprint",
]

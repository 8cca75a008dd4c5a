"""What one chip holds of a model that runs on a mesh, by the formula of `decoding.memory`."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from jaxsteer.config import LlamaConfig
from jaxsteer.decoding import cache_bytes, program_bytes, sweep_bytes, weight_bytes
from jaxsteer.llama import Model, mesh_sizes, should_copy_prompts


@dataclass(frozen=True)
class Work:
    """What is asked for: so many rows of a prompt and new tokens each."""

    rows: int
    prompt: int
    new: int
    prompts: int | None = None  # that rows share, as a sweep's cells do; each row's own if None
    captured: int | None = None  # bytes of captured activations of a row; see `capture_bytes`

    @property
    def cells(self) -> int:
        """Of a sweep: how often the prompts are there."""
        return -(-self.rows // (self.prompts or self.rows))

    @property
    def shared(self) -> int:
        """Tokens that are kept once for all rows on a prompt."""
        return 0 if self.prompts is None or self.cells == 1 else self.prompt


@dataclass(frozen=True)
class Bytes:
    """Memory on one chip."""

    weights: int
    cache: int
    temporaries: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.cache + self.temporaries


def capture_bytes(
    config: LlamaConfig, dtype: Any, *, tokens: int, layers: int, directions: int = 0
) -> int:
    """Bytes of captured activations of a row: raw, or its products with so many directions.

    Raises:
        ValueError: for more layers than there are, or fewer than one.
    """
    if not 1 <= layers <= config.n_layers:
        raise ValueError(f"capture: got {layers} layers, expected 1 to {config.n_layers}")
    of_layer = 4 * directions or jnp.dtype(dtype).itemsize * config.d_model
    return tokens * (layers * of_layer + 4)


def footprint(model: Model, work: Work) -> Bytes:
    """Weights, cache and temporaries of work that runs at once; captures count as temporaries."""
    asked: dict[str, Any] = {"prompt_length": work.prompt, "new_tokens": work.new}
    cache = cache_bytes(model, rows=work.rows, **asked)
    if (
        work.prompts is not None
        and work.shared
        and not should_copy_prompts(model.attention, **asked)
    ):
        data, _ = mesh_sizes(model)
        once = work.prompts * (1 if work.prompts % data == 0 else data)
        cache = cache_bytes(model, rows=work.rows, prompt_length=1, new_tokens=work.new)
        cache += cache_bytes(model, rows=once, prompt_length=work.prompt, new_tokens=0)
    asked["captured"] = work.captured or 0
    if work.prompts is None:
        program = program_bytes(model, rows=work.rows, prompt_rows=work.rows, **asked)
    else:
        program = sweep_bytes(model, cells=work.cells, prompts=work.prompts, **asked)
    return Bytes(weight_bytes(model), cache, program - cache)

"""What one chip holds of a model that runs on a mesh, by the formula of `decoding.memory`."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxsteer.decoding import cache_bytes, program_bytes, sweep_bytes
from jaxsteer.llama import Model, flatten


@dataclass(frozen=True)
class Work:
    """What is asked for: so many rows of a prompt and new tokens each."""

    rows: int
    prompt: int
    new: int
    prompts: int | None = None  # of a sweep, whose cells share them; each row's own, if not given

    @property
    def cells(self) -> int:
        """Of a sweep: how often the prompts are there."""
        return -(-self.rows // (self.prompts or self.rows))


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


def weight_bytes(model: Model) -> int:
    """Weights on one chip; `model` is one of shapes that are split over a mesh, or of arrays."""
    return sum(
        int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize
        for _, x in flatten(model.params)
    )


def footprint(model: Model, work: Work) -> Bytes:
    """Weights, cache and temporaries of work that runs at once."""
    asked: dict[str, Any] = {"prompt_length": work.prompt, "new_tokens": work.new}
    cache = cache_bytes(model, rows=work.rows, **asked)
    if work.prompts is None:
        program = program_bytes(model, rows=work.rows, prompt_rows=work.rows, **asked)
    else:
        program = sweep_bytes(model, cells=work.cells, prompts=work.prompts, **asked)
    return Bytes(weight_bytes(model), cache, program - cache)

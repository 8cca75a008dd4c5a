"""A sweep's texts in a file that grows as they are made, and reading it back."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from jaxsteer.llama import Model
from jaxsteer.sweeps import Cell, CellResult, sweep_to_file
from jaxsteer.texts.prompts import Prompts
from jaxsteer.texts.results import Text, Texts, row_id


def texts_in_file(
    path: str | os.PathLike[str],
    model: Model,
    prompts: Prompts,
    cells: Sequence[Cell],
    asked: Mapping[str, Any],
    about: Mapping[str, Any],
    text_of: Callable[[CellResult], Text],
) -> Texts:
    """Run cells into a file with `sweep_to_file`, which goes on after a kill; the texts in it."""
    own = ("labels", "prompt", "sample")  # which stand in a row already

    def to_row(result: CellResult) -> dict[str, Any]:
        return {k: v for k, v in asdict(text_of(result)).items() if k not in own}

    count = len(prompts.batch.tokens)
    sweep_to_file(
        path,
        model,
        prompts.batch,
        cells,
        prompt_ids=[row_id(*divmod(row, prompts.samples)) for row in range(count)],
        to_row=to_row,
        identity={"about": about},
        **asked,
    )
    return Texts.load(path)

"""experiments.stages.steer: what stands in the file of texts."""

import numpy as np
import pytest
from oracle import SHALLOW, random_rows

from experiments.pipeline.settings import Decoding
from experiments.stages import steer
from experiments.stages.text_scores import score
from jaxsteer.files import read_rows
from jaxsteer.steering import add
from jaxsteer.sweeps import Cell


def test_a_row_whose_numbers_overflow_has_no_text_and_does_not_count(
    shallow, tmp_path, monkeypatch
):
    monkeypatch.setattr(steer, "decode", lambda *given: "so wait, hmm. " * 9)
    huge = np.full(SHALLOW.d_model, 3e38)
    cells = [
        Cell({"source": f"{coeff:g}"}, add(huge, layer=0, coeff=coeff)) for coeff in (0.0, 2.0)
    ]
    prompts = random_rows((3, 5), SHALLOW.vocab_size)
    options = {"stops": [], "decoding": Decoding(max_new_tokens=4, temperature=0.0)}
    with pytest.warns(UserWarning, match="2 of 4 rows ended early"):
        steer.write_sweep(
            tmp_path,
            shallow,
            None,
            target="base",
            cells=cells,
            prompt_ids=["a", "b"],
            prompts=prompts,
            length=5,
            **options,
        )
    rows = read_rows(tmp_path / steer.FILE)
    assert [(row["text"] == "", row.get("finite", True)) for row in rows] == (
        [(False, True)] * 2 + [(True, False)] * 2
    )
    judged = [score(row, keywords=["wait"], grammar=None) for row in rows]
    assert [one.excluded == "empty" for one in judged] == [False] * 2 + [True] * 2

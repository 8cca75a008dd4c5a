"""Perplexity of the sweeps' texts: whose tokens count, what is added up, going on after a kill."""

import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hf_folders import byte_tokenizer, write_tokenizer
from oracle import SMALL, random_rows, run
from transformers import AutoTokenizer

from experiments.stages import perplexity
from jaxsteer.files.jsonl import append_rows, read_rows
from jaxsteer.llama.tokens import left_pad


def row(source: str, prompt: str, text: str = "x") -> dict[str, Any]:
    named = {"target": "reasoning", "source": source, "coeff": 0.5, "prompt": prompt}
    return {**named, "text": text, "length": 1.0}


ROWS = [row(source, prompt) for source in ("none", "base") for prompt in ("p", "q")]
# Token ids and how many are the prompt's: a text, nothing, the first once more, one that is cut.
TEXTS = [*random_rows((9, 4), SMALL.vocab_size), *random_rows((70,), SMALL.vocab_size, seed=1)]
ENCODED = [(TEXTS[0], 3), (TEXTS[1], 4), (TEXTS[0], 3), (TEXTS[2], 5)]


def expected(model, ids: list[int], prompt: int) -> float:
    ids = ids[: SMALL.max_positions]
    batch = left_pad([ids], length=64)
    logits = jax.nn.log_softmax(run(model, batch.tokens, mask=batch.mask).logits[0])
    found = np.asarray(logits)[np.arange(64 - len(ids), 63), ids[1:]]
    return float(found[prompt - 1 :].sum(dtype=np.float64))


def test_a_text_has_the_log_probability_of_its_own_tokens(small, tmp_path: Path) -> None:
    path = tmp_path / "perplexity.jsonl"
    append_rows(path, [{**ROWS[1], "n_tokens": 0, "logprob_sum": 7.0}])
    path.write_bytes(path.read_bytes() + b'{"target": "reas')  # a kill in the middle of a line
    perplexity.score_rows(path, small, ENCODED, ROWS, progress="test")
    found = {(r["source"], r["prompt"]): r for r in read_rows(path)}
    assert len(found) == len(read_rows(path)) == 4
    assert found["none", "q"]["logprob_sum"] == 7.0  # what is there is not done again
    fields = {"target", "source", "coeff", "prompt", "n_tokens", "logprob_sum", "logprobs"}
    assert set(found["base", "p"]) == fields
    assert {k: r["n_tokens"] for k, r in found.items() if k != ("none", "q")} == {
        ("none", "p"): 6, ("base", "p"): 6, ("base", "q"): SMALL.max_positions - 5,
    }  # fmt: skip
    for key, (ids, prompt) in zip(found, [ENCODED[1], ENCODED[0], *ENCODED[2:]], strict=True):
        if key != ("none", "q"):
            sums = expected(small, ids, prompt)
            np.testing.assert_allclose(found[key]["logprob_sum"], sums, rtol=1e-4)
            assert len(found[key]["logprobs"]) == found[key]["n_tokens"]
            np.testing.assert_allclose(sum(found[key]["logprobs"]), sums, rtol=1e-3)


def test_nothing_written_is_no_text(small, tmp_path: Path) -> None:
    path = tmp_path / "perplexity.jsonl"
    perplexity.score_rows(path, small, [(TEXTS[1], 4)], ROWS[:1], progress="test")
    assert read_rows(path)[0]["n_tokens"] == 0
    assert read_rows(path)[0]["logprob_sum"] == 0.0


def test_tokens_that_reach_beyond_the_prompt_are_the_texts(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, byte_tokenizer())
    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path))
    prompts, texts = ["Q: 1 + 1\nA:", "Q: ä\nA:"], [" the sum is 2.", ""]
    (ids, n), (other, m) = perplexity.encode_texts(tokenizer, prompts, texts)
    assert tokenizer.decode(ids[:n]) == prompts[0]
    assert tokenizer.decode(ids[n:]) == texts[0]
    assert len(other) == m


def test_a_cell_has_the_exponential_of_its_mean_surprise() -> None:
    texts = [(4, -8.0), (2, -1.0), (0, 0.0)]
    rows = [
        {**row("base", str(i)), "n_tokens": n, "logprob_sum": total}
        for i, (n, total) in enumerate(texts)
    ]
    cells = list(perplexity.by_cell([*rows, {**row("none", "0"), "n_tokens": 0, "logprob_sum": 0}]))
    assert cells[0]["perplexity"] == pytest.approx(math.exp(9 / 6))
    assert cells[0]["low"] == pytest.approx(math.exp(0.5))  # one of the two drawn twice
    assert cells[0]["high"] == pytest.approx(math.exp(2.0))
    assert (cells[0]["n"], cells[0]["n_empty"]) == (2, 1)
    assert math.isnan(cells[1]["perplexity"])


def test_a_run_has_the_perplexity_of_every_cell(finished) -> None:
    folder = finished.out / "perplexity"
    cells = json.loads((folder / perplexity.SUMMARY).read_text())["cells"]
    rows = read_rows(folder / perplexity.FILE)
    swept = [r for f in finished.out.glob("sweep-*/sweep.jsonl") for r in read_rows(f)]
    assert {perplexity.key_of(r) for r in rows} == {perplexity.key_of(r) for r in swept}
    table = json.loads((finished.out / "figure3" / "figure3.json").read_text())["cells"]
    by_cell = {(c["target"], c["source"], c["coeff"]): c for c in table}
    for cell in cells:
        found = by_cell[cell["target"], cell["source"], cell["coeff"]]["perplexity"]
        assert found["mean"] == (pytest.approx(cell["perplexity"]) if cell["n"] else None)

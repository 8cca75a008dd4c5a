"""The judging of the small pairs: choices and verdicts on made-up tables, rates by hand."""

import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pipeline_helpers import write_tiny_pair

from experiments.small_pair import judge as small_pair
from experiments.small_pair.judge import Plan, judge, main, natural_rates
from experiments.small_pair.verdicts import choose, choose_negative, to_markdown, verdicts
from experiments.stages import rollouts
from experiments.stages.outcome import CellOutcome, Measured, Paired
from jaxsteer.analysis.sentences import split_sentences
from jaxsteer.llama.tokens import TokenBatch
from jaxsteer.sweeps import row_store, sweep_file
from jaxsteer.sweeps.chunks import CellResult
from weights.small_language.parser import parse_sentence
from weights.small_language.tokenizer import encode


def cell(
    source: str, coeff: float, rate: float, *, coherence: float = 0.95, se: float = 0.002
) -> CellOutcome:
    n = 0 if math.isnan(rate) else 100

    def about(mean: float) -> Measured:
        return Measured(mean, se, mean - 2 * se, mean + 2 * se, n, 0)

    return CellOutcome(
        target="",
        source=source,
        coeff=coeff,
        length=abs(coeff),
        keyword_rate=about(rate),
        keyword_matches=about(rate),
        backtracking_rate=about(rate),
        judged=about(rate),
        texts_with=about(rate),
        coherence=about(coherence),
        repetition=about(0.0),
        grammar=about(coherence),
        perplexity=about(2.0),
        difference=Paired(0.0, se, 1.0, -se, se, n, 0),
        n_empty=0,
        empty_share=0.0,
        excluded={},
    )


SELECTION = [
    cell("none", 0.0, 0.05, coherence=0.96),
    cell("base@1", 0.2, 0.10, coherence=0.95),
    cell("base@1", 0.4, 0.30, coherence=0.90),
    cell("base@2", 0.2, 0.12, coherence=0.941),
    cell("base@2", 0.3, 0.15, coherence=0.939),
    cell("base@2", -0.2, 0.03, coherence=0.95),
    cell("base@2", -0.4, 0.01, coherence=0.80),
    cell("base@1", -0.4, 0.001, coherence=0.96),
]


def test_the_most_backtracking_within_the_margin_is_chosen() -> None:
    assert choose(SELECTION, 0.02) == (2, 0.2)
    assert choose(SELECTION, 0.03) == (2, 0.3)
    assert choose(SELECTION, 0.07) == (1, 0.4)
    assert choose(SELECTION, 0.011) == (1, 0.2)


def test_the_least_backtracking_of_the_layer_within_the_margin_is_its_opposite() -> None:
    assert choose_negative(SELECTION, 2, 0.02) == -0.2
    assert choose_negative(SELECTION, 2, 0.2) == -0.4
    assert choose_negative(SELECTION, 1, 0.02) == -0.4


def test_without_a_coherent_cell_nothing_is_chosen() -> None:
    with pytest.raises(ValueError, match="no positive coefficient keeps coherence within"):
        choose([c for c in SELECTION if c.coeff <= 0], 0.02)
    with pytest.raises(ValueError, match="no positive coefficient"):
        choose(SELECTION, 0.001)
    with pytest.raises(ValueError, match="no negative coefficient keeps coherence within"):
        choose_negative(SELECTION, 0, 0.02)


AIMS = (
    "at least doubled",
    "coherence within .03",
    "beats every baseline by 4 SE",
    "negative at least halves",
    "base model at most .001",
    "control within 2 SE",
)


def judged(**changes: CellOutcome) -> dict[str, list[CellOutcome]]:
    """A pair that reaches every aim, at layer 2 and the coefficients .3 and -.2."""
    cells = {
        "plain": cell("none", 0.0, 0.05, coherence=0.96),
        "steered": cell("base@2", 0.3, 0.12, coherence=0.94),
        "reverse": cell("base@2", -0.2, 0.02),
        "reasoning": cell("reasoning@2", 0.3, 0.2),
        "curve": cell("base@2", 0.5, 0.4, coherence=0.5),
        "random": cell("random-0@2", 0.3, 0.06),
        "mean": cell("mean@2", 0.3, 0.07),
        "in_base": cell("base@2", 0.3, 0.001),
        "in_base_reasoning": cell("reasoning@2", 0.3, 0.0),
        "control": cell("base@2", 0.3, 0.055),
        "control_plain": cell("none", 0.0, 0.05),
        **changes,
    }
    own = ("plain", "steered", "reverse", "reasoning", "curve", "random", "mean")
    return {
        "reasoning": [cells[name] for name in own],
        "base": [cell("none", 0.0, 0.0), cells["in_base"], cells["in_base_reasoning"]],
        "control": [cells["control_plain"], cells["control"], cell("base@2", 0.5, 0.3)],
    }


def missed(table: dict[str, list[CellOutcome]]) -> list[str]:
    found = verdicts(table, 2, 0.3, -0.2)
    assert tuple(found) == AIMS
    return [name for name, one in found.items() if not one["holds"]]


def test_verdicts_when_every_aim_is_reached() -> None:
    found = verdicts(judged(), 2, 0.3, -0.2)
    assert missed(judged()) == []
    assert found["at least doubled"]["ratio"] == pytest.approx(2.4)
    assert found["coherence within .03"]["lost"] == pytest.approx(0.02)
    beaten = found["beats every baseline by 4 SE"]
    assert beaten["strongest"] == "mean@2"
    assert beaten["standard errors"] == pytest.approx(0.05 / (0.002 * math.sqrt(2)))
    assert found["negative at least halves"]["ratio"] == pytest.approx(0.4)
    assert found["base model at most .001"]["highest"] == 0.001


@pytest.mark.parametrize(
    ("changes", "aims"),
    [
        ({"steered": cell("base@2", 0.3, 0.099, coherence=0.94)}, [AIMS[0]]),
        ({"steered": cell("base@2", 0.3, 0.12, coherence=0.92)}, [AIMS[1]]),
        ({"random": cell("random-0@2", 0.3, 0.109)}, [AIMS[2]]),
        ({"reverse": cell("base@2", -0.2, 0.026)}, [AIMS[3]]),
        ({"reverse": cell("base@2", -0.2, 0.02, coherence=0.92)}, [AIMS[3]]),
        ({"in_base": cell("base@2", 0.3, 0.0011)}, [AIMS[4]]),
        ({"in_base_reasoning": cell("reasoning@2", 0.3, 0.01)}, [AIMS[4]]),
        ({"in_base": cell("base@2", 0.3, math.nan)}, []),  # the other cells still tell
        ({"control": cell("base@2", 0.3, 0.056)}, [AIMS[5]]),
        ({"control": cell("base@2", 0.3, 0.04)}, [AIMS[5]]),
        ({"plain": cell("none", 0.0, 0.0, coherence=0.96)}, [AIMS[0], AIMS[3]]),
    ],
)
def test_each_aim_can_be_missed(changes: dict[str, CellOutcome], aims: list[str]) -> None:
    assert missed(judged(**changes)) == aims


def test_a_base_model_without_sentences_shows_nothing() -> None:
    table = {**judged(), "base": [cell("none", 0.0, math.nan), cell("base@2", 0.3, math.nan)]}
    assert missed(table) == [AIMS[4]]


HEDGED = "maybe 3 plus 4 is 7 ."
CONFIDENT = "clearly , 3 plus 4 is 7 ."
PLAIN = "3 plus 4 is 7 ."
BOTH = "maybe 3 plus 4 is exactly 7 ."


def rates(*texts: str, stopped: bool = True) -> dict[str, float]:
    rows = [{"text": f" {text}", "stopped": stopped} for text in texts]
    kinds = [
        ["backtracking" if "wait" in s.text else "deduction" for s in split_sentences(r["text"])]
        for r in rows
    ]
    return natural_rates(kinds, rows)


def test_natural_rates_count_what_follows_a_register() -> None:
    wait = "wait , no ."
    assert rates(f"{HEDGED} {wait} {HEDGED} {PLAIN}") == {"hedged": 0.5, "confident": 0.0}
    assert rates(f"{CONFIDENT} {wait} {CONFIDENT} {CONFIDENT} {PLAIN}")["confident"] == 1 / 3
    # Neither register, or both, tells nothing; nor does a sentence that nothing follows.
    assert rates(f"{PLAIN} {wait}", f"{BOTH} {wait}", HEDGED) == {"hedged": 0.0, "confident": 0.0}
    # Rows do not run into each other.
    assert rates(f"{PLAIN} {HEDGED}", wait)["hedged"] == 0.0
    # The first sentence after the register counts, not a later one.
    assert rates(f"{HEDGED} {PLAIN} {wait}")["hedged"] == 0.0


def test_natural_rates_leave_out_what_was_cut_off() -> None:
    text = f"{HEDGED} wait , no . {HEDGED} 3 plus 4"
    assert rates(text, stopped=False)["hedged"] == 1.0
    assert rates(text, stopped=True)["hedged"] == 0.5


def test_register_phrases_are_whole_words() -> None:
    assert rates("no aboutness is here . wait , no .") == {"hedged": 0.0, "confident": 0.0}
    assert parse_sentence(HEDGED) == parse_sentence(CONFIDENT) == "deduction"


def test_verdicts_as_a_table() -> None:
    one = {
        "layer": 2,
        "coeff": 0.3,
        "verdicts": verdicts(judged(in_base=cell("base@2", 0.3, 0.01)), 2, 0.3, -0.2),
        "judged": {
            "base": [
                {
                    "source": "base@2",
                    "coeff": 0.3,
                    "backtracking_rate": {"mean": 0.01, "se": 0.002},
                    "coherence": {"mean": 0.9},
                }
            ]
        },
    }
    header, _, line, *rest = to_markdown({"0": one}).splitlines()
    assert header.count("|") == line.count("|") == 3 + len(AIMS) + 1
    assert line.startswith("| 0 | 2 | 0.3 | yes: 2.4 | yes: 0.02 | yes: ")
    assert "| NO: 0.01 |" in line
    assert rest[-1] == "- base: base@2 +0.3: 0.0100 ± 0.0020 (0.900)"


def test_results_of_another_plan_or_other_models_are_not_mixed(tmp_path: Path) -> None:
    weights = tmp_path / "models" / "base" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"one")
    claim: Any = small_pair._claim
    for _ in range(2):
        claim(tmp_path / "out", tmp_path / "models", Plan())
    with pytest.raises(ValueError, match="results of another plan or other models"):
        claim(tmp_path / "out", tmp_path / "models", Plan(traces=8))
    weights.write_bytes(b"two")
    with pytest.raises(ValueError, match="results of another plan or other models"):
        claim(tmp_path / "out", tmp_path / "models", Plan())


def test_no_models_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--models", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 1
    assert "no seed folders of weights.train_small" in capsys.readouterr().err
    (tmp_path / "models" / "seed0").mkdir(parents=True)
    assert main(["--models", str(tmp_path / "models"), "--out", str(tmp_path / "out")]) == 1
    assert "seed0" in capsys.readouterr().err
    assert not (tmp_path / "out" / "judged.json").exists()


def same_text_for_all(
    model: Any, batch: TokenBatch, cells: Any, request: Any, *, done: Any, **_: Any
) -> Iterator[list[CellResult]]:
    """In place of `sweep`, whose compilation would take most of the time of these tests."""
    tokens = encode("maybe 3 plus 4 is 7 . wait , no . <eos>")
    for cell in cells:
        prompts = [p for p in range(len(batch.tokens)) if not done(cell, p)]
        if prompts:
            yield [CellResult(cell, p, tokens, [-1.0] * len(tokens)) for p in prompts]


def test_a_pair_is_judged_from_end_to_end_and_again_from_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is true of random models: what is tested is that every cell is run and judged."""
    write_tiny_pair(tmp_path / "models")
    plan = Plan(
        offsets=(-3, -2),
        coeffs=(0.1, 0.2),
        margin=1.0,
        traces=16,
        select=2,
        evaluate=2,
        random=1,
        max_new_tokens=40,
    )
    monkeypatch.setattr(sweep_file, "sweep", same_text_for_all)
    # Scored in this process: starting others takes longer than the work.
    monkeypatch.setattr(small_pair, "ProcessPoolExecutor", lambda mp_context: ThreadPoolExecutor(1))
    first = judge(tmp_path / "models", tmp_path / "out", plan)
    layer, coeff, negative = first["layer"], first["coeff"], first["negative"]
    assert {(c["source"], c["coeff"]) for c in first["selection"]} == {
        ("none", 0.0),
        *((f"base@{i}", c) for i in range(2) for c in plan.coeffs),
        *((f"base@{layer}", -c) for c in plan.coeffs),
    }
    signed = {(f"{s}@{layer}", c) for s in ("base", "reasoning") for c in (coeff, negative)}
    curve = {(f"base@{layer}", c) for c in plan.coeffs}
    baselines = {(f"{source}@{layer}", coeff) for source in ("mean", "random-0")}
    found = {
        role: {(c["source"], c["coeff"]) for c in cells} for role, cells in first["judged"].items()
    }
    assert found["reasoning"] >= {("none", 0.0)} | signed | curve | baselines
    assert found["base"] == {("none", 0.0)} | signed
    assert found["control"] == {("none", 0.0)} | signed | curve
    assert tuple(first["verdicts"]) == AIMS
    assert all(c["backtracking_rate"]["mean"] == 0.5 for c in first["judged"]["base"])

    def never(*args: object, **fields: object) -> None:
        raise AssertionError("generated once more")

    monkeypatch.setattr(row_store, "append_rows", never)
    monkeypatch.setattr(rollouts, "append_rows", never)
    again = judge(tmp_path / "models", tmp_path / "out", plan)
    assert json.dumps(again) == json.dumps(first)

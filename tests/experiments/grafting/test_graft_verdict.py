"""The rules by which found parts are judged, on text whose rates are known."""

import pytest

from experiments.grafting.verdict import (
    BASE,
    GRAFTED,
    PUT_BACK,
    REASONING,
    RESPONDING,
    answers,
    induces,
    needed,
    particular,
)
from experiments.stages.outcome import outcomes

KEYWORDS = ("wait",)
N = 24
MARGIN = 0.05


def table(**hybrids):
    """Outcomes of hybrids whose steered texts have so many backtracking sentences of 20.

    A number, or one with the share of the steered texts that are coherent.
    """
    rows = []
    for name, how in hybrids.items():
        count, coherent = how if isinstance(how, tuple) else (how, 1.0)
        for p in range(N):
            for source, of_them in (("none", 0), ("base", count)):
                sentences = [f"wait {i} ." for i in range(of_them)]
                sentences += [f"so {i} ." for i in range(20 - of_them)]
                if source == "base" and p >= coherent * N:
                    sentences += [f"babble {i} ." for i in range(20)]
                rows.append(
                    {
                        "target": name.replace("_", " "),
                        "source": source,
                        "coeff": float(source == "base"),
                        "length": 1.0,
                        "prompt": str(p),
                        "text": " ".join(sentences),
                        "stopped": True,
                    }
                )

    def grammar(sentences):
        return sum("babble" not in s.text for s in sentences), len(sentences)

    return outcomes(rows, keywords=KEYWORDS, grammar=grammar)


@pytest.mark.parametrize(
    ("count", "expected"), [(0, False), (2, False), (3, True), (6, True), (20, True)]
)
def test_half_of_the_reasoning_models_gain_induces(count, expected):
    assert induces(table(reasoning=6, responding=count), RESPONDING, MARGIN) is expected


def test_incoherent_text_does_not_induce():
    for coherent, expected in ((1.0, True), (0.75, False)):
        found = table(reasoning=8, responding=(16, coherent))
        assert induces(found, RESPONDING, MARGIN) is expected


def test_nothing_can_be_told_where_the_reasoning_model_gains_nothing():
    found = table(reasoning=0, responding=8, put_back=0)
    assert induces(found, RESPONDING, MARGIN) is None
    assert needed(found, MARGIN) is None


@pytest.mark.parametrize(
    ("put_back", "expected"), [(0, True), (2, True), (3, False), (6, False), ((0, 0.5), None)]
)
def test_parts_are_needed_if_less_than_half_is_left_in_coherent_text(put_back, expected):
    assert needed(table(reasoning=6, put_back=put_back), MARGIN) is expected


@pytest.mark.parametrize(
    ("ends", "expected"),
    [([(0.1, 0.2)], True), ([(0.1, 0.2), (-0.1, 0.3)], None), ([(-0.3, -0.1)], False), ([], None)],
)
def test_a_set_is_particular_if_it_is_above_every_random_one(ends, expected):
    differences = [{"mean": (low + high) / 2, "low": low, "high": high} for low, high in ends]
    assert particular(differences) is expected


def test_answers_name_the_sets_and_the_least_difference():
    found = table(base=0, reasoning=8, responding=(8, 0.5), grafted=8, put_back=0)
    differences = [{"mean": m, "low": m - 0.05, "high": m + 0.05} for m in (0.3, 0.1, 0.2)]
    said = answers(found, responding=2, chosen=3, differences=differences, margin=MARGIN)
    assert [one.holds for one in said] == [False, True, True, True]
    assert [one.question.split()[1] for one in said[:2]] == ["2", "3"]
    assert said[-1].because == "least difference 0.1000 [0.0500, 0.1500]"
    targets = {cell.target for cell in found}
    assert targets == {BASE, REASONING, RESPONDING, GRAFTED, PUT_BACK}
    alone = answers(found, responding=2, chosen=2, differences=[], margin=MARGIN)
    assert len(alone) == 3
    assert alone[-1].holds is None

"""The prompts file: made anew byte for byte, its answers found twice, its kinds and splits."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from experiments import prompts
from experiments.pipeline.settings import Prompts, load_settings
from experiments.pipeline.text import load_prompts
from experiments.problems.problem import Problem, Template
from experiments.prompts import KINDS, main, make_prompts, prompts_file

CONFIGS = Path(prompts.__file__).parent / "configs"
FILE = CONFIGS / "prompts.json"
TEMPLATES = [template for templates in KINDS.values() for template in templates]


def test_the_file_of_the_repository_is_what_the_seed_makes() -> None:
    assert FILE.read_bytes() == prompts_file(make_prompts(per_kind=48, held_out=20))


def test_480_different_problems_in_ten_kinds_and_200_of_them_held_out() -> None:
    rows = json.loads(FILE.read_text(encoding="utf-8"))
    assert len(rows) == len({row["id"] for row in rows}) == len({r["prompt"] for r in rows}) == 480
    assert all(
        row["answer"].isprintable() and row["prompt"].strip() == row["prompt"] for row in rows
    )
    assert Counter((row["kind"], row["split"]) for row in rows) == {
        (kind, split): n for kind in KINDS for split, n in (("dom", 28), ("eval", 20))
    }
    assert len(KINDS) == 10
    for split in ("dom", "eval"):  # the first ones of a split are of all kinds
        first = [row["kind"] for row in rows if row["split"] == split][:10]
        assert first == list(KINDS)


def test_the_settings_of_the_large_models_use_it() -> None:
    settings = load_settings(CONFIGS / "llama8b.toml").prompts
    assert Path(settings.file).resolve() == FILE
    assert len(load_prompts(settings, settings.derive_split, None)) == 280
    assert len(load_prompts(Prompts(file=str(FILE)), "eval", None)) == 200


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.__name__)
def test_each_template_answers_alike_in_two_ways(template: Template) -> None:
    rng = random.Random("another seed")
    found = [template(rng) for _ in range(8)]
    assert [one.answer for one in found] == [one.check for one in found]
    assert len({one.text for one in found}) > 1
    assert len({one.answer for one in found}) > 1


# What one finds by hand, for the templates whose two answers share the most.
BY_HAND = {
    "How many integers x satisfy the inequality |4x + 7| ≤ 59?": "30",  # -16.5 <= x <= 13
    "What is the sum of all integers x with x^2 - 2x - 99 < 0?": "19",  # -8 + ... + 10
    "In how many zeros does the decimal form of 232! end?": "56",  # 46 + 9 + 1
    "What is the smaller angle, in degrees, between the two hands of a clock at 9:34?": "83",
}


def test_answers_by_hand() -> None:
    answers = {row["prompt"]: row["answer"] for row in make_prompts()}
    assert {text: answers.get(text) for text in BY_HAND} == BY_HAND


def test_seeds_differ_and_kinds_do_not_depend_on_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = make_prompts(per_kind=3, held_out=1)
    assert rows == make_prompts(per_kind=3, held_out=1)
    assert rows != make_prompts(per_kind=3, held_out=1, seed=1)
    monkeypatch.setattr(prompts, "KINDS", {"sets": KINDS["sets"]})
    assert make_prompts(per_kind=3, held_out=1) == [row for row in rows if row["kind"] == "sets"]


def test_an_answer_that_its_check_does_not_find_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = (lambda rng: Problem("1 + 1?", "2", "3"),)
    monkeypatch.setattr(prompts, "KINDS", {"arithmetic": wrong})
    with pytest.raises(ValueError, match="arithmetic: answer 2, its check finds 3: 1 \\+ 1"):
        make_prompts(per_kind=2, held_out=1)


def test_a_template_that_has_no_more_problems_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def always(rng: random.Random) -> Problem:
        return Problem("1 + 1?", "2", "2")

    monkeypatch.setattr(prompts, "KINDS", {"arithmetic": (always,)})
    with pytest.raises(ValueError, match="per_kind: always has no more different problems"):
        make_prompts(per_kind=2, held_out=1)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "p.json"
    assert main(["--out", str(out), "--per-kind", "3", "--held-out", "1", "--seed", "4"]) == 0
    assert "30 problems of 10 kinds, 10 of them held out" in capsys.readouterr().out
    assert out.read_bytes() == prompts_file(make_prompts(per_kind=3, held_out=1, seed=4))
    assert main(["--out", str(out), "--held-out", "30"]) == 1
    assert "held_out: got 30, expected 1 to per_kind - 1 = 29" in capsys.readouterr().err

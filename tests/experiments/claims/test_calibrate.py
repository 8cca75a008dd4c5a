"""The worlds are what they say, and the rules err in them as rarely as they say."""

from pathlib import Path

import numpy as np
import pytest

from experiments.claims import worlds
from experiments.claims.calibrate import counted, designs, main, rates_of, row
from experiments.claims.claim_worlds import every_world
from experiments.claims.contrasts import Verdict
from experiments.claims.worlds import LLAMA, SMALL, Design, Kind
from experiments.figures.cosines import random_cosines
from experiments.stages.presence import detection
from jaxsteer.directions import cosine

DESIGNS = designs([])
SMALL_DESIGN, LLAMA_DESIGN = DESIGNS


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


def test_designs_are_those_of_the_settings() -> None:
    assert (SMALL_DESIGN.kind, LLAMA_DESIGN.kind) == (SMALL, LLAMA)
    assert (SMALL_DESIGN.prompts, SMALL_DESIGN.base_prompts) == (128, 256)
    assert (LLAMA_DESIGN.prompts, LLAMA_DESIGN.base_prompts) == (120, 200)
    assert (SMALL_DESIGN.layers, LLAMA_DESIGN.layers) == (8, 8)
    own = designs([20])[2]
    assert (own.name, own.prompts, own.traces) == ("small.toml, n = 20", 20, SMALL_DESIGN.traces)


@pytest.mark.parametrize("kind", [SMALL, LLAMA])
def test_texts_backtrack_as_invited_and_by_the_gain(kind: Kind, random) -> None:
    invited = worlds.rates(random, kind, 20_000)
    plain, more, less = (
        worlds.texts(random, kind, invited, gain, left=left).shares
        for gain, left in ((0.0, 1.0), (0.03, 1.0), (0.0, 0.5))
    )
    assert np.nanmean(plain) == pytest.approx(kind.rate, abs=0.003)
    assert np.nanmean(more) - np.nanmean(plain) == pytest.approx(0.03, abs=0.003)
    assert np.nanmean(less) == pytest.approx(0.5 * np.nanmean(plain), rel=0.05)
    cells = worlds.texts(random, kind, invited, np.array([[0.0], [0.03]])).shares
    assert cells.shape == (2, 20_000)


def test_degenerate_texts_are_left_out_and_runaways_bounded(random) -> None:
    invited = worlds.rates(random, SMALL, 1000)
    plain = worlds.texts(random, SMALL, invited)
    loops = worlds.looping(random, plain, 0.5).shares
    assert np.isnan(loops).mean() == pytest.approx(0.5, abs=0.05)
    for words in (0, 1):
        short = worlds.cut_down(random, plain, 0.5, words).shares
        assert np.isnan(short).mean() == pytest.approx(0.5, abs=0.05)
    away = worlds.running_away(random, plain, 0.1).shares
    assert np.nanmax(away) == worlds.MOST_SHARE
    assert (away > plain.shares).mean() == pytest.approx(0.1, abs=0.03)


def test_maps_have_their_means(random) -> None:
    design = Design("", SMALL, 1, 1, 1, 4000, 1, offsets=(-9, 0))
    found = worlds.gain_map(random, design, [0.0, 1.0], [0.05, 0.0])
    np.testing.assert_allclose(np.nanmean(found, axis=0), [[0, 0], [0.05, 0]], atol=0.005)


@pytest.mark.parametrize("design", DESIGNS, ids=lambda one: one.name)
@pytest.mark.parametrize(("true", "shared"), [(0.74, 0.2), (0.2, 0.74)])
def test_directions_have_their_cosine_and_chance_its_level(
    design: Design, true: float, shared: float, random
) -> None:
    cosines, chance = [], []
    for _ in range(20):
        found, base = worlds.activations(random, design, cosine=true, shared=shared)
        cosines.append(cosine(found["base"].direction(), found["reasoning"].direction()))
        chance += random_cosines(found["base"], found["reasoning"])
        assert cosine(found["base"].direction(), base) > 0.95
    assert np.mean(cosines) == pytest.approx(true, abs=0.05)
    assert np.mean(chance) == pytest.approx(shared, abs=0.05)


def test_scores_have_their_auroc(random) -> None:
    for apart, area in ((0.0, 0.5), (1.19, 0.8), (-2.0, 0.08)):
        found = worlds.scored(random, LLAMA_DESIGN, apart=apart)
        assert detection(found.score, found.where, n_resamples=0).mean == pytest.approx(
            area, abs=0.03
        )
        assert found.where.positive.mean() == pytest.approx(LLAMA.prevalence, abs=0.02)


def test_every_claim_has_worlds_of_either_truth() -> None:
    found = every_world()
    assert {w.claim for w in found} == {*(f"C{i}" for i in range(1, 9)), "S", "N"}
    for claim in {w.claim for w in found}:
        assert {"null", "true"} <= {w.truth for w in found if w.claim == claim}
    names = [(w.claim, w.name) for w in found]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("claim", ["C2", "C3", "C5", "S", "N"])
def test_rules_of_texts_err_as_rarely_as_they_say(claim: str) -> None:
    """Few draws, as a guard; `docs/paper/calibration.md` has the table."""
    for world in every_world():
        if world.claim == claim and world.truth in ("null", "true"):
            found = rates_of(world, SMALL_DESIGN, count=20, seed=1)
            # At a chance of .05, 5 of 20 come up once in 400 times; at one of .8, less than 11.
            if world.truth == "null":
                assert found[Verdict.YES] < 5, world.name
            else:
                assert found[Verdict.YES] >= 11, world.name


def test_a_row_that_misses_is_bold() -> None:
    world = next(w for w in every_world() if w.truth == "null")
    counts = dict.fromkeys(Verdict, 0)
    line, holds = row(world, {**counts, Verdict.YES: 10, Verdict.NO: 90})
    assert not holds
    assert "**0.100 [0.055, 0.174]**" in line
    line, holds = row(world, {**counts, Verdict.YES: 8, Verdict.OPEN: 392})
    assert holds
    assert "| 0.020 [" in line
    assert not row(world, {**counts, Verdict.YES: 1, Verdict.OPEN: 39})[1]  # up to .13


def test_the_command_writes_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "table.md"
    argv = ["--worlds", "2", "--claims", "S", "--n", "9", "--jobs", "1", "--out", str(out)]
    assert main(argv) == 0
    text = out.read_text()
    assert "`python -m experiments.calibrate --worlds 2 --seed 0 --n 9`" in text
    assert text.count("## ") == 4
    assert text.count("| S | ") == 4 * 5
    assert all(line in text for line in capsys.readouterr().out.splitlines() if "| S" in line)
    for wrong in (["--claims", "C9"], ["--worlds", "0"], ["--jobs", "0"]):
        with pytest.raises(SystemExit):
            main([*wrong, "--out", str(out)])


def test_the_same_seed_draws_the_same_worlds() -> None:
    world = next(w for w in every_world() if w.claim == "S")
    one, other = (rates_of(world, SMALL_DESIGN, count=20, seed=0) for _ in range(2))
    assert one == other


def test_processes_give_the_same_numbers() -> None:
    cells = [(SMALL_DESIGN, w) for w in every_world() if w.claim == "S"]
    one, other = (list(counted(cells, count=5, seed=0, jobs=jobs)) for jobs in (1, 2))
    assert one == other
    assert one[0] != one[-1]

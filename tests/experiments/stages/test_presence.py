"""Figure 6's statistics and the groups of traces that it and the cosines rest on."""

import math

import numpy as np
import pytest
import scipy.stats
from oracle import SMALL, random_rows

from experiments.figures import coloured_text, cosines
from experiments.figures.coloured_text import Token
from experiments.pipeline.settings import Direction
from experiments.stages import groups, presence
from experiments.stages.groups import KINDS, Groups
from jaxsteer.analysis.projections import project_texts
from jaxsteer.directions.activations import Trace, activation_moments
from jaxsteer.directions.moments import window_direction

WINDOW = [-2, -1]
DIRECTION = Direction(layer=1, offsets=WINDOW)
OTHER, BACK = "other", "backtracking"


@pytest.fixture(scope="module")
def traces() -> list[Trace]:
    """Eight texts of four sentences, the last of every second one backtracking."""
    rows = random_rows([20, 22, 24, 26] * 2, SMALL.vocab_size, seed=2)
    return [
        Trace(row, 3, [3, 8, 12, 17], [OTHER, OTHER, OTHER, BACK if i % 2 else OTHER])
        for i, row in enumerate(rows)
    ]


@pytest.fixture(scope="module")
def sums(small, traces) -> Groups:
    return groups.sums_by_group(small, traces, direction=DIRECTION, groups=4)


def test_groups_add_up_to_the_direction_of_all_traces(small, traces, sums):
    found = activation_moments(
        small, traces, labels=[BACK, OTHER], offsets=WINDOW, layers=[DIRECTION.layer]
    )
    expected = window_direction(found, BACK)[0]
    np.testing.assert_allclose(sums.direction(), expected, rtol=1e-4, atol=1e-6)
    variance = (found.squares[0].sum(axis=(0, 1)) / found.count.sum()).sum() - np.sum(
        (found.total[0].sum(axis=(0, 1)) / found.count.sum()) ** 2
    )
    assert sums.variance() == pytest.approx(variance, rel=1e-6)


def test_directions_of_some_groups_are_of_their_traces_alone(small, traces, sums):
    some = [1, 3]
    own = [trace for i, trace in enumerate(traces) if groups.group_of(i, 4) in some]
    found = activation_moments(
        small, own, labels=[BACK, OTHER], offsets=WINDOW, layers=[DIRECTION.layer]
    )
    expected = window_direction(found, BACK)[0]
    np.testing.assert_allclose(sums.direction(groups=some), expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match=r"backtracking sentences in 1 groups of traces: got \[0"):
        sums.direction(groups=[0])  # even traces do not backtrack


def test_random_sentences_are_disjoint_others_as_many_as_backtrack(traces):
    marked = groups.mark(traces, 4)
    labels = [label for trace in marked for label in trace.labels]
    kinds = [label.split(".")[1] for label in labels]
    counts = {kind: kinds.count(kind) for kind in KINDS}
    # Of 28 others as many whole sets as there are.
    assert counts == {BACK: 4, OTHER: 0, **{f"random-{i}": 4 * (i < 7) for i in range(10)}}
    before = [label for trace in traces for label in trace.labels]
    assert [kind == BACK for kind in kinds] == [label == BACK for label in before]
    owners = [i % 4 for i, trace in enumerate(traces) for _ in trace.labels]
    assert [int(label.split(".")[0]) for label in labels] == owners
    assert marked == groups.mark(traces, 4)


def test_groups_come_back_from_their_file(sums, tmp_path):
    groups.save_groups(tmp_path / "g.safetensors", {"base": sums, "reasoning": sums})
    found = groups.load_groups(tmp_path / "g.safetensors")
    for one in found.values():
        for name, array in vars(sums).items():
            np.testing.assert_array_equal(getattr(one, name), array)


def test_layout_by_hand():
    traces = [
        Trace([0] * 6, 2, [2, 4], [OTHER, BACK]),
        Trace([0] * 5, 1, [1, 3], [BACK, OTHER]),
    ]
    where = presence.layout(traces, [-40])
    assert where.offsets == (-40, *range(-30, 11))
    assert where.text.tolist() == [0] * 6 + [1] * 5
    assert where.reasoning.tolist() == [False, False, *[True] * 4, False, *[True] * 4]
    assert where.on.tolist() == [False] * 4 + [True] * 2 + [False, True, True, False, False]
    scores = np.arange(11.0)
    found = presence.around(scores, where)[:, where.columns([-2, -1, 0, 1, 2])]
    nan = math.nan
    expected = [[nan, nan, 2, 3, 4], [2, 3, 4, 5, nan], [nan, nan, 7, 8, 9], [7, 8, 9, 10, nan]]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(presence.before(scores, where, [-2, -1]), [nan, 2.5, nan, 7.5])


def test_scores_come_from_the_directions_of_other_folds(traces):
    """A direction that is silent but on the traces that made it scores nothing."""
    where = presence.layout(traces, WINDOW)
    fold = np.arange(8) % 2
    projections = np.random.default_rng(0).normal(size=(2, len(where.text)))
    loud = projections.copy()
    for k in range(2):
        loud[k, fold[where.text] != k] *= 50
        loud[k, fold[where.text] != k] += 7
    found = presence.standardised(loud, where, fold)
    for k in range(2):
        own, others = fold[where.text] == k, (fold[where.text] != k) & where.reasoning
        expected = (loud[k][own] - loud[k][others].mean()) / loud[k][others].std()
        np.testing.assert_allclose(found[own], expected)
    assert np.abs(found).max() < 1


def test_variance_along_all_axes_is_the_whole_of_it(small, traces, sums):
    where = presence.layout(traces, WINDOW)
    axes = np.linalg.qr(np.random.default_rng(0).normal(size=(16, 16)))[0]
    texts = [trace.tokens for trace in traces]
    found = np.concatenate(list(project_texts(small, texts, axes, [1] * 16)), axis=1)
    parts = [presence.variance_along(row, where, WINDOW) for row in found]
    assert sum(parts) == pytest.approx(sums.variance(), rel=1e-4)


def layout_of(positive):
    n = len(positive)
    return presence.Layout(
        offsets=(0,),
        text=np.zeros(0, int),
        reasoning=np.zeros(0, bool),
        on=np.zeros(0, bool),
        at=np.zeros((n, 1), int),
        positive=positive,
        sentence_text=np.arange(n),
    )


def test_presence_by_its_rules():
    """Of scores 0 to 19, three of which backtrack, up to 9 is absent and from 17 on present."""
    positive = np.zeros(21, bool)
    positive[[3, 12, 18]] = True
    found = presence.presence(np.array([*range(20), math.nan]), layout_of(positive))
    assert (found["n_sentences"], found["prevalence"]) == (20, 0.15)
    one, other = found["without_direction"], found["without_backtracking"]
    assert (one["share"], one["n"]) == (pytest.approx(1 / 3), 3)
    assert (other["share"], other["n"]) == (pytest.approx(2 / 3), 3)
    assert one["low"] < 0.1
    assert one["high"] > 0.7


def test_a_perfect_detector_leaves_no_exception_and_a_random_score_what_chance_gives():
    positive = np.arange(3000) % 30 == 0  # 3.3%
    perfect = presence.presence(positive + np.linspace(0, 0.5, 3000), layout_of(positive))
    assert perfect["without_direction"]["share"] == perfect["without_backtracking"]["share"] == 0
    noise = np.random.default_rng(0).normal(size=3000)
    random = presence.presence(noise, layout_of(positive))
    # Of 100 events either share is known to .05 or better.
    assert random["without_direction"]["share"] == pytest.approx(0.5, abs=0.15)
    assert random["without_backtracking"]["share"] == pytest.approx(1 - 1 / 30, abs=0.06)
    none = presence.presence(noise, layout_of(np.zeros(3000, bool)))
    assert math.isnan(none["without_direction"]["share"])


def test_a_share_of_none_is_not_a_certain_zero():
    found = presence.share(np.zeros(20, bool), np.arange(20))
    assert (found["share"], found["low"]) == (0.0, 0.0)
    assert found["high"] == pytest.approx(0.1611, abs=1e-4)  # Wilson's; the bootstrap says 0
    one_text = presence.share(np.repeat([True, False], 10), np.repeat([0, 1], 10))
    assert (one_text["low"], one_text["high"]) == (0.0, 1.0)  # the bootstrap's, over two texts


def test_jackknife_leaves_out_one_group_at_a_time():
    rng = np.random.default_rng(0)
    count = rng.integers(3, 9, size=(8, len(KINDS), 2))
    both = rng.normal(size=(8, len(KINDS), 2, 16))
    a, b = (
        Groups(
            count[..., None] * (both + 0.3 * rng.normal(size=both.shape)), count, np.ones((2, 16))
        )
        for _ in range(2)
    )
    found = cosines.jackknife(a, b)

    def cos(some: list[int]) -> float:
        """Eq. 3 at each offset, averaged, of both models; the cosine."""
        u, v = (
            np.mean(
                [
                    x.total[some, 0, o].sum(axis=0) / x.count[some, 0, o].sum()
                    - x.total[some, :, o].sum(axis=(0, 1)) / x.count[some, :, o].sum()
                    for o in range(2)
                ],
                axis=0,
            )
            for x in (a, b)
        )
        return float(u @ v / np.linalg.norm(u) / np.linalg.norm(v))

    z = np.arctanh([cos([g for g in range(8) if g != left]) for left in range(8)])
    spread = math.sqrt(7 / 8 * np.sum((z - z.mean()) ** 2))
    value = cos([*range(8)])
    quantile = scipy.stats.t.ppf(0.975, 7)  # 8 groups
    assert found["value"] == pytest.approx(value, rel=1e-9)
    assert found["low"] == pytest.approx(math.tanh(math.atanh(value) - quantile * spread))
    assert found["high"] == pytest.approx(math.tanh(math.atanh(value) + quantile * spread))
    assert found["n"] == count[:, 0].sum(axis=0).min()


def test_no_interval_where_a_group_has_all_the_backtracking(sums):
    few = Groups(sums.total[:2], sums.count[:2], sums.squares)
    assert math.isnan(cosines.jackknife(few, few)["low"])
    assert cosines.jackknife(few, few)["value"] == pytest.approx(1)


def test_a_page_of_coloured_text_is_escaped():
    tokens = [
        Token("<user>", None, False),
        Token(" a", 3.0, False),
        Token(' "<b>&\n', -1.0, True),
    ]
    page = coloured_text.to_html(tokens, title="x < y", about="1 & 2")
    assert "<b>" not in page
    assert "&quot;&lt;b&gt;&amp;\n" in page
    assert "<title>x &lt; y</title>" in page
    assert '<span class="prompt">&lt;user&gt;</span>' in page
    assert 'background:#d66020;color:#fff" title="+3.00"> a</span>' in page
    assert 'class="on"' in page
    assert "http" not in page  # nothing is fetched


def test_an_excerpt_starts_before_the_first_backtracking_sentence():
    tokens = [Token(f" w{i}", None if i < 3 else 0.0, i in (8, 9)) for i in range(20)]
    assert coloured_text.excerpt(tokens, before=2, characters=15) == tokens[6:10]
    assert coloured_text.excerpt(tokens, before=99, characters=6) == tokens[3:5]
    assert coloured_text.excerpt([t for t in tokens if not t.on], before=0, characters=3) == [
        tokens[3]
    ]

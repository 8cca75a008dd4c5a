"""The search for parts on responses that are known, and the sets that it is compared with."""

import itertools
import math

import pytest
from oracle import SHALLOW

from experiments.grafting.search import Measures, above, blocks, random_sets, search
from jaxsteer.analysis.grafting import parts

NAMES = ("embed", "a", "b", "c", "d", "head")


class Known:
    """Hybrids whose measures are given; remembers what it was asked."""

    def __init__(self, rise, *, without=0.0, fluency=lambda some: 0.0, induces=lambda some: True):
        self.rises, self.asked_to_generate = [], []

        def ask_rise(some):
            self.rises.append(some)
            return rise(some)

        def ask_induces(some):
            self.asked_to_generate.append(some)
            return induces(some)

        self.ask = Measures(
            steered=lambda some: rise(some) + without,
            rise=ask_rise,
            fluency=fluency,
            induces=ask_induces,
        )

    def search(self, *, target, largest=None):
        return search(self.ask, NAMES, target=target, largest=largest)


def weighted(weights):
    """A response that needs the head, and then adds up."""
    return lambda some: sum(weights.get(n, 0.01) for n in some) if "head" in some else 0.0


def test_takes_the_strongest_part_until_the_target_is_reached():
    known = Known(weighted({"head": 0.1, "b": 0.5, "d": 0.3}))
    found = known.search(target=0.85)
    assert found.path == found.responding == found.chosen == ("head", "b", "d")
    assert found.responds
    assert found.induces
    assert known.asked_to_generate == [frozenset(found.path)]


def test_a_bound_spares_measurements_and_changes_no_choice():
    rise = weighted({"head": 0.1, "b": 0.5, "d": 0.3, "c": 0.2})
    tight, loose = Known(rise), Known(rise, without=10.0)
    assert tight.search(target=0.95) == loose.search(target=0.95)
    assert len(set(tight.rises)) < len(set(loose.rises))


def test_parts_that_turn_out_needless_are_left_out():
    """`a` is best alone, but `b` and `c` do without it."""

    def rise(some):
        return 1.0 if {"b", "c"} <= some else 0.2 * ("a" in some) + 0.1 * ("b" in some)

    found = Known(rise).search(target=0.9)
    assert found.path == ("a", "b", "c")
    assert found.responding == ("b", "c")


def test_goes_on_with_what_makes_the_text_fluent_until_it_is_judged_well():
    fluency = {"embed": 3.0, "a": 2.0}
    known = Known(
        weighted({"head": 1.0}),
        fluency=lambda some: sum(fluency.get(name, 0.0) for name in some),
        induces=lambda some: len(some) >= 3,
    )
    found = known.search(target=0.9)
    assert found.responding == ("head",)
    assert found.chosen == found.path == ("head", "embed", "a")
    assert found.induces


def test_a_fluent_part_that_loses_the_response_is_passed_over():
    known = Known(
        lambda some: 1.0 * ("head" in some and "embed" not in some),
        fluency=lambda some: 1.0 * ("embed" in some) + 0.5 * ("c" in some),
        induces=lambda some: len(some) == 2,
    )
    assert known.search(target=0.9).chosen == ("head", "c")


@pytest.mark.parametrize("largest", [1, 2, None])
def test_ends_at_the_largest_size_and_says_so(largest):
    known = Known(lambda some: 0.1 * len(some), induces=lambda some: False)
    found = known.search(target=0.95, largest=largest)
    assert len(found.path) == (largest or len(NAMES) - 1)  # all are the reasoning model
    assert not found.responds
    assert not found.induces
    assert known.asked_to_generate == []  # text is not generated for what does not even respond


def test_text_that_can_say_nothing_ends_the_search():
    known = Known(weighted({"head": 1.0}), induces=lambda some: None)
    found = known.search(target=0.9)
    assert found.chosen == ("head",)
    assert found.induces is None


def test_random_sets_are_distinct_of_one_size_and_never_the_found_one():
    found = frozenset("ab")
    drawn = random_sets(NAMES, 2, count=8, without=found, seed=3)
    assert len(set(drawn)) == 8
    assert {len(some) for some in drawn} == {2}
    assert found not in drawn
    assert drawn == random_sets(NAMES, 2, count=8, without=found, seed=3)
    assert drawn != random_sets(NAMES, 2, count=8, without=found, seed=4)


@pytest.mark.parametrize("holding", [(), ("head",)])
@pytest.mark.parametrize("without", [frozenset({"head", "a"}), frozenset({"b", "c"})])
def test_no_more_random_sets_than_there_are(holding, without):
    drawn = random_sets(NAMES, 2, count=100, without=without, holding=holding)
    possible = {frozenset(two) for two in itertools.combinations(NAMES, 2) if {*two} >= {*holding}}
    assert set(drawn) == possible - {without}
    assert len(drawn) <= math.comb(len(NAMES), 2)


def test_layers_and_depths_are_sets_of_parts():
    names = set(parts(SHALLOW))
    assert blocks(2)["layers.1"] == {"layers.1.attn", "layers.1.mlp"}
    by_depth = above(2)
    assert by_depth[0] == names - {"embed"}
    assert by_depth[-1] == {"head"}
    assert by_depth[1] == {"layers.1.attn", "layers.1.mlp", "head"}

"""steering.scope: each constructor against its meaning spelled out, position by position."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsteer.steering import scope
from jaxsteer.steering.scope import Scope

LENGTHS = np.array([1, 2, 4, 7])  # of prompts
POSITIONS = np.arange(0, 12)

covers = jax.jit(Scope.covers)


THOUGHTS = np.random.default_rng(0).random((len(LENGTHS), len(POSITIONS))) < 0.5


def covered(one: Scope) -> np.ndarray:
    """Of the positions of rows whose prompts have `LENGTHS` tokens, `[B, T]`."""
    position = np.broadcast_to(POSITIONS, (len(LENGTHS), len(POSITIONS)))
    return np.asarray(covers(one, jnp.asarray(position), jnp.asarray(LENGTHS), THOUGHTS))


def where(rule) -> np.ndarray:
    return np.array([[rule(int(t), int(p)) for t in POSITIONS] for p in LENGTHS])


@pytest.mark.parametrize(
    ("one", "rule"),
    [
        (scope.everywhere(), lambda t, p: True),
        (scope.prompt(), lambda t, p: t < p),
        (scope.generated(), lambda t, p: t >= p),
        (scope.from_last_prompt_token(), lambda t, p: t >= p - 1),
    ],
    ids=["everywhere", "prompt", "generated", "from_last_prompt_token"],
)
def test_phases(one, rule):
    np.testing.assert_array_equal(covered(one), where(rule))


@pytest.mark.parametrize("start", [-9, -4, -1, 0, 3, 9])
@pytest.mark.parametrize("stop", [-8, -3, -1, 0, 1, 5, 30, None])
def test_windows_are_half_open_and_negative_bounds_count_from_the_prompts_end(start, stop):
    if stop is not None and (start < 0) == (stop < 0) and stop <= start:
        with pytest.raises(ValueError, match=f"start={start} and stop={stop}"):
            scope.window(start, stop)
        return

    def rule(t: int, p: int) -> bool:
        first = p + start if start < 0 else start
        last = 10**6 if stop is None else p + stop if stop < 0 else stop
        return first <= t < last

    np.testing.assert_array_equal(covered(scope.window(start, stop)), where(rule))


def test_rows_of_positions_and_masks_may_be_lists_of_unequal_length():
    found = covered(scope.positions([[1], [0, 3], [-1], (2, 4, 5)]))
    wanted = [{1}, {0, 3}, {3}, {2, 4, 5}]
    expected = [[t in row for t in POSITIONS] for row in wanted]
    np.testing.assert_array_equal(found, expected)
    found = covered(scope.mask([[True], [False, True, True], [True, False], [False]]))
    np.testing.assert_array_equal(
        found, [[t in row for t in POSITIONS] for row in ({0}, {1, 2}, {0}, set())]
    )


def test_a_union_covers_what_any_part_covers_and_exclusions_always_win():
    first, second = scope.window(0, 3), scope.window(5, 9)
    holes = [scope.window(-1, None), scope.window(0, 1)]
    expected = (covered(first) | covered(second)) & ~covered(holes[0]) & ~covered(holes[1])
    assert expected.any()
    np.testing.assert_array_equal(covered(scope.union(first, second, exclude=holes)), expected)
    # Also when the scope is taken into another union that covers the hole again.
    again = scope.union(scope.union(first, exclude=holes), scope.everywhere())
    np.testing.assert_array_equal(covered(again), ~covered(holes[0]) & ~covered(holes[1]))


def test_excluding_a_scope_with_a_hole_is_refused():
    holed = scope.union(scope.everywhere(), exclude=[scope.prompt()])
    with pytest.raises(ValueError, match="exclusion of its own"):
        scope.union(scope.everywhere(), exclude=[holed])


def test_a_union_of_nothing_is_refused():
    with pytest.raises(ValueError, match="union: got no scope"):
        scope.union(exclude=[scope.prompt()])


def test_rows_of_one_scope_may_differ():
    parts = [scope.prompt(), scope.generated(), scope.window(-2, -1), scope.window(2)]
    rows = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    expected = np.stack([covered(part)[row] for row, part in enumerate(parts)])
    np.testing.assert_array_equal(covered(rows), expected)


def test_rows_that_differ_can_be_joined_with_one_for_all():
    parts = [scope.prompt(), scope.generated(), scope.prompt(), scope.generated()]
    rows = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    joined = covered(scope.union(rows, exclude=[scope.window(0, 1)]))
    np.testing.assert_array_equal(joined, covered(rows) & (POSITIONS > 0))


def test_empty_windows_added_cover_nothing():
    one = scope.union(scope.window(1, 3), exclude=[scope.window(2)])
    np.testing.assert_array_equal(covered(scope.pad_windows(one, 5)), covered(one))


def test_row_counts_that_do_not_match_are_named():
    two = jax.tree.map(lambda x: jnp.concatenate([x, x]), scope.prompt())
    with pytest.raises(ValueError, match="scope: got 2 rows, expected 1 or 4"):
        covers(scope.broadcast_rows(two, 4, "scope"), POSITIONS[None], LENGTHS)


def test_explicit_positions_count_from_the_start_or_from_the_prompts_end():
    found = covered(scope.positions([3, -1, 3]))
    np.testing.assert_array_equal(found, where(lambda t, p: t in (3, p - 1)))
    apart = scope.positions([[0, 1], [5, -2], [-4, -1], [11, 40]])
    expected = [[0, 1], [0, 5], [0, 3], [11]]
    assert [np.flatnonzero(row).tolist() for row in covered(apart)] == expected


def test_a_mask_says_for_each_position_and_covers_nothing_beyond_its_end():
    rng = np.random.default_rng(3)
    for width in (0, 1, 7, 12):
        one = rng.random((len(LENGTHS), width)) < 0.5
        expected = np.zeros((len(LENGTHS), len(POSITIONS)), bool)
        expected[:, :width] = one
        np.testing.assert_array_equal(covered(scope.mask(one)), expected)
    one = [False, True, True, False, True]
    np.testing.assert_array_equal(covered(scope.mask(one)), where(lambda t, p: t in (1, 2, 4)))


def test_thinking_confines_a_scope_and_what_is_cut_out_stays_cut_out():
    np.testing.assert_array_equal(covered(scope.thinking()), THOUGHTS)
    within = scope.union(scope.window(2), exclude=[scope.window(5, 7)])
    found = covered(scope.thinking(within=within))
    np.testing.assert_array_equal(found, THOUGHTS & covered(within))
    # Thinking itself can be cut out, and a union can hold both sorts.
    aloud = scope.union(scope.generated(), exclude=[scope.thinking()])
    np.testing.assert_array_equal(covered(aloud), covered(scope.generated()) & ~THOUGHTS)
    either = scope.union(scope.prompt(), scope.thinking(within=scope.window(6)))
    expected = covered(scope.prompt()) | (THOUGHTS & covered(scope.window(6)))
    np.testing.assert_array_equal(covered(either), expected)


def test_a_scope_says_when_it_needs_to_be_told_what_is_thought():
    confined = scope.union(scope.prompt(), scope.thinking())
    assert confined.needs_thinking
    assert not scope.prompt().needs_thinking
    with pytest.raises(ValueError, match=r"thinking: got None, expected bool \[B, T\]"):
        covers(confined, jnp.asarray(POSITIONS[None]), jnp.asarray([3]))


def test_what_may_be_covered_is_what_some_thinking_covers():
    position, lengths = jnp.asarray(POSITIONS[None]), jnp.asarray([4])
    aloud = scope.union(scope.generated(), exclude=[scope.thinking()])
    for one in (aloud, scope.thinking(within=scope.generated())):
        found = one.may_cover(position, lengths)[0]
        np.testing.assert_array_equal(found, POSITIONS >= 4)


def test_aligned_scopes_cover_what_they_did():
    ones = [
        scope.union(scope.window(1, 3), scope.window(6), exclude=[scope.window(2, 7)]),
        scope.thinking(within=scope.prompt()),
        scope.everywhere(),
    ]
    aligned = scope.align(ones)
    assert len({jax.tree.structure(one) for one in aligned}) == 1
    for before, after in zip(ones, aligned, strict=True):
        assert after.excluded.shape == (1, 3)
        np.testing.assert_array_equal(covered(before), covered(after))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: scope.positions([]), r"positions: got shape \(1, 0\)"),
        (lambda: scope.positions([1.0]), "positions: got dtype float64, expected integers"),
        (lambda: scope.positions([True]), "positions: got dtype bool, expected integers"),
        (lambda: scope.positions([2**40]), "positions: got 1099511627776, expected less"),
        (lambda: scope.mask([0, 1]), "mask: got dtype int64, expected bool"),
        (lambda: scope.mask(np.zeros((1, 1, 1), bool)), r"mask: got shape \(1, 1, 1\)"),
        (lambda: scope.window(1.5), "window: start: got 1.5, expected an integer"),
        (lambda: scope.window(1, True), "window: stop: got True, expected an integer"),
        (lambda: scope.window(-(2**31)), "window: start: got -2147483648, expected less"),
    ],
)
def test_scopes_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def window_sets(draw) -> tuple[Scope, list[set[int]]]:
    """A scope without exclusions, and the positions it covers in each row."""
    kind = draw(st.sampled_from(["window", "positions", "mask", "thinking"]))
    every = set(POSITIONS.tolist())
    if kind == "positions":
        wanted = draw(st.lists(st.integers(-8, 13), min_size=1, max_size=2))
        return scope.positions(wanted), [
            every & {at if at >= 0 else int(p) + at for at in wanted} for p in LENGTHS
        ]
    if kind == "mask":
        one = draw(st.lists(st.booleans(), min_size=1, max_size=4))
        return scope.mask(one), [{at for at, here in enumerate(one) if here}] * len(LENGTHS)
    start, stop = draw(st.integers(-8, 12)), draw(st.none() | st.integers(-8, 12))
    if stop is not None and (start < 0) == (stop < 0) and stop <= start:
        stop = None
    one = scope.window(start, stop)
    sets = []
    for p in LENGTHS:
        first = p + start if start < 0 else start
        last = 10**6 if stop is None else p + stop if stop < 0 else stop
        sets.append({at for at in every if first <= at < last})
    if kind == "window":
        return one, sets
    thought = [set(np.flatnonzero(row).tolist()) for row in THOUGHTS]
    return scope.thinking(within=one), [a & b for a, b in zip(sets, thought, strict=True)]


@st.composite
def unions(draw) -> tuple[Scope, list[set[int]]]:
    """Any union of scopes, and the positions it covers in each row, as plain sets."""
    added = [window_sets(draw) for _ in range(draw(st.integers(1, 3)))]
    cut = [window_sets(draw) for _ in range(draw(st.integers(0, 2)))]
    one = scope.union(*(x for x, _ in added), exclude=[x for x, _ in cut])
    sets = [
        set().union(*(rows[row] for _, rows in added))
        - set().union(*(rows[row] for _, rows in cut))
        for row in range(len(LENGTHS))
    ]
    return one, sets


@settings(max_examples=60, deadline=None)
@given(unions())
def test_scopes_are_sets_of_positions(one_and_sets):
    one, sets = one_and_sets
    # One shape for all, so that it compiles once.
    one = scope.align([one, scope.thinking(within=scope.mask([True, False] * 8))])[0]
    found = [set(np.flatnonzero(row).tolist()) for row in covered(one)]
    assert found == sets

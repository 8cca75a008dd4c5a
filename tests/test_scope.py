"""jaxsteer.scope: each constructor against its meaning spelled out, position by position."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsteer import scope
from jaxsteer.scope import Scope

LENGTHS = np.array([1, 2, 4, 7])  # of prompts
POSITIONS = np.arange(0, 12)

covers = jax.jit(Scope.covers)


def covered(one: Scope) -> np.ndarray:
    """Of the positions of rows whose prompts have `LENGTHS` tokens, `[B, T]`."""
    position = np.broadcast_to(POSITIONS, (len(LENGTHS), len(POSITIONS)))
    return np.asarray(covers(one, jnp.asarray(position), jnp.asarray(LENGTHS)))


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

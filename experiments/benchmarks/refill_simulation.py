"""What decoding with refill costs, by arithmetic alone: how `jaxsteer.queues.refill` was chosen.

    python -m experiments.benchmarks.refill_simulation

Counts the row-steps and the bytes that three ways of decoding the 300 recorded traces move at
Llama-8B shapes in bf16: batches one after the other; refill with one cursor for all rows, which
are moved up against it at each refill, so that every row is read as far as the oldest has got;
refill with one cursor per row, each read as far as it has got itself. A step reads all
weights, too. Seconds are bytes over the bandwidth. One JSON line per case.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.benchmarks.refill import recorded_lengths
from jaxsteer.queues import pool_sizes

WEIGHTS = 15.0e9  # bytes that a step reads at Llama-8B shapes in bf16
PER_TOKEN = 2 * 32 * 8 * 128 * 2  # bytes of a token's keys and values
BANDWIDTH = 4.4e12  # bytes a second, as measured on an H200
PROMPT = 64  # slots of the cache that a prompt takes


@dataclass
class Cost:
    """What a way of decoding comes to."""

    live: int = 0
    row_steps: int = 0
    read: float = 0.0  # weights and cache, by decoding steps
    moved: float = 0.0  # cache, read and written outside of steps
    programs: int = 1

    def report(self) -> dict[str, float]:
        """Live share, seconds, and the share of the time that goes into moving the cache."""
        total = self.read + self.moved
        return {
            "live_share": round(self.live / self.row_steps, 3),
            "seconds": round(total / BANDWIDTH, 1),
            "moving_share": round(self.moved / total, 4),
            "decoding_programs": self.programs,
        }


def cost_of_batches(lengths: Sequence[int], slots: int) -> Cost:
    """Each batch until its longest row is done, every row read as far as the cursor."""
    cost = Cost()
    for first in range(0, len(lengths), slots):
        steps = np.arange(1, max(lengths[first : first + slots]))
        cost.read += np.sum(WEIGHTS + slots * (PROMPT + steps) * PER_TOKEN)
        cost.row_steps += slots * len(steps)
    cost.live = sum(n - 1 for n in lengths)
    return cost


def cost_of_refill(
    lengths: Sequence[int], slots: int, *, share: int, sizes: Sequence[int], cursor_a_row: bool
) -> Cost:
    """Refill when one slot in `share` is free; afterwards shrink through `sizes`."""
    waiting = [n - 1 for n in lengths]  # prefill makes the first token
    cost = Cost(programs=len(sizes))
    refill, size = max(1, slots // share), slots
    left = np.array(waiting[:slots])  # steps each live row has to go
    made = np.zeros(len(left), int)
    waiting = waiting[slots:]
    capacity = PROMPT + max(lengths)
    while len(left):
        smaller = max((s for s in sizes if s < size), default=0)
        floor = size - refill if waiting else smaller
        steps = int(np.sort(left)[::-1][floor]) if len(left) > floor else 0
        for _ in range(steps):
            live = left > 0
            slots_read = (
                (PROMPT + made[live]).sum() if cursor_a_row else size * (PROMPT + made.max())
            )
            cost.read += WEIGHTS + slots_read * PER_TOKEN
            cost.live += int(live.sum())
            cost.row_steps += size
            made, left = made + 1, left - 1
        oldest = PROMPT + int(made.max())
        made, left = made[left > 0], left[left > 0]
        if waiting:
            new, waiting = waiting[:refill], waiting[refill:]
            left, made = np.append(left, new), np.append(made, np.zeros(len(new), int))
            # New rows are written by prefill, read, and written into their slots. With one
            # cursor for all, every other row is read and written, too.
            others = 0 if cursor_a_row else size - len(new)
            cost.moved += (3 * len(new) * capacity + 2 * others * oldest) * PER_TOKEN
        elif len(left):
            size = min(s for s in sizes if s >= len(left))
            cost.moved += 2 * size * capacity * PER_TOKEN
    return cost


def quarters(slots: int) -> list[int]:
    """Sizes that shrink by a quarter, down to an eighth."""
    sizes = [slots]
    while sizes[-1] * 3 // 4 >= max(1, slots // 8):
        sizes.append(sizes[-1] * 3 // 4)
    return sizes


def main() -> int:
    """Command line; returns the exit code."""
    lengths = recorded_lengths()
    for slots in (64, 100, 160):
        cases = {"batches": cost_of_batches(lengths, slots)}
        for name, sizes in (("halves", pool_sizes(slots)), ("quarters", quarters(slots))):
            for share in (8, 16, 32):
                for way, cursor_a_row in (("rows moved", False), ("cursor a row", True)):
                    case = f"refill at 1/{share}, {way}, shrinking by {name}"
                    cases[case] = cost_of_refill(
                        lengths, slots, share=share, sizes=sizes, cursor_a_row=cursor_a_row
                    )
        for case, cost in cases.items():
            print(json.dumps({"slots": slots, "case": case, **cost.report()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Sums of activations by group of traces: for intervals, and for directions from other traces.

A direction told from the traces on which it is then judged looks better than it is. With sums by
group, each trace is projected on the direction of the other groups, and leaving out one group at a
time (the jackknife) gives the error of anything that is made from the sums. Only the steered layer
is read, at the direction's offsets, so the pass ends at that layer.

Beside the backtracking sentences stand random ones: disjoint sets of as many *other* sentences,
drawn from all traces. Their directions show what chance gives, noise of the tokens that both models
read included.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from experiments.pipeline.run import Run, command
from experiments.pipeline.settings import Direction
from experiments.pipeline.stage_runner import fingerprint
from experiments.stages import derive, label, rollouts
from jaxsteer.directions import Trace, activation_moments
from jaxsteer.files import write_atomic
from jaxsteer.llama import Model

FILE = "groups.safetensors"
ROLES = ("base", "reasoning")
RANDOM_SETS = 10  # at most: sets are disjoint
KINDS = ("backtracking", "other", *(f"random-{i}" for i in range(RANDOM_SETS)))


@dataclass(frozen=True)
class Groups:
    """Sums at one layer over G groups of traces, K kinds of sentences and O offsets.

    Every sentence is of one kind; together they are D.
    """

    total: NDArray[np.float64]  # [G, K, O, D]
    count: NDArray[np.int64]  # [G, K, O]
    squares: NDArray[np.float64]  # [O, D], of x² over all

    def direction(
        self, kind: str = "backtracking", *, groups: Sequence[int] | None = None
    ) -> NDArray[np.float64]:
        """Eq. 3 of a kind, the mean over the offsets, `[D]`; from some of the groups only.

        Random sentences are told from all that do not backtrack: against D they would point away
        from backtracking, the more so the more of D it is.

        Raises:
            ValueError: if an offset has no sentence of the kind.
        """
        some = range(len(self.total)) if groups is None else groups
        total, count = self.total[list(some)].sum(axis=0), self.count[list(some)].sum(axis=0)
        k = KINDS.index(kind)
        if not count[k].all():
            raise ValueError(
                f"{kind} sentences in {len(some)} groups of traces: got {count[k].tolist()} by "
                "offset, expected some at each (more traces, or fewer groups and folds)"
            )
        first = 1 if kind.startswith("random") else 0  # the first kind is backtracking
        every, of = total[first:].sum(axis=0), count[first:].sum(axis=0)
        means = total[k] / count[k, :, None] - every / of[:, None]
        return means.mean(axis=0)

    def variance(self) -> float:
        """Variance of the stream before all sentences, summed over its D coordinates."""
        n = self.count.sum()
        mean = self.total.sum(axis=(0, 1, 2)) / n
        return float(np.sum(self.squares.sum(axis=0) / n - mean**2))


def group_of(trace: int, groups: int) -> int:
    """The group of a trace by its place: they are dealt out in turn."""
    return trace % groups


def mark(traces: Sequence[Trace], groups: int, *, seed: int = 0) -> list[Trace]:
    """The traces with group and kind as the label of each sentence: `3.other`."""
    positive = np.array([p for trace in traces for p in trace.positive], bool)
    kind = np.where(positive, 0, 1)
    n, others = int(positive.sum()), np.flatnonzero(~positive)
    drawn = np.random.default_rng(seed).permutation(others)
    for i in range(min(RANDOM_SETS, len(others) // max(n, 1))):
        kind[drawn[i * n : (i + 1) * n]] = KINDS.index(f"random-{i}")
    marked, done = [], 0
    for i, trace in enumerate(traces):
        kinds = kind[done : done + len(trace.starts)]
        done += len(kinds)
        labels = [f"{group_of(i, groups)}.{KINDS[k]}" for k in kinds]
        marked.append(replace(trace, labels=labels))
    return marked


def sums_by_group(
    model: Model,
    traces: Sequence[Trace],
    *,
    direction: Direction,
    groups: int,
    name: str | None = None,
) -> Groups:
    """One pass over all traces, up to the steered layer."""
    moments = activation_moments(
        model,
        mark(traces, groups),
        labels=[f"{group}.{kind}" for group in range(groups) for kind in KINDS],
        offsets=direction.offsets,
        site=direction.site,
        layers=[direction.layer],
        progress=name,
    )
    shape = groups, len(KINDS), len(direction.offsets)
    return Groups(
        total=moments.total[0].reshape(*shape, -1),
        count=moments.count.reshape(shape),
        squares=moments.squares[0].sum(axis=0),
    )


def save_groups(path: Path, by_role: dict[str, Groups]) -> None:
    """Write the sums of each model."""
    arrays = {
        f"{role}.{name}": np.ascontiguousarray(array)
        for role, one in by_role.items()
        for name, array in vars(one).items()
    }
    write_atomic(path, save(arrays))


def load_groups(path: Path) -> dict[str, Groups]:
    """What `save_groups` wrote."""
    arrays = load_file(path)
    names = ("total", "count", "squares")
    return {role: Groups(*(arrays[f"{role}.{name}"] for name in names)) for role in ROLES}


def stage(run: Run) -> Path:
    """The folder with `groups.safetensors`."""
    traces, labels = rollouts.stage(run), label.stage(run)
    direction = run.settings.direction

    def work(folder: Path) -> None:
        tokenizer = run.tokenizer("reasoning")
        marked = derive.read_traces(tokenizer, traces / rollouts.FILE, labels / label.FILE)
        by_role = {
            role: sums_by_group(
                run.load(role)[0],
                marked,
                direction=direction,
                groups=min(run.settings.analyses.groups, len(marked)),
                name=f"groups of traces, {role} model",
            )
            for role in ROLES
        }
        save_groups(folder / FILE, by_role)

    inputs = {
        "models": {role: run.model_fingerprint(role) for role in ROLES},
        "traces": fingerprint(traces),
        "labels": fingerprint(labels),
        "direction": asdict(direction),
        "groups": run.settings.analyses.groups,
        "kinds": KINDS,
    }
    return run.stage("groups", inputs, work)


if __name__ == "__main__":
    sys.exit(command("groups", "Sums of activations by group of traces.", stage))

"""How alike the base- and reasoning-derived directions are (Section 3.2, C4), and how sure that is.

Writes `cosines.{png,svg,csv,json}`. In the JSON:

    cosine        at the steered layer, over the window: value, and low, high, se by the jackknife
                  over groups of traces; layer, n (backtracking sentences), groups
    reliability   by model at the steered layer: cosine of the directions of two halves of the
                  groups, and the same stepped up to all traces (Spearman and Brown)
    random        cosines of the two models' directions of as many *other* sentences drawn at
                  random: what reading the same tokens gives by itself
    map           by layer and offset: cosine, and split-half reliability of either model
    offsets       of the map

The ceiling of the cosine of two measured directions would be their reliability, if their errors
were independent. Both models read the same tokens, so the errors are alike, and the cosine may lie
above it; `random` says how far chance alone goes.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from experiments.figures import frame
from experiments.figures.frame import plt
from experiments.pipeline.run import Run, command
from experiments.pipeline.stage_runner import fingerprint
from experiments.pipeline.tables import csv_text
from experiments.stages import derive, groups
from experiments.stages.groups import KINDS, ROLES, Groups
from jaxsteer.directions import cosine

STEM = "cosines"


def jackknife(base: Groups, reasoning: Groups) -> dict[str, float | int]:
    """The cosine of both directions with its 95% interval, leaving out one group at a time.

    The interval is Student's, made in Fisher's z = artanh(cosine), where errors are more even.
    NaN ends where leaving out a group leaves no backtracking sentence at an offset.
    """
    value = cosine(base.direction(), reasoning.direction())
    count = len(base.total)
    low = high = se = float("nan")
    try:
        without = [
            cosine(*(one.direction(groups=_others(count, g)) for one in (base, reasoning)))
            for g in range(count)
        ]
    except ValueError:
        without = []
    if len(without) > 1:
        z = np.arctanh(np.clip(without, -1 + 1e-12, 1 - 1e-12))
        spread = math.sqrt((count - 1) / count * float(np.sum((z - z.mean()) ** 2)))
        centre, t = math.atanh(min(value, 1 - 1e-12)), float(scipy.stats.t.ppf(0.975, count - 1))
        low, high = math.tanh(centre - t * spread), math.tanh(centre + t * spread)
        se = spread * (1 - value**2)  # back from z, by its slope
    n = int(base.count[:, 0].sum(axis=0).min())
    return {"value": value, "low": low, "high": high, "se": se, "n": n, "groups": count}


def _others(count: int, group: int) -> list[int]:
    return [g for g in range(count) if g != group]


def reliability(one: Groups) -> dict[str, float]:
    """Cosine of the directions of every second group and of the others; and of all against all.

    `all_traces` is what two sets of traces as large as the whole would give: 2 r / (1 + r).
    """
    count = len(one.total)
    try:
        halves = [one.direction(groups=range(half, count, 2)) for half in range(2)]
    except ValueError:
        return {"halves": float("nan"), "all_traces": float("nan")}
    r = cosine(*halves)
    return {"halves": r, "all_traces": 2 * r / (1 + r) if r > -1 else float("nan")}


def random_cosines(base: Groups, reasoning: Groups) -> list[float]:
    """Cosines of both models' directions of the sentences drawn at random."""
    values = []
    for kind in KINDS:
        complete = base.count[:, KINDS.index(kind)].sum(axis=0).all()
        if kind.startswith("random") and complete:
            values.append(cosine(base.direction(kind), reasoning.direction(kind)))
    return values


def to_csv(maps: dict[str, NDArray[np.float64]], offsets: Sequence[int]) -> str:
    """A row for each layer and offset."""
    rows = []
    for layer in range(len(next(iter(maps.values())))):
        for o, offset in enumerate(offsets):
            values = [one[layer, o] for one in maps.values()]
            rows.append([layer, offset, *("" if np.isnan(x) else f"{x:.6g}" for x in values)])
    return csv_text(["layer", "offset", *maps], rows)


def draw(
    maps: dict[str, NDArray[np.float64]],
    offsets: Sequence[int],
    numbers: dict[str, Any],
    folder: Path,
    *,
    window: Sequence[int],
) -> list[Path]:
    """Three heat maps by layer and offset, and what was measured at the steered layer."""
    titles = ("base- against reasoning-derived", *(f"{r}-derived: two halves" for r in ROLES))
    figure, axes = frame.panels(1, 3, (12, 2.2 + 0.16 * max(10, len(maps["cosine"]))))
    low = min(0.0, *(float(np.nanmin(one)) for one in maps.values() if not np.isnan(one).all()))
    for axis, (name, one), title in zip(axes, maps.items(), titles, strict=True):
        # Cell o is where offset o is, whether or not the offsets have gaps.
        image = axis.imshow(one, cmap="viridis", vmin=low, vmax=1, aspect="auto", origin="lower")
        shown = [o for o, offset in enumerate(offsets) if offset % 5 == 0]
        axis.set_xticks(shown, [str(offsets[o]) for o in shown])
        axis.set_xlabel("tokens from the sentence's start")
        axis.set_title(
            f"{title}\n({'cosine' if name == 'cosine' else 'reliability'})", fontsize=9.5
        )
        _mark_window(axis, offsets, window, numbers["cosine"]["layer"])
    axes[0].set_ylabel("layer")
    figure.colorbar(image, ax=axes, label="cosine", fraction=0.025)
    figure.suptitle(_headline(numbers), fontsize=10)
    return frame.save(figure, folder, STEM)


def _mark_window(axis: plt.Axes, offsets: Sequence[int], window: Sequence[int], layer: int) -> None:
    places = [offsets.index(offset) for offset in window]
    corner = (min(places) - 0.5, layer - 0.5)
    width = max(places) - min(places) + 1
    axis.add_patch(plt.Rectangle(corner, width, 1, fill=False, edgecolor="white", lw=1.6))


def _headline(numbers: dict[str, Any]) -> str:
    one, random = numbers["cosine"], numbers["random"]["cosines"]
    halves = [f"{numbers['reliability'][role]['halves']:.2f} ({role})" for role in ROLES]
    text = (
        f"Over the window at layer {one['layer']}: cosine {one['value']:.3f} "
        f"[{one['low']:.3f}, {one['high']:.3f}], from {one['n']} backtracking sentences.\n"
        f"Two halves of the traces: {', '.join(halves)}."
    )
    if random:
        text += (
            " Base- against reasoning-derived from as many random sentences: "
            f"{min(random):.2f} to {max(random):.2f}."
        )
    return text


def stage(run: Run) -> Path:
    """The folder with the cosines."""
    directions, sums, settings = derive.stage(run), groups.stage(run), run.settings

    def work(folder: Path) -> None:
        facts = derive.read_facts(directions)
        by_role = groups.load_groups(sums / groups.FILE)
        offsets = facts["offsets"]
        maps = {"cosine": _array(facts["cosine_map"])}
        for role in ROLES:  # null for a single trace, which has no halves
            unknown = np.full_like(maps["cosine"], math.nan)
            halves = facts["reliability"][role]
            maps[f"reliability_{role}"] = unknown if halves is None else _array(halves)
        random = random_cosines(by_role["base"], by_role["reasoning"])
        numbers = {
            "cosine": {
                **jackknife(by_role["base"], by_role["reasoning"]),
                "layer": settings.direction.layer,
                "window": settings.direction.offsets,
            },
            "reliability": {role: reliability(one) for role, one in by_role.items()},
            "random": {"cosines": random, "mean": float(np.mean(random)) if random else None},
            "offsets": offsets,
            "map": {name: one.tolist() for name, one in maps.items()},
        }
        frame.write_numbers(folder, STEM, to_csv(maps, offsets), numbers)
        draw(maps, offsets, numbers, folder, window=settings.direction.offsets)

    inputs = {
        "directions": fingerprint(directions),
        "groups": fingerprint(sums),
        "direction": asdict(settings.direction),
    }
    return run.stage("cosines", inputs, work)


def _array(rows: Sequence[Sequence[float | None]]) -> NDArray[np.float64]:
    """Numbers by layer and offset, NaN for null."""
    return np.array([[math.nan if x is None else x for x in row] for row in rows])


if __name__ == "__main__":
    sys.exit(command("cosines", "Cosines of base- and reasoning-derived directions.", stage))

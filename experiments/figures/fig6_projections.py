"""Figure 6: the direction along traces, around backtracking and elsewhere (Section 4.2, C7, C8).

Writes `figure6.{png,svg,csv,json}` and `figure6-trace.html`, one trace coloured by its projection.
In the JSON:

    auroc                 by model: how well the base-derived direction tells, before a sentence,
                          that it backtracks: mean, low, high (95%, traces drawn), n_events, n_other
    dense                 by model: see `presence.dense`, with `random`: medians of and 95% between
                          random directions
    without_direction     of the reasoning model's backtracking sentences, the share before which
                          the base-derived direction was absent: share, low, high, n
    without_backtracking  of the sentences before which it was present, those that do not backtrack
    prevalence            the share of the sentences that backtrack
    detail                all of this by model and by the model that the direction is derived from,
                          with the curves, the histograms and `auroc_same_traces`, which is judged
                          on the traces that the direction was made from
    trace                 the coloured trace: its id, and each token's text, score and place

What present, absent and a score are is fixed in `stages.presence`.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from experiments.figures import coloured_text, frame
from experiments.figures.frame import BLUE, GREY, ORANGE, plt
from experiments.pipeline.run import Run, command
from experiments.pipeline.settings import Settings
from experiments.pipeline.stage_runner import fingerprint
from experiments.pipeline.tables import csv_text
from experiments.stages import derive, groups, label, presence, rollouts
from experiments.stages.groups import ROLES, Groups
from jaxsteer.analysis import project_texts
from jaxsteer.directions import Trace, load_directions, random_directions
from jaxsteer.files import read_rows, write_atomic
from jaxsteer.llama import Model

STEM = "figure6"
TRACE = "figure6-trace.html"
_KINDS = (("backtracking", ORANGE, "backtracking sentences"), ("other", BLUE, "other sentences"))
_MODELS = {"reasoning": frame.GREEN, "base": GREY}
_COLUMNS, _LINES = 128, 9  # of the coloured text


def measure(
    model: Model,
    traces: Sequence[Trace],
    where: presence.Layout,
    *,
    role: str,
    unions: dict[str, NDArray[np.float32]],
    by_group: dict[str, Groups],
    settings: Settings,
) -> tuple[dict[str, Any], dict[str, NDArray[np.float64]]]:
    """All numbers of one model, by the source of the direction, and every token's score.

    `unions` are the directions of all traces `[D]`, by source.
    """
    direction, folds = settings.direction, settings.analyses.folds
    count = len(by_group[role].total)
    fold_of_text = np.array([groups.group_of(i, count) % folds for i in range(len(traces))])
    drawn = random_directions(settings.analyses.random_directions, len(unions["base"]))
    blocks = {
        source: [*presence.fold_directions(by_group[source], folds), unions[source]]
        for source in ROLES
    }
    vectors = np.concatenate([*blocks.values(), drawn])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    texts = project_texts(
        model,
        [trace.tokens for trace in traces],
        vectors,
        [direction.layer] * len(vectors),
        site=direction.site,
    )
    bar = tqdm(texts, desc=f"projections, {role} model", total=len(traces), unit="trace")
    projections = np.concatenate(list(bar), axis=1)  # [R, N]

    variance = by_group[role].variance()
    random = _random(projections[-len(drawn) :], where, direction.offsets, variance)
    numbers, scores = {}, {}
    for i, source in enumerate(ROLES):
        first = i * (folds + 1)
        scores[source] = presence.standardised(
            projections[first : first + folds], where, fold_of_text
        )
        numbers[source] = _numbers(
            scores[source], projections[first + folds], where, direction.offsets, variance
        )
        numbers[source]["dense"]["random"] = random["dense"]
        numbers[source]["auroc_random"] = random["auroc"]
    return numbers, scores


def _numbers(
    scores: NDArray, full: NDArray, where: presence.Layout, window: Sequence[int], variance: float
) -> dict[str, Any]:
    """Of one model and one direction; `full` `[N]` is on the direction of all traces."""
    score = presence.before(scores, where, window)
    same = presence.before(full.astype(np.float64), where, window)
    return {
        "auroc": asdict(presence.detection(score, where)),
        "auroc_same_traces": asdict(presence.detection(same, where)),
        "dense": presence.dense(scores, where, window, full, variance),
        **presence.presence(score, where),
        "curve": presence.curves(scores, where),
        "histogram": presence.histograms(score, scores, where),
    }


def _random(
    projections: NDArray, where: presence.Layout, window: Sequence[int], variance: float
) -> dict[str, Any]:
    """The same measures of random directions: the median, and between what 95% of them are.

    A random direction has no sign, so its AUROC is that of the better one.
    """
    areas, tails, parts = [], [], []
    for row in projections.astype(np.float64):
        scores_of_row = presence.detection(
            presence.before(row, where, window), where, n_resamples=0
        )
        areas.append(max(scores_of_row.mean, 1 - scores_of_row.mean))
        tails.append(presence.excess_kurtosis(row[where.reasoning]))
        parts.append(presence.variance_along(row, where, window) / variance)

    def between(values: list[float]) -> dict[str, float]:
        low, median, high = np.quantile(values, [0.025, 0.5, 0.975])
        return {"median": float(median), "low": float(low), "high": float(high)}

    return {
        "auroc": between(areas),
        "dense": {"excess_kurtosis": between(tails), "variance_explained": between(parts)},
    }


def to_csv(detail: dict[str, Any]) -> str:
    """The curves: a row for each model, source, kind of sentence and offset."""
    rows = []
    for role, by_source in detail.items():
        for source, numbers in by_source.items():
            curve = numbers["curve"]
            for kind in ("backtracking", "other"):
                for i, offset in enumerate(curve["offsets"]):
                    values = [curve[kind][name][i] for name in ("mean", "low", "high")]
                    told = [*(f"{x:.6g}" for x in values), curve[kind]["n"][i]]
                    area = f"{curve['auroc']['mean'][i]:.6g}"
                    rows.append([role, source, kind, offset, *told, area])
    head = ["model", "source", "sentences", "offset", "mean", "low", "high", "n", "auroc"]
    return csv_text(head, rows)


def choose(traces: Sequence[Trace]) -> int:
    """The trace that is shown: the first with two backtracking sentences, or with the most."""
    counts = [sum(trace.positive) for trace in traces]
    return next((i for i, n in enumerate(counts) if n >= 2), int(np.argmax(counts)))


def tokens_of(
    index: int, texts: Sequence[str], where: presence.Layout, scores: NDArray
) -> list[coloured_text.Token]:
    """The chosen trace's tokens with their scores; `texts` are its pieces."""
    at = np.flatnonzero(where.text == index)
    return [
        coloured_text.Token(
            text, float(scores[i]) if where.reasoning[i] else None, bool(where.on[i])
        )
        for text, i in zip(texts, at, strict=True)
    ]


def write_figure(
    folder: Path, detail: dict[str, Any], tokens: Sequence[coloured_text.Token], trace_id: str
) -> None:
    """Write the figure, its numbers and the coloured trace."""
    reasoning = detail["reasoning"]["base"]
    trace = {"id": trace_id, "tokens": [asdict(token) for token in tokens]}
    numbers = {
        "auroc": {role: detail[role]["base"]["auroc"] for role in detail},
        "dense": {role: detail[role]["base"]["dense"] for role in detail},
        "without_direction": reasoning["without_direction"],
        "without_backtracking": reasoning["without_backtracking"],
        "prevalence": reasoning["prevalence"],
        "detail": detail,
        "trace": trace,
    }
    frame.write_numbers(folder, STEM, to_csv(detail), numbers)
    page = coloured_text.to_html(
        tokens,
        title=f"The base-derived direction along trace {trace_id}",
        about="Each token's projection in the reasoning model, in standard deviations from the "
        "mean of all tokens: orange above, blue below. Backtracking sentences are underlined.",
    )
    write_atomic(folder / TRACE, page.encode())
    draw(detail, tokens, folder)


def draw(detail: dict[str, Any], tokens: Sequence[coloured_text.Token], folder: Path) -> list[Path]:
    """Write PNG and SVG; everything is of the base-derived direction. Returns the paths."""
    shown = coloured_text.excerpt(tokens, before=45, characters=_COLUMNS * _LINES)
    figure = plt.figure(figsize=(11, 8.2), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[3.4, 1.3])
    axes = above.subplots(2, 3)
    for row, role in enumerate(("reasoning", "base")):
        numbers = detail[role]["base"]
        name = frame.TARGETS[role]
        _curve(axes[row, 0], numbers["curve"], name)
        _histogram(axes[row, 1], numbers["histogram"], "sentences", "mean score of the window")
        axes[row, 1].set_title(_area(numbers["auroc"]), fontsize=9.5)
    _areas(axes[0, 2], detail)
    _histogram(axes[1, 2], detail["reasoning"]["base"]["histogram"], "tokens", "score of a token")
    axes[1, 2].set_title("tokens of the reasoning model", fontsize=9.5)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    above.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    axis = below.subplots()
    # A character of the font is .602 of its size wide.
    coloured_text.draw_text(axis, shown, columns=_COLUMNS, size=0.93 * 11 * 72 / (0.602 * _COLUMNS))
    axis.set_title(
        "One trace in the reasoning model, coloured by its projection on the base-derived "
        "direction\n(orange above the mean, blue below, full colour at 3 standard deviations); "
        "backtracking is underlined",
        fontsize=9.5,
        loc="left",
    )
    return frame.save(figure, folder, STEM)


def _curve(axis: plt.Axes, curve: dict[str, Any], name: str) -> None:
    for kind, colour, name_of_kind in _KINDS:
        one = curve[kind]
        axis.plot(curve["offsets"], one["mean"], color=colour, lw=1.6, label=name_of_kind)
        axis.fill_between(curve["offsets"], one["low"], one["high"], color=colour, alpha=0.2, lw=0)
    axis.axvline(0, color="0.6", lw=0.8)
    axis.set_title(name, fontsize=9.5)
    axis.set(xlabel="tokens from the sentence's start", ylabel="projection (standard deviations)")
    frame.tidy(axis)


def _histogram(axis: plt.Axes, counts: dict[str, Any], what: str, label: str) -> None:
    edges = np.array(counts["edges"])
    for kind, colour, name in _KINDS:
        values = np.array(counts[f"{what}_{kind}"], float)
        density = values / max(values.sum(), 1) / np.diff(edges)
        axis.stairs(density, edges, color=colour, fill=True, alpha=0.35, label=name)
        axis.stairs(density, edges, color=colour, lw=1.2)
    axis.set(xlabel=f"{label} (standard deviations)", ylabel="density")
    frame.tidy(axis)


def _area(area: dict[str, Any]) -> str:
    return (
        f"AUROC {area['mean']:.2f} [{area['low']:.2f}, {area['high']:.2f}], "
        f"{area['n_events']} against {area['n_other']}"
    )


def _areas(axis: plt.Axes, detail: dict[str, Any]) -> None:
    for role, colour in _MODELS.items():
        curve = detail[role]["base"]["curve"]
        area = curve["auroc"]
        axis.plot(curve["offsets"], area["mean"], color=colour, lw=1.6, label=frame.TARGETS[role])
        axis.fill_between(
            curve["offsets"], area["low"], area["high"], color=colour, alpha=0.2, lw=0
        )
    axis.axhline(0.5, color="0.4", lw=0.8, ls="--")
    axis.axvline(0, color="0.6", lw=0.8)
    axis.set(xlabel="tokens from the sentence's start", ylabel="AUROC of one token")
    axis.set_title("backtracking against other sentences", fontsize=9.5)
    axis.legend(fontsize=8, loc="lower left", frameon=False)
    frame.tidy(axis)


def stage(run: Run) -> Path:
    """The folder with figure 6."""
    traces, labels, directions = rollouts.stage(run), label.stage(run), derive.stage(run)
    sums, settings = groups.stage(run), run.settings
    layer = settings.direction.layer

    def work(folder: Path) -> None:
        tokenizer = run.tokenizer("reasoning")
        marked = derive.read_traces(tokenizer, traces / rollouts.FILE, labels / label.FILE)
        where = presence.layout(marked, settings.direction.offsets)
        saved = load_directions(directions / derive.FILE)
        by_group = groups.load_groups(sums / groups.FILE)
        detail, scores = {}, {}
        for role in ROLES:
            detail[role], scores[role] = measure(
                run.load(role)[0],
                marked,
                where,
                role=role,
                unions={source: saved[f"{source}.{layer}.union"].vector for source in ROLES},
                by_group=by_group,
                settings=settings,
            )
        index = choose(marked)
        row = list(read_rows(traces / rollouts.FILE))[index]
        texts = coloured_text.pieces(tokenizer, row["prompt"] + row["text"])
        tokens = tokens_of(index, texts, where, scores["reasoning"]["base"])
        write_figure(folder, detail, tokens, row["id"])

    inputs = {
        "models": {role: run.model_fingerprint(role) for role in ROLES},
        "traces": fingerprint(traces),
        "labels": fingerprint(labels),
        "directions": fingerprint(directions),
        "groups": fingerprint(sums),
        "direction": asdict(settings.direction),
        "settings": [settings.analyses.folds, settings.analyses.random_directions],
        "rules": [presence.ABSENT_UP_TO, "present before as many as backtrack"],
    }
    return run.stage("figure6", inputs, work)


if __name__ == "__main__":
    sys.exit(command("fig6_projections", "Figure 6: the direction along traces.", stage))

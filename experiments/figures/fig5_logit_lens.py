"""Figure 5: what the directions say to the unembedding (Section 4, C6).

The lens is `analysis.logit_lens`: the direction at root mean square 1, times the final norm's
scale, times the unembedding ("normed"); without the norm's scale beside it ("plain"). Ranks count
from 0. The keywords are all tokens that spell one by themselves, in any case, with or without white
space.

Writes `figure5.{png,svg,csv,json}`. In the JSON:

    directions   by name (`base.4.union`) and model, at the steered layer: `keywords`, each with
                 token, rank and logit; `top`, the highest tokens with their logits; `vocab_size`;
                 and the same under `plain`
    layers       by name and model for every layer: the best rank of a keyword, and which it is
    best_rank    by name and model at the steered layer: the best rank of a keyword, and 99% of it
                 by drawing groups of traces anew: value, low, high, n (groups)
    random       by model: the best rank of a keyword in random directions, median and 95% between,
                 and for each direction the share of random ones with as good a rank or a better one
    sizes        by model: vocabulary, keyword tokens, random directions
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from experiments.figures import frame
from experiments.figures.frame import BLUE, GREY, ORANGE, plt
from experiments.pipeline.run import Run, command
from experiments.pipeline.stage_runner import fingerprint
from experiments.pipeline.tables import csv_text
from experiments.stages import derive, groups
from experiments.stages.groups import ROLES, Groups
from jaxsteer.analysis import LENSES, Lens, keyword_tokens, lens
from jaxsteer.directions import load_directions, random_directions
from jaxsteer.llama import Model
from jaxsteer.tokenizers import token_bytes

STEM = "figure5"
TOP = 10
DRAWS = 200  # of the groups of traces, for the interval of a rank


@dataclass(frozen=True)
class Seen:
    """What one model's lens makes of all directions; the last ones of each `Lens` are random."""

    names: list[str]  # of the directions that are not random
    drawn: dict[str, NDArray[np.int64]]  # by name, a keyword's best rank from groups drawn anew
    keywords: dict[int, str]  # text by token
    vocab_size: int
    texts: dict[int, str]  # of the top tokens
    lenses: dict[str, Lens]  # by kind


def look(
    model: Model,
    tokenizer: Any,
    named: dict[str, NDArray[np.float32]],
    drawn: NDArray[np.float32],
    *,
    keywords: Sequence[str],
    resampled: dict[str, NDArray[np.float64]],
) -> Seen:
    """Both lenses of one model on the named directions and on the random ones `[R, D]`.

    `resampled` has, for some of the names, the direction of groups of traces drawn anew `[S, D]`.
    """
    tokens = keyword_tokens(tokenizer, keywords)
    again = {name: lens(model, some, [*tokens], top=1) for name, some in resampled.items()}
    vectors = np.concatenate([np.stack([*named.values()]), drawn])
    lenses = {kind: lens(model, vectors, [*tokens], kind=kind, top=TOP) for kind in LENSES}
    pieces = token_bytes(tokenizer)
    wanted = {int(i) for one in lenses.values() for i in one.top_tokens[: len(named)].flat}
    texts = {  # a vocabulary may be padded beyond the tokenizer's
        i: pieces[i].decode(errors="replace") if i < len(pieces) else f"<{i}>" for i in wanted
    }
    best = {name: one.ranks.min(axis=1) for name, one in again.items()}
    return Seen([*named], best, tokens, model.config.vocab_size, texts, lenses)


def resample(one: Groups, *, draws: int = DRAWS, seed: int = 0) -> NDArray[np.float64]:
    """The direction `[S, D]` of as many groups of traces drawn with replacement, `draws` times.

    Draws without a backtracking sentence at some offset have no direction and are left out.
    """
    random, count = np.random.default_rng(seed), len(one.total)
    times = random.multinomial(count, np.full(count, 1 / count), size=draws)  # [S, G]
    positive, every = (
        (np.tensordot(times, total, 1), np.tensordot(times, count, 1)[..., None])
        for total, count in (
            (one.total[:, 0], one.count[:, 0]),
            (one.total.sum(axis=1), one.count.sum(axis=1)),
        )
    )  # sums [S, O, D] and counts [S, O, 1]
    complete = positive[1].all(axis=(1, 2))
    means = [total[complete] / n[complete] for total, n in (positive, every)]
    return (means[0] - means[1]).mean(axis=1)


def numbers(seen: dict[str, Seen], *, layer: int, groups: int) -> dict[str, Any]:
    """The JSON, as the module says."""
    names = next(iter(seen.values())).names
    at_layer = [name for name in names if name.split(".")[1] == str(layer)]
    return {
        "layer": layer,
        "directions": {
            name: {role: _one(one, names.index(name)) for role, one in seen.items()}
            for name in at_layer
        },
        "layers": {
            name: {role: _best(one, names.index(name)) for role, one in seen.items()}
            for name in names
        },
        "best_rank": {
            name: {role: {**_best_rank(one, name), "n": groups} for role, one in seen.items()}
            for name in at_layer
        },
        "random": {role: _random(one, at_layer) for role, one in seen.items()},
        "sizes": {
            role: {
                "vocab_size": one.vocab_size,
                "keyword_tokens": len(one.keywords),
                "random_directions": len(one.lenses["normed"].ranks) - len(one.names),
            }
            for role, one in seen.items()
        },
    }


def _one(seen: Seen, row: int) -> dict[str, Any]:
    normed, plain = (_by_kind(seen, kind, row) for kind in LENSES)
    return {**normed, "vocab_size": seen.vocab_size, "plain": plain}


def _by_kind(seen: Seen, kind: str, row: int) -> dict[str, Any]:
    one = seen.lenses[kind]
    words = zip(seen.keywords.values(), one.ranks[row], one.logits[row], strict=True)
    highest = zip(one.top_tokens[row], one.top_logits[row], strict=True)
    return {
        "keywords": [
            {"token": text, "rank": int(rank), "logit": float(logit)} for text, rank, logit in words
        ],
        "top": [[seen.texts[int(i)], float(logit)] for i, logit in highest],
    }


def _best(seen: Seen, row: int) -> dict[str, Any]:
    ranks = seen.lenses["normed"].ranks[row]
    at = int(np.argmin(ranks))
    return {"rank": int(ranks[at]), "token": [*seen.keywords.values()][at]}


def _best_rank(seen: Seen, name: str) -> dict[str, float]:
    value = _best(seen, seen.names.index(name))["rank"]
    low, high = rank_interval(value, seen.drawn[name])
    return {"value": value, "low": low, "high": high}


def rank_interval(value: int, drawn: ArrayLike) -> tuple[float, float]:
    """Between what 99% of the ranks drawn and the rank itself are; NaN for none drawn.

    Twenty groups show less than the whole spread: 95% of the draws hold the truth less often than
    that (`experiments.calibrate`).
    """
    ranks = np.asarray(drawn)
    if not ranks.size:
        return math.nan, math.nan
    low, high = np.quantile(ranks, [0.005, 0.995])
    return float(min(low, value)), float(max(high, value))


def _random(seen: Seen, at_layer: Sequence[str]) -> dict[str, Any]:
    best = seen.lenses["normed"].ranks.min(axis=1)
    drawn = best[len(seen.names) :]
    low, median, high = np.quantile(drawn, [0.025, 0.5, 0.975])
    shares = {name: float(np.mean(drawn <= best[seen.names.index(name)])) for name in at_layer}
    return {
        "median": float(median),
        "low": float(low),
        "high": float(high),
        "n": len(drawn),
        "as_good": shares,
    }


def to_csv(seen: dict[str, Seen]) -> str:
    """A row for each model, lens, direction (the random ones, too) and keyword token."""
    rows: list[list[Any]] = []
    for role, one in seen.items():
        for kind, reading in one.lenses.items():
            n_random = len(reading.ranks) - len(one.names)
            names = [*one.names, *(f"random-{i}" for i in range(n_random))]
            for name, ranks, logits in zip(names, reading.ranks, reading.logits, strict=True):
                rows += [
                    [role, kind, name, text, i, rank, f"{logit:.6g}", one.vocab_size]
                    for (i, text), rank, logit in zip(
                        one.keywords.items(), ranks, logits, strict=True
                    )
                ]
    head = ["model", "lens", "direction", "token", "id", "rank", "logit", "vocab_size"]
    return csv_text(head, rows)


def draw(figures: dict[str, Any], folder: Path) -> list[Path]:
    """The top tokens at the steered layer, and the best rank of a keyword by layer."""
    figure = plt.figure(figsize=(11, 7.4), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1.25, 1])
    top = above.subplots(1, 4)
    panels = [(name, role) for role in ROLES[::-1] for name in figures["directions"]]
    for axis, (name, role) in zip(top, panels, strict=True):
        _top_tokens(axis, figures["directions"][name][role], name, role)
    axes = below.subplots(1, 2)
    for axis, role in zip(axes, ROLES[::-1], strict=True):
        _ranks(axis, figures, role)
    handles, labels = axes[0].get_legend_handles_labels()
    below.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    above.suptitle(
        f"What the directions of layer {figures['layer']} say through the logit lens: the highest "
        "tokens, keywords in orange; below, the rank of the keywords from 1",
        fontsize=10,
    )
    return frame.save(figure, folder, STEM)


def _top_tokens(axis: plt.Axes, one: dict[str, Any], name: str, role: str) -> None:
    spelled = {word["token"] for word in one["keywords"]}
    texts = [text for text, _ in one["top"]][::-1]
    logits = [logit for _, logit in one["top"]][::-1]
    colours = [ORANGE if text in spelled else BLUE for text in texts]
    axis.barh(range(len(texts)), logits, color=colours, height=0.68, alpha=0.85)
    axis.set_yticks(range(len(texts)), [_shown(text) for text in texts], parse_math=False)
    best = sorted(one["keywords"], key=lambda word: word["rank"])[:3]
    words = ", ".join(f"{word['token'].strip()} {word['rank'] + 1}" for word in best)
    axis.set_xlabel(f"logit\n{words} of {one['vocab_size']}")
    source = name.split(".")[0]
    axis.set_title(f"{source}-derived,\nlens of the {frame.TARGETS[role]}", fontsize=9.5)
    frame.tidy(axis)
    axis.grid(visible=False, axis="y")


def _shown(text: str) -> str:
    """A token as it can be read: without the space before it, and on one line."""
    return text.strip(" ").encode("unicode_escape").decode() if text.strip() else repr(text)


def _ranks(axis: plt.Axes, figures: dict[str, Any], role: str) -> None:
    for source in ROLES:
        label, colour, marker = frame.style(source)
        points = {
            int(name.split(".")[1]): by_model[role]["rank"] + 1
            for name, by_model in figures["layers"].items()
            if name.startswith(f"{source}.")
        }
        axis.plot([*points], [*points.values()], color=colour, marker=marker, ms=4, label=label)
    random, size = figures["random"][role], figures["sizes"][role]["vocab_size"]
    axis.axhspan(random["low"] + 1, random["high"] + 1, color=GREY, alpha=0.2, lw=0)
    axis.axhline(random["median"] + 1, color=GREY, lw=1, label="random directions: median and 95%")
    axis.axhspan(0.5, TOP + 0.5, color=ORANGE, alpha=0.12, lw=0, label=f"first {TOP} tokens")
    axis.axvline(figures["layer"], color="0.6", lw=0.8, ls=":")
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.set_ylim(size, 0.8)
    axis.set(xlabel="layer", ylabel="best rank of a keyword, from 1")
    axis.set_title(
        f"lens of the {frame.TARGETS[role]} ({figures['sizes'][role]['keyword_tokens']} keyword "
        f"tokens among {size})",
        fontsize=9,
    )
    frame.tidy(axis)
    axis.set_xticks(sorted(points), minor=True)


def stage(run: Run) -> Path:
    """The folder with figure 5."""
    directions, sums, settings = derive.stage(run), groups.stage(run), run.settings
    layer = settings.direction.layer

    def work(folder: Path) -> None:
        by_role = groups.load_groups(sums / groups.FILE)
        resampled = {f"{role}.{layer}.union": resample(one) for role, one in by_role.items()}
        saved = load_directions(directions / derive.FILE)
        unions = {name: one.vector for name, one in saved.items() if _is_union(name)}
        seen = {}
        for role in ROLES:
            model, tokenizer = run.load(role)
            drawn = random_directions(settings.analyses.random_directions, model.config.d_model)
            seen[role] = look(
                model,
                tokenizer,
                unions,
                drawn,
                keywords=settings.labels.keywords,
                resampled=resampled,
            )
        figures = numbers(seen, layer=layer, groups=len(by_role["base"].total))
        frame.write_numbers(folder, STEM, to_csv(seen), figures)
        draw(figures, folder)

    inputs = {
        "models": {role: run.model_fingerprint(role) for role in ROLES},
        "directions": fingerprint(directions),
        "groups": fingerprint(sums),
        "direction": asdict(settings.direction),
        "keywords": settings.labels.keywords,
        "random_directions": settings.analyses.random_directions,
    }
    return run.stage("figure5", inputs, work)


def _is_union(name: str) -> bool:
    """Whether it is the backtracking direction of a layer: `base.4.union`."""
    parts = name.split(".")
    return len(parts) == 3 and parts[0] in ROLES and parts[2] == "union"


if __name__ == "__main__":
    sys.exit(command("fig5_logit_lens", "Figure 5: the logit lens of the directions.", stage))

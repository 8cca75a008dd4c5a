"""Values that no settings can have, each said by its name."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from experiments.judges.settings import judge_checks
from experiments.pipeline.formats import FORMATS
from jaxsteer.steering import SITES

if TYPE_CHECKING:
    from experiments.pipeline.settings import Analyses, Decoding, Grafting, Settings

DTYPES = ("float32", "bfloat16")
UNITS = ("vector", "residual")
SOURCES = ("keywords", "grammar")
COHERENCE = ("repetition", "grammar")
BASELINES = ("mean", "noise", "self", "behaviour")


def problems_of(settings: "Settings") -> list[str]:
    """What is wrong with the values, one line each."""
    models, prompts, labels = settings.models, settings.prompts, settings.labels
    direction, steering, report = settings.direction, settings.steering, settings.report
    checks: list[tuple[str, Any, bool, str]] = [
        ("models.dtype", models.dtype, models.dtype in DTYPES, " or ".join(DTYPES)),
        (
            "prompts.base_template",
            prompts.base_template,
            "{prompt}" in prompts.base_template,
            "a text with {prompt} in it",
        ),
        *(
            (f"prompts.{name}", form, form in FORMATS, " or ".join(FORMATS))
            for name, form in (
                ("base_format", prompts.base_format),
                ("reasoning_format", prompts.reasoning_format),
            )
        ),
        (
            "prompts.evaluate_split",
            prompts.evaluate_split,
            prompts.evaluate_split != prompts.derive_split,
            "another one than derive_split: the figure needs prompts that the direction has not",
        ),
        (
            "labels.keywords",
            labels.keywords,
            bool(labels.keywords) and all(word.strip() for word in labels.keywords),
            "at least one word, none empty",
        ),
        ("labels.source", labels.source, labels.source in SOURCES, " or ".join(SOURCES)),
        (
            "labels.source",
            labels.source,
            labels.source == "keywords" or not (labels.file or labels.judge),
            "no source beside a file or [labels.judge]: labels come from one source",
        ),
        (
            "labels.judge",
            "[labels.judge] beside a file",
            not (labels.judge and labels.file),
            "one of them: labels come from one source",
        ),
        ("direction.layer", direction.layer, direction.layer >= 0, "at least 0"),
        ("direction.offsets", direction.offsets, _distinct(direction.offsets), "distinct numbers"),
        (
            "activations.offsets",
            settings.activations.offsets,
            _distinct(settings.activations.offsets),
            "distinct numbers",
        ),
        ("direction.site", direction.site, direction.site in SITES, f"one of {', '.join(SITES)}"),
        (
            "steering.coeffs",
            steering.coeffs,
            _distinct(steering.coeffs) and all(c and math.isfinite(c) for c in steering.coeffs),
            "distinct finite numbers without 0, which is always run",
        ),
        (
            "steering.baseline_coeffs",
            steering.baseline_coeffs,
            set(steering.baseline_coeffs) <= set(steering.coeffs),
            "some of steering.coeffs",
        ),
        (
            "steering.baselines",
            steering.baselines,
            set(steering.baselines) <= set(BASELINES),
            f"some of {', '.join(BASELINES)}",
        ),
        ("steering.unit", steering.unit, steering.unit in UNITS, " or ".join(UNITS)),
        (
            "steering.random_directions",
            steering.random_directions,
            steering.random_directions >= 0,
            "at least 0",
        ),
        (
            "report.coherence",
            report.coherence,
            report.coherence in COHERENCE,
            " or ".join(COHERENCE),
        ),
        ("report.margin", report.margin, 0 <= report.margin <= 1, "0 to 1"),
        *_map_checks(settings),
        *_analyses_checks(settings.analyses),
        *_grafting_checks(settings.grafting),
        (
            "perplexity.prompts",
            settings.perplexity.prompts,
            settings.perplexity.prompts is None or settings.perplexity.prompts >= 1,
            "at least 1",
        ),
        *_search_checks(settings),
    ]
    if labels.judge:
        checks += judge_checks(labels.judge, "labels.judge.")
    for name in ("derive_limit", "evaluate_limit", "base_evaluate_limit"):
        limit = getattr(prompts, name)
        checks.append((f"prompts.{name}", limit, limit is None or limit >= 1, "at least 1"))
    for name in ("rollouts", "decoding"):
        part: Decoding = getattr(settings, name)
        rows, warmth = part.rows_per_chunk, part.temperature
        checks += [
            (f"{name}.max_new_tokens", part.max_new_tokens, part.max_new_tokens >= 1, "at least 1"),
            (f"{name}.temperature", warmth, warmth >= 0 and math.isfinite(warmth), "at least 0"),
            (f"{name}.top_p", part.top_p, 0 < part.top_p <= 1, "above 0, at most 1"),
            (f"{name}.seed", part.seed, 0 <= part.seed < 2**32, "0 to 2**32 - 1"),
            (f"{name}.rows_per_chunk", rows, rows is None or rows >= 1, "at least 1"),
        ]
    return [f"{name}: got {value!r}, expected {text}" for name, value, ok, text in checks if not ok]


def _map_checks(settings: "Settings") -> list[tuple[str, Any, bool, str]]:
    figure2 = settings.figure2
    coeff, offsets = figure2.coeff, figure2.offsets
    either = min(offsets, default=0) < 0 <= max(offsets, default=0)
    read = {*settings.activations.offsets, *settings.direction.offsets}
    return [
        (
            "figure2.offsets",
            offsets,
            _distinct(offsets) and either and read.issuperset(offsets),
            "some of activations.offsets, distinct, some below 0 and some not",
        ),
        ("figure2.layer_stride", figure2.layer_stride, figure2.layer_stride >= 1, "at least 1"),
        (
            "figure2.coeff",
            coeff,
            coeff is None or bool(coeff and math.isfinite(coeff)),
            "a finite number but 0",
        ),
        ("figure2.prompts", figure2.prompts, figure2.prompts >= 2, "at least 2"),
    ]


def _analyses_checks(analyses: "Analyses") -> list[tuple[str, Any, bool, str]]:
    at_least_1 = ("random_directions", "sensitivity_texts", "sensitivity_stride")
    return [
        *(
            (f"analyses.{n}", getattr(analyses, n), getattr(analyses, n) >= 1, "at least 1")
            for n in at_least_1
        ),
        ("analyses.folds", analyses.folds, analyses.folds >= 2, "at least 2"),
        (
            "analyses.groups",
            analyses.groups,
            analyses.groups >= analyses.folds,
            f"at least analyses.folds = {analyses.folds}",
        ),
    ]


def _grafting_checks(grafting: "Grafting") -> list[tuple[str, Any, bool, str]]:
    least = {"random_sets": 0, "generated_sets": 0, "tokens": 2}
    found = {name: (value, least.get(name, 1)) for name, value in vars(grafting).items()}
    return [
        (f"grafting.{name}", value, value is None or value >= at_least, f"at least {at_least}")
        for name, (value, at_least) in found.items()
    ]


def _search_checks(settings: "Settings") -> list[tuple[str, Any, bool, str]]:
    search, coeff = settings.search, settings.search.coeff
    least = {"seeds": 1, "steps": 1, "rows": 1, "tokens": 2, "held_out": 2}
    least |= {"directions": 2, "random_spans": 0}
    checks = [
        (f"search.{n}", getattr(search, n), getattr(search, n) >= m, f"at least {m}")
        for n, m in least.items()
    ]
    layers = [settings.direction.layer, *search.other_layers]
    positive = [c for c in settings.steering.coeffs if c > 0]
    return [
        *checks,
        (
            "search.other_layers",
            search.other_layers,
            _distinct(layers) and min(layers) >= 0,
            "distinct layers, without the steered one",
        ),
        (
            "search.coeff",
            coeff,
            coeff is None or coeff in positive,
            "one of steering.coeffs above 0",
        ),
    ]


def _distinct(values: Sequence[float]) -> bool:
    return 0 < len(values) == len(set(values))

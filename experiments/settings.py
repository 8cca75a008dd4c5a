"""The settings of a run, read from TOML; an unknown or misspelt key is an error."""

import dataclasses
import math
import tomllib
import types
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from experiments.formats import FORMATS
from experiments.judge_settings import Judge, judge_checks
from jaxsteer.annotate import KEYWORDS
from jaxsteer.sites import SITES

DTYPES = ("float32", "bfloat16")
UNITS = ("vector", "residual")
SOURCES = ("keywords", "grammar")
COHERENCE = ("repetition", "grammar")
BASELINES = ("mean", "noise", "self", "behaviour")

Section = TypeVar("Section")


@dataclass(frozen=True, kw_only=True)
class Models:
    """The pair: Hugging Face folders or checkpoints of `weights.convert`, relative to the file."""

    base: str
    reasoning: str
    control: str | None = None  # a fine-tune that should not respond to the direction
    dtype: str = "bfloat16"


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """A JSON list of {id, prompt, split}; directions and figure use different splits."""

    file: str
    derive_split: str = "dom"
    evaluate_split: str = "eval"
    derive_limit: int | None = None  # the first so many; all if not given
    evaluate_limit: int | None = None
    base_evaluate_limit: int | None = None  # for the base model: rare events need more; or as above
    # "chat" is the template of the reasoning model's tokenizer, "continuation" is base_template. A
    # base model knows no chat format, and given one often writes nothing.
    base_format: str = "continuation"
    reasoning_format: str = "chat"  # and the control's
    base_template: str = "Problem: {prompt}\n\nSolution:"

    def form(self, role: str) -> str:
        """The format in which the model of a role is given problems."""
        return self.base_format if role == "base" else self.reasoning_format


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How text is generated."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    rows_per_chunk: int | None = None  # what fits the device, if not given


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What each sentence does: what keywords, a file or a model say."""

    keywords: list[str] = field(default_factory=lambda: list(KEYWORDS))
    # "keywords": those with a keyword backtrack. "grammar": the same, and the others are of the
    # kinds of the small pair's grammar.
    source: str = "keywords"
    file: str | None = None
    judge: Judge | None = None


@dataclass(frozen=True, kw_only=True)
class Direction:
    """Where activations are read (Section 3.1) and steered."""

    layer: int  # output of this block, counted from 0
    offsets: list[int] = field(default_factory=lambda: list(range(-13, -7)))
    site: str = "resid_post"


@dataclass(frozen=True, kw_only=True)
class Activations:
    """What the pass over the traces reads: tokens from the start of a sentence, 0 the first."""

    offsets: list[int] = field(default_factory=lambda: list(range(-30, 5)))  # and the direction's


@dataclass(frozen=True, kw_only=True)
class Steering:
    """The cells of Figure 3."""

    coeffs: list[float]  # without 0, which is always run
    # "vector": a coefficient multiplies the direction as it was found, as in the paper.
    # "residual": it counts lengths of the residual stream at the layer, for equal norms.
    unit: str = "vector"
    # Figure 4's baselines, run on the reasoning model at `baseline_coeffs`, each of the length of
    # the base-derived direction; with `raw_baselines` at their own lengths, too.
    random_directions: int = 3
    baselines: list[str] = field(default_factory=lambda: list(BASELINES))
    baseline_coeffs: list[float] = field(default_factory=list)
    raw_baselines: bool = False


@dataclass(frozen=True, kw_only=True)
class Map:
    """The cells of Figure 2: single offsets at all layers, at one coefficient."""

    offsets: list[int] = field(default_factory=lambda: list(range(-30, 5, 3)))
    layer_stride: int = 1  # every so many layers, the steered one included
    coeff: float | None = None  # the first of steering.baseline_coeffs, if not given
    prompts: int = 32  # the first so many of the evaluation split


@dataclass(frozen=True, kw_only=True)
class Report:
    """How the outcome is judged."""

    coherence: str = "repetition"  # or "grammar", for the small pair's text
    margin: float = 0.03  # how far coherence may fall before a cell no longer counts


@dataclass(frozen=True, kw_only=True)
class Analyses:
    """Logit lens, projections and sensitivity: what they are compared with, and how finely."""

    random_directions: int = 32  # the scale for ranks and projections
    groups: int = 20  # of traces, left out one at a time for errors of directions
    folds: int = 5  # a trace is projected on the direction of the other folds' traces
    sensitivity_texts: int = 20  # of held-out prompts
    sensitivity_stride: int = 5  # every so many of `activations.offsets`


@dataclass(frozen=True, kw_only=True)
class Grafting:
    """How hybrids of base and reasoning model are searched and judged."""

    traces: int = 32  # whose sentence starts a response is measured at, to search and to judge
    tokens: int = 512  # of each trace, its prompt among them
    largest: int | None = None  # parts that the search takes at most; all if not given
    random_sets: int = 8  # of as many parts, to compare responses with
    generated_sets: int = 2  # of these, whose text is generated, too
    prompts: int | None = None  # to generate from, of `prompts.evaluate_split`; all if not given


@dataclass(frozen=True, kw_only=True)
class Search:
    """How directions are learned by gradient, and how many are searched for."""

    other_layers: list[int] = field(default_factory=list)  # beside the steered one
    seeds: int = 2
    steps: int = 24
    rows: int = 8  # texts a step
    tokens: int = 1024  # of each text, its prompt among them
    held_out: int = 4  # one text of so many is left to judge by
    # Bounds the lengths, as a coefficient of `steering`; the last of its `baseline_coeffs`, if not
    # given.
    coeff: float | None = None
    directions: int = 3  # in the search for several
    random_spans: int = 2  # to compare the ablation of what was found with


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides the outcome of a run."""

    models: Models
    prompts: Prompts
    rollouts: Decoding
    labels: Labels = field(default_factory=Labels)
    direction: Direction
    activations: Activations = field(default_factory=Activations)
    steering: Steering
    decoding: Decoding
    figure2: Map = field(default_factory=Map)
    report: Report
    analyses: Analyses = field(default_factory=Analyses)
    grafting: Grafting = field(default_factory=Grafting)
    search: Search = field(default_factory=Search)


def load_settings(path: str | Path) -> Settings:
    """Read and check a TOML file; paths in it are resolved against its folder.

    The files that it names are not looked for here.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: naming every key that is unknown, missing or of the wrong type, together; if
            there is none, every value that cannot be.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such settings file")
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid TOML: {error}") from None
    problems: list[str] = []
    settings = _read(Settings, raw, "", problems)
    if problems or settings is None:
        raise ValueError(f"{path}:\n  " + "\n  ".join(problems))
    settings = _resolve(settings, path.resolve().parent)
    problems = _check(settings)
    if problems:
        raise ValueError(f"{path}:\n  " + "\n  ".join(problems))
    return settings


def _read(kind: type[Section], raw: dict[str, Any], where: str, problems: list[str]) -> Any:
    hints = get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    problems += [
        f"{where}{name}: unknown key, expected one of {', '.join(fields)}"
        for name in sorted(raw.keys() - fields.keys())
    ]
    values = {}
    for name, spec in fields.items():
        if name in raw:
            values[name] = _value(hints[name], raw[name], where + name, problems)
        elif dataclasses.is_dataclass(hints[name]):
            values[name] = _read(hints[name], {}, f"{where}{name}.", problems)
        elif spec.default is spec.default_factory is dataclasses.MISSING:
            problems.append(f"{where}{name}: missing")
    return None if problems else kind(**values)


def _value(hint: Any, value: Any, where: str, problems: list[str]) -> Any:
    if dataclasses.is_dataclass(hint):
        if isinstance(value, dict):
            return _read(hint, value, f"{where}.", problems)  # type: ignore[arg-type]
        problems.append(f"{where}: got {value!r}, expected a table")
        return None
    options = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if dataclasses.is_dataclass(options[0]):  # a section that may be left out
        return _value(options[0], value, where, problems)
    for option in options:
        if get_origin(option) is list:
            item = get_args(option)[0]
            if isinstance(value, list) and all(_fits(item, v) for v in value):
                return [item(v) for v in value]
        elif option is not type(None) and _fits(option, value):
            return option(value)
    names = " or ".join(_kind_name(o) for o in options if o is not type(None))
    problems.append(f"{where}: got {value!r}, expected {names}")
    return None


def _kind_name(kind: Any) -> str:
    return str(kind) if get_origin(kind) else kind.__name__


def _fits(kind: type, value: Any) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _resolve(settings: Settings, folder: Path) -> Settings:
    """The same settings with absolute paths."""

    def absolute(part: Any, *names: str) -> Any:
        found = {name: getattr(part, name) for name in names}
        paths = {name: str(folder / value) for name, value in found.items() if value is not None}
        return dataclasses.replace(part, **paths)

    return dataclasses.replace(
        settings,
        models=absolute(settings.models, "base", "reasoning", "control"),
        prompts=absolute(settings.prompts, "file"),
        labels=absolute(settings.labels, "file"),
    )


def _check(settings: Settings) -> list[str]:
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
        *_map_checks(settings.figure2),
        *_analyses_checks(settings.analyses),
        *_grafting_checks(settings.grafting),
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


def _map_checks(figure2: Map) -> list[tuple[str, Any, bool, str]]:
    coeff, offsets = figure2.coeff, figure2.offsets
    either = min(offsets, default=0) < 0 <= max(offsets, default=0)
    return [
        (
            "figure2.offsets",
            offsets,
            _distinct(offsets) and either,
            "distinct numbers, some below 0 and some not",
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


def _analyses_checks(analyses: Analyses) -> list[tuple[str, Any, bool, str]]:
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


def _grafting_checks(grafting: Grafting) -> list[tuple[str, Any, bool, str]]:
    least = {"random_sets": 0, "generated_sets": 0, "tokens": 2}
    found = {name: (value, least.get(name, 1)) for name, value in vars(grafting).items()}
    return [
        (f"grafting.{name}", value, value is None or value >= at_least, f"at least {at_least}")
        for name, (value, at_least) in found.items()
    ]


def _search_checks(settings: Settings) -> list[tuple[str, Any, bool, str]]:
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

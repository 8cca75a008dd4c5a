"""The settings of a run, read from TOML and checked before any work starts."""

import inspect
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
from pydantic import Field, StrictBool, StrictFloat, StrictInt
from pydantic.dataclasses import dataclass

from experiments.judges.settings import (
    STRICT,
    Count,
    Filled,
    Judge,
    must,
    read_section,
    unknown,
    wrong,
)
from jaxsteer.analysis import KEYWORDS
from jaxsteer.files import as_path, is_remote
from jaxsteer.steering import SITES

_MOST_BYTES = 1 << 14  # of a settings file; ours have about 2,000

OnDisk = Annotated[
    str,
    must(
        lambda path: not is_remote(path),
        "a path on a disk: copy it there first (gcloud storage cp --recursive)",
    ),
    must(lambda path: path and "\0" not in path, "a path"),
]
Many = Annotated[StrictInt, Field(ge=1, le=1_000_000)]
Few = Annotated[StrictInt, Field(ge=0, le=1000)]
Two = Annotated[Count, Field(ge=2)]  # or more
Layer = Annotated[StrictInt, Field(ge=0, le=10_000)]  # output of this block, counted from 0
Offset = Annotated[StrictInt, Field(ge=-100_000, le=100_000)]  # tokens from a sentence's start
Offsets = Annotated[
    list[Offset],
    must(lambda values: 0 < len(values) == len(set(values)), "distinct numbers"),
    Field(max_length=1000),
]
# A coefficient multiplies in float32, where larger ones are infinite and smaller ones 0.
Coeff = Annotated[
    StrictFloat, must(lambda c: 1e-6 <= abs(c) <= 1e6, "a number other than 0, 1e-6 to 1e6 in size")
]
Coeffs = Annotated[
    list[Coeff],
    must(lambda values: 0 < len(values) == len(set(map(np.float32, values))), "distinct numbers"),
    Field(max_length=1000),
]
Format = Literal["chat", "continuation"]
Baseline = Literal["mean", "noise", "self", "behaviour"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Models:
    """The pair: Hugging Face folders or checkpoints of `weights.convert`, relative to the file."""

    base: OnDisk
    reasoning: OnDisk
    control: OnDisk | None = None  # a fine-tune that should not respond to the direction
    dtype: Literal["float32", "bfloat16"] = "bfloat16"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Prompts:
    """A JSON list of {id, prompt, split}; directions and figure use different splits."""

    file: OnDisk
    derive_split: str = "dom"
    evaluate_split: str = "eval"
    derive_limit: Count | None = None  # the first so many; all if not given
    evaluate_limit: Count | None = None
    # Of the base model and of the control, as `evaluate_limit` if not given: that nothing happens
    # takes more prompts to tell.
    base_evaluate_limit: Count | None = None
    control_evaluate_limit: Count | None = None
    # "chat" is the template of the reasoning model's tokenizer, "continuation" is base_template. A
    # base model knows no chat format, and given one often writes nothing.
    base_format: Format = "continuation"
    reasoning_format: Format = "chat"  # and the control's
    base_template: Annotated[
        str, must(lambda text: "{prompt}" in text, "a text with {prompt} in it")
    ] = "Problem: {prompt}\n\nSolution:"

    def form(self, role: str) -> str:
        """The format in which the model of a role is given problems."""
        return self.base_format if role == "base" else self.reasoning_format


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Decoding:
    """How text is generated."""

    max_new_tokens: Many
    temperature: Annotated[
        StrictFloat, must(lambda t: t == 0 or 1e-3 <= t <= 100, "0, or .001 to 100")
    ] = 0.0
    top_p: Annotated[StrictFloat, Field(ge=1e-6, le=1)] = 1.0
    seed: Annotated[StrictInt, Field(ge=0, lt=2**32)] = 0
    rows_per_chunk: Many | None = None  # what fits the device, if not given


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Labels:
    """What each sentence does: what keywords, a file or a model say."""

    keywords: Annotated[list[Filled], Field(min_length=1)] = field(
        default_factory=lambda: list(KEYWORDS)
    )
    # "keywords": those with a keyword backtrack. "grammar": the same, and the others are of the
    # kinds of the small pair's grammar.
    source: Literal["keywords", "grammar"] = "keywords"
    file: OnDisk | None = None
    judge: Judge | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Direction:
    """Where activations are read (Section 3.1) and steered."""

    layer: Layer
    offsets: Offsets = field(default_factory=lambda: list(range(-13, -7)))
    site: Annotated[str, must(lambda name: name in SITES, f"one of {', '.join(SITES)}")] = (
        "resid_post"
    )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Activations:
    """What the pass over the traces reads: tokens from the start of a sentence, 0 the first."""

    offsets: Offsets = field(default_factory=lambda: list(range(-30, 5)))  # and the direction's


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Steering:
    """The cells of Figure 3."""

    coeffs: Coeffs  # without 0, which is always run
    # "vector": a coefficient multiplies the direction as it was found, as in the paper.
    # "residual": it counts lengths of the residual stream at the layer, for equal norms.
    unit: Literal["vector", "residual"] = "vector"
    # Figure 4's baselines, run on the reasoning model at `baseline_coeffs`, each of the length of
    # the base-derived direction; with `raw_baselines` at their own lengths, too.
    random_directions: Few = 3
    baselines: list[Baseline] = field(default_factory=lambda: list(get_args(Baseline)))
    baseline_coeffs: list[StrictFloat] = field(default_factory=list)
    raw_baselines: StrictBool = False


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Map:
    """The cells of Figure 2: single offsets at all layers, at one coefficient."""

    offsets: Offsets = field(default_factory=lambda: list(range(-30, 5, 3)))
    layer_stride: Count = 1  # every so many layers, the steered one included
    coeff: Coeff | None = None  # the first of steering.baseline_coeffs, if not given
    prompts: Two = 32  # the first so many of the evaluation split


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Report:
    """How the outcome is judged."""

    coherence: Literal["repetition", "grammar"] = "repetition"  # the latter for the small pair
    # How far coherence may fall before a cell no longer counts.
    margin: Annotated[StrictFloat, Field(ge=0, le=1)] = 0.03


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Analyses:
    """Logit lens, projections and sensitivity: what they are compared with, and how finely."""

    random_directions: Annotated[Count, Field(le=1000)] = 32  # the scale for ranks and projections
    groups: Annotated[Count, Field(le=1000)] = 20  # of traces, left out one at a time for errors
    folds: Two = 5  # a trace is projected on the direction of the other folds' traces
    sensitivity_texts: Count = 12  # of held-out prompts
    sensitivity_stride: Count = 5  # every so many of `activations.offsets`


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Grafting:
    """How hybrids of base and reasoning model are searched and judged."""

    traces: Count = 32  # whose sentence starts a response is measured at, to search and to judge
    tokens: Two = 512  # of each trace, its prompt among them
    largest: Count | None = None  # parts that the search takes at most; all but one if not given
    random_sets: Few = 8  # of as many parts, to compare responses with
    generated_sets: Few = 2  # of these, whose text is generated, too
    prompts: Count | None = None  # to generate from, of `prompts.evaluate_split`; all if not given


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Search:
    """How directions are learned by gradient, and how many are searched for."""

    other_layers: list[Layer] = field(default_factory=list)  # beside the steered one
    seeds: Annotated[Count, Field(le=100)] = 2
    steps: Count = 24
    rows: Count = 8  # texts a step
    tokens: Two = 1024  # of each text, its prompt among them
    held_out: Two = 4  # one text of so many is left to judge by
    # Bounds the lengths, as a coefficient of `steering`; the last of its `baseline_coeffs`, if not
    # given.
    coeff: Coeff | None = None
    directions: Annotated[Two, Field(le=100)] = 3  # in the search for several
    random_spans: Few = 2  # to compare the ablation of what was found with


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Perplexity:
    """Which texts of the sweeps the unsteered model reads once more."""

    prompts: Count | None = None  # those of each target's first so many prompts; all if not given


@plain_dataclass(frozen=True, kw_only=True)
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
    perplexity: Perplexity = field(default_factory=Perplexity)
    search: Search = field(default_factory=Search)


_PATHS = {"models": ("base", "reasoning", "control"), "prompts": ("file",), "labels": ("file",)}


def load_settings(path: str | Path, changes: Sequence[str] = ()) -> Settings:
    """Read and check a TOML file; the files that it names are not looked for here.

    Args:
        path: of the file; paths in it are relative to its folder.
        changes: `section.key=value` each, with a value as in TOML, instead of what the file says;
            paths in them are relative to the current folder.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: a line for every key that is unknown or missing and every value that cannot be.
    """
    path = as_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such settings file")
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{path}: got {path.stat().st_size} bytes, expected at most {_MOST_BYTES}")
    try:
        raw = _absolute(_parsed(path.read_bytes()), path.resolve().parent)
    except ValueError as error:
        raise ValueError(f"{path}: not valid TOML: {error}") from None
    for text in changes:
        try:
            change = _parsed(text.encode()[:_MOST_BYTES])
        except ValueError as error:
            example = "steering.coeffs=[4.0] or models.dtype='float32'"
            raise ValueError(f"--set: got {text!r:.200}, expected as {example} ({error})") from None
        raw = _merged(raw, _absolute(change, Path.cwd()))
    sections = {section.name: section.type for section in fields(Settings)}
    problems = [unknown("", key, list(sections)) for key in sorted(raw.keys() - sections.keys())]
    valid: dict[str, Any] = {}
    for name, kind in sections.items():
        try:
            valid[name] = read_section(kind, raw.get(name, {}), name)  # type: ignore[arg-type]
        except ValueError as error:
            problems += str(error).split("\n  ")
    problems += _between(valid)
    if problems:
        raise ValueError(f"{path}:\n  " + "\n  ".join(problems))
    return Settings(**valid)


# What must hold between values, by the key that is named if it does not: a function of sections,
# which is asked if these are right by themselves, and what is expected.
_BETWEEN: dict[str, tuple[Callable[..., bool], str]] = {
    "prompts.evaluate_split": (
        lambda prompts: prompts.evaluate_split != prompts.derive_split,
        "another one than derive_split: prompts that the direction has not seen",
    ),
    "labels.judge": (
        lambda labels: not (labels.judge and labels.file),
        "no file beside it: labels come from one source",
    ),
    "labels.source": (
        lambda labels: labels.source == "keywords" or not (labels.file or labels.judge),
        "no source beside a file or [labels.judge]: labels come from one source",
    ),
    "direction.offsets": (
        lambda direction, rollouts: max(map(abs, direction.offsets)) < rollouts.max_new_tokens,
        "less than rollouts.max_new_tokens from 0",
    ),
    "steering.baseline_coeffs": (
        lambda steering: set(steering.baseline_coeffs) <= set(steering.coeffs),
        "some of steering.coeffs",
    ),
    "figure2.offsets": (
        lambda figure2, activations, direction: (
            {*activations.offsets, *direction.offsets}.issuperset(figure2.offsets)
            and min(figure2.offsets) < 0 <= max(figure2.offsets)
        ),
        "some of activations.offsets, some below 0 and some not",
    ),
    "analyses.folds": (lambda analyses: analyses.folds <= analyses.groups, "at most groups"),
    "search.other_layers": (
        lambda search, direction: (
            len({direction.layer, *search.other_layers}) == 1 + len(search.other_layers)
        ),
        "distinct layers, without the steered one",
    ),
    "search.coeff": (
        lambda search, steering: search.coeff in (None, *(c for c in steering.coeffs if c > 0)),
        "one of steering.coeffs above 0",
    ),
}


def _between(valid: Mapping[str, Any]) -> Iterator[str]:
    for name, (holds, expected) in _BETWEEN.items():
        needed = inspect.signature(holds).parameters
        if valid.keys() >= needed.keys() and not holds(**{n: valid[n] for n in needed}):
            section, key = name.split(".")
            yield wrong(name, getattr(valid[section], key), expected)


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        return tomllib.loads(data.decode())
    except RecursionError:
        raise ValueError("nested too deep") from None


def _absolute(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The same tables with absolute paths, where they are paths of a disk."""
    for section, keys in _PATHS.items():
        table = raw[section] if isinstance(raw.get(section), dict) else {}
        for key in keys:
            if isinstance(path := table.get(key), str) and path and not is_remote(path):
                table[key] = str(folder / as_path(path))
    return raw


def _merged(raw: Any, change: Any) -> Any:
    if not (isinstance(raw, dict) and isinstance(change, dict)):
        return change
    return raw | {key: _merged(raw.get(key), value) for key, value in change.items()}

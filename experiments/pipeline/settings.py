"""The settings of a run, read from TOML; an unknown or misspelt key is an error."""

import dataclasses
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.judges.settings import Judge
from experiments.pipeline.settings_checks import BASELINES, problems_of
from experiments.pipeline.toml_sections import read_section
from jaxsteer.analysis import KEYWORDS
from jaxsteer.files import is_remote


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
    sensitivity_texts: int = 12  # of held-out prompts
    sensitivity_stride: int = 5  # every so many of `activations.offsets`


@dataclass(frozen=True, kw_only=True)
class Grafting:
    """How hybrids of base and reasoning model are searched and judged."""

    traces: int = 32  # whose sentence starts a response is measured at, to search and to judge
    tokens: int = 512  # of each trace, its prompt among them
    largest: int | None = None  # parts that the search takes at most; all but one if not given
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
class Perplexity:
    """Which texts of the sweeps the unsteered model reads once more."""

    prompts: int | None = None  # those of each target's first so many prompts; all if not given


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
    perplexity: Perplexity = field(default_factory=Perplexity)
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
    settings = read_section(Settings, raw, "", problems)
    if settings is not None:
        problems += _in_stores(settings)
    if problems or settings is None:
        raise ValueError(f"{path}:\n  " + "\n  ".join(problems))
    settings = _resolve(settings, path.resolve().parent)
    problems = problems_of(settings)
    if problems:
        raise ValueError(f"{path}:\n  " + "\n  ".join(problems))
    return settings


def _in_stores(settings: Settings) -> list[str]:
    """A line for each model in an object store: a run reads them from a disk."""
    models = {name: getattr(settings.models, name) for name in ("base", "reasoning", "control")}
    return [
        f"models.{name}: got {value}, expected a path on a disk: copy it there first "
        "(gcloud storage cp --recursive)"
        for name, value in models.items()
        if value is not None and is_remote(value)
    ]


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

"""The settings of a run, read from TOML; an unknown or misspelt key is an error."""

import dataclasses
import tomllib
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from jaxsteer.annotate import KEYWORDS
from jaxsteer.sites import SITES

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
    # What the base model is given, which knows no chat format. The reasoning model gets the chat
    # template of its tokenizer.
    base_template: str = "Problem: {prompt}\n\nSolution:"


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
    """Which sentences backtrack: those with a keyword, or what a file says."""

    keywords: list[str] = field(default_factory=lambda: list(KEYWORDS))
    file: str | None = None


@dataclass(frozen=True, kw_only=True)
class Direction:
    """Where activations are read (Section 3.1) and steered."""

    layer: int  # output of this block, counted from 0
    offsets: list[int] = field(default_factory=lambda: list(range(-13, -7)))
    site: str = "resid_post"


@dataclass(frozen=True, kw_only=True)
class Steering:
    """The cells of Figure 3."""

    coeffs: list[float]  # without 0, which is always run
    # "vector": a coefficient multiplies the direction as it was found, as in the paper.
    # "residual": it counts lengths of the residual stream at the layer, for equal norms.
    unit: str = "vector"
    random_directions: int = 3  # of the base-derived direction's length, at `baseline_coeffs`
    baseline_coeffs: list[float] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Report:
    """How the outcome is judged."""

    coherence: str = "repetition"  # or "grammar", for the small pair's text
    margin: float = 0.03  # how far coherence may fall before a cell no longer counts


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides the outcome of a run."""

    models: Models
    prompts: Prompts
    rollouts: Decoding
    labels: Labels = field(default_factory=Labels)
    direction: Direction
    steering: Steering
    decoding: Decoding
    report: Report


def load_settings(path: str | Path) -> Settings:
    """Read and check a TOML file; paths in it are resolved against its folder.

    Raises:
        FileNotFoundError: if the file or one that it names is missing.
        ValueError: naming every key that is unknown, missing or of the wrong type, together.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such settings file")
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
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
    for option in options:
        if get_origin(option) is list:
            item = get_args(option)[0]
            if isinstance(value, list) and all(_fits(item, v) for v in value):
                return [item(v) for v in value]
        elif option is not type(None) and _fits(option, value):
            return option(value)
    names = " or ".join(getattr(o, "__name__", str(o)) for o in options if o is not type(None))
    problems.append(f"{where}: got {value!r}, expected {names}")
    return None


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
    checks = [
        (settings.models.dtype in ("float32", "bfloat16"), "models.dtype: float32 or bfloat16"),
        ("{prompt}" in settings.prompts.base_template, "prompts.base_template: holds {prompt}"),
        (settings.direction.site in SITES, f"direction.site: one of {', '.join(SITES)}"),
        (bool(settings.direction.offsets), "direction.offsets: at least one"),
        (settings.direction.layer >= 0, "direction.layer: at least 0"),
        (settings.steering.unit in ("vector", "residual"), "steering.unit: vector or residual"),
        (bool(settings.steering.coeffs), "steering.coeffs: at least one"),
        (0.0 not in settings.steering.coeffs, "steering.coeffs: without 0, which is always run"),
        (
            set(settings.steering.baseline_coeffs) <= set(settings.steering.coeffs),
            "steering.baseline_coeffs: some of steering.coeffs",
        ),
        (settings.steering.random_directions >= 0, "steering.random_directions: at least 0"),
        (
            settings.report.coherence in ("repetition", "grammar"),
            "report.coherence: repetition or grammar",
        ),
        (bool(settings.labels.keywords), "labels.keywords: at least one"),
    ]
    for name in ("rollouts", "decoding"):
        part: Decoding = getattr(settings, name)
        checks += [
            (part.max_new_tokens >= 1, f"{name}.max_new_tokens: at least 1"),
            (part.temperature >= 0, f"{name}.temperature: at least 0"),
            (0 < part.top_p <= 1, f"{name}.top_p: above 0, at most 1"),
            (0 <= part.seed < 2**32, f"{name}.seed: 0 to 2**32 - 1"),
        ]
    return [f"expected {text}" for ok, text in checks if not ok]

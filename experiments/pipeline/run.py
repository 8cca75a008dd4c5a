"""A run: its settings, its models and its folder, checked before any work starts."""

import argparse
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax

from experiments.judges.endpoint import read_key
from experiments.pipeline import machines
from experiments.pipeline.preflight import check_prompts, read_configs
from experiments.pipeline.settings import Models, Settings, load_settings
from experiments.pipeline.stage_runner import locked, run_stage
from experiments.pipeline.text import Prompt, load_prompts, put
from jaxsteer.checkpoints import checkpoint, end_tokens
from jaxsteer.decoding import room_for_another
from jaxsteer.files import as_path, is_remote, sha256
from jaxsteer.llama import Model, arrange
from jaxsteer.models import convert
from jaxsteer.runtime import begin, end, guarded

DEFAULT_SETTINGS = Path(__file__).parents[1] / "configs" / "small.toml"


@dataclass(frozen=True)
class Run:
    """What the stages share."""

    out: Path
    settings: Settings
    sources: dict[str, Path]  # role -> Hugging Face folder, or checkpoint of weights.convert
    derive_prompts: list[Prompt]
    evaluate_prompts: list[Prompt]
    more_prompts: dict[str, list[Prompt]] = field(default_factory=dict)  # by role, if others
    full: bool = False  # whether the figures that take longer are made, too
    mesh: jax.sharding.Mesh | None = None  # over which models are split; one device without it
    finished: dict[str, Path] = field(default_factory=dict)  # stages seen valid by this process
    loaded: dict[str, tuple[Model, Any]] = field(default_factory=dict)  # models for further stages

    def stage(
        self,
        name: str,
        inputs: dict[str, Any],
        work: Callable[[Path], None],
        *,
        alone: bool = False,
    ) -> Path:
        """The folder of a stage, made if it is not there; see `run_stage`."""
        if name not in self.finished:
            self.finished[name] = run_stage(self.out, name, inputs, work, alone=alone)
        return self.finished[name]

    def prompts_for(self, role: str) -> list[Prompt]:
        """What a model is evaluated on; base model and control may have more."""
        return self.more_prompts.get(role, self.evaluate_prompts)

    def checkpoint(self, role: str) -> Path:
        """A checkpoint of a model: the source itself, or what a first stage converts it to."""
        source = self.sources[role]
        if (source / checkpoint.MANIFEST).is_file():
            return source
        folder = self.stage(
            f"model-{role}",
            {"source": str(source), "files": _states(source)},
            lambda folder: convert(source, folder / "checkpoint", overwrite=True),
            alone=True,
        )
        return folder / "checkpoint"

    def model_fingerprint(self, role: str) -> str:
        """A hash that names a model in the inputs of a stage: its source and its dtype here."""
        path = self.checkpoint(role)
        manifest = checkpoint.read_manifest(path)
        # Orbax names its files at random, so two conversions of one source differ in their bytes.
        source = manifest.provenance.get(checkpoint.SOURCE) or sha256(path / checkpoint.MANIFEST)
        named = [source, manifest.dtype, self.settings.models.dtype]
        return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()

    def load(self, role: str) -> tuple[Model, Any]:
        """A model and its tokenizer, kept for the next stages where there is room for several."""
        if role not in self.loaded:
            if not room_for_another([model for model, _ in self.loaded.values()]):
                self.loaded.clear()
            self.loaded[role] = self._read(role)
        return self.loaded[role]

    def _read(self, role: str) -> tuple[Model, Any]:
        """From the disk, laid out for this backend."""
        path, dtype = self.checkpoint(role), self.settings.models.dtype
        model, tokenizer = checkpoint.load(path, dtype=dtype, mesh=self.mesh)
        return arrange(model, donate=True), tokenizer

    def stop_tokens(self, role: str) -> list[int]:
        """Ids after which a text of the model has ended: its files may name several."""
        return end_tokens(self.checkpoint(role), self.tokenizer(role))

    def prompt_tokenizer(self, role: str) -> Any:
        """What writes a model's prompts; a chat format is always the reasoning model's."""
        chat = role == "base" and self.settings.prompts.base_format == "chat"
        return self.tokenizer("reasoning" if chat else role)

    def prompt_rule(self, role: str) -> str:
        """What stands at the beginning of a model's prompts and why, for its results."""
        settings, problem = self.settings.prompts, self.prompts_for(role)[0]
        encoded = put(
            self.prompt_tokenizer(role),
            problem.text,
            role=role,
            base_template=settings.base_template,
            form=settings.form(role),
        )
        return "; ".join([encoded.rule, *encoded.notes])

    def tokenizer(self, role: str) -> Any:
        """A model's tokenizer alone."""
        return checkpoint.load_tokenizer(self.checkpoint(role))


def _states(folder: Path) -> dict[str, list[int]]:
    """Size and times of every file under a folder; the last of them nobody can set back."""
    stats = {f.relative_to(folder).as_posix(): f.stat() for f in folder.rglob("*") if f.is_file()}
    return {name: [s.st_size, s.st_mtime_ns, s.st_ctime_ns] for name, s in sorted(stats.items())}


def open_run(
    out: Path,
    settings_file: Path,
    *,
    changes: Sequence[str] = (),
    full: bool = False,
    models: Path | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Run:
    """Read the settings and check everything that they name.

    Args:
        out: the run's folder.
        settings_file: TOML.
        changes: `section.key=value` each, instead of what the file says.
        full: whether the figures that take longer are made, too.
        models: a folder with `base`, `reasoning` and `control`, instead of those of the settings.
        mesh: over which models are split; the first device, if not given.

    Raises:
        FileNotFoundError, ValueError: for whatever would stop the run later.
    """
    settings = load_settings(settings_file, changes)
    if models is not None:
        settings = replace(settings, models=_models_in(models, settings.models))
    return replace(_checked(out, settings, full=full), mesh=mesh)


def _models_in(folder: Path, models: Models) -> Models:
    """The same roles, from one folder."""
    control = str(folder / "control") if models.control else None
    return replace(
        models, base=str(folder / "base"), reasoning=str(folder / "reasoning"), control=control
    )


def _checked(out: Path, settings: Settings, *, full: bool) -> Run:
    models = settings.models
    named = {"base": models.base, "reasoning": models.reasoning, "control": models.control}
    sources = {role: Path(path) for role, path in named.items() if path is not None}
    layers = {
        "direction.layer": [settings.direction.layer],
        "search.other_layers": settings.search.other_layers,
    }
    configs = read_configs(sources, layers)
    if full and not any(coeff > 0 for coeff in settings.steering.coeffs):
        raise ValueError("steering.coeffs: got none above 0, expected one for --full")
    if settings.labels.file and not Path(settings.labels.file).is_file():
        raise FileNotFoundError(f"labels.file: {settings.labels.file}: no such file")
    if settings.labels.judge and not (out / "labels").exists():
        read_key(settings.labels.judge)
    prompts = settings.prompts
    derive = load_prompts(prompts, prompts.derive_split, prompts.derive_limit)
    evaluate = load_prompts(prompts, prompts.evaluate_split, prompts.evaluate_limit)
    limits = {"base": prompts.base_evaluate_limit, "control": prompts.control_evaluate_limit}
    more = {
        role: load_prompts(prompts, prompts.evaluate_split, limit)
        for role, limit in limits.items()
        if limit
    }
    longest = max((evaluate, *more.values()), key=len)
    check_prompts(sources, configs, settings, derive=derive, evaluate=longest)
    return Run(
        out=out,
        settings=settings,
        sources=sources,
        derive_prompts=derive,
        evaluate_prompts=evaluate,
        more_prompts=more,
        full=full,
    )


def stage_parser(module: str, summary: str) -> argparse.ArgumentParser:
    """The options that all stages share."""
    parser = argparse.ArgumentParser(prog=f"python -m experiments.{module}", description=summary)
    parser.add_argument("--out", type=_folder, required=True, help="folder for the run's results")
    parser.add_argument(
        "--config",
        type=as_path,
        default=DEFAULT_SETTINGS,
        help="settings (default: the small pair)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="changes",
        metavar="SECTION.KEY=VALUE",
        help="another value than the settings', as in TOML: decoding.seed=4; may be repeated",
    )
    machines.add_options(parser)
    return parser


def _folder(text: str) -> Path:
    if is_remote(text):
        raise argparse.ArgumentTypeError(
            f"got {text}, expected a folder on a disk, on several hosts one that they share: a run "
            "is locked, and appended to"
        )
    return as_path(text)


def command(
    module: str, summary: str, work: Callable[[Run], object], argv: list[str] | None = None
) -> int:
    """The command line that all stages share; returns the exit code.

    `argv` is for callers in this process. Without it the command is the process, whose threads
    then keep their own reports of an error to themselves.
    """
    if argv is None:
        begin()
    args = stage_parser(module, summary).parse_args(argv)

    @guarded(resumes=True)
    def stage() -> None:
        with machines.together(args) as mesh:
            run = open_run(args.out, args.config, changes=args.changes, mesh=mesh)
            with locked(run.out):
                work(run)

    code = stage()
    if argv is None:
        end(code)
    return code

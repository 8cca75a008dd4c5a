"""Train the small pair: `python -m weights.train_small --out DIR`.

For every seed a base model, then from it a reasoning model and a negative control, all seeds in one
program. Started again with the same settings it goes on where it was stopped. It writes

    DIR/run.json                      the settings
    DIR/text.json                     statistics of the three corpora
    DIR/seed{k}/{base,reasoning,control}/   Hugging Face folders, bf16
    DIR/seed{k}/training.{csv,png}    training and held-out loss
    DIR/seed{k}/heldout.json          held-out loss of every model on every kind of text
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsteer.config import LlamaConfig
from jaxsteer.files import as_path
from jaxsteer.runtime import guarded
from jaxsteer.runtime import run as run_command
from weights.small_language.corpus import Corpus, corpus, matched_hazard, statistics
from weights.small_language.folder import write_curves, write_json, write_model
from weights.small_language.text import BASE, CONTROL, REASONING, TextSettings, documents
from weights.small_language.tokenizer import vocabulary
from weights.small_language.training import (
    Phase,
    Texts,
    Tree,
    evaluate,
    initial_members,
    train,
    unstack_layers,
)

TUNED = ("reasoning", "control")
STORIES = replace(BASE, narrative=1.0)
PROBLEMS = replace(BASE, narrative=0.0)


@dataclass(frozen=True)
class Settings:
    """Everything that decides what is trained; every field is a flag of the command."""

    layers: int = 8
    width: int = 256
    mlp: int = 688
    heads: int = 4
    kv_heads: int = 2
    length: int = 160  # tokens a row; longer documents are cut
    base_documents: int = 160_000
    tuned_documents: int = 60_000
    heldout_documents: int = 512
    base_steps: int = 3_500
    base_rows: int = 256
    base_muon_lr: float = 0.02
    base_adam_lr: float = 1.5e-3
    tuned_steps: int = 1_200
    tuned_rows: int = 128
    tuned_muon_lr: float = 0.01
    tuned_adam_lr: float = 1e-3
    warmup: int = 100
    steps_per_call: int = 50
    error_rate: float = REASONING.error_rate  # of the fine-tunes' text

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) <= 0:
                raise ValueError(
                    f"{field.name}: got {getattr(self, field.name)}, expected more than 0"
                )
        if self.width % self.heads:
            raise ValueError(f"width: got {self.width}, expected a multiple of {self.heads=}")

    @property
    def config(self) -> LlamaConfig:
        """The models' shape."""
        return LlamaConfig(
            vocab_size=len(vocabulary()),
            d_model=self.width,
            d_mlp=self.mlp,
            n_layers=self.layers,
            n_heads=self.heads,
            n_kv_heads=self.kv_heads,
            head_dim=self.width // self.heads,
            max_positions=max(256, self.length),
            rope_theta=10_000.0,
        )

    @property
    def phases(self) -> tuple[Phase, Phase]:
        """The base models' training and the fine-tunes'."""
        return tuple(  # type: ignore[return-value]
            Phase(
                name=name,
                warmup=self.warmup,
                steps_per_call=self.steps_per_call,
                **{k: getattr(self, f"{name}_{k}") for k in ("steps", "rows")},
                **{k: getattr(self, f"{name}_{k}") for k in ("muon_lr", "adam_lr")},
            )
            for name in ("base", "tuned")
        )


PRESETS = {
    "full": Settings(),
    "tiny": Settings(
        layers=2,
        width=64,
        mlp=128,
        heads=2,
        kv_heads=1,
        base_documents=2_000,
        tuned_documents=1_000,
        heldout_documents=64,
        base_steps=60,
        base_rows=16,
        tuned_steps=20,
        tuned_rows=16,
        warmup=5,
        steps_per_call=10,
    ),
}


def run(out: Path, seeds: Sequence[int], settings: Settings) -> None:
    """Train and write everything, going on from what `out` holds.

    Raises ValueError if `out` holds a run with other settings.
    """
    config, (base_phase, tuned_phase) = settings.config, settings.phases
    _claim(out, {"seeds": list(seeds)} | asdict(settings))
    if all((out / f"seed{seed}" / "heldout.json").exists() for seed in seeds):
        print(f"{out}: trained already with these settings")
        return
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    common: dict[str, Any] = {"config": config, "dtype": dtype}
    texts = tuned_texts(settings)
    _write_statistics(out / "text.json", texts, settings)
    heldout = {name: _heldout(text, settings) for name, text in texts.items()}

    base, base_curve = train(
        base_phase,
        initial_members(config, seeds),
        seeds=seeds,
        which=[0] * len(seeds),
        texts=_texts(_corpus(BASE, settings.base_documents, settings, chat=False)),
        heldout=_texts(_heldout(BASE, settings)),
        folder=out / "checkpoints" / "base",
        **common,
    )
    tuned, tuned_curve = train(
        tuned_phase,
        jax.tree.map(lambda x: jnp.repeat(x, len(TUNED), axis=0), base),
        seeds=np.repeat(seeds, len(TUNED)).tolist(),
        which=list(range(len(TUNED))) * len(seeds),
        texts=_texts(
            *(_corpus(texts[name], settings.tuned_documents, settings, chat=True) for name in TUNED)
        ),
        heldout=_texts(*(heldout[name] for name in TUNED)),
        folder=out / "checkpoints" / "tuned",
        **common,
    )
    # The weights as they are written: all base models, then the fine-tunes seed by seed.
    models = jax.tree.map(
        lambda b, t: jnp.concatenate([b, t]).astype(jnp.bfloat16).astype(jnp.float32), base, tuned
    )
    losses = evaluate(models, _texts(*heldout.values()), **common)
    curves = [*((base_phase, c) for c in np.moveaxis(base_curve, 1, 0))]
    curves += [(tuned_phase, c) for c in np.moveaxis(tuned_curve, 1, 0)]
    for i, seed in enumerate(seeds):
        first = len(seeds) + i * len(TUNED)
        index = {"base": i} | {name: first + j for j, name in enumerate(TUNED)}
        table = {
            name: dict(zip(heldout, np.round(losses[m], 5).tolist(), strict=True))
            for name, m in index.items()
        }
        print(f"seed {seed}: held-out loss, nats a token\n{_table(table)}")
        _write_seed(
            out / f"seed{seed}",
            {name: _member(models, m) for name, m in index.items()},
            {name: _points(*curves[m]) for name, m in index.items()},
            table,
            config,
        )
    shutil.rmtree(out / "checkpoints")
    print(f"models: {out}/seed*/{{base,{','.join(TUNED)}}}")


def _write_seed(
    folder: Path,
    models: dict[str, Tree],
    curves: dict[str, tuple[np.ndarray, np.ndarray]],
    losses: dict[str, dict[str, float]],
    config: LlamaConfig,
) -> None:
    for name, params in models.items():
        write_model(folder / name, params, config, chat=name != "base")
    write_curves(folder, curves)
    write_json(folder / "heldout.json", losses)  # last: it says that the seed is complete


def tuned_texts(settings: Settings) -> dict[str, TextSettings]:
    """All kinds of text by name; the control's hazard is matched to the reasoning text's rate."""
    reasoning, control = REASONING, CONTROL
    if settings.error_rate != REASONING.error_rate:
        reasoning = replace(REASONING, error_rate=settings.error_rate)
        hazard = matched_hazard(reasoning, length=settings.length)
        control = replace(CONTROL, error_rate=settings.error_rate, hazard=hazard)
    return {"base": PROBLEMS, "stories": STORIES, "reasoning": reasoning, "control": control}


def _claim(out: Path, wanted: dict[str, Any]) -> None:
    """Refuse to mix two runs in one folder; note the settings of a new one."""
    path = out / "run.json"
    if path.exists():
        recorded = json.loads(path.read_text())
        other = [
            f"{name}: got {recorded.get(name)}, expected {wanted.get(name)}"
            for name in sorted(recorded.keys() | wanted.keys())
            if recorded.get(name) != wanted.get(name)
        ]
        if other:
            raise ValueError(f"{out} holds a run with other settings: " + "; ".join(other))
    elif out.exists() and any(out.iterdir()):
        raise ValueError(f"{out}: got a folder with other things in it, expected an empty one")
    write_json(path, wanted)


def _corpus(text: TextSettings, n: int, settings: Settings, *, chat: bool) -> Corpus:
    return corpus(n, text, length=settings.length, chat=chat)


def _heldout(text: TextSettings, settings: Settings) -> Corpus:
    chat = text.backtracking != "never"
    return corpus(settings.heldout_documents, text, length=settings.length, chat=chat, split="dom")


def _texts(*corpora: Corpus) -> Texts:
    return Texts(
        jnp.asarray(np.stack([c.tokens for c in corpora])),
        jnp.asarray(np.stack([c.first for c in corpora])),
    )


def _member(params: Tree, i: int) -> Tree:
    return unstack_layers(jax.tree.map(lambda x: np.asarray(x[i]), params))


def _points(phase: Phase, curve: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A curve with the steps that its points stand at."""
    return np.arange(1, len(curve) + 1) * phase.steps_per_call, curve


def _write_statistics(path: Path, texts: dict[str, TextSettings], settings: Settings) -> None:
    n = min(settings.tuned_documents, 20_000)
    write_json(
        path,
        {
            name: {
                "settings": asdict(text),
                "measured": asdict(
                    statistics(documents(n, text), length=settings.length, chat=name in TUNED)
                ),
            }
            for name, text in texts.items()
            if name != "stories"  # they have no solutions to measure
        },
    )


def _table(losses: dict[str, dict[str, float]]) -> str:
    texts = list(losses["base"])
    lines = [f"{'model':>10} " + " ".join(f"{text:>10}" for text in texts)]
    for model, row in losses.items():
        lines.append(f"{model:>10} " + " ".join(f"{row[text]:10.4f}" for text in texts))
    return "\n".join(lines)


@guarded("train_small")
def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m weights.train_small",
        description="Train the small pair: base, reasoning and control models.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=as_path, required=True, help="folder to write")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="training seeds")
    parser.add_argument("--preset", choices=PRESETS, default="full", help="where flags start from")
    group = parser.add_argument_group("settings", "instead of the preset's")
    for field in fields(Settings):
        flag = "--" + field.name.replace("_", "-")
        group.add_argument(flag, type=type(field.default), default=argparse.SUPPRESS)
    given = vars(parser.parse_args(arguments))
    out, seeds, preset = given.pop("out"), given.pop("seeds"), given.pop("preset")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds: got {seeds}, expected distinct numbers")
    run(out, seeds, replace(PRESETS[preset], **given))


if __name__ == "__main__":
    run_command(main)

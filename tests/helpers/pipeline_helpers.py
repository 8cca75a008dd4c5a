"""A tiny pair of random models that write sentences, and the settings of a run of seconds on it."""

import io
import json
import tomllib
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.reproduce import main
from jaxsteer.config.shape import LlamaConfig
from jaxsteer.llama.model import init
from jaxsteer.sweeps.chunks import _run_cells
from weights.small_language.folder import write_model
from weights.small_language.problems import prompts_file
from weights.small_language.tokenizer import EOS, SPECIAL, vocabulary

CONFIG = LlamaConfig(
    vocab_size=len(vocabulary()),
    d_model=32,
    d_mlp=48,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    max_positions=96,
    rope_theta=1e4,
)
# Added to the logits of random weights, so that the text has sentences, some of them with "wait".
_BIAS = {".": 4.0, "wait": 2.5, EOS: 1.0} | {t: -20.0 for t in SPECIAL if t != EOS}

SETTINGS = """
[models]
base = "base"
reasoning = "reasoning"
control = "control"
dtype = "float32"

[prompts]
file = "prompts.json"
base_template = " question : {prompt} solution :"

[rollouts]
max_new_tokens = 40
temperature = 1.0
seed = 1
rows_per_chunk = 6

[direction]
layer = 1
offsets = [-3, -2]

[steering]
unit = "residual"
coeffs = [-0.5, 0.5, 1.0]
random_directions = 2
baseline_coeffs = [0.5]

[decoding]
max_new_tokens = 24
temperature = 1.0
seed = 2
rows_per_chunk = 10

[report]
coherence = "grammar"
margin = 0.9
"""


def write_tiny_model(folder: Path, *, seed: int, chat: bool) -> Path:
    """Random weights whose logits have a bias: one coordinate of the stream is always large."""
    params = init(CONFIG, seed=seed).params
    rng = np.random.default_rng(seed)
    embedding = rng.normal(size=(CONFIG.vocab_size, CONFIG.d_model))
    embedding[:, 0] = 3.0
    kernel = rng.normal(size=(CONFIG.d_model, CONFIG.vocab_size)) * 0.1
    # The final norm makes the stream's root mean square 1, so that coordinate becomes about 2.5.
    kernel[0] = [_BIAS.get(word, 0.0) / 2.5 for word in vocabulary()]
    params["embed"]["embedding"] = jnp.asarray(embedding, jnp.float32)
    params["lm_head"]["kernel"] = jnp.asarray(kernel, jnp.float32)
    write_model(folder, params, CONFIG, chat=chat)
    return folder


def write_tiny_pair(folder: Path) -> Path:
    """Base, reasoning and control model, prompts and settings; returns the settings file."""
    for seed, (role, chat) in enumerate(
        {"base": False, "reasoning": True, "control": True}.items()
    ):
        write_tiny_model(folder / role, seed=seed, chat=chat)
    (folder / "prompts.json").write_text(prompts_file({"dom": 16, "eval": 5}))
    (folder / "settings.toml").write_text(SETTINGS)
    return folder / "settings.toml"


def change(settings: Path, name: str, **sections: dict[str, Any]) -> Path:
    """Settings beside `settings` with some values changed; None removes a key."""
    raw = tomllib.loads(settings.read_text())
    for section, values in sections.items():
        raw[section] = {**raw.get(section, {}), **values}
    lines = [
        line
        for section, values in raw.items()
        for line in (
            f"[{section}]",
            # A JSON text, number or list of them is a TOML one, too.
            *(f"{key} = {json.dumps(v)}" for key, v in values.items() if v is not None),
        )
    ]
    file = settings.with_name(name)
    file.write_text("\n".join(lines) + "\n")
    return file


def files_under(folder: Path) -> dict[str, bytes]:
    """Every file under a folder by its relative path, locks apart."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != ".lock"
    }


@dataclass(frozen=True)
class Finished:
    """A finished run: nobody may change its folder."""

    out: Path
    settings: Path
    printed: str
    programs: int  # compiled for the sweeps


def finished_run(folder: Path) -> Finished:
    """The main command on a tiny pair, in this process."""
    settings = write_tiny_pair(folder)
    out, printed = folder / "run", io.StringIO()
    before = _run_cells._cache_size()
    with redirect_stdout(printed):
        code = main(["--out", str(out), "--config", str(settings)])
    assert code == 0
    return Finished(out, settings, printed.getvalue(), _run_cells._cache_size() - before)

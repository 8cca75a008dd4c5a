"""Load the published metadata of real models, and compare with transformers and tokenizers.

    python -m experiments.real_files FOLDER [--only NAME …]

FOLDER holds one folder per model with `config.json`, and whichever of `generation_config.json`,
`tokenizer_config.json`, `chat_template.jinja`, … were published with it; no weights. The vocabulary
is `tokenizer.json` there, or what a file `TOKENIZER` names in `FOLDER/tokenizers/` (`.xz` allowed).

For each model a tiny one is made: random weights, the published vocabulary and config, sizes apart.
It must load from its folder and from a checkpoint, with the same weights; pass `weights.verify`;
write transformers' greedy tokens; and encode texts as the `tokenizers` library does. What is
refused must be so for one of `REASONS`, which is looked for in the config by transformers' own
reading of it. Exits with the number of models that are neither.
"""

import argparse
import json
import lzma
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxsteer
from jaxsteer.huggingface import COMPANIONS, open_folder
from jaxsteer.models import convert, different_tensors, float64_errors
from jaxsteer.runtime import as_value_error, guarded, one_line, run
from jaxsteer.tokenizers import TOKENIZERS, encode, text_beginning
from jaxsteer.tokenizers.tokenizer_check import CHAT, TEXTS

TOKENS = 8  # greedy ones that are compared
_PROMPT = 12  # tokens
_POSITIONS = 64  # of `weights.verify`
_HEAD_DIM, _LAYERS, _MLP = 8, 2, 24


@dataclass(frozen=True)
class Outcome:
    """What became of one model."""

    name: str
    kind: str
    verdict: str  # "loaded", "refused: …" or "FAILED: …"
    ids: str = ""  # texts whose ids are those of the tokenizers library
    beginning: str = ""  # what is put before a text

    @property
    def failed(self) -> bool:
        """Whether it is neither loaded nor refused for a reason that holds."""
        return self.verdict.startswith("FAILED")


def _window(config: Any) -> bool:
    """Whether transformers would look back less far than the model's positions."""
    window = getattr(config, "sliding_window", None)
    return window is not None and window < config.max_position_embeddings


REASONS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "another architecture": (
        lambda c: c.model_type not in ("llama", "mistral", "qwen2", "qwen3"),
        "model_type",
    ),
    "quantised": (lambda c: bool(getattr(c, "quantization_config", None)), "quantiz"),
    "a sliding window in use": (_window, "sliding_window"),
    "another rotary scaling": (
        lambda c: c.rope_parameters["rope_type"] in ("longrope", "proportional"),
        "rope_type",
    ),
    "biases": (lambda c: getattr(c, "mlp_bias", False), "mlp_bias"),
    "another activation": (lambda c: c.hidden_act not in ("silu", "swish"), "hidden_act"),
}
"""Why a model may be refused: whether it holds for transformers' config, and the word for it."""


def shrunk(published: Mapping[str, Any]) -> dict[str, Any]:
    """A config of the same kind with small sizes.

    As many query heads to a key/value head, the same ratio of width to heads, the published
    vocabulary, positions and rotary settings.

    >>> shrunk({"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8})
    {'hidden_size': 64, 'num_attention_heads': 8, 'num_key_value_heads': 2}
    """
    heads = published["num_attention_heads"]
    kv_heads = published.get("num_key_value_heads") or heads
    head_dim = published.get("head_dim") or published["hidden_size"] // heads
    small_kv = min(2, kv_heads)
    small_heads = heads // kv_heads * small_kv
    width = published["hidden_size"] / (heads * head_dim)
    sizes: dict[str, Any] = {
        "hidden_size": round(width * small_heads * _HEAD_DIM),
        "num_attention_heads": small_heads,
        "num_key_value_heads": small_kv,
        "head_dim": _HEAD_DIM,
        "intermediate_size": _MLP,
        "num_hidden_layers": _LAYERS,
    }
    small = {**published, **{k: v for k, v in sizes.items() if published.get(k)}}
    if isinstance(small.get("layer_types"), list):
        small["layer_types"] = small["layer_types"][:_LAYERS]
    return small


def write_tiny(metadata: Path, vocabulary: Path | None, folder: Path) -> Any:
    """Write a random model with the metadata's config into `folder`; return transformers' model."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder.mkdir()
    for name in COMPANIONS:
        if (metadata / name).is_file():
            shutil.copyfile(metadata / name, folder / name)
    if vocabulary is not None:
        (folder / "tokenizer.json").write_bytes(_unpacked(vocabulary))
    small = shrunk(json.loads((metadata / "config.json").read_text()))
    (folder / "config.json").write_text(json.dumps(small))
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    model = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    for parameter in model.parameters():  # norms are all ones otherwise, and tell nothing
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder / "weights")
    shutil.move(folder / "weights" / "model.safetensors", folder)
    shutil.rmtree(folder / "weights")
    return model


def _unpacked(file: Path) -> bytes:
    return lzma.decompress(file.read_bytes()) if file.suffix == ".xz" else file.read_bytes()


def find_vocabulary(metadata: Path) -> Path | None:
    """The `tokenizer.json` of a model; None if there is none.

    Raises:
        FileNotFoundError: `TOKENIZER` names one that is not there.
    """
    if (metadata / "tokenizer.json").is_file():
        return metadata / "tokenizer.json"
    if not (metadata / "TOKENIZER").is_file():
        return None
    name = (metadata / "TOKENIZER").read_text().strip()
    for file in (
        metadata.parent / "tokenizers" / name,
        metadata.parent / "tokenizers" / f"{name}.xz",
    ):
        if file.is_file():
            return file
    raise FileNotFoundError(f"{metadata / 'TOKENIZER'}: names {name}, which is not in tokenizers/")


def holding_reason(published: Mapping[str, Any], message: str) -> str | None:
    """The reason of `REASONS` that holds for a config and that a message gives; None for none."""
    from transformers import CONFIG_MAPPING

    kind = published.get("model_type", "llama")
    if kind not in CONFIG_MAPPING:
        return "another architecture" if "model_type" in message else None
    config = CONFIG_MAPPING[kind].from_dict(dict(published))
    for name, (holds, word) in REASONS.items():
        if word in message and holds(config):
            return name
    return None


def check_model(metadata: Path) -> Outcome:
    """Everything that is asked of one model; whatever goes wrong is in the outcome."""
    published = json.loads((metadata / "config.json").read_text())
    kind = published.get("model_type", "?")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        try:
            with as_value_error(metadata, "the model is not made"):
                theirs = _write(metadata, folder)
            loaded = jaxsteer.load(folder)
        except Exception as error:  # of any kind: each is an outcome
            reason = holding_reason(published, str(error))
            said = f"refused: {reason}" if reason else f"FAILED: {one_line(error)}"
            return Outcome(metadata.name, kind, said)
        try:
            problems = _weight_problems(folder, loaded.model, theirs)
            ids, tokenizer_problems, beginning = _tokenizer_checks(folder, loaded.tokenizer)
        except Exception as error:
            return Outcome(metadata.name, kind, f"FAILED: {one_line(error)}")
    wrong = "; ".join([*problems, *tokenizer_problems])
    return Outcome(metadata.name, kind, f"FAILED: {wrong}" if wrong else "loaded", ids, beginning)


def _write(metadata: Path, folder: Path) -> Any:
    """The tiny model, or its config alone where it is of another architecture."""
    published = json.loads((metadata / "config.json").read_text())
    if published.get("model_type") in ("llama", "mistral", "qwen2", "qwen3"):
        return write_tiny(metadata, find_vocabulary(metadata), folder)
    folder.mkdir()
    shutil.copyfile(metadata / "config.json", folder / "config.json")
    return None


def _weight_problems(folder: Path, model: Any, theirs: Any) -> list[str]:
    """What differs between the folder, its checkpoint and transformers."""
    problems = []
    has_tokenizer = any((folder / name).is_file() for name in TOKENIZERS)
    converted = folder.parent / "converted"
    convert(folder, converted, tokenizer=has_tokenizer)
    again, _ = jaxsteer.load(converted)
    if not jax.tree.all(jax.tree.map(np.array_equal, model.params, again.params)):
        problems.append("the checkpoint has other weights than the folder")
    opened = open_folder(folder)
    if different := different_tensors(opened, converted, "float32"):
        problems.append(f"tensors differ: {', '.join(different)}")
    errors = float64_errors(opened, converted, "float32", tokens=_POSITIONS)
    problems += [f"{name}: not within the bound" for name, e in errors.items() if not e.passed]
    prompt = np.random.default_rng(0).integers(model.config.vocab_size, size=_PROMPT).tolist()
    ours = jaxsteer.generate(model, jaxsteer.left_pad([prompt]), max_new_tokens=TOKENS).rows()[0]
    if ours != (expected := _greedy(theirs, prompt)):
        problems.append(f"greedy tokens: got {ours}, transformers has {expected}")
    return problems


def _greedy(model: Any, prompt: list[int]) -> list[int]:
    import torch

    row = list(prompt)
    with torch.no_grad():
        for _ in range(TOKENS):
            row.append(int(model(torch.tensor([row])).logits[0, -1].argmax()))
    return row[len(prompt) :]


def _tokenizer_checks(folder: Path, tokenizer: Any) -> tuple[str, list[str], str]:
    """How many texts have the library's ids, what has not, and what goes before a text."""
    if tokenizer is None:
        return "", [], ""
    texts = list(TEXTS)
    problems = []
    if tokenizer.chat_template:
        chat = encode(tokenizer, CHAT)
        texts.append(chat.text)
        theirs = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)
        if chat.ids != list(theirs):
            problems.append("a conversation has other ids than in transformers")
    same = len(texts)
    if (folder / "tokenizer.json").is_file():
        from tokenizers import Tokenizer

        plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
        plain.no_padding()
        plain.no_truncation()
        same = sum(
            tokenizer.encode(text, add_special_tokens=False)
            == plain.encode(text, add_special_tokens=False).ids
            for text in texts
        )
        if same < len(texts):
            problems.append(f"{len(texts) - same} texts have other ids than in tokenizer.json")
    return f"{same}/{len(texts)}", problems, text_beginning(tokenizer).text or "nothing"


def table_line(outcome: Outcome) -> str:
    """One model in the table."""
    return (
        f"{outcome.name:47} {outcome.kind:12} {outcome.ids:>6}  {outcome.beginning:26} "
        f"{outcome.verdict}"
    )


@guarded("real_files", failed=255)
def main(argv: list[str] | None = None) -> int:
    """Command line; returns the number of models that failed, 100 at most."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.real_files", description="Published metadata of real models."
    )
    parser.add_argument("folder", type=Path, help="a folder of folders with config.json")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these models alone")
    args = parser.parse_args(argv)
    folders = [args.folder] if (args.folder / "config.json").is_file() else args.folder.iterdir()
    models = sorted(path for path in folders if (path / "config.json").is_file())
    if args.only:
        if missing := set(args.only) - {path.name for path in models}:
            raise FileNotFoundError(f"{args.folder}: no model {', '.join(sorted(missing))}")
        models = [path for path in models if path.name in args.only]
    if not models:
        raise FileNotFoundError(f"{args.folder}: no folder in it has a config.json")
    print(f"{'model':47} {'model_type':12} {'ids':>6}  {'before a text':26} verdict")
    outcomes = []
    for path in models:
        outcomes.append(check_model(path))
        print(table_line(outcomes[-1]), flush=True)
    failed = sum(outcome.failed for outcome in outcomes)
    loaded = sum(outcome.verdict == "loaded" for outcome in outcomes)
    print(
        f"{loaded} loaded, {len(outcomes) - loaded - failed} refused for a reason that holds, "
        f"{failed} failed, of {len(outcomes)}"
    )
    return min(failed, 100)


if __name__ == "__main__":
    run(main)

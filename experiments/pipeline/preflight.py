"""What can be known before any work starts: the models fit each other, and what they are given."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.pipeline.formats import check_shared_vocabulary
from experiments.pipeline.settings import Settings
from experiments.pipeline.text import Prompt, encode_prompts
from jaxsteer.checkpoints import checkpoint, named_ends
from jaxsteer.config import LlamaConfig
from jaxsteer.files import read_json_object
from jaxsteer.tokenizers import load_tokenizer


def read_configs(
    sources: Mapping[str, Path], layers: Mapping[str, Sequence[int]]
) -> dict[str, LlamaConfig]:
    """The models' shapes, by role; `layers` are those that settings ask for, by their names.

    Raises:
        FileNotFoundError: if there is no model where one is named.
        ValueError: for a config that is not implemented, models that do not fit each other, or a
            layer that they do not have.
    """
    configs = {role: _read_config(role, path) for role, path in sources.items()}
    base = configs["base"]
    for role, config in configs.items():
        if (config.d_model, config.n_layers) != (base.d_model, base.n_layers):
            raise ValueError(
                f"models.{role}: {config.n_layers} layers of width {config.d_model}, but the base "
                f"model has {base.n_layers} of {base.d_model}"
            )
    # The base model reads the reasoning model's tokens.
    if configs["reasoning"].vocab_size > base.vocab_size:
        raise ValueError(
            f"models.reasoning: got a vocabulary of {configs['reasoning'].vocab_size}, expected at "
            f"most the base model's {base.vocab_size}"
        )
    for name, some in layers.items():
        if wrong := [layer for layer in some if layer >= base.n_layers]:
            raise ValueError(f"{name}: got {wrong[0]}, expected 0 to {base.n_layers - 1}")
    return configs


def check_prompts(
    sources: Mapping[str, Path],
    configs: Mapping[str, LlamaConfig],
    settings: Settings,
    *,
    derive: Sequence[Prompt],
    evaluate: Sequence[Prompt],
) -> None:
    """Encode every prompt as every model will read it, and see that the answer fits behind it.

    Raises:
        ValueError: for a tokenizer that is missing or that cannot do it, two vocabularies, or a
            prompt that is too long for `max_positions`.
    """
    tokenizers = {role: _tokenizer(role, source) for role, source in sources.items()}
    check_shared_vocabulary(tokenizers["base"], tokenizers["reasoning"])
    for role, source in sources.items():
        form = settings.prompts.form(role)
        own = tokenizers[role]
        chat_for_base = role == "base" and form == "chat"  # written by the reasoning model's
        tokenizer = tokenizers["reasoning"] if chat_for_base else own
        try:
            named_ends(_files(source), own, vocab_size=configs[role].vocab_size)
        except ValueError as error:
            raise ValueError(f"models.{role}: {error}") from None
        uses = [("decoding", evaluate, configs[role].max_positions)]
        if role == "reasoning":  # and the base model reads what it wrote
            room = min(configs[name].max_positions for name in ("base", "reasoning"))
            uses.append(("rollouts", derive, room))
        for name, prompts, room in uses:
            new = getattr(settings, name).max_new_tokens
            try:
                rows = encode_prompts(
                    tokenizer,
                    prompts,
                    role=role,
                    base_template=settings.prompts.base_template,
                    form=form,
                )
            except ValueError as error:
                raise ValueError(f"models.{role}: {error}") from None
            longest, prompt = max((len(row), p.id) for row, p in zip(rows, prompts, strict=True))
            if longest + new > room:
                raise ValueError(
                    f"{name}.max_new_tokens: got {new}, and prompt {prompt!r} has {longest} tokens "
                    f"for the {role} model; expected at most max_positions={room} together"
                )


def _read_config(role: str, path: Path) -> LlamaConfig:
    try:
        if (path / checkpoint.MANIFEST).is_file():
            return checkpoint.read_manifest(path).config
        if (path / "config.json").is_file():
            return LlamaConfig.from_hf(read_json_object(path / "config.json"))
    except ValueError as error:
        raise ValueError(f"models.{role}: {error}") from None
    raise FileNotFoundError(
        f"models.{role}: {path}: neither a Hugging Face folder (no config.json) nor a checkpoint "
        "of weights.convert"
    )


def _files(source: Path) -> Iterable[Path]:
    """A model's files, as a Hugging Face folder or inside a checkpoint."""
    if (source / checkpoint.MANIFEST).is_file():
        return checkpoint.companions(source)
    return source.iterdir()


def _tokenizer(role: str, source: Path) -> Any:
    if (source / checkpoint.MANIFEST).is_file():
        tokenizer = checkpoint.load_tokenizer(source)
        if tokenizer is None:
            raise ValueError(f"models.{role}: {source}: the checkpoint has no tokenizer")
        return tokenizer
    try:
        return load_tokenizer(source)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"models.{role}: {error}") from None

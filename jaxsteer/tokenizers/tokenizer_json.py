"""The tokenizer of a model's folder: what `tokenizer.json` says, whatever class stands beside it.

Class names in `tokenizer_config.json` are not followed: from some of them transformers 5 builds a
tokenizer anew and gets other ids. Of that file only names are taken: special tokens, the chat
template, whether a BOS is added. Padding, truncation and dropout that were saved inside
`tokenizer.json` are switched off. No code that lies beside a tokenizer is run.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxsteer.files import MOST_BYTES, as_path, read_json_object, read_whole
from jaxsteer.runtime import as_value_error
from jaxsteer.tokenizers import chat
from jaxsteer.tokenizers.meta_vocabulary import FIRST, SPECIAL, is_meta_vocabulary, meta_tokenizer
from jaxsteer.tokenizers.tokenizer_check import TEXTS

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""The files that hold a vocabulary; the first that is there is read."""

_MOST_BYTES = 1 << 28  # of a vocabulary; the largest that are published have 40 MB
_MOST_GROWTH = 1_000  # of a text by a tokenizer's replacements, one after the other
_REWRITING = ("normalizer", "pre_tokenizer", "decoder")
_CONFIG, _MAP = "tokenizer_config.json", "special_tokens_map.json"
_TEMPLATE = "chat_template.jinja"
_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")


def load_tokenizer(folder: str | Path) -> Any:
    """The tokenizer in `folder`, a `transformers.PreTrainedTokenizerFast`.

    `tokenizer.json` is taken as it is. Without it `tokenizer.model` is converted, SentencePiece's
    or Meta's; without both, transformers builds a tokenizer from `vocab.json` and `merges.txt`.
    A special token that `tokenizer_config.json` names and the vocabulary lacks is left out. Where
    no file names any, the ids in `generation_config.json` and `config.json` do.

    Raises:
        FileNotFoundError: the folder holds none of `TOKENIZERS`.
        ValueError: one line that names the file which cannot be read.
    """
    folder = as_path(folder)
    name = next((name for name in TOKENIZERS if (folder / name).is_file()), None)
    if name is None:
        raise FileNotFoundError(f"{folder}: no tokenizer, expected {' or '.join(TOKENIZERS)}")
    file = folder / name  # `open_folder` has looked where links lead
    if (size := file.stat().st_size) > _MOST_BYTES:
        raise ValueError(f"{file}: has {size:,} bytes, expected {_MOST_BYTES:,} at most")
    about = _about(folder)
    with as_value_error(folder / _CONFIG, "the tokenizer does not load"):
        template = _chat_template(folder, about)
    if template:
        chat.begin()  # it starts while transformers is imported here
    with as_value_error(file, "the tokenizer does not load"):
        tokenizer = _read(file, about)
    with as_value_error(folder / _CONFIG, "the tokenizer does not load"):
        _name_tokens(tokenizer, about, folder)
    tokenizer.chat_template = template
    return tokenizer


def _read(file: Path, about: Mapping[str, Any]) -> Any:
    """Vocabulary and rules, without the names of special tokens."""
    if file.name == "vocab.json":
        from transformers import AutoTokenizer  # which imports PyTorch where that is installed

        return AutoTokenizer.from_pretrained(str(file.parent), trust_remote_code=False)
    if file.name == "tokenizer.model":
        if is_meta_vocabulary(file):
            return meta_tokenizer(file, renamed=_renamed(about))
        return _from_sentencepiece(file, about)
    _check_growth(json.loads(file.read_bytes()))
    from transformers import PreTrainedTokenizerFast  # the import takes a second

    # Without a path for `name_or_path`, which this release asks the hub about.
    # A pad token that padding in the file names would be added to the vocabulary.
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file), pad_token=None)
    backend = tokenizer.backend_tokenizer
    if getattr(backend.model, "dropout", None):  # other ids at every call
        backend.model.dropout = None
    return tokenizer


def _check_growth(rules: Any) -> None:
    """Refuse replacements that could make a short text fill the memory; real ones add 2 letters."""
    growth, steps = 1, [rules.get(part) for part in _REWRITING] if isinstance(rules, dict) else []
    while steps:
        step = steps.pop()
        if isinstance(step, list):
            steps += step
        elif isinstance(step, dict):
            steps += [value for value in step.values() if isinstance(value, dict | list)]
            added = step.get("content") or step.get("prepend") or step.get("replacement")
            growth *= max(1, len(added) if isinstance(added, str) else 1)
    if growth > _MOST_GROWTH:
        raise ValueError(f"its replacements make a text up to {growth:.3g} times as long")


def _from_sentencepiece(file: Path, about: Mapping[str, Any]) -> Any:
    """What transformers makes of a model of SentencePiece (Llama-2, Mistral), if its ids agree.

    BOS goes before a text unless `add_bos_token` says otherwise, as in transformers' classes for
    such models.
    """
    from transformers import PreTrainedTokenizerFast

    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError:
        raise ValueError("it needs SentencePiece: pip install sentencepiece") from None
    pieces = SentencePieceProcessor(model_file=str(file))
    with tempfile.TemporaryDirectory() as alone:  # apart from files that would be read, too
        shutil.copyfile(file, Path(alone) / file.name)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(alone)
    for text in TEXTS:
        if tokenizer.encode(text, add_special_tokens=False) != pieces.encode(text):
            raise ValueError(f"{text!r} has other ids than SentencePiece gives it")
    tokenizer.add_bos_token = about.get("add_bos_token") is not False
    return tokenizer


def _name_tokens(tokenizer: Any, about: Mapping[str, Any], folder: Path) -> None:
    """Give a tokenizer what the files beside it say of it."""
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    own = {role: getattr(tokenizer, role) for role in ("bos_token", "eos_token", "pad_token")}
    named = _special_tokens(about)
    if not named and not any(own.values()):
        named = _from_ids(folder, backend)
    for role, token in named.items():
        known = token is not None and backend.token_to_id(token) is not None
        setattr(tokenizer, role, token if known else None)
    asked = about.get("model_input_names")
    inputs = ("input_ids", "attention_mask")  # never token_type_ids, which no Llama reads
    tokenizer.model_input_names = [
        name for name in inputs if name == inputs[0] or not isinstance(asked, list) or name in asked
    ]
    tokenizer.padding_side = "right" if about.get("padding_side") == "right" else "left"
    tokenizer.clean_up_tokenization_spaces = False  # it drops spaces before punctuation
    tokenizer.name_or_path = str(folder)
    if isinstance(about.get("model_max_length"), int):
        tokenizer.model_max_length = about["model_max_length"]
    if isinstance(about.get("add_bos_token"), bool):  # a fact for `encode`; not applied here
        tokenizer.init_kwargs["add_bos_token"] = about["add_bos_token"]


def _about(folder: Path) -> dict[str, Any]:
    """`tokenizer_config.json`, over the special tokens of `special_tokens_map.json`."""
    entries: dict[str, Any] = {}
    for name in (_MAP, _CONFIG):
        file = folder / name
        if file.is_file():
            data = read_json_object(file)
            entries |= (
                data if name == _CONFIG else {role: data[role] for role in _ROLES if role in data}
            )
            for role in _ROLES:
                if not isinstance(_content(entries.get(role)), str | None):
                    raise ValueError(f"{file}: {role}: got {entries[role]!r:.80}, expected a text")
    return entries


def _special_tokens(about: Mapping[str, Any]) -> dict[str, str | None]:
    """Names of the special tokens, by role; a role that no file names is absent."""
    return {role: _content(about[role]) for role in _ROLES if role in about}


def _content(token: Any) -> Any:
    """A token's text, which transformers 4 wrote with its flags around it."""
    return token.get("content") if isinstance(token, dict) else token


def _from_ids(folder: Path, backend: Any) -> dict[str, str | None]:
    """BOS, EOS and PAD by the ids that the model's configs give."""
    named: dict[str, str | None] = {}
    for name in ("config.json", "generation_config.json"):  # the second goes over the first
        file = folder / name
        data = read_json_object(file) if file.is_file() else {}
        for role in ("bos", "eos", "pad"):
            ids = data.get(f"{role}_token_id")
            first = ids[0] if isinstance(ids, list) and ids else ids
            if type(first) is int and 0 <= first < 2**32:
                named[f"{role}_token"] = backend.id_to_token(first)
    return named


def _chat_template(folder: Path, about: Mapping[str, Any]) -> Any:
    """The template, or several by name, from its own file or from `tokenizer_config.json`."""
    if (folder / _TEMPLATE).is_file():
        return read_whole(folder / _TEMPLATE, most=MOST_BYTES).decode()
    template = about.get("chat_template")
    if isinstance(template, list):  # transformers 4: [{"name": …, "template": …}]
        return {entry["name"]: entry["template"] for entry in template}
    return template if isinstance(template, str | dict) else None


def _renamed(about: Mapping[str, Any]) -> dict[int, str]:
    """Names that `tokenizer_config.json` gives Llama-3's special tokens, by their place."""
    listed = about.get("added_tokens_decoder") or {}
    places = {int(id) - FIRST: str(_content(token)) for id, token in listed.items()}
    return {place: name for place, name in places.items() if place in range(SPECIAL)}

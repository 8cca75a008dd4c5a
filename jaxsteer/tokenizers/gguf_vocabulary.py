"""The tokenizer inside a GGUF file, for transformers.

Two kinds are read: byte-level BPE (`gpt2`), whose way of cutting text the file only names, and
SentencePiece's BPE (`llama`), which merges by score.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxsteer.runtime import as_value_error
from jaxsteer.tokenizers.meta_vocabulary import PATTERN

# llama.cpp's names of how text is cut, by what they mean here.
_LLAMA3 = ("llama3", "llama-v3", "llama-bpe")
_QWEN2 = ("qwen2", "deepseek-r1-qwen")
_SMOLLM = ("smollm",)
_GPT2 = ("gpt-2", "default")
_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = range(1, 7)
_MOST_LETTERS = 512  # of one token: merges of SentencePiece's are found by cutting it everywhere


def gguf_tokenizer(pairs: Mapping[str, Any], path: Path) -> Any:
    """The tokenizer of a GGUF file: of a `tokenizer.json` beside it, or from its own header.

    Args:
        pairs: what the header says.
        path: the file.

    Raises:
        ValueError: the file has no tokenizer of a known kind, or `tokenizer.json` has other tokens.
    """
    file = path.parent / "tokenizer.json"
    with as_value_error(path, "the tokenizer does not load"):
        tokenizer = from_pairs(pairs, beside=file if file.is_file() else None)
    tokenizer.name_or_path = str(path.parent)
    return tokenizer


def from_pairs(pairs: Mapping[str, Any], *, beside: Path | None = None) -> Any:
    """A tokenizer from what the header of a GGUF file says, or its names for the one `beside`.

    Raises:
        ValueError: as `gguf_tokenizer`.
    """
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

    own = {k.removeprefix("tokenizer.ggml."): v for k, v in pairs.items()}
    tokens = own.get("tokens", [])
    kinds = own.get("token_type", [_NORMAL] * len(tokens))
    if not isinstance(tokens, list) or len(kinds) != len(tokens):
        raise ValueError("tokenizer.ggml: expected lists of tokens and of their types")
    vocabulary = {t: i for i, t in enumerate(tokens) if kinds[i] != _UNUSED}
    if beside is not None:
        tokenizer = _read_beside(beside, vocabulary)
    else:
        tokenizer = _make(own, vocabulary, kinds)
        assert isinstance(tokenizer, Tokenizer)
        for kind, add in ((_CONTROL, tokenizer.add_special_tokens), (_USER, tokenizer.add_tokens)):
            names = [token for token, i in vocabulary.items() if kinds[i] == kind]
            add([AddedToken(name, normalized=False) for name in names])
        _add_bos(tokenizer, own)
    named = {
        role: tokens[own[key]]
        for role, key in (
            ("bos_token", "bos_token_id"),
            ("eos_token", "eos_token_id"),
            ("unk_token", "unknown_token_id"),
            ("pad_token", "padding_token_id"),
        )
        if isinstance(own.get(key), int) and 0 <= own[key] < len(tokens)
    }
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **named,
        padding_side="left",
        clean_up_tokenization_spaces=False,  # it drops spaces before punctuation
    )
    made.chat_template = pairs.get("tokenizer.chat_template")
    return made


def _read_beside(file: Path, vocabulary: Mapping[str, int]) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    beside = tokenizer.get_vocab()
    other = [t for t in beside if vocabulary and vocabulary.get(t, beside[t]) != beside[t]]
    if other:
        raise ValueError(
            f"{file}: {len(other)} tokens have other ids than in the GGUF file beside it (as "
            f"{other[0]!r:.80}), expected its own tokenizer; move one of them elsewhere"
        )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _make(own: Mapping[str, Any], vocabulary: Mapping[str, int], kinds: Sequence[int]) -> Any:
    model = own.get("model")
    if not vocabulary or model not in ("gpt2", "llama"):
        raise ValueError(
            f"tokenizer.ggml.model: got {model!r:.80}, expected gpt2 or llama; "
            "put the model's tokenizer.json beside the file"
        )
    if model == "gpt2":
        return _byte_level(own, vocabulary)
    return _sentencepiece(own, vocabulary, kinds)


def _byte_level(own: Mapping[str, Any], vocabulary: Mapping[str, int]) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    def split(pattern: str) -> list[Any]:
        whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return [pre_tokenizers.Split(Regex(pattern), behavior="isolated"), whole]

    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    cut = own.get("pre", "default")
    if cut in _LLAMA3:
        steps = split(PATTERN)
    elif cut in _QWEN2:
        steps = split(PATTERN.replace(r"\p{N}{1,3}", r"\p{N}"))
    elif cut in _SMOLLM:
        steps = [pre_tokenizers.Digits(individual_digits=True), gpt2]
    elif cut in _GPT2:
        steps = [gpt2]
    else:
        known = ", ".join((*_LLAMA3, *_QWEN2, *_SMOLLM, *_GPT2))
        raise ValueError(
            f"tokenizer.ggml.pre: got {cut!r:.80}, expected {known}; "
            "put the model's tokenizer.json beside the file"
        )
    merges = [tuple(merge.split(" ")) for merge in own.get("merges", [])]
    tokenizer = Tokenizer(models.BPE(dict(vocabulary), merges, ignore_merges=cut in _LLAMA3))
    if cut in _QWEN2:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(own: Mapping[str, Any], vocabulary: Mapping[str, int], kinds: Any) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = own.get("scores", [])
    if len(scores) != len(kinds):
        raise ValueError("tokenizer.ggml.scores: expected one for each token")
    whole = {token: i for token, i in vocabulary.items() if kinds[i] in (_NORMAL, _USER)}
    if any(len(token) > _MOST_LETTERS for token in whole):
        raise ValueError(f"tokenizer.ggml.tokens: one has more than {_MOST_LETTERS} letters")
    halves = [
        (-scores[i], i, vocabulary[token[:at]], vocabulary[token[at:]])
        for token, i in whole.items()
        for at in range(1, len(token))
        if token[:at] in whole and token[at:] in whole
    ]
    names = {i: token for token, i in vocabulary.items()}
    merges = [(names[left], names[right]) for _, _, left, right in sorted(halves)]
    unknown = next((token for token, i in vocabulary.items() if kinds[i] == _UNKNOWN), None)
    tokenizer = Tokenizer(
        models.BPE(dict(vocabulary), merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    prefix = own.get("add_space_prefix", True)
    before = [normalizers.Prepend("▁")] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", "▁")])
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps + [decoders.Strip(" ", 1, 0)] * bool(prefix))
    return tokenizer


def _add_bos(tokenizer: Any, own: Mapping[str, Any]) -> None:
    """Put BOS before each text if the file says so, or llama.cpp does where it says nothing."""
    from tokenizers import processors

    default = own.get("model") == "llama" or own.get("pre") in _LLAMA3
    bos = own.get("bos_token_id")
    if own.get("add_bos_token", default) and isinstance(bos, int) and 0 <= bos < len(own["tokens"]):
        name = own["tokens"][bos]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[name, "$A"], pair=[name, "$A", name, "$B"], special_tokens=[(name, bos)]
        )

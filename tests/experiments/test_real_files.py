"""experiments.real_files: metadata as models were published, with small vocabularies."""

import json
import lzma
from pathlib import Path
from typing import Any

import pytest
from hf_folders import byte_tokenizer, write_tokenizer
from published import PUBLISHED

from experiments import real_files
from experiments.real_files import check_model, holding_reason, main

CHATML = "{% for m in messages %}<bos>{{ m.role }}\n{{ m.content }}<eos>\n{% endfor %}"
LLAMA3 = (
    "{{ bos_token }}Today: {{ strftime_now('%d %b %Y') }}\n"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}<eos>{% endfor %}"
)
BOS = {"bos_token_id": 1, "eos_token_id": 2}
NULL = {"bos_token": None, "add_bos_token": False, "tokenizer_class": "Qwen2Tokenizer"}
R1 = {"add_bos_token": True, "legacy": True, "tokenizer_class": "LlamaTokenizerFast"}

# What each published folder has that was refused or misread: config, tokenizer_config, and what
# is put before a text.
TELLING: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "r1-distill-qwen": (
        PUBLISHED["r1_distill_qwen_1_5b"] | {"bos_token_id": 2, "eos_token_id": 2},
        R1 | {"chat_template": LLAMA3},
        "<bos>",
    ),
    "qwen2.5": (PUBLISHED["r1_distill_qwen_7b"] | BOS, NULL | {"chat_template": CHATML}, "nothing"),
    "qwen3": (PUBLISHED["qwen3_0_6b"] | BOS, NULL, "nothing"),
    "llama 3.2": (
        PUBLISHED["llama32_1b"] | BOS,
        {"chat_template": LLAMA3, "clean_up_tokenization_spaces": True},
        "<bos>",
    ),
    "smollm": (
        PUBLISHED["tinyllama"] | BOS | {
            "is_llama_config": True, "rope_interleaved": False, "transformers.js_config": {"a": 1},
        },
        {"chat_template": CHATML, "tokenizer_class": "GPT2Tokenizer"},
        "nothing",
    ),
    "llama 2": (
        PUBLISHED["llama2_7b"] | BOS | {"pad_token_id": 0},
        {"add_bos_token": True, "legacy": False, "tokenizer_class": "LlamaTokenizer"},
        "<bos>",
    ),
    "mistral": (PUBLISHED["mistral_7b"] | BOS, {"add_bos_token": True}, "<bos>"),
}  # fmt: skip


def write_metadata(folder: Path, config: dict[str, Any], **tokenizer_config: Any) -> Path:
    """A published folder: its vocabulary, here of 290 tokens, lies packed beside it."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 290}))
    write_tokenizer(folder.parent, byte_tokenizer())
    shared = folder.parent / "tokenizers"
    shared.mkdir(exist_ok=True)
    packed = lzma.compress((folder.parent / "tokenizer.json").read_bytes())
    (shared / "bytes.json.xz").write_bytes(packed)
    (folder / "TOKENIZER").write_text("bytes.json\n")
    named = {"bos_token": "<bos>", "eos_token": "<eos>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named | tokenizer_config))
    return folder


@pytest.mark.parametrize("name", TELLING)
def test_published_folders_load(tmp_path: Path, name: str) -> None:
    config, about, beginning = TELLING[name]
    outcome = check_model(write_metadata(tmp_path / "m", config, **about))
    assert outcome.verdict == "loaded"
    assert outcome.beginning == beginning
    texts = len(real_files.TEXTS) + ("chat_template" in about)
    assert outcome.ids == f"{texts}/{texts}"


REFUSED = {
    "another architecture": {"model_type": "gemma2"},
    "quantised": {"quantization_config": {"quant_method": "fp8"}},
    "a sliding window in use": PUBLISHED["mistral_7b"] | {"sliding_window": 4096},
    "biases": PUBLISHED["llama31_8b"] | {"mlp_bias": True},
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_refused_for_a_reason_that_holds(tmp_path: Path, reason: str) -> None:
    config = PUBLISHED["llama31_8b"] | BOS | REFUSED[reason]
    outcome = check_model(write_metadata(tmp_path / "m", config))
    assert outcome.verdict == f"refused: {reason}"
    assert not outcome.failed


def test_a_reason_that_does_not_hold_is_none() -> None:
    config = PUBLISHED["llama31_8b"]
    assert holding_reason(config, "mlp_bias=True: not implemented") is None
    assert holding_reason(config, "sliding_window=4096: not implemented") is None
    assert holding_reason(config | {"mlp_bias": True}, "the tokenizer does not load") is None


def test_the_exit_code_counts_what_failed(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        write_metadata(tmp_path / name, PUBLISHED["llama31_8b"] | BOS)
    (tmp_path / "a" / "TOKENIZER").write_text("missing.json")
    monkeypatch.setattr(real_files, "_weight_problems", lambda *_: ["greedy tokens: got 1"])
    assert main([str(tmp_path)]) == 2
    out = capsys.readouterr().out
    assert "names missing.json, which is not in tokenizers/" in out
    assert "FAILED: greedy tokens: got 1" in out
    assert "0 loaded, 0 refused for a reason that holds, 2 failed, of 2" in out
    monkeypatch.setattr(real_files, "_weight_problems", lambda *_: [])
    assert main([str(tmp_path), "--only", "b"]) == 0
    assert main([str(tmp_path), "--only", "c"]) == 255
    assert main([str(tmp_path / "nowhere")]) == 255

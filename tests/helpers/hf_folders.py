"""Tiny Hugging Face folders for the tests, written by transformers itself."""

import json
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

WORDS = "the sum is seven wait let me try again . , so we get two three clearly maybe".split()
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")


def word_tokenizer() -> Tokenizer:
    """Knows `WORDS` and nothing else; decoding joins them with spaces."""
    vocab = {token: i for i, token in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def byte_tokenizer() -> Tokenizer:
    """Byte-level BPE, as Llama-3's: 256 bytes and a few merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(SPECIAL),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    return tokenizer


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
    ).save_pretrained(folder)


def write_folder(
    folder: Path,
    *,
    dtype: str = "float32",
    tie: bool = False,
    max_shard_size: str = "1GB",
    tokenizer: Tokenizer | None = None,
    vocab_size: int = 290,
    seed: int = 0,
    **fields: object,
) -> Path:
    """A random two-layer Llama with a tokenizer, in `folder`."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        tie_word_embeddings=tie,
        bos_token_id=1,
        eos_token_id=2,
        **fields,
    )
    model = transformers.LlamaForCausalLM(config)
    for parameter in model.parameters():  # norms are all ones otherwise, and tell nothing
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=max_shard_size)
    write_tokenizer(folder, tokenizer or byte_tokenizer())
    return folder


def edit_json(file: Path, **fields: object) -> None:
    """Change fields of a JSON file; None removes one."""
    data = {**json.loads(file.read_text()), **fields}
    file.write_text(json.dumps({k: v for k, v in data.items() if v is not None}))

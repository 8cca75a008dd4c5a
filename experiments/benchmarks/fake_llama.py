"""A Hugging Face folder of a Llama of any size with random weights, streamed to the disk.

The weights are drawn once into a pool, and each tensor is a stretch of it; so 16 GB take the time
of writing them. The text that such a model writes is words of the small pair's vocabulary, with
sentences, ends and some "wait": one coordinate of the embedding is large everywhere, and the head
reads a bias of each word from it.
"""

import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np

from jaxsteer.config import LlamaConfig
from jaxsteer.huggingface import INDEX, SINGLE
from jaxsteer.huggingface import tensor_names as hf
from weights.small_language.folder import write_json
from weights.small_language.tokenizer import BOS, EOS, PAD, SPECIAL, save_tokenizer, vocabulary

_POOL = 1 << 24
_STRIP = 1 << 22  # numbers written at a time
_WORD_BIAS = 15.0  # of any word of the vocabulary, above ids that have none
_BIAS = {".": 4.0, "wait": 2.5, EOS: -2.0}
_STEADY = 3.0  # the large coordinate, of which about 2.3 is left behind the final norm


def write_fake_llama(
    folder: Path, config: LlamaConfig, *, shards: int, perturbed: float, chat: bool
) -> None:
    """Write config, tokenizer and weights (bf16).

    Args:
        folder: a new folder.
        config: the shape.
        shards: number of files, of about the same size.
        perturbed: how far each weight is from that of a model with 0 here, relative to its spread.
        chat: with a chat template.
    """
    folder.mkdir(parents=True)
    ids = vocabulary()
    tokens = {"bos_token_id": ids[BOS], "eos_token_id": ids[EOS], "pad_token_id": ids[PAD]}
    write_json(folder / "config.json", config.to_hf() | tokens | {"dtype": "bfloat16"})
    write_json(folder / "generation_config.json", tokens)
    save_tokenizer(folder, max_length=config.max_positions, chat=chat)
    pool = _pool(perturbed)
    weight_map: dict[str, str] = {}
    parts = _split(list(hf.tensors(config).values()), shards)
    for number, part in enumerate(parts, start=1):
        name = SINGLE if shards == 1 else f"model-{number:05d}-of-{shards:05d}.safetensors"
        _write_shard(folder / name, part, pool)
        weight_map |= {tensor.name: name for tensor in part}
    if shards > 1:
        write_json(folder / INDEX, {"metadata": {}, "weight_map": weight_map})


def _pool(perturbed: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    pool = rng.standard_normal(_POOL, np.float32)
    if perturbed:
        pool += perturbed * rng.standard_normal(_POOL, np.float32)
    return np.concatenate([pool, pool])  # so that a stretch may begin anywhere in the first


def _split(tensors: list[hf.Tensor], shards: int) -> list[list[hf.Tensor]]:
    total = sum(np.prod(t.shape) for t in tensors)
    parts: list[list[hf.Tensor]] = [[] for _ in range(shards)]
    done = 0
    for tensor in tensors:
        parts[min(int(done * shards // total), shards - 1)].append(tensor)
        done += int(np.prod(tensor.shape))
    return parts


def _write_shard(file: Path, tensors: list[hf.Tensor], pool: np.ndarray) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in tensors:
        size = 2 * int(np.prod(tensor.hf_shape))
        header[tensor.name] = {
            "dtype": "BF16",
            "shape": list(tensor.hf_shape),
            "data_offsets": [at, at + size],
        }
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            for strip in _strips(tensor, pool):
                opened.write(strip.astype(ml_dtypes.bfloat16).tobytes())


def _strips(tensor: hf.Tensor, pool: np.ndarray) -> Iterator[np.ndarray]:
    """The tensor's numbers in order, some rows at a time."""
    rows, width = (*tensor.hf_shape, 1)[:2]
    step = max(1, _STRIP // width)
    at = zlib.crc32(tensor.name.encode())  # where in the pool the tensor begins
    for start in range(0, rows, step):
        count = min(step, rows - start)
        strip = pool[at % _POOL :][: count * width]
        at += count * width
        yield _scaled(tensor, strip.reshape(count, width), start)


def _scaled(tensor: hf.Tensor, x: np.ndarray, start: int) -> np.ndarray:
    kind = tensor.path[-1]
    if kind == "scale":
        return 1 + 0.02 * x
    if kind == "embedding":
        x = 0.5 * x
        x[:, 0] = _STEADY
        return x
    if kind == "kernel":  # the head, `[V, D]`
        x = 0.02 * x
        x[:, 0] = _biases(start, len(x)) / (_STEADY / 1.3)
        return x
    # What is added to the stream is small, so that it grows by little over all layers.
    return (0.0025 if kind in ("o_proj", "down_proj") else 0.02) * x


def _biases(start: int, count: int) -> np.ndarray:
    """What the head adds to the logits of ids from `start`."""
    biases = np.zeros(count)
    for word, token in vocabulary().items():
        if start <= token < start + count and (word not in SPECIAL or word == EOS):
            biases[token - start] = _WORD_BIAS + _BIAS.get(word, 0.0)
    return biases

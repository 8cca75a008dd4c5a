"""GGUF files for the tests, made from Hugging Face folders as llama.cpp's converter makes them."""

import json
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file


def write_gguf(
    path: Path,
    folder: Path,
    *,
    quantised: str = "F32",
    tokenizer: bool = True,
    keys: dict[str, object] | None = None,
    more: dict[str, np.ndarray] | None = None,
) -> Path:
    """The folder's model as one file; matrices as GGML's type `quantised`, the rest as float32.

    `keys` are more of the architecture's keys, and `more` are float32 tensors.
    """
    config = json.loads((folder / "config.json").read_text())
    arch, heads = config["model_type"], config["num_attention_heads"]
    kv_heads = config["num_key_value_heads"]
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    for key, value in (keys or {}).items():
        add = {float: writer.add_float32, int: writer.add_uint32, str: writer.add_string}
        add[type(value)](f"{arch}.{key}", value)
    if tokenizer:
        _add_tokenizer(writer, json.loads((folder / "tokenizer.json").read_text()))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch.upper()], config["num_hidden_layers"])
    kind = gguf.GGMLQuantizationType[quantised]
    for name, x in load_file(folder / "model.safetensors").items():
        if arch == "llama" and ("q_proj" in name or "k_proj" in name):
            x = _interleaved(x, heads if "q_proj" in name else kv_heads)
        own = kind if is_quantised(x) else gguf.GGMLQuantizationType.F32
        data = gguf.quants.quantize(np.ascontiguousarray(x, np.float32), own)
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), data, raw_dtype=own)
    for name, x in (more or {}).items():
        writer.add_tensor(name, np.asarray(x, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def is_quantised(x: np.ndarray) -> bool:
    """Whether a tensor is: matrices are whose rows can be cut into blocks of 32."""
    return x.ndim > 1 and x.shape[1] % 32 == 0


def _interleaved(x: np.ndarray, heads: int) -> np.ndarray:
    """Rows as llama.cpp rotates them: the halves of each head's width one by one in turn."""
    return x.reshape(heads, 2, -1, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def _add_tokenizer(writer: gguf.GGUFWriter, data: dict) -> None:
    vocabulary = sorted(data["model"]["vocab"], key=data["model"]["vocab"].get)
    special = {token["content"]: token["id"] for token in data["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if token in special else 1 for token in vocabulary])
    writer.add_token_merges(
        [m if isinstance(m, str) else " ".join(m) for m in data["model"]["merges"]]
    )
    writer.add_bos_token_id(special["<bos>"])
    writer.add_eos_token_id(special["<eos>"])
    writer.add_unk_token_id(special["<unk>"])
    writer.add_pad_token_id(special["<pad>"])
    writer.add_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}")

"""jaxsteer.load: the same model from a checkpoint, a folder, the hub and a GGUF file."""

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from gguf_files import is_quantised, write_gguf
from hf_folders import edit_json, word_tokenizer, write_folder, write_tokenizer
from safetensors.numpy import load_file, save_file
from tokenizers import decoders

import jaxsteer
from jaxsteer.huggingface import tensor_names as hf
from jaxsteer.llama import is_packed, packing
from jaxsteer.sweeps import weights_fingerprint
from jaxsteer.tokenizers.gguf_vocabulary import from_pairs

TEXT = "Wait, let me try 12 again .\n"


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """One folder of each kind, never changed by a test."""
    root = tmp_path_factory.mktemp("hf")
    return {
        "float32": write_folder(root / "float32"),
        "tied": write_folder(root / "tied", tie=True),
        "sharded": write_folder(root / "sharded", dtype="bfloat16", max_shard_size="60KB"),
        "words": write_folder(root / "words", tokenizer=word_tokenizer(), vocab_size=40),
    }


@pytest.fixture
def src(folders, tmp_path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(folders["float32"], tmp_path / "src")


@pytest.fixture(scope="module")
def qwen(tmp_path_factory) -> Path:
    """A tiny Qwen2, with biases."""
    folder = tmp_path_factory.mktemp("qwen2")
    write_folder(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
    config = {k: v for k, v in config.items() if k not in ("attention_bias", "mlp_bias")}
    (folder / "config.json").write_text(json.dumps(config | {"use_sliding_window": False}))
    tensors = load_file(folder / "model.safetensors")
    rng = np.random.default_rng(0)
    for layer in range(2):
        for name, width in (("q", 32), ("k", 16), ("v", 16)):
            key = f"model.layers.{layer}.self_attn.{name}_proj.bias"
            tensors[key] = rng.standard_normal(width, np.float32)
    save_file(tensors, folder / "model.safetensors")
    return folder


def assert_same(a: jaxsteer.Model, b: jaxsteer.Model) -> None:
    assert a.config == b.config
    assert jax.tree.structure(a.params) == jax.tree.structure(b.params)
    for x, y in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True):
        assert x.dtype == y.dtype
        assert np.array_equal(x, y)


def compile_ahead(lm: jaxsteer.LanguageModel, **sizes: Any) -> None:
    jaxsteer.compile_generate(lm.model, **sizes)


def test_the_program_that_is_compiled_beside_loading_is_the_one_that_runs(
    folders, tmp_path, compiled
):
    """Of a folder and of a checkpoint; what `warm` raises is raised by `load`."""
    jaxsteer.convert(folders["float32"], tmp_path / "ckpt")
    for source, rows in ((folders["float32"], 2), (tmp_path / "ckpt", 3)):
        sizes = {"rows": rows, "prompt_length": 5}
        lm = jaxsteer.load(source, warm=partial(compile_ahead, **sizes, max_new_tokens=3))
        assert sum("_run_to_end" in name for name in compiled) == 1
        out = jaxsteer.generate(lm.model, [[1, 2, 3, 4, 5]] * rows, max_new_tokens=3)
        assert out.length.tolist() == [3] * rows
        assert sum("_run_to_end" in name for name in compiled) == 1
        compiled.clear()
    with pytest.raises(ValueError, match="max_new_tokens: got 0"):
        jaxsteer.load(source, warm=partial(compile_ahead, **sizes, max_new_tokens=0))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with pytest.raises(ValueError, match="got both sharding and warm"):
        jaxsteer.load(source, sharding=here, warm=compile_ahead)


# Folders.


@pytest.mark.parametrize("kind", ["float32", "tied", "sharded", "words"])
def test_a_folder_is_the_checkpoint_that_is_made_of_it(folders, tmp_path, kind):
    jaxsteer.convert(folders[kind], tmp_path / "ckpt")
    converted = jaxsteer.load(tmp_path / "ckpt")
    loaded = jaxsteer.load(folders[kind])
    assert_same(loaded.model, converted.model)
    assert loaded.tokenizer.encode(TEXT) == converted.tokenizer.encode(TEXT)
    assert loaded.end_tokens == converted.end_tokens == (2,)
    assert (loaded.notes, converted.notes) == ((), ())
    assert loaded.provenance["source"] == converted.provenance["source"] == kind


@pytest.mark.parametrize("dtype", ["bfloat16", jnp.float32])
def test_weights_are_cast_on_the_way_in(folders, dtype):
    model, _ = jaxsteer.load(folders["float32"], dtype=dtype)
    name = jnp.dtype(dtype).name
    original = load_file(folders["float32"] / "model.safetensors")
    for key, x in hf.to_hf(model.params, model.config).items():
        assert np.array_equal(x, original[key].astype(name)), key


def test_weights_go_where_they_are_told(folders):
    mesh = jaxsteer.make_mesh(data=1)
    split, _ = jaxsteer.load(folders["float32"], mesh=mesh)
    assert jaxsteer.llama.mesh_of(split) == mesh
    whole, _ = jaxsteer.load(folders["float32"])
    assert_same(split, whole)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    assert_same(jaxsteer.load(folders["float32"], sharding=one).model, whole)
    with pytest.raises(ValueError, match="got both sharding and mesh"):
        jaxsteer.load(folders["float32"], mesh=mesh, sharding=one)


def test_what_cannot_be_used_is_refused_before_a_tensor_is_read(src, monkeypatch):
    monkeypatch.setattr("jaxsteer.models.loading.tensors_as_ours", lambda *_: pytest.fail("read"))
    with pytest.raises(ValueError, match="dtype: got float16, expected float32 or bfloat16"):
        jaxsteer.load(src, dtype="float16")
    tensors = load_file(src / "model.safetensors")
    save_file({k: x.astype(np.float16) for k, x in tensors.items()}, src / "model.safetensors")
    with pytest.raises(ValueError, match=r"weights are float16.*choose with dtype="):
        jaxsteer.load(src)
    edit_json(src / "config.json", hidden_act="gelu")
    with pytest.raises(ValueError, match='hidden_act: got "gelu"'):
        jaxsteer.load(src)


def test_weights_that_are_not_finite_are_named(src):
    tensors = load_file(src / "model.safetensors")
    tensors["model.norm.weight"][0] = np.nan
    save_file(tensors, src / "model.safetensors")
    with pytest.raises(ValueError, match=r"NaN or infinite as float32 .*\n  model\.norm\.weight"):
        jaxsteer.load(src)


def test_a_tokenizer_that_loses_spaces_is_refused(src):
    tokenizer = word_tokenizer()
    tokenizer.decoder = decoders.Fuse()
    write_tokenizer(src, tokenizer)
    with pytest.raises(ValueError, match="the tokenizer cannot be trusted"):
        jaxsteer.load(src)


def test_a_folder_without_a_tokenizer_says_so(src):
    (src / "tokenizer.json").unlink()
    loaded = jaxsteer.load(src)
    assert loaded.tokenizer is None
    assert loaded.notes == ("no tokenizer beside the weights",)
    assert loaded.end_tokens == (2,)


def test_a_folder_that_is_no_model_says_what_it_lacks(tmp_path, folders):
    with pytest.raises(FileNotFoundError, match="no such folder, and not a hub id"):
        jaxsteer.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="got a URL, expected a folder or a hub id"):
        jaxsteer.load("https://huggingface.co/owner/name")
    with pytest.raises(FileNotFoundError, match=r"config\.json: no such file"):
        jaxsteer.load(tmp_path)
    write_gguf(tmp_path / "a.gguf", folders["float32"])
    with pytest.raises(ValueError, match=r"holds GGUF files, expected the name of one: a\.gguf"):
        jaxsteer.load(tmp_path)


# What comes back.


def test_it_is_a_pair(folders):
    loaded = jaxsteer.load(folders["words"])
    model, tokenizer = loaded
    assert (model, tokenizer) == (loaded[0], loaded[1]) == (loaded.model, loaded.tokenizer)
    assert len(loaded) == 2


def test_it_prints_in_five_lines(folders):
    loaded = jaxsteer.load(folders["words"])
    assert repr(loaded).splitlines() == [
        "llama: 2 layers, width 32, MLP 48, 4 heads of 8 (2 key/value), vocabulary 40",
        "size: 18,080 parameters, float32, 72.3 KB",
        f"devices: {jax.devices()[0]} (cpu)",
        "tokenizer: TokenizersBackend, 22 tokens, no chat template",
        "end tokens: 2 '<eos>'",
    ]


def test_a_model_never_prints_its_weights(folders):
    model, _ = jaxsteer.load(folders["words"])
    short = "Model(2 layers, width 32, vocabulary 40: 18,080 parameters, float32)"
    assert repr(model) == f"{model}" == short
    seen = []
    jax.jit(lambda m: seen.append(repr(m)))(model)
    assert seen == [short]
    assert len(repr(jax.tree.map(lambda _: "leaf", model))) < 100


# GGUF.


@pytest.mark.parametrize("kind", ["float32", "tied"])
def test_a_gguf_file_is_the_folder_that_it_was_made_of(folders, tmp_path, kind):
    loaded = jaxsteer.load(write_gguf(tmp_path / "m.gguf", folders[kind]))
    model, tokenizer = jaxsteer.load(folders[kind])
    assert_same(loaded.model, model)
    assert loaded.tokenizer.encode(TEXT) == tokenizer.encode(TEXT)
    assert loaded.tokenizer.decode(loaded.tokenizer.encode(TEXT)) == TEXT
    assert loaded.tokenizer.apply_chat_template([{"content": "so"}], tokenize=False) == "so"
    assert loaded.end_tokens == (2,)
    assert loaded.provenance["source_dtypes"] == {"F32": 21 - (kind == "tied")}
    assert loaded.notes == ("unpacked from F32 to float32",)


def test_a_gguf_file_of_qwen(qwen, tmp_path):
    loaded = jaxsteer.load(write_gguf(tmp_path / "m.gguf", qwen))
    assert_same(loaded.model, jaxsteer.load(qwen).model)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "F16", "BF16"])
def test_quantised_weights_are_unpacked(folders, tmp_path, kind):
    model, _ = jaxsteer.load(write_gguf(tmp_path / "m", folders["float32"], quantised=kind))
    original = load_file(folders["float32"] / "model.safetensors")
    number = gguf.GGMLQuantizationType[kind]
    for name, x in hf.to_hf(model.params, model.config).items():
        expected = original[name]
        if is_quantised(expected):  # rows are quantised apart, so their order does not matter
            expected = gguf.quants.dequantize(gguf.quants.quantize(expected, number), number)
        assert np.array_equal(x, expected), name
    half, _ = jaxsteer.load(tmp_path / "m", dtype="bfloat16")
    for x, y in zip(jax.tree.leaves(half), jax.tree.leaves(model), strict=True):
        assert np.array_equal(x, y.astype(jnp.bfloat16))


def test_weights_are_arranged_for_the_backend(folders, tmp_path, monkeypatch):
    """As on a GPU: joined, also in the shapes that `warm` gets; the numbers are those of a CPU."""
    src = folders["words"]
    separate = jaxsteer.load(src, arranged=False)
    jaxsteer.save(tmp_path / "ours", separate.model)
    monkeypatch.setattr(packing.jax, "default_backend", lambda: "gpu")
    shapes = []
    for source in (src, tmp_path / "ours"):
        packed = jaxsteer.load(source, warm=lambda lm: shapes.append(lm.model))
        assert is_packed(packed.model)
        assert jax.tree.map(shape_of, shapes.pop().params) == jax.tree.map(
            shape_of, packed.model.params
        )
        assert_same(jaxsteer.unpack(packed.model), separate.model)
        assert weights_fingerprint(packed.model) == weights_fingerprint(separate.model)
        assert not is_packed(jaxsteer.load(source, arranged=False).model)
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        assert not is_packed(jaxsteer.load(source, sharding=here).model)


def shape_of(x: Any) -> Any:
    return x.shape, x.dtype, x.sharding


def test_pytorch_is_not_imported_though_it_is_installed(folders):
    """Where it is, importing it takes longer than all else of loading a small model."""
    work = (
        "import importlib.util, sys, jaxsteer as js\n"
        f"lm = js.load({str(folders['words'])!r})\n"
        "lm.generate('Wait .', max_new_tokens=2)\n"
        "assert importlib.util.find_spec('torch') and 'torch' not in sys.modules, 'imported'"
    )
    done = subprocess.run([sys.executable, "-c", work], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_strips_of_a_head_are_put_back_alike(folders, tmp_path, monkeypatch):
    write_gguf(tmp_path / "m.gguf", folders["float32"])
    whole, _ = jaxsteer.load(tmp_path / "m.gguf")
    monkeypatch.setattr("jaxsteer.huggingface.stream._READ_BYTES", 3 * 32 * 4)  # 3 rows, of 8
    assert_same(jaxsteer.load(tmp_path / "m.gguf").model, whole)


def test_llama3_scaling_is_known_by_what_it_divides(folders, tmp_path):
    src = shutil.copytree(folders["float32"], tmp_path / "src")
    scaling = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 32.0}
    scaling |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    edit_json(
        src / "config.json",
        rope_parameters=scaling | {"original_max_position_embeddings": 8192},
    )
    config = jaxsteer.load(src).model.config
    plain = jaxsteer.llama.rope_frequencies(jaxsteer.LlamaConfig(**{
        **vars(config), "rope_scaling": None
    }))  # fmt: skip
    factors = np.asarray(plain / jaxsteer.llama.rope_frequencies(config), np.float32)
    for wrong in (False, True):
        tensors = {"rope_freqs.weight": factors * np.linspace(1, 1.1 if wrong else 1, 4)}
        path = write_gguf(tmp_path / f"{wrong}.gguf", src, more=tensors)
        if wrong:
            with pytest.raises(ValueError, match="not the scaling of a published Llama-3"):
                jaxsteer.load(path)
        else:
            assert jaxsteer.load(path).model.config == config


def test_keys_of_a_gguf_file(folders, tmp_path):
    window = write_gguf(tmp_path / "a", folders["float32"], keys={"attention.sliding_window": 7})
    with pytest.raises(ValueError, match=r"llama\.attention\.sliding_window=7: not implemented"):
        jaxsteer.load(window)
    text = write_gguf(tmp_path / "c", folders["float32"], keys={"rope.scaling.factor": "two"})
    with pytest.raises(ValueError, match=r"rope\.scaling\.factor: got a str, expected a number"):
        jaxsteer.load(text)
    odd = write_gguf(tmp_path / "b", folders["float32"], keys={"odd.key": 1.5})
    assert jaxsteer.load(odd).notes[0] == "unknown field llama.odd.key=1.5"
    with pytest.raises(ValueError, match=r"llama\.odd\.key=1\.5: unknown key"):
        jaxsteer.load(odd, strict=True)


def test_gguf_files_that_cannot_be_used(folders, tmp_path):
    path = write_gguf(tmp_path / "m.gguf", folders["float32"])
    data = path.read_bytes()
    for damaged, message in (
        (data[:1000], "damaged or no GGUF file: it says that it holds 280"),
        (data[:-2000], "its tensors end at byte"),
        (data[:8] + b"\xff" * 8 + data[16:], "damaged or no GGUF file: it says that it holds"),
        (data.replace(b"llama", b"gemma"), "architecture: got 'gemma', expected llama or qwen2"),
        (data.replace(b"blk.1.ffn_up", b"blk.1.ffn_UP"), r"missing: model\.layers\.1\.mlp\.up_p"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"m\.gguf: .*({message}|\n.*{message})"):
            jaxsteer.load(path)


def test_a_gguf_file_that_git_lfs_did_not_fetch(tmp_path):
    (tmp_path / "m.gguf").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d\n")
    with pytest.raises(ValueError, match=r"got Git LFS pointers in place of m\.gguf"):
        jaxsteer.load(tmp_path / "m.gguf")


def test_a_gguf_file_without_a_known_tokenizer(folders, tmp_path):
    path = write_gguf(tmp_path / "m.gguf", folders["float32"], tokenizer=False)
    with pytest.raises(ValueError, match=r"put the model's tokenizer\.json beside the file"):
        jaxsteer.load(path)
    shutil.copy(folders["float32"] / "tokenizer.json", tmp_path)
    tokenizer = jaxsteer.load(path).tokenizer
    assert tokenizer.encode(TEXT) == jaxsteer.load(folders["float32"]).tokenizer.encode(TEXT)


def test_a_tokenizer_of_another_model_beside_a_gguf_file(folders, tmp_path):
    path = write_gguf(tmp_path / "m.gguf", folders["float32"])
    shutil.copy(folders["words"] / "tokenizer.json", tmp_path)
    with pytest.raises(ValueError, match=r"tokenizer\.json: \d+ tokens have other ids"):
        jaxsteer.load(path)


def test_sentencepiece_in_a_gguf_file_merges_by_score():
    tokens = [
        "<unk>",
        "<s>",
        "</s>",
        "<0x41>",
        "<0xC3>",
        "<0xA9>",
        "▁",
        "a",
        "b",
        "ab",
        "▁a",
        "▁ab",
    ]
    pairs = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [2, 3, 3, 6, 6, 6] + [1] * 6,
        # ▁a is worth more than ab, so ▁ab is made of ▁a and b; and so is the text's first word.
        "tokenizer.ggml.scores": [0.0] * 9 + [-3.0, -2.0, -1.0],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    tokenizer = from_pairs(pairs)
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("ab bab")) == [
        "<s>", "▁ab", "▁", "b", "ab",
    ]  # fmt: skip
    assert tokenizer.encode("é", add_special_tokens=False) == [6, 4, 5]  # bytes
    assert tokenizer.decode([10, 8, 6, 4, 5]) == "ab é"
    pairs |= {"tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.add_bos_token": False}
    assert from_pairs(pairs).encode("ab") == [9]


def test_a_gguf_file_is_converted_and_exported(folders, tmp_path):
    """Also the way from a GGUF file to a folder that transformers loads."""
    path = write_gguf(tmp_path / "m.gguf", folders["tied"], quantised="Q8_0")
    jaxsteer.convert(path, tmp_path / "ckpt")
    loaded, converted = jaxsteer.load(path), jaxsteer.load(tmp_path / "ckpt")
    assert_same(loaded.model, converted.model)
    assert loaded.tokenizer.encode(TEXT) == converted.tokenizer.encode(TEXT)
    assert set(converted.provenance["source_sha256"]) == {"m.gguf"}
    jaxsteer.export(tmp_path / "ckpt", tmp_path / "hf")
    assert_same(loaded.model, jaxsteer.load(tmp_path / "hf").model)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert theirs.encode(TEXT) == loaded.tokenizer.encode(TEXT)
    assert transformers.AutoConfig.from_pretrained(tmp_path / "hf").tie_word_embeddings

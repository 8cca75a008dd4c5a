"""weights.convert and weights.export: there and back, and every way in which a source is bad."""

import io
import json
import shutil
import struct
import threading
import time
import weakref
from pathlib import Path

import huggingface_hub
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from hf_folders import byte_tokenizer, edit_json, word_tokenizer, write_folder, write_tokenizer
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from safetensors.numpy import load_file, save_file
from tokenizers import decoders, pre_tokenizers

from jaxsteer.checkpoints import checkpoint
from jaxsteer.huggingface import stream
from jaxsteer.huggingface import tensor_names as hf
from jaxsteer.huggingface.folder import open_folder
from jaxsteer.llama.parameters import flatten
from jaxsteer.models import conversion as convert_module
from jaxsteer.models.conversion import convert, main
from jaxsteer.models.exporting import export
from jaxsteer.models.exporting import main as export_main
from jaxsteer.tokenizers import load_tokenizer, tokenizer_check

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="session")
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
    """A copy to spoil, alone in its folder; DST beside it."""
    return shutil.copytree(folders["float32"], tmp_path / "src")


@pytest.fixture
def sharded(folders, tmp_path) -> Path:
    return shutil.copytree(folders["sharded"], tmp_path / "src")


def weights_of(folder: Path) -> dict[str, np.ndarray]:
    shards = [load_file(file) for file in sorted(folder.glob("*.safetensors"))]
    return {name: x for shard in shards for name, x in shard.items()}


def refused(src: Path, message: str, kind: type[Exception] = ValueError, **options) -> str:
    """Conversion fails with this message and leaves nothing behind."""
    before = sorted(src.parent.iterdir())
    with pytest.raises(kind, match=message) as caught:
        convert(src, src.parent / "dst", **options)
    assert sorted(src.parent.iterdir()) == before
    return str(caught.value)


# There and back.


@pytest.mark.parametrize("kind", ["float32", "tied", "sharded", "words"])
def test_convert_and_export_give_back_every_byte(folders, tmp_path, kind):
    source = folders[kind]
    convert(source, tmp_path / "ckpt")
    model, tokenizer = checkpoint.load(tmp_path / "ckpt")
    original = weights_of(source)
    for name, x in hf.to_hf(model.params, model.config).items():
        assert x.tobytes() == original[name].tobytes(), name
    assert tokenizer.encode("wait") == transformers.AutoTokenizer.from_pretrained(source).encode(
        "wait"
    )

    export(tmp_path / "ckpt", tmp_path / "back")
    exported = weights_of(tmp_path / "back")
    assert exported.keys() == original.keys()
    for name, x in original.items():
        assert exported[name].dtype == x.dtype
        assert exported[name].tobytes() == x.tobytes(), name
    for file in source.iterdir():
        if not file.name.startswith("model"):
            assert (tmp_path / "back" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("kind", ["tied", "sharded"])
def test_transformers_loads_the_export(folders, tmp_path, kind):
    convert(folders[kind], tmp_path / "ckpt")
    export(tmp_path / "ckpt", tmp_path / "back", shard_bytes=30_000)
    assert (tmp_path / "back" / INDEX).exists()
    tokens = torch.arange(12)[None]
    ours, theirs = (
        transformers.LlamaForCausalLM.from_pretrained(path)
        for path in (tmp_path / "back", folders[kind])
    )
    assert ours.dtype == theirs.dtype
    assert torch.equal(ours(tokens).logits, theirs(tokens).logits)


def test_provenance_says_where_it_came_from(folders, tmp_path):
    convert(folders["sharded"], tmp_path / "ckpt")
    provenance = checkpoint.read_manifest(tmp_path / "ckpt").provenance
    assert provenance["source"] == "sharded"
    assert provenance["source_dtypes"] == {"bfloat16": 21}
    assert set(provenance["source_sha256"]) == {p.name for p in folders["sharded"].iterdir()} - {
        INDEX
    }
    assert provenance["versions"]["jax"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtype_is_cast(folders, tmp_path, dtype):
    for kind in ("float32", "sharded"):
        convert(folders[kind], tmp_path / kind, dtype=dtype)
        model, _ = checkpoint.load(tmp_path / kind)
        original = weights_of(folders[kind])
        assert model.dtype.name == dtype
        for name, x in hf.to_hf(model.params, model.config).items():
            assert np.array_equal(x, original[name].astype(dtype)), name


def test_export_of_cast_weights_says_so_in_its_config(folders, tmp_path):
    convert(folders["float32"], tmp_path / "ckpt", dtype="bfloat16")
    export(tmp_path / "ckpt", tmp_path / "back")
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "back")
    assert loaded.dtype == torch.bfloat16


def test_a_model_that_never_was_a_hugging_face_folder_is_exported(folders, tmp_path):
    convert(folders["tied"], tmp_path / "a")
    model, _ = checkpoint.load(tmp_path / "a")
    checkpoint.save(tmp_path / "b", model)
    export(tmp_path / "b", tmp_path / "back")
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "back")
    tokens = torch.arange(12)[None]
    expected = transformers.LlamaForCausalLM.from_pretrained(folders["tied"])(tokens).logits
    assert torch.equal(loaded(tokens).logits, expected)


def test_existing_destination(folders, tmp_path, capsys):
    convert(folders["float32"], tmp_path / "ckpt")
    with pytest.raises(FileExistsError, match="exists already"):
        convert(folders["tied"], tmp_path / "ckpt")
    assert not checkpoint.read_manifest(tmp_path / "ckpt").config.tie_embeddings
    convert(folders["tied"], tmp_path / "ckpt", overwrite=True)
    assert checkpoint.read_manifest(tmp_path / "ckpt").config.tie_embeddings

    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError, match="exists already"):
        export(tmp_path / "ckpt", tmp_path / "mine")
    with pytest.raises(FileExistsError, match=r"holds no config\.json, so it is not overwritten"):
        export(tmp_path / "ckpt", tmp_path / "mine", overwrite=True)
    assert export_main([str(tmp_path / "ckpt"), str(tmp_path / "mine")]) == 1
    assert "export: " in capsys.readouterr().err


def test_json_is_all_that_stands_on_stdout(folders, tmp_path, capsys):
    assert main([str(folders["words"]), str(tmp_path / "ckpt"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"checkpoint": str(tmp_path / "ckpt"), "dtype": "float32", "note": None}
    assert export_main([str(tmp_path / "ckpt"), str(tmp_path / "back"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"folder": str(tmp_path / "back")}


def test_command_line(folders, tmp_path, capsys):
    assert main([str(folders["words"]), str(tmp_path / "ckpt"), "--dtype", "bfloat16"]) == 0
    assert "jaxsteer verify" in capsys.readouterr().out
    assert checkpoint.read_manifest(tmp_path / "ckpt").dtype == "bfloat16"
    assert export_main([str(tmp_path / "ckpt"), str(tmp_path / "back")]) == 0
    assert main([str(tmp_path / "nowhere"), str(tmp_path / "other")]) == 1
    assert "convert: " in capsys.readouterr().err
    assert export_main([str(folders["words"]), str(tmp_path / "other")]) == 1
    assert not (tmp_path / "other").exists()


# Bounded memory, and nothing goes on after a refusal.


def test_tensors_ahead_are_bounded_in_bytes(folders, monkeypatch):
    folder = open_folder(folders["float32"])
    largest = max(4 * int(np.prod(t.shape)) for t in hf.tensors(folder.config).values())
    monkeypatch.setattr(stream, "_AHEAD_BYTES", 20_000)
    monkeypatch.setattr(stream, "_STRIP_BYTES", 1000)
    begin, alive = stream._begin, []

    def watched(*args, **options):
        begun = begin(*args, **options)
        alive.append(weakref.ref(begun.out))
        return begun

    monkeypatch.setattr(stream, "_begin", watched)
    most = number = 0
    for _, _, finite in stream.tensors_as_ours(folder, "float32"):
        assert finite
        held = [ref().nbytes for ref in alive if ref() is not None]
        most, number = max(most, sum(held)), max(number, len(held))
    assert number > 2  # ahead of the one that is given
    assert most <= 20_000 + 2 * largest


def test_a_refusal_does_not_wait_for_the_hashes(src, monkeypatch):
    """What is hashed beside the tokenizer's proof ends with it, not with its file."""
    hashing, ends = threading.Event(), time.monotonic() + 30

    class Long(io.BytesIO):
        def readinto(self, buffer):
            hashing.set()
            return len(buffer) if time.monotonic() < ends else 0

    def refuse(*_):
        assert hashing.wait(10)
        raise ValueError("the tokenizer cannot be trusted")

    monkeypatch.setattr(convert_module, "check_tokenizer", refuse)
    monkeypatch.setattr(convert_module, "open", lambda *_, **__: Long(), raising=False)
    refused(src, "the tokenizer cannot be trusted")
    assert time.monotonic() < ends


# Sources that are not there, or not all of it.


def test_no_such_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder, and not a hub id"):
        convert(tmp_path / "nowhere", tmp_path / "dst")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="got a file, expected a folder"):
        convert(tmp_path / "file", tmp_path / "dst")


def test_no_config(src):
    (src / "config.json").unlink()
    refused(src, r"config\.json: no such file", FileNotFoundError)


def test_config_is_not_json(src):
    (src / "config.json").write_text("{'hidden_size': 3}")
    refused(src, r"config\.json: not JSON")
    (src / "config.json").write_text("[]")
    refused(src, r"config\.json: got a list, expected a JSON object")


def test_config_asks_for_what_is_not_implemented(src):
    edit_json(src / "config.json", hidden_act="gelu", attention_bias=True)
    message = refused(src, 'hidden_act: got "gelu"')
    assert "attention_bias: got true" in message


def test_no_weights(src):
    (src / SINGLE).unlink()
    refused(src, r"no weights, expected model\.safetensors or", FileNotFoundError)


def test_a_lora_adapter_says_what_it_is(src):
    (src / "config.json").unlink()
    (src / SINGLE).rename(src / "adapter_model.safetensors")
    base = {"base_model_name_or_path": "owner/base", "peft_type": "LORA"}
    (src / "adapter_config.json").write_text(json.dumps(base))
    message = refused(src, r"src: is an adapter \(LoRA\) of owner/base, expected a whole model")
    assert "merge_and_unload" in message
    assert "\n" not in message


@pytest.mark.parametrize("name", [SINGLE, "tokenizer.json", "config.json"])
def test_git_lfs_pointers_say_what_they_are(src, name):
    (src / name).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
    )
    message = refused(src, rf"src: got Git LFS pointers in place of {name}; fetch .* git lfs pull")
    assert "\n" not in message


def test_shards_without_an_index_say_so(sharded):
    (sharded / INDEX).unlink()
    count = len(list(sharded.glob("*.safetensors")))
    message = rf"src: {count} shards \(model-00001-of-.* …\) without {INDEX}"
    refused(sharded, message, FileNotFoundError)


def test_weights_of_another_name_are_named(src):
    (src / SINGLE).rename(src / "consolidated.safetensors")
    message = r"got weights in consolidated\.safetensors, expected model\.safetensors"
    refused(src, message, FileNotFoundError)


def test_pickled_weights_are_refused_with_the_way_out(src):
    (src / SINGLE).unlink()
    (src / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    message = refused(src, r"only pickled weights \(pytorch_model\.bin\)")
    assert "save_pretrained('NEW')" in message


def test_missing_shards_are_all_named(sharded):
    shards = sorted(sharded.glob("*.safetensors"))
    for shard in shards:
        shard.unlink()
    message = refused(sharded, "lists missing files", FileNotFoundError)
    assert all(shard.name in message for shard in shards)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd"])
def test_index_that_leads_out_of_the_folder(sharded, name):
    weight_map = json.loads((sharded / INDEX).read_text())["weight_map"]
    edit_json(sharded / INDEX, weight_map={**weight_map, UP: name})
    refused(sharded, "leads out of the folder")


def test_a_folder_of_links_is_followed_but_not_in_a_clone(src, tmp_path_factory, tmp_path):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for file in list(src.iterdir()):
        shutil.move(file, elsewhere / file.name)
        (src / file.name).symlink_to(elsewhere / file.name)
    convert(src, tmp_path / "dst")
    assert checkpoint.load_tokenizer(tmp_path / "dst") is not None
    shutil.rmtree(tmp_path / "dst")
    (src / ".git").mkdir()  # links that came with a repository are a stranger's
    refused(src, "leads out of the folder")


@pytest.mark.parametrize("elsewhere", [False, True])
def test_links_of_the_hub_cache_are_followed(folders, tmp_path, elsewhere):
    repo = tmp_path / "models--a--b"
    blobs, snapshot = repo / "blobs", repo / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    if elsewhere:  # as people do whose first disk is full
        shutil.move(blobs, tmp_path / "other disk")
        blobs.symlink_to(tmp_path / "other disk")
    snapshot.mkdir(parents=True)
    for i, file in enumerate(folders["words"].iterdir()):
        shutil.copy(file, blobs / str(i))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(i))
    convert(snapshot, tmp_path / "dst")
    assert checkpoint.load_tokenizer(tmp_path / "dst").decode([4, 5]) == "the sum"


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-100],
        lambda data: data[:4],
        lambda data: b"",
        lambda data: struct.pack("<Q", 1 << 40) + data[8:],
        lambda data: data[:8] + b"x" + data[9:],
        lambda data: data + b"more",
        lambda data: data.replace(b"[290,32]", b"[291,32]", 1),
    ],
    ids=["cut", "tiny", "empty", "header too long", "not JSON", "too long", "shape lies"],
)
def test_damaged_weights(src, damage):
    data = (src / SINGLE).read_bytes()
    assert damage(data) != data
    (src / SINGLE).write_bytes(damage(data))
    refused(src, r"model\.safetensors: damaged or cut short")


# Tensors that do not fit.


def test_tensors_that_do_not_fit_are_all_named(src):
    tensors = load_file(src / SINGLE)
    del tensors["model.norm.weight"]
    tensors[UP] = tensors[UP][:-1]
    tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(32, np.float32)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].astype(np.int32)
    save_file(tensors, src / SINGLE)
    message = refused(src, r"the tensors do not fit config\.json")
    for line in (
        "missing: model.norm.weight (final_norm.scale) [32]",
        f"misshapen: {UP} (layers.1.mlp.up_proj): got [47, 32], expected [48, 32]",
        "unexpected: model.layers.0.self_attn.q_proj.bias [32]",
        "dtype: lm_head.weight (lm_head.kernel): got I32, expected float32",
    ):
        assert line in message


def test_tensor_in_two_shards(sharded):
    first, second = sorted(sharded.glob("*.safetensors"))
    save_file({**load_file(second), **dict([next(iter(load_file(first).items()))])}, second)
    refused(sharded, f"in {first.name} and in {second.name}")


def test_index_and_shards_disagree(sharded):
    weight_map = json.loads((sharded / INDEX).read_text())["weight_map"]
    weight_map["model.extra"] = weight_map[UP]
    del weight_map[UP]
    edit_json(sharded / INDEX, weight_map=weight_map)
    message = refused(sharded, rf"{UP}: not in model\.safetensors\.index\.json")
    assert message.startswith(f"{sharded}: the shards do not fit together:")
    assert f"model.extra: {INDEX} says it is in" in message
    edit_json(sharded / INDEX, weight_map=None)
    refused(sharded, "expected weight_map")


def test_index_and_shards_need_not_agree_on_what_the_model_has_no_place_for(tmp_path):
    src = write_folder(tmp_path / "src", tie=True, max_shard_size="20KB")
    expected = weights_of(src)
    weight_map = json.loads((src / INDEX).read_text())["weight_map"]
    place = weight_map[UP]
    gone = dict.fromkeys(("lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"), place)
    edit_json(src / INDEX, weight_map=weight_map | gone)
    buffer = {"model.rotary_emb.inv_freq": np.ones(4, np.float32)}
    save_file({**load_file(src / place), **buffer}, src / place, {"format": "pt"})
    convert(src, tmp_path / "dst")
    export(tmp_path / "dst", tmp_path / "back")
    back = weights_of(tmp_path / "back")
    assert back.keys() == expected.keys()
    assert all(back[name].tobytes() == x.tobytes() for name, x in expected.items())


def test_an_unknown_field_is_kept_in_the_provenance(src, tmp_path):
    edit_json(src / "config.json", my_field=0.1)
    with pytest.warns(UserWarning, match="unknown fields are ignored: my_field=0.1"):
        convert(src, tmp_path / "dst")
    provenance = checkpoint.read_manifest(tmp_path / "dst").provenance
    assert provenance["unknown_config_fields"] == {"my_field": 0.1}
    shutil.rmtree(tmp_path / "dst")
    refused(src, r"config\.json: got unknown fields my_field=0\.1, .*strict", strict=True)


def test_nothing_is_read_before_the_headers_fit(src, monkeypatch):
    edit_json(src / "config.json", vocab_size=300)
    monkeypatch.setattr(convert_module.Folder, "read", lambda *_: pytest.fail("read a tensor"))
    refused(src, r"model\.embed_tokens\.weight .*: got \[290, 32\], expected \[300, 32\]")


def test_weights_that_are_not_finite_are_all_named(src, tmp_path):
    tensors = load_file(src / SINGLE)
    tensors[UP][3, 4] = np.nan
    tensors["model.norm.weight"][0] = -np.inf
    save_file(tensors, src / SINGLE)
    message = refused(src, "NaN or infinite as float32")
    assert message.splitlines()[1:] == [  # in the file's order
        f"  {UP} (layers.1.mlp.up_proj)",
        "  model.norm.weight (final_norm.scale)",
    ]
    convert(src, tmp_path / "dst", allow_nonfinite=True)
    model, _ = checkpoint.load(tmp_path / "dst")
    assert np.isnan(model.params["layers"][1]["mlp"]["up_proj"][4, 3])


def test_weights_too_large_for_the_dtype(src):
    tensors = load_file(src / SINGLE)
    tensors[UP][0, 0] = np.finfo(np.float32).max  # rounds up to infinity
    save_file(tensors, src / SINGLE)
    refused(src, "NaN or infinite as bfloat16", dtype="bfloat16")


def test_head_of_a_tied_model(folders, tmp_path):
    src = shutil.copytree(folders["tied"], tmp_path / "src")
    tensors = load_file(src / SINGLE)
    tensors[hf.HEAD] = tensors[hf.EMBEDDING].copy()
    save_file(tensors, src / SINGLE)
    convert(src, tmp_path / "same")
    assert not [path for path, _ in flatten(checkpoint.load(tmp_path / "same")[0].params)
                if path[0] == "lm_head"]  # fmt: skip
    tensors[hf.HEAD][5, 5] += 1
    save_file(tensors, src / SINGLE)
    refused(src, r"lm_head\.weight: config\.json says tie_word_embeddings=true")


def test_mixed_and_half_weights_need_a_dtype(src, tmp_path):
    tensors = load_file(src / SINGLE)
    save_file({**tensors, UP: tensors[UP].astype(ml_dtypes.bfloat16)}, src / SINGLE)
    refused(src, r"weights are bfloat16 \(1 tensors\), float32 \(20 tensors\)")
    save_file({**tensors, UP: tensors[UP].astype(np.float16)}, src / SINGLE)
    refused(src, r"weights are float16 \(1 tensors\), float32 \(20 tensors\).*choose with dtype=")
    refused(src, "dtype: got 'float16', expected keep or float32 or", dtype="float16")
    convert(src, tmp_path / "dst", dtype="float32")
    up = checkpoint.load(tmp_path / "dst")[0].params["layers"][1]["mlp"]["up_proj"]
    assert np.array_equal(up, tensors[UP].astype(np.float16).astype(np.float32).T)


# Tokenizers that cannot be trusted.


def test_no_tokenizer(src):
    (src / "tokenizer.json").unlink()
    refused(src, "no tokenizer.*--no-tokenizer", FileNotFoundError)


def test_without_tokenizer_none_is_carried_along(src, tmp_path):
    convert(src, tmp_path / "dst", tokenizer=False)
    assert checkpoint.load_tokenizer(tmp_path / "dst") is None
    files = [file.name for file in checkpoint.companions(tmp_path / "dst")]
    assert files == ["config.json", "generation_config.json"]


def test_tokenizer_that_does_not_load(src):
    (src / "tokenizer.json").write_text('{"version": "1.0"}')
    refused(src, "the tokenizer does not load")


def test_vocabulary_larger_than_the_models(folders, tmp_path):
    src = shutil.copytree(folders["words"], tmp_path / "src")
    write_tokenizer(src, byte_tokenizer())
    refused(src, r"vocabulary: ids go up to 279, but config\.json has vocab_size=40")


@pytest.mark.parametrize(("name", "value"), [("bos_token_id", 7), ("eos_token_id", [7, 8])])
def test_special_tokens_that_disagree_are_no_reason_to_refuse(src, tmp_path, name, value):
    edit_json(src / "config.json", **{name: value})
    convert(src, tmp_path / "dst")


def test_byte_level_tokenizer_that_loses_spaces(src):
    tokenizer = byte_tokenizer()
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace(" ", "")])
    write_tokenizer(src, tokenizer)
    message = refused(src, r"'Wait, let me check that again\.' came back as 'Wait,letme")
    # Texts without spaces survive; every other one is named.
    assert message.count("came back as") == sum(" " in text for text in tokenizer_check.TEXTS)


def test_word_level_tokenizer_that_loses_spaces(folders, tmp_path):
    src = shutil.copytree(folders["words"], tmp_path / "src")
    tokenizer = word_tokenizer()
    tokenizer.decoder = decoders.Fuse()
    write_tokenizer(src, tokenizer)
    refused(src, r"18 words came back as 1 with other ids \(are spaces lost\?\): 'thesumis")


def test_a_tokenizer_with_other_ids_than_its_file(src, tmp_path, monkeypatch):
    """What some releases of transformers 5 make of R1-Distill's: loads, works, other ids."""
    other = byte_tokenizer()
    other.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    write_tokenizer(tmp_path / "other", other)
    wrong = load_tokenizer(tmp_path / "other")
    wrong.name_or_path = str(src)
    monkeypatch.setattr(convert_module, "load_tokenizer", lambda _: wrong)
    message = refused(src, "the tokenizer cannot be trusted")
    assert "came back as 'Wait,letmecheckthatagain.'" in message
    assert "ids differ from those of tokenizer.json" in message


def test_chat_format_is_part_of_the_battery(src, tmp_path):
    good = "{% for m in messages %}<bos>{{ m.role }}\n\n{{ m.content }}<eos>{% endfor %}"
    (src / "chat_template.jinja").write_text(good)
    convert(src, tmp_path / "dst")
    assert checkpoint.load_tokenizer(tmp_path / "dst").chat_template == good
    shutil.rmtree(tmp_path / "dst")
    (src / "chat_template.jinja").write_text("{{ raise_exception('no') }}")
    refused(src, "chat template: ")


# The hub.


def test_hub_id(folders, tmp_path, monkeypatch):
    asked = []

    def download(repo, **options):
        asked.append((repo, options))
        return str(folders["words"])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    convert("owner/model", tmp_path / "dst", revision="v1")
    ((repo, options),) = asked
    assert (repo, options["revision"]) == ("owner/model", "v1")
    assert "*.safetensors" in options["allow_patterns"]
    assert not any(pattern.endswith(("bin", "pt", "*")) for pattern in options["allow_patterns"])
    provenance = checkpoint.read_manifest(tmp_path / "dst").provenance
    assert (provenance["source"], provenance["revision"]) == ("owner/model", "v1")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (GatedRepoError, r"gated.*https://huggingface\.co/owner/model.*hf auth login"),
        (RepositoryNotFoundError, r"no such model on the hub.*https://huggingface\.co/owner/model"),
        (ConnectionError, "download failed: ConnectionError"),
    ],
)
def test_hub_says_no(tmp_path, monkeypatch, error, message):
    def download(*_args, **_options):
        raise error.__new__(error)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ValueError, match=message):
        convert("owner/model", tmp_path / "dst")
    assert list(tmp_path.iterdir()) == []


# The machine.


def test_disk_without_room(src, monkeypatch):
    usage = shutil.disk_usage(src)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000))
    refused(src, r"needs 136,320 bytes, .* has 10,000 free", OSError)


def test_target_that_cannot_be_written(src, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert main([str(src), str(tmp_path / "file" / "dst")]) == 1
    assert "convert: " in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"

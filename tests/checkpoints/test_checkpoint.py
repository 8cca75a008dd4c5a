"""jaxsteer.checkpoints.checkpoint: what is saved comes back, and what is broken says so."""

import errno
import json
import os
import shutil
import subprocess
import sys
import warnings
import weakref
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsteer.checkpoints import checkpoint
from jaxsteer.checkpoints import writer as checkpoint_writer
from jaxsteer.config.shape import LlamaConfig, RopeScaling
from jaxsteer.files.directories import new_directory
from jaxsteer.llama import model, packing
from jaxsteer.llama.parameters import flatten


@pytest.fixture
def config() -> LlamaConfig:
    scaling = RopeScaling(kind="llama3", factor=8.0)
    return LlamaConfig.from_dict(LlamaConfig.tiny().to_dict() | {"rope_scaling": vars(scaling)})


@pytest.fixture
def saved(tmp_path: Path, config: LlamaConfig) -> Path:
    checkpoint.save(tmp_path / "m", make(config), provenance={"source": "here"})
    return tmp_path / "m"


def make(config: LlamaConfig, *, seed: int = 1, dtype=jnp.float32) -> model.Model:
    """A random model, made by numpy: compiling `model.init` for each config takes seconds."""
    rng = np.random.default_rng(seed)
    shapes = model.abstract_params(config, dtype)
    params = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), dtype), shapes)
    return model.from_params(params, config)


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def same(a, b) -> bool:
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        np.array_equal(x, y) and x.dtype == y.dtype
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("tie", [False, True])
def test_round_trip(tmp_path, config, dtype, tie):
    config = LlamaConfig.from_dict({**config.to_dict(), "tie_embeddings": tie})
    before = make(config, dtype=dtype)
    checkpoint.save(tmp_path / "a" / "m", before, provenance={"source": "here"})
    after, tokenizer = checkpoint.load(tmp_path / "a" / "m")
    assert same(before.params, after.params)
    assert after.config == config
    assert tokenizer is None
    assert listing(tmp_path / "a") == ["m"]
    manifest = checkpoint.read_manifest(tmp_path / "a" / "m")
    assert (manifest.dtype, manifest.provenance) == (before.dtype.name, {"source": "here"})


def test_a_packed_model_is_saved_as_what_it_was_made_of(tmp_path, config):
    before = make(config)
    checkpoint.save(tmp_path / "m", packing.pack(before))
    after, _ = checkpoint.load(tmp_path / "m")
    assert same(before.params, after.params)


def test_layers_come_back_in_order_beyond_ten(tmp_path, config):
    config = LlamaConfig.from_dict({**config.to_dict(), "n_layers": 12})
    before = make(config)
    checkpoint.save(tmp_path / "m", before)
    after, _ = checkpoint.load(tmp_path / "m")
    assert list(after.params["layers"]) == list(range(12))
    assert same(before.params, after.params)


def test_small_batches_make_the_same_checkpoint(tmp_path, config, monkeypatch):
    monkeypatch.setattr(checkpoint_writer, "_BATCH_BYTES", 10_000)
    before = make(config)
    checkpoint.save(tmp_path / "m", before)
    assert len(list((tmp_path / "m/params/state").glob("ocdbt.process_*"))) > 3
    assert same(checkpoint.load(tmp_path / "m")[0].params, before.params)


# 97 rows have no divisor: a chunk for each of them, Orbax's choice, would take minutes.
@pytest.mark.parametrize(("vocabulary", "rows"), [(96, 32), (97, 97), (194, 194)])
def test_large_arrays_are_cut_into_chunks_of_rows(tmp_path, config, monkeypatch, vocabulary, rows):
    monkeypatch.setattr(checkpoint_writer, "_FILE_BYTES", 1000)
    monkeypatch.setattr(checkpoint_writer, "_CHUNK_BYTES", 5000)
    config = LlamaConfig.from_dict({**config.to_dict(), "vocab_size": vocabulary})
    before = make(config)
    checkpoint.save(tmp_path / "m", before)
    assert same(checkpoint.load(tmp_path / "m")[0].params, before.params)
    metadata = checkpoint.v1.metadata(tmp_path / "m" / "params").metadata
    chunks = {name: metadata[part][name].storage_metadata.chunk_shape
              for part, name in (("embed", "embedding"), ("lm_head", "kernel"))}  # fmt: skip
    assert chunks["embedding"] == (rows, config.d_model)
    assert chunks["kernel"] == (config.d_model, vocabulary)  # columns would be copies


def test_a_batch_is_gone_when_it_is_written(tmp_path, config, monkeypatch):
    """Or memory would hold more than two of them."""
    monkeypatch.setattr(checkpoint_writer, "_BATCH_BYTES", 10_000)
    shapes = flatten(model.abstract_params(config))
    alive: list[weakref.ref] = []
    most = 0

    def leaves():
        nonlocal most
        for path, shape in shapes:
            x = np.zeros(shape.shape, shape.dtype)
            alive.append(weakref.ref(x))
            yield path, x
            del x
            most = max(most, sum(ref().nbytes for ref in alive if ref() is not None))

    checkpoint.write(tmp_path / "m", config, leaves(), dtype="float32")
    largest = max(4 * x.size for _, x in flatten(model.abstract_params(config)))
    assert 10_000 < most <= 2 * (10_000 + largest)


def test_dtype_is_cast_on_the_way_in(saved, config):
    loaded, _ = checkpoint.load(saved, dtype="bfloat16")
    expected = jax.tree.map(lambda x: x.astype(jnp.bfloat16), make(config).params)
    assert same(loaded.params, expected)
    with pytest.raises(ValueError, match="dtype: got float16, expected float32 or bfloat16"):
        checkpoint.load(saved, dtype="float16")


def test_sharding_one_or_a_tree(saved, config):
    mesh = jax.make_mesh((1,), ("tensor",), axis_types=(jax.sharding.AxisType.Auto,))
    one = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    tree = jax.tree.map(lambda _: one, model.abstract_params(config))
    for sharding in (one, tree):
        loaded, _ = checkpoint.load(saved, sharding=sharding)
        assert {x.sharding for x in jax.tree.leaves(loaded.params)} == {one}


def test_leaves_one_by_one(saved, config):
    leaves = dict(checkpoint.read_leaves(saved))
    expected = dict(flatten(make(config).params))
    assert leaves.keys() == expected.keys()
    assert all(np.array_equal(leaves[path], expected[path]) for path in leaves)


def test_existing_is_not_overwritten_unless_told(saved, config):
    other = make(config, seed=2)
    with pytest.raises(FileExistsError, match="exists already"):
        checkpoint.save(saved, other)
    assert same(checkpoint.load(saved)[0].params, make(config).params)
    checkpoint.save(saved, other, overwrite=True)
    assert same(checkpoint.load(saved)[0].params, other.params)
    assert listing(saved.parent) == ["m"]


def test_what_is_no_checkpoint_is_never_overwritten(tmp_path, config):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("precious")
    with pytest.raises(FileExistsError, match=r"holds no jaxsteer\.json, so it is not overwritten"):
        checkpoint.save(tmp_path / "home", make(config), overwrite=True)
    assert (tmp_path / "home" / "thesis.tex").read_text() == "precious"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda leaves: leaves[:-1], r"^missing: lm_head\.kernel$"),
        (lambda leaves: [*leaves, leaves[0]], "unexpected, or given twice"),
        (lambda leaves: [(("layers", 9, "x"), leaves[0][1])], r"layers\.9\.x: unexpected"),
        (lambda leaves: [(leaves[0][0], np.zeros(3, np.float32))], r"got float32 \[3\], expected"),
        (lambda leaves: [(p, x.astype(jnp.bfloat16)) for p, x in leaves], "got bfloat16"),
    ],
)
def test_leaves_that_do_not_fit_leave_nothing_behind(tmp_path, config, change, message):
    leaves = sorted(flatten(make(config).params), key=str)
    with pytest.raises(ValueError, match=message):
        checkpoint.write(tmp_path / "m", config, change(leaves), dtype="float32")
    assert listing(tmp_path) == []


def test_interrupted_while_writing_leaves_nothing_behind(tmp_path, config, monkeypatch):
    monkeypatch.setattr(checkpoint_writer, "_BATCH_BYTES", 10_000)

    def leaves():
        yield from list(flatten(make(config).params))[:9]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.write(tmp_path / "m", config, leaves(), dtype="float32")
    assert listing(tmp_path) == []


def test_leftovers_of_a_killed_process_are_cleared_away(tmp_path, config):
    building = tmp_path / ".m.building"
    (building / "params").mkdir(parents=True)
    (building / "params" / "half").write_text("half")
    (building / "half").write_text("half")
    checkpoint.save(tmp_path / "m", make(config))
    assert listing(tmp_path) == ["m"]
    assert listing(tmp_path / "m") == ["huggingface", "jaxsteer.json", "params"]


def test_killed_between_its_two_renames(saved, config):
    # The old checkpoint waits beside its place, and the next writer puts it back.
    saved.rename(saved.with_name(f".{saved.name}.old"))
    with pytest.raises(FileExistsError, match="exists already"):
        checkpoint.save(saved, make(config, seed=2))
    assert listing(saved.parent) == ["m"]
    assert same(checkpoint.load(saved)[0].params, make(config).params)


@pytest.mark.parametrize("moment", ["between the renames", "behind them"])
def test_stopped_while_it_takes_another_ones_place(saved, config, monkeypatch, moment):
    last, rename = ".m.old" if moment == "between the renames" else "m", os.rename

    def stop(source, target):
        rename(source, target)
        if Path(target).name == last:
            monkeypatch.undo()
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", stop)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(saved, make(config, seed=2), overwrite=True)
    assert listing(saved.parent) == ["m"]
    seed = 1 if moment == "between the renames" else 2
    assert same(checkpoint.load(saved)[0].params, make(config, seed=seed).params)


def test_an_old_one_that_cannot_be_removed_does_not_spoil_the_new_one(saved, config, monkeypatch):
    rename = os.rename

    def refuse(source, target):
        if Path(target).name == ".m.removing":
            raise PermissionError(target)
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    checkpoint.save(saved, make(config, seed=2), overwrite=True)
    assert same(checkpoint.load(saved)[0].params, make(config, seed=2).params)
    monkeypatch.undo()
    checkpoint.save(saved, make(config, seed=3), overwrite=True)
    assert listing(saved.parent) == ["m"]


def test_what_a_kill_left_of_a_replaced_checkpoint_is_never_put_back(saved, config):
    removing = saved.with_name(f".{saved.name}.removing")
    shutil.copytree(saved, removing)
    (removing / "jaxsteer.json").unlink()
    shutil.rmtree(saved)
    checkpoint.save(saved, make(config, seed=2))
    assert listing(saved.parent) == ["m"]
    assert same(checkpoint.load(saved)[0].params, make(config, seed=2).params)


def test_arguments_of_load_that_cannot_be(saved):
    with pytest.raises(ValueError, match=r"mesh: got int, expected a jax\.sharding\.Mesh"):
        checkpoint.load(saved, mesh=8)
    with pytest.raises(ValueError, match="dtype: got 'foo', expected float32 or bfloat16"):
        checkpoint.load(saved, dtype="foo")
    run = saved.with_name("run")
    run.mkdir()
    saved.rename(run / "checkpoint")
    with pytest.raises(ValueError, match="one lies in its folder checkpoint"):
        checkpoint.load(run)


def test_two_writers_one_wins_and_the_other_says_so(tmp_path, config):
    with new_directory(tmp_path / "m", marker="x") as folder:
        (folder / "x").write_text("first")
        with pytest.raises(FileExistsError, match="another process is writing it now"):
            checkpoint.save(tmp_path / "m", make(config))
    assert (tmp_path / "m" / "x").read_text() == "first"
    assert listing(tmp_path) == ["m"]


def test_lock_of_a_dead_process_is_free(tmp_path, config):
    building = tmp_path / ".m.building"
    building.mkdir()
    holder = (
        "import fcntl, os, sys\n"
        "fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, building], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        with pytest.raises(FileExistsError, match="another process is writing it now"):
            checkpoint.save(tmp_path / "m", make(config))
        process.kill()
        process.wait()
    checkpoint.save(tmp_path / "m", make(config))
    assert listing(tmp_path) == ["m"]


def test_missing_path(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such directory"):
        checkpoint.load(tmp_path / "nowhere")


def test_hugging_face_folder_names_the_command(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=rf"jaxsteer convert {tmp_path} DST"):
        checkpoint.load(tmp_path)


def test_folder_that_is_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match=r"is no checkpoint of jaxsteer \(it holds no"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"format": 1, "config": {', "Expecting"),
        ('{"format": 2}', "format 2, expected 1"),
        ('{"format": 1, "dtype": "float32", "provenance": {}, "files": {}}', "'config'"),
        ("[]", "list indices"),
    ],
)
def test_damaged_manifest(saved, content, message):
    (saved / checkpoint.MANIFEST).write_text(content)
    with pytest.raises(ValueError, match=rf"jaxsteer\.json: damaged or of another .*{message}"):
        checkpoint.load(saved)


def test_every_damaged_file_is_named(saved):
    def largest(files):
        return max(files, key=lambda name: files[name][0])

    files = dict(checkpoint.read_manifest(saved).files)
    data = saved / largest(files)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1  # Orbax reads this back without a word
    data.write_bytes(content)
    files.pop(largest(files))
    cut = saved / largest(files)
    cut.write_bytes(cut.read_bytes()[:-5])
    gone = saved / "params" / "_CHECKPOINT_METADATA"
    gone.unlink()
    with pytest.raises(ValueError, match="damaged, convert or copy it again") as caught:
        checkpoint.load(saved)
    assert sorted(line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:]) == [
        "cut short",
        "damaged",
        "missing",
    ]
    for path in (data, cut, gone):
        assert path.relative_to(saved).as_posix() in str(caught.value)


def test_a_changed_byte_is_found_although_orbax_reads_it(saved, monkeypatch):
    files = checkpoint.read_manifest(saved).files
    name = max(files, key=lambda name: files[name][0])
    content = bytearray((saved / name).read_bytes())
    content[len(content) // 2] ^= 1
    (saved / name).write_bytes(content)
    restored = []
    restore = checkpoint._restore
    monkeypatch.setattr(checkpoint, "_restore", lambda *a: restored.append(1) or restore(*a))
    with pytest.raises(ValueError, match=f"damaged: {name}"):
        checkpoint.load(saved)
    assert restored  # beside the check, and thrown away


def test_weights_of_another_model_in_the_directory(saved, config, tmp_path):
    # A manifest whose checksums hold but whose config is not that of the weights.
    wide = LlamaConfig.from_dict({**config.to_dict(), "d_mlp": 64})
    data = json.loads((saved / checkpoint.MANIFEST).read_text())
    data["config"] = wide.to_dict()
    (saved / checkpoint.MANIFEST).write_text(json.dumps(data))
    with pytest.raises(ValueError, match="weights and config differ") as caught:
        checkpoint.load(saved)
    assert "layers.0.mlp.up_proj: got (32, 48), expected (32, 64)" in str(caught.value)
    data["config"] = {**config.to_dict(), "tie_embeddings": True, "n_layers": 4}
    (saved / checkpoint.MANIFEST).write_text(json.dumps(data))
    with pytest.raises(ValueError, match="weights and config differ") as caught:
        checkpoint.load(saved)
    assert "lm_head.kernel: got (32, 97), expected none" in str(caught.value)
    assert "layers.3.attn.k_proj: got none, expected (32, 2, 8)" in str(caught.value)


def test_files_are_carried_along(tmp_path, config):
    (tmp_path / "chat_template.jinja").write_bytes(b"as it came\r\n")
    checkpoint.save(tmp_path / "m", make(config), files=[tmp_path / "chat_template.jinja"])
    (found,) = checkpoint.companions(tmp_path / "m")
    assert found.read_bytes() == b"as it came\r\n"
    with pytest.raises(ValueError, match=r"files: got model\.safetensors, expected some of config"):
        checkpoint.save(tmp_path / "n", make(config), files=[tmp_path / "model.safetensors"])


@pytest.mark.parametrize("name", ["runs[1]", "a*b?", "[!a]"])
def test_names_that_are_patterns(tmp_path, config, name):
    """Orbax looks for files by patterns, and would take the path for one."""
    before = make(config)
    checkpoint.save(tmp_path / name / "m", before)
    assert same(checkpoint.load(tmp_path / name / "m")[0].params, before.params)
    assert listing(tmp_path / name) == ["m"]
    shutil.move(tmp_path / name / "m", tmp_path / "m")
    assert same(checkpoint.load(tmp_path / "m")[0].params, before.params)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF])
def test_a_file_system_without_locks(tmp_path, config, monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    monkeypatch.setattr("jaxsteer.files.locks._said", [])
    with pytest.warns(UserWarning, match=r"m: its file system has no locks \(flock\)"):
        checkpoint.save(tmp_path / "m", make(config))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        checkpoint.save(tmp_path / "m", make(config, seed=2), overwrite=True)
    assert listing(tmp_path) == ["m"]
    assert same(checkpoint.load(tmp_path / "m")[0].params, make(config, seed=2).params)


def test_a_lock_that_fails_leaves_nothing(tmp_path, config, monkeypatch):
    def flock(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(OSError, match="Input/output error"):
        checkpoint.save(tmp_path / "m", make(config))
    assert listing(tmp_path) == []


def test_a_moved_checkpoint_loads(saved, tmp_path, config):
    shutil.move(saved, tmp_path / "elsewhere")
    loaded, _ = checkpoint.load(tmp_path / "elsewhere")
    assert same(loaded.params, make(config).params)

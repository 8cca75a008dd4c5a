"""Broken and hostile input: each gives its message in one piece, and leaves no file behind.

Sources that are merely incomplete are in test_convert.py, checkpoints in test_checkpoint.py.
"""

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hf_folders import edit_json, write_folder
from safetensors.numpy import load_file, save_file

from jaxsteer.checkpoints import checkpoint
from jaxsteer.directions.direction import Direction
from jaxsteer.directions.direction_files import load_directions, save_directions
from jaxsteer.files import checksums, read_header
from jaxsteer.files.jsonl import append_rows, read_rows, recover_rows
from jaxsteer.models.conversion import convert
from jaxsteer.models.conversion import main as convert_main
from jaxsteer.models.exporting import main as export_main
from jaxsteer.models.verification import main as verify_main

ROOT = Path(__file__).parents[1]
WEIGHTS = "model.safetensors"
NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("good") / "src")


@pytest.fixture(scope="module")
def converted(good: Path) -> Path:
    assert convert_main([str(good), str(good.parent / "dst")]) == 0
    return good.parent / "dst"


@pytest.fixture
def src(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "src"))


def says(
    capsys: pytest.CaptureFixture[str], command: Callable[[list[str]], int], *argv: Path | str
) -> str:
    """What a command that fails says: its exit code is not 0, and no traceback is printed."""
    capsys.readouterr()
    assert command([str(arg) for arg in argv]) != 0
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def refused(capsys: pytest.CaptureFixture[str], src: Path) -> str:
    """What `weights.convert` says about a source; nothing is left beside it."""
    before = sorted(src.parent.iterdir())
    said = says(capsys, convert_main, src, src.parent / "dst")
    assert sorted(src.parent.iterdir()) == before
    assert "\nconvert: " in "\n" + said  # behind the progress bar, if work had started
    return said


def with_header(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Write a safetensors file's header anew; `change` gets it and may return its text."""
    data = file.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    text = change(header)
    if not isinstance(text, str):
        text = json.dumps(header)
    file.write_bytes(struct.pack("<Q", len(text.encode())) + text.encode() + data[end:])


def twice(header: dict[str, Any]) -> str:
    return f"{{{json.dumps(NORM)}: {json.dumps(header[NORM])}, {json.dumps(header)[1:]}"


def set_field(field: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda header: header[NORM].__setitem__(field, value)


def swap_with_next(header: dict[str, Any]) -> None:
    """Two tensors that share their bytes, and bytes that are nobody's."""
    header[NORM]["data_offsets"] = header["model.layers.1.input_layernorm.weight"]["data_offsets"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (twice, f"given twice: '{NORM}'"),
        (swap_with_next, "overlaps the one before it"),
        (set_field("data_offsets", [0, 10**9]), f"tensor '{NORM}': F32 [32] takes 128 bytes, but"),
        (set_field("data_offsets", [-128, 0]), f"tensor '{NORM}': data_offsets: got [-128, 0]"),
        (set_field("data_offsets", [128, 0]), "data_offsets: got [128, 0], expected begin, end"),
        (set_field("data_offsets", [0, 10**30]), "data_offsets: got [0, 10000000000"),
        (set_field("shape", [2**62, 2**62]), f"tensor '{NORM}': F32 [46116860"),
        (set_field("shape", [32.0]), f"tensor '{NORM}': shape: got [32.0], expected whole numbers"),
        (set_field("shape", [True] * 33), "shape: got [True"),
        (
            set_field("shape", [0, 2**40, 2**40]),
            "got [0, 1099511627776, 10995116",
        ),
        (lambda h: h.__setitem__("a" * 1001, h[NORM]), "a name of more than 1,000 letters"),
        (set_field("shape", [1] * 33), "shape: got 33 axes, at most 32"),
        (set_field("dtype", "F31"), f"tensor '{NORM}': dtype: got 'F31', expected BOOL, U8"),
        (set_field("dtype", ["F32"]), "dtype: got ['F32'], expected"),
        (set_field("extra", 1), f"tensor '{NORM}': expected dtype, shape and data_offsets"),
        (lambda h: h.__setitem__(NORM, 5), f"tensor '{NORM}': expected dtype, shape and"),
        (lambda h: h.__setitem__("__metadata__", 5), "__metadata__: expected texts by name"),
        (
            lambda h: h.pop("model.layers.1.input_layernorm.weight") and None,
            "leaves a gap before it",
        ),
        (lambda h: "[]", "the header is no object by tensor"),
        (lambda h: " " + json.dumps(h), "the header is no object by tensor"),
        (lambda h: "[" * 100_000, "nested too deep"),
        (lambda h: json.dumps(h).replace('"F32"', "NaN", 1), "not JSON: NaN is no number"),
    ],
)
def test_a_header_that_lies(
    src: Path, change: Callable[[dict[str, Any]], Any], message: str, capsys: Any
) -> None:
    with_header(src / WEIGHTS, change)
    said = refused(capsys, src)
    assert f"{src / WEIGHTS}: damaged or cut short" in said
    assert message in said


def test_a_header_that_is_longer_than_anything(src: Path, capsys: Any) -> None:
    data = (src / WEIGHTS).read_bytes()
    for length, message in ((2**63, "longer than the file"), (len(data) - 7, "longer than")):
        (src / WEIGHTS).write_bytes(struct.pack("<Q", length) + data[8:])
        assert message in refused(capsys, src)
    (src / WEIGHTS).write_bytes(struct.pack("<Q", 200_000_000))
    os.truncate(src / WEIGHTS, 300_000_000)  # takes no room on the disk
    assert "the header has 200,000,000 bytes, expected at most" in refused(capsys, src)


def test_a_file_that_becomes_shorter_while_it_is_read(
    src: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jaxsteer.huggingface import source as module

    opened = module.open_folder

    def cut_after_opening(path: Path, **options: Any) -> Any:
        folder = opened(path, **options)
        os.truncate(src / WEIGHTS, os.path.getsize(src / WEIGHTS) - 5000)
        return folder

    monkeypatch.setattr(module, "open_folder", cut_after_opening)
    assert f"{src / WEIGHTS}: became shorter while it was read" in refused(capsys, src)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": "32"}, 'hidden_size: got "32", expected a whole number of at least 1'),
        ({"num_hidden_layers": 2.0}, "num_hidden_layers: got 2.0, expected a whole number"),
        ({"num_hidden_layers": 10**9}, "n_layers: got 1,000,000,000, expected at most 1,000"),
        (
            {"num_attention_heads": 0, "head_dim": None},
            "num_attention_heads: got 0, expected a whole",
        ),
        ({"num_attention_heads": 3}, "n_kv_heads: got 2, expected a divisor of n_heads=3"),
        (
            {"num_key_value_heads": 4},
            "self_attn.k_proj.weight (layers.0.attn.k_proj): got [16, 32]",
        ),
        ({"vocab_size": -1}, "vocab_size: got -1, expected a whole number"),
        ({"vocab_size": 289}, "embed.embedding): got [290, 32], expected [289, 32]"),
        ({"max_position_embeddings": 0}, "max_position_embeddings: got 0, expected a whole number"),
        ({"rms_norm_eps": -1e-5}, "norm_eps: got -1e-05, expected more than 0"),
        ({"rope_parameters": 5}, "rope_parameters: got 5, expected an object"),
        ({"rope_parameters": {"rope_type": "magic"}}, 'rope_type: got "magic", expected one of'),
        (
            {"rope_parameters": {"rope_type": ["linear"]}},
            'rope_type: got ["linear"], expected one of',
        ),
        ({"rope_parameters": {"rope_type": "linear", "factor": "8"}}, 'factor: got "8", expected'),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 0}}, "rope_theta: got 0, exp"),
        ({"tie_word_embeddings": "no"}, "tie_embeddings: got 'no', expected true or false"),
    ],
)
def test_a_config_that_cannot_be(
    src: Path, fields: dict[str, Any], message: str, capsys: Any
) -> None:
    config = json.loads((src / "config.json").read_text())
    (src / "config.json").write_text(json.dumps(config | fields))
    assert message in refused(capsys, src)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"hidden_size": 1, "hidden_size": 2}', "given twice: 'hidden_size'"),
        ('{"rms_norm_eps": NaN}', "not JSON: NaN is no number"),
        ('{"a":' * 100_000, "nested too deep"),
        ("\udcff", "not UTF-8"),
        ("", "not JSON"),
    ],
)
def test_a_config_that_is_no_json(src: Path, text: str, message: str, capsys: Any) -> None:
    (src / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    said = refused(capsys, src)
    assert f"{src / 'config.json'}: " in said
    assert message in said


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../../etc/passwd", "leads out of the folder"),
        ("/dev/zero", "leads out of the folder"),
        ("none\0.safetensors", "or is no name of a file"),
        ("", "or is no name of a file"),
        ("pipe", "pipe: is no regular file"),
        (5, "expected weight_map, a name of a file per tensor"),
    ],
)
def test_an_index_that_points_elsewhere(src: Path, name: Any, message: str, capsys: Any) -> None:
    (src / WEIGHTS).unlink()
    os.mkfifo(src / "pipe")  # whoever opened it would wait forever
    index = {"weight_map": {NORM: name}}
    (src / "model.safetensors.index.json").write_text(json.dumps(index))
    assert message in refused(capsys, src)


def test_shards_of_one_name_in_two_folders(src: Path, tmp_path: Path) -> None:
    """Each is read from its own place, and has its own hash in the provenance."""
    tensors = load_file(src / WEIGHTS)
    halves = {"a": list(tensors)[::2], "b": list(tensors)[1::2]}
    (src / WEIGHTS).unlink()
    for folder, names in halves.items():
        (src / folder).mkdir()
        save_file({name: tensors[name] for name in names}, src / folder / WEIGHTS)
    where = {name: f"{folder}/{WEIGHTS}" for folder, names in halves.items() for name in names}
    index = src / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    convert(src, tmp_path / "dst")
    hashes = checkpoint.read_manifest(tmp_path / "dst").provenance["source_sha256"]
    assert {f"a/{WEIGHTS}", f"b/{WEIGHTS}"} <= hashes.keys()
    index.write_text(json.dumps({"weight_map": where | {halves["a"][0]: f"b/{WEIGHTS}"}}))
    with pytest.raises(ValueError, match=f"says it is in b/{WEIGHTS}, where it is not"):
        convert(src, tmp_path / "other")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", WEIGHTS])
def test_links_in_a_clone_must_stay_inside(
    src: Path, name: str, tmp_path: Path, capsys: Any
) -> None:
    """They came with the repository; a user's own links are followed (test_loading)."""
    (src / ".git").mkdir()
    elsewhere = tmp_path / "secret"
    (src / name).rename(elsewhere)
    (src / name).symlink_to(elsewhere)
    assert f"{src / name}: leads out of the folder" in refused(capsys, src)
    (src / name).unlink()
    (src / name).symlink_to(src / name)
    refused(capsys, src)
    (src / "config.json").unlink(missing_ok=True)
    (src / "config.json").symlink_to("config.json")
    assert "leads in a circle" in refused(capsys, src)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("ran"),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"])
def test_pickles_are_not_opened(
    src: Path, name: str, capsys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (src / WEIGHTS).unlink()
    (src / name).write_bytes(pickle.dumps(Evil()))
    said = refused(capsys, src)
    assert f"only pickled weights ({name})" in said
    assert "save_pretrained('NEW')" in said
    assert not (tmp_path / "ran").exists()


def test_code_beside_a_tokenizer_is_not_run(
    src: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is the user asked whether it should be, as transformers would; the class is no matter."""
    monkeypatch.setattr("builtins.input", lambda _: "y")
    names = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (src / "tokenizer_config.json").write_text(json.dumps(names))
    (src / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    assert convert_main([str(src), str(tmp_path / "dst")]) == 0
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{oops", "generation_config.json: not JSON"),
        ('{"eos_token_id": "two"}', "eos_token_id: got 'two', expected ids of 0 to 289"),
        ('{"eos_token_id": [2, 290]}', "eos_token_id: got 290, expected ids of 0 to 289"),
    ],
)
def test_a_generation_config_that_cannot_be(
    src: Path, text: str, message: str, capsys: Any
) -> None:
    (src / "generation_config.json").write_text(text)
    assert message in refused(capsys, src)


def test_a_target_that_cannot_be(src: Path, capsys: Any) -> None:
    said = says(capsys, convert_main, src, src / "config.json" / "dst")
    assert f"{src / 'config.json'} is a file, expected a folder" in said
    said = says(capsys, convert_main, src, "")
    assert "destination: got an empty text, expected a directory to write" in said


def test_urls_are_not_repeated(tmp_path: Path, capsys: Any) -> None:
    said = says(capsys, convert_main, "https://me:hf_secret@hub.co/a/b", tmp_path / "dst")
    assert "got a URL, expected a folder or a hub id" in said
    assert "hf_secret" not in said
    assert list(tmp_path.iterdir()) == []


# Checkpoints.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"files": 5}, "damaged or of another version"),
        ({"files": {"a": "b"}}, "damaged or of another version"),
        ({"files": {"params/a": [1, 2], "../../etc/passwd": [1, 2]}}, "got '../../etc/passwd': ["),
        ({"files": {"params/a": [1, 2], "/etc/passwd": [1, 2]}}, "got '/etc/passwd': [1, 2], exp"),
        ({"files": {"params/a": [-1, 2]}}, "got 'params/a': [-1, 2], expected size, CRC-32"),
        ({"files": {"params/a": [1.0, True]}}, "got 'params/a': [1.0, True], expected size"),
        ({"files": {}}, "files: got none of the weights"),
        ({"files": {"huggingface/config.json": [1, 2]}}, "files: got none of the weights"),
        ({"config": {"n_layers": 10**9}}, "not a jaxsteer config"),
        ({"dtype": "int8"}, "dtype 'int8'"),
        ({"provenance": []}, "a provenance that is no object"),
        ({"format": None}, "'format'"),
    ],
)
def test_a_manifest_that_lies(
    converted: Path, tmp_path: Path, change: dict[str, Any], message: str, capsys: Any
) -> None:
    folder = shutil.copytree(converted, tmp_path / "m")
    edit_json(folder / checkpoint.MANIFEST, **change)
    assert message in says(capsys, export_main, folder, tmp_path / "out")
    assert message in says(capsys, verify_main, folder.parent, folder)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]


def fit_checksums(folder: Path) -> None:
    """Make the manifest agree with the files as they are now."""
    files = checksums(folder)
    del files[checkpoint.MANIFEST]
    edit_json(folder / checkpoint.MANIFEST, files=files)


def test_a_number_that_no_file_can_have(converted: Path, tmp_path: Path, capsys: Any) -> None:
    folder = shutil.copytree(converted, tmp_path / "m")
    file = folder / checkpoint.MANIFEST
    file.write_text(file.read_text().replace('"files": {', '"files": {"a": [1e999, 1],', 1))
    assert "not JSON: 1e999 is no number" in says(capsys, export_main, folder, tmp_path / "out")


def test_what_lies_beside_a_tokenizer_is_not_exported(
    converted: Path, tmp_path: Path, capsys: Any
) -> None:
    """Neither weights in place of the checkpoint's, nor what a link leads to."""
    folder = shutil.copytree(converted, tmp_path / "m")
    (tmp_path / "secret").write_text("secret")
    (folder / "huggingface" / WEIGHTS).write_bytes(b"other weights")
    (folder / "huggingface" / "notes.txt").symlink_to(tmp_path / "secret")
    (folder / "huggingface" / "pipe").mkdir()
    assert export_main([str(folder), str(tmp_path / "out")]) == 0
    exported = {file.name for file in (tmp_path / "out").iterdir()}
    assert {WEIGHTS, "config.json", "tokenizer.json"} <= exported
    assert not exported & {"notes.txt", "pipe"}
    assert read_header(tmp_path / "out" / WEIGHTS).entries
    (folder / "huggingface" / "vocab.json").symlink_to(tmp_path / "secret")
    said = says(capsys, export_main, folder, tmp_path / "again")
    assert "vocab.json: leads out of the folder" in said
    with pytest.raises(ValueError, match=r"vocab\.json: leads out of the folder"):
        checkpoint.load(folder)


def test_orbax_files_that_are_damaged(converted: Path, tmp_path: Path, capsys: Any) -> None:
    """Behind a manifest whose checksums were made to fit, so that Orbax itself must notice."""
    folder = shutil.copytree(converted, tmp_path / "m")
    metadata = folder / "params" / "state" / "_METADATA"
    metadata.write_bytes(b"{" + metadata.read_bytes())
    fit_checksums(folder)
    said = says(capsys, export_main, folder, tmp_path / "out")
    assert f"{folder}: its weights cannot be read" in said
    shutil.rmtree(folder / "params")
    assert "missing: params/" in says(capsys, export_main, folder, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]


# Vectors and results.


def test_vectors_of_another_model(tmp_path: Path) -> None:
    file = tmp_path / "v.safetensors"
    about = {"models": {"base": "aaa", "reasoning": "bbb"}}
    vector = np.ones(4, np.float32)
    save_directions(
        file,
        [Direction(vector=vector, layer=1, site="resid_post", name="v", provenance=about)],
    )
    assert load_directions(file, width=4, model="bbb").keys() == {"v"}
    with pytest.raises(ValueError, match="direction 'v': got 4, expected width 5"):
        load_directions(file, width=5)
    with pytest.raises(ValueError, match=r"v\.safetensors: direction 'v': from .*'aaa'.*'ccc'"):
        load_directions(file, model="ccc")
    with_header(file, lambda h: f'{{"v": {json.dumps(h["v"])}, {json.dumps(h)[1:]}')
    with pytest.raises(ValueError, match=r"v\.safetensors: damaged.*given twice: 'v'"):
        load_directions(file)
    save_file({"v": vector}, file)
    with pytest.raises(ValueError, match="not a file of directions"):
        load_directions(file)


def test_results_cut_in_the_middle_of_a_line(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"n": n, "text": "é\u2028"} for n in range(3)]
    append_rows(file, rows)
    whole = file.read_bytes()
    for length in range(len(whole)):  # at every byte, also inside of a character
        file.write_bytes(whole[:length])
        found = recover_rows(file)
        assert found == rows[: len(found)]
        append_rows(file, rows[len(found) :])
        assert file.read_bytes() == whole
    file.write_bytes(whole.replace(b'"n"', b'"n', 1))
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 1: not JSON"):
        read_rows(file)
    assert file.read_bytes() != whole  # what cannot be read is left as it is


# The machine.


def mounted(folder: Path) -> bool:
    """Whether `folder` is now a disk of 100 kB, which takes the right to mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(folder)]
    if shutil.which("mount") is None:
        return False
    return subprocess.run(mount, capture_output=True, check=False).returncode == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path | None]:
    """A small disk, or None where this user may not mount one."""
    folder = tmp_path / "disk"
    if not mounted(folder):
        yield None
        return
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


# Runs the commands in a process of its own, which is told that there is room.
_DRIVER = """
import resource, shutil, sys
from jaxsteer.models import conversion as convert, exporting as export
from jaxsteer.runtime import run
source, made, limited, *disk = sys.argv[1:]
usage = shutil.disk_usage("/")
shutil.disk_usage = lambda _: usage._replace(free=10**12)
def codes(folder):
    return [convert.main([source, folder + "/dst"]), export.main([made, folder + "/out"])]
def main():
    found = [code for folder in disk for code in codes(folder)]
    # Bytes of one file: less than the largest tensor, as Orbax spreads them over files by chance.
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
    return any(code != 1 for code in found + codes(limited))
run(main)
"""


def test_no_room_while_writing(
    good: Path, converted: Path, tmp_path: Path, disk: Path | None
) -> None:
    """On a disk that fills up, and where a file may not become as large as it must."""
    folders = [tmp_path / "limited"] + ([disk] if disk else [])
    folders[0].mkdir()
    argv = [sys.executable, "-c", _DRIVER, good, converted, *folders]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [list(folder.iterdir()) for folder in folders] == [[] for _ in folders]
    # A progress bar stands on lines of its own.
    said = [line for line in done.stderr.splitlines() if line.strip() and "/s]" not in line]
    starts = ["convert: [Errno 27] File too large", "export: "]
    if disk:
        starts = ["convert: [Errno 28] No space left on device", "export: ", *starts]
    assert len(said) == len(starts), done.stderr
    assert all(line.startswith(start) for line, start in zip(said, starts, strict=True)), said


def test_a_disk_that_is_read_only(
    good: Path, converted: Path, disk: Path | None, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if disk is None:
        pytest.skip("needs the right to mount a file system")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**12))
    for command, source in ((convert_main, good), (export_main, converted)):
        assert "Read-only file system" in says(capsys, command, source, disk / "dst")
    assert list(disk.iterdir()) == []

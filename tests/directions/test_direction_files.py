import json
import pickle
import time
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from jaxsteer.directions.direction import Direction, cosine
from jaxsteer.directions.direction_files import load_directions, save_directions
from jaxsteer.directions.foreign_files import load_pt, load_replication
from jaxsteer.directions.gguf import save_gguf

CIRCLE = {}
CIRCLE[1] = CIRCLE


def doubled(content, times):
    """Dictionaries that hold each other twice: small in the file, and endless to walk through."""
    for _ in range(times):
        content = {"a": content, "b": content}
    return content


def direction(name="base.union", vector=(3.0, -4.0), **changes):
    fields = {"layer": 10, "site": "resid_post", "provenance": {"offsets": [-13, -8], "n": 7}}
    return Direction(vector=np.asarray(vector), name=name, **(fields | changes))


def assert_same(a, b):
    np.testing.assert_array_equal(a.vector, b.vector)
    assert (a.layer, a.site, a.name, a.provenance) == (b.layer, b.site, b.name, b.provenance)


def test_a_set_comes_back_as_it_was(tmp_path):
    path = tmp_path / "new" / "set.safetensors"
    saved = {
        d.name: d
        for d in [
            direction("z", [1e-30, 2.0], provenance={}),
            direction("a Ω", layer=0, site="resid_pre"),
        ]
    }
    save_directions(path, saved)
    loaded = load_directions(path, width=2)
    assert list(loaded) == ["z", "a Ω"]
    for name, item in loaded.items():
        assert_same(item, saved[name])
    save_directions(path, loaded)  # over itself
    assert [p.name for p in path.parent.iterdir()] == ["set.safetensors"]


def test_sets_that_would_come_back_otherwise_are_refused(tmp_path):
    for wrong, message in (
        ({"mine": direction("v")}, "directions: got 'v' under 'mine', expected its name"),
        ({"v": np.ones(2)}, "directions: got a ndarray, expected a Direction"),
    ):
        with pytest.raises(ValueError, match=message):
            save_directions(tmp_path / "set.safetensors", wrong)
    assert not list(tmp_path.iterdir())


def test_a_site_may_have_transformer_lens_name():
    assert direction(site="hook_resid_pre").site == "resid_pre"


def test_a_direction_is_a_read_only_float32_copy():
    source = np.array([3.0, 4.0], np.float32)
    made = direction(vector=source)
    source[0] = 0
    assert made.vector.dtype == np.float32
    assert (made.norm, made.width) == (5.0, 2)
    with pytest.raises(ValueError, match="read-only"):
        made.vector[0] = 1.0
    assert_same(direction(vector=jnp.array([3.0, -4.0], jnp.bfloat16)), direction())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vector": [1.0, np.nan, np.inf]}, "direction 'v': 2 of 3 numbers are NaN or infinite"),
        ({"vector": [1e39]}, "direction 'v': 1 of 1 numbers are NaN or infinite"),
        ({"vector": [[1.0]]}, r"direction 'v': got \(1, 1\), expected shape \[D\]"),
        ({"vector": []}, r"direction 'v': got \(0,\), expected shape \[D\]"),
        ({"site": "resid"}, "direction 'v': site: got 'resid', expected one of resid_pre"),
        ({"layer": -1}, "direction 'v': layer: got -1, expected 0 or more"),
        ({"layer": 1.5}, "direction 'v': layer: got 1.5, expected 0 or more"),
        ({"provenance": {"x": {1}}}, "direction 'v': provenance: .*set"),
        ({"provenance": [1]}, r"direction 'v': provenance: got \[1\]"),
        ({"provenance": {"x": np.nan}}, "direction 'v': provenance"),
        ({"name": ""}, "name: got .*, expected a non-empty text"),
        ({"name": "\ud800"}, "name: got .*, expected text that UTF-8 can hold"),
        ({"layer": True}, "direction 'v': layer: got True, expected 0 or more"),
        ({"vector": np.array([1j])}, r"direction 'v': got array.*, expected real numbers"),
        ({"vector": np.array(["a"])}, r"direction 'v': got array.*, expected real numbers"),
    ],
)
def test_bad_fields_are_refused_with_the_name(changes, message):
    with pytest.raises(ValueError, match=message):
        direction(**({"name": "v"} | changes))


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "there is none"),
        (direction("v"), "directions: got a Direction, expected several"),
        ([direction("v"), direction("v")], "the name 'v' is used more than once"),
        ([direction("v"), direction("w", [1.0])], "direction 'w': got 1, expected width 2"),
    ],
)
def test_bad_sets_leave_no_file(tmp_path, items, message):
    with pytest.raises(ValueError, match=message):
        save_directions(tmp_path / "set.safetensors", items)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "set.safetensors"
    save_directions(path, [direction()])
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_directions(path, [direction(vector=[0.0, 1.0])])
    assert [p.name for p in tmp_path.iterdir()] == ["set.safetensors"]
    assert_same(load_directions(path)["base.union"], direction())


ABOUT = {"layer": 10, "site": "resid_post", "provenance": {}}


@pytest.mark.parametrize(
    ("metadata", "vector", "message"),
    [
        ({"format": "pt"}, [1.0, 2.0], "the header's format is 'pt'"),
        ({"version": "2"}, [1.0, 2.0], "version '2' of the format"),
        ({"directions": "{"}, [1.0, 2.0], "the header's directions: not JSON"),
        ({"directions": "[]"}, [1.0, 2.0], "expected an object by name"),
        ({"directions": json.dumps({"w": ABOUT})}, [1.0, 2.0], "'v' has a tensor"),
        ({"directions": json.dumps({"v": {}})}, [1.0, 2.0], "'v': expected layer, site"),
        ({}, [1.0, np.nan], "direction 'v': 1 of 2 numbers"),
        ({}, [1.0], "direction 'v': got 1, expected width 2"),
        ({}, np.ones(2, np.int32), "'v': got I32, expected F64, F32, F16"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path, metadata, vector, message):
    path = tmp_path / "set.safetensors"
    good = {"format": "jaxsteer.directions", "version": "1", "directions": json.dumps({"v": ABOUT})}
    vector = vector if isinstance(vector, np.ndarray) else np.array(vector, np.float32)
    save_file({"v": vector}, path, metadata=good | metadata)
    with pytest.raises(ValueError, match=message):
        load_directions(path, width=2)


@pytest.mark.parametrize("load", [load_directions, load_replication, load_pt])
def test_missing_and_damaged_files(tmp_path, load):
    with pytest.raises(FileNotFoundError, match="none: no such file"):
        load(tmp_path / "none")
    (tmp_path / "damaged").write_bytes(b"\0" * 5)
    with pytest.raises(ValueError, match=r"damaged: (damaged or cut short|not a file of tensors)"):
        load(tmp_path / "damaged")


def test_files_of_other_kinds_are_told_apart(tmp_path):
    save_gguf(tmp_path / "v.gguf", [direction("v", [1.0, 2.0], layer=3, site="resid_post")])
    for width in (None, 2):
        assert load_directions(tmp_path / "v.gguf", width=width)["v"].vector.tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match=r"v\.gguf: direction 'v': got 2, expected width 3"):
        load_directions(tmp_path / "v.gguf", width=3)
    torch.save(torch.ones(2), tmp_path / "v.pt")
    with pytest.raises(ValueError, match=r"v\.pt: a PyTorch file, .*: use load_pt"):
        load_directions(tmp_path / "v.pt")


REPLICATION = Path(__file__).parents[1] / "data" / "replication" / "dom_layer10.safetensors"


def test_the_replications_file_is_read():
    loaded = load_replication(REPLICATION)
    offsets = [f"offset.{o}" for o in (-13, -12, -11, -10, -9, -8, 0)]
    assert set(loaded) == {f"{m}.{k}" for m in ("base", "reasoning") for k in [*offsets, "union"]}
    union, single = loaded["base.union"], loaded["reasoning.offset.-9"]
    assert (union.layer, union.site) == (10, "resid_post")
    assert union.provenance["offsets"] == [-13, -12, -11, -10, -9, -8]
    assert single.provenance["offsets"] == [-9]
    assert single.provenance["model"] == "reasoning"
    window = np.mean([loaded[f"base.offset.{o}"].vector for o in range(-13, -7)], axis=0)
    np.testing.assert_allclose(union.vector, window, rtol=1e-6)


def test_other_safetensors_are_not_the_replications(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"w": np.ones(2, np.float32)}, path)
    with pytest.raises(ValueError, match="the header has no 'layer'"):
        load_replication(path)
    header = {"layer": "10", "site": "resid_post", "union_offsets": "-8"}
    save_file({"w": np.ones(2, np.float32)}, path, metadata=header)
    with pytest.raises(ValueError, match="tensor 'w': expected base or reasoning"):
        load_replication(path)
    for field in header:
        save_file({"base.union": np.ones(2, np.float32)}, path, metadata=header | {field: "?"})
        with pytest.raises(ValueError, match=r"x\.safetensors: "):
            load_replication(path)


def test_pt_files_of_each_shape(tmp_path):
    path = tmp_path / "steer.pt"
    torch.save(torch.tensor([1.0, 2.0], dtype=torch.bfloat16), path)
    one = load_pt(path, layer=3)["steer"]
    assert (one.vector.tolist(), one.layer, one.site) == ([1.0, 2.0], 3, "resid_post")
    torch.save({4: torch.ones(2), 5: torch.zeros(2)}, path)
    assert [(d.name, d.layer) for d in load_pt(path).values()] == [("4", 4), ("5", 5)]
    torch.save({"base": {"union": torch.ones(2)}, "coeff": 8.0}, path)
    nested = load_pt(path, layer=10, site="resid_pre")["base.union"]
    assert (nested.layer, nested.site) == (10, "resid_pre")
    assert nested.provenance["values"] == {"coeff": "8.0"}


class Evil:
    def __reduce__(self):
        return print, ("code from the file ran",)


def test_pt_files_run_no_code(tmp_path, capsys):
    path = tmp_path / "evil.pt"
    torch.save({"v": Evil()}, path)
    with pytest.raises(ValueError, match="not a file of tensors alone"):
        load_pt(path, layer=1)
    assert "code" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"v": torch.ones(2)}, "direction 'v': give its layer"),
        ({"note": "x"}, "no tensor in it"),
        ({3: torch.ones(2, 2)}, r"v\.pt: direction '3': got \(2, 2\), expected shape \[D\]"),
        ({True: torch.ones(2)}, "direction 'True': layer: got True, expected 0 or more"),
        ({1: {"a": {"b": torch.ones(2)}, "a.b": torch.ones(2)}}, "two tensors .* name '1.a.b'"),
        ({1: torch.ones(2).to_sparse()}, "it asks for torch.serialization._get_layout, expected"),
        ({1: torch.ones(2, device="meta")}, "asks for torch._utils._rebuild_meta_tensor_no_stor"),
        ({1: torch.ones(2, dtype=torch.complex64)}, "got numbers of torch.ComplexFloatStorage"),
        ({1: torch.ones(1).expand(10**10)}, "tensors of more than 67,108,864 numbers together"),
        ({1: torch.ones(1).expand(10**6)}, "direction '1': has 1,000,000 numbers, more than lie"),
        ({1: torch.ones(2)[None, :0]}, r"direction '1': got \(1, 0\), expected shape \[D\]"),
        ({"v": torch.ones(2), "l": doubled([], 40)}, "in each other without end"),
        (doubled({1: torch.ones(2)}, 40), "in each other without end"),
        (CIRCLE, "in each other without"),
    ],
)
def test_bad_pt_files(tmp_path, content, message):
    torch.save(content, tmp_path / "v.pt")
    with pytest.raises(ValueError, match=message):
        load_pt(tmp_path / "v.pt")


@pytest.mark.parametrize(
    "content", [b"", b"text", b"\x80\x02h\x05.", b"PK\3\4 cut", pickle.dumps({"a": 1})]
)
def test_damaged_pt_files(tmp_path, content):
    """Whatever comes out of PyTorch's reader; its own words recommend the way that runs code."""
    (tmp_path / "v.pt").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"v\.pt: not a file of tensors alone, or damaged"
    ) as error:
        load_pt(tmp_path / "v.pt", layer=1)
    assert "weights_only" not in str(error.value)


def pt_file(path, program, *, compression=zipfile.ZIP_STORED, **storages):
    """A `.pt` file whose pickle is `program`."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", program)
        for name, data in storages.items():
            archive.writestr(f"archive/data/{name}", data)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"]" * 5_000 + b"a" * 4_999, "in each other without end"),  # lists in lists
        (b"}" + b"(" * 9 + b"t" * 9 + b"Ns", "a key that is no text or number"),  # tuples: no hash
        (b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R", "it asks for builtins.bytearray"),
        (b"c_codecs\nencode\nX\1\0\0\0aX\1\0\0\0b\x86R", "it asks for _codecs.encode"),
        (b"ccollections\nOrderedDict\n]\x85R", "it asks for collections.OrderedDict"),
        (b"Nr\xff\xff\xff\xff", "no tensor in it"),  # a memo of 32 GB, in Python's own reader
        (b"]" * 250_000, "more than 200,000 instructions"),
        (b"}" + b"]" * 90_000 + b"0" * 90_000, "the instruction POP"),
        (b"K\1K\2", "too many values to unpack"),
        (b"a", "pop from empty list"),
        (b"t", "pop from empty list"),
        (b"h\5", "5"),
        (b"NNNs", "no attribute 'update'"),
        (b"N\x85Q", "no tensor in it"),
        (b"NNR", "it calls what is no name"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n(((((lR", "the instruction LIST"),
        (b"ctorch._utils\n_rebuild_tensor_v2\nNR", "it asks for torch._utils._rebuild_tensor_v2"),
    ],
)
def test_pickles_made_by_hand(tmp_path, program, message):
    pt_file(tmp_path / "v.pt", b"\x80\2" + program + b".")
    started = time.monotonic()
    with pytest.raises(ValueError, match=message) as caught:
        load_pt(tmp_path / "v.pt", layer=1)
    assert str(caught.value).startswith(f"{tmp_path / 'v.pt'}: ")
    assert time.monotonic() - started < 20  # each takes less than a second on an idle machine


def test_zips_made_by_hand(tmp_path):
    path = tmp_path / "v.pt"
    pt_file(path, b"\x80\2" + b"N" * 10**7 + b".", compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="its parts are compressed, or lie over each other"):
        load_pt(path)
    pt_file(path, b"N" * 17_000_000 + b".")
    with pytest.raises(ValueError, match=r"archive/data\.pkl: compressed, or more than 16,777,216"):
        load_pt(path)
    torch.save(torch.ones(2), path)
    cut = path.read_bytes().replace(b"v/data/0", b"v/data/1")
    path.write_bytes(cut)
    with pytest.raises(ValueError, match="no item named 'v/data/0'"):
        load_pt(path, layer=1)
    torch.save({1: torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="not a zip file"):
        load_pt(path)


def test_views_and_kinds_of_numbers(tmp_path):
    path = tmp_path / "v.pt"
    table = torch.arange(12.0).reshape(3, 4)
    kinds = {
        str(kind).removeprefix("torch."): torch.tensor([1, 0, 1], dtype=kind)
        for kind in (torch.float64, torch.float16, torch.int8, torch.uint8, torch.int64, torch.bool)
    }
    torch.save({"row": table[1], "column": table[:, 2], "back": table[2, ::2], **kinds}, path)
    loaded = {name: item.vector.tolist() for name, item in load_pt(path, layer=1).items()}
    assert (loaded.pop("row"), loaded.pop("column")) == ([4.0, 5.0, 6.0, 7.0], [2.0, 6.0, 10.0])
    assert loaded.pop("back") == [8.0, 10.0]
    assert loaded == {kind: [1.0, 0.0, 1.0] for kind in kinds}
    torch.save(torch.nn.Linear(2, 1, bias=False).state_dict() | {"v": torch.ones(2)}, path)
    with pytest.raises(ValueError, match=r"direction 'weight': got .*, expected shape \[D\]"):
        load_pt(path, layer=1)


def test_a_trained_parameter_is_a_tensor(tmp_path):
    torch.save(torch.nn.Parameter(torch.ones(2)), tmp_path / "v.pt")
    assert load_pt(tmp_path / "v.pt", layer=1)["v"].vector.tolist() == [1.0, 1.0]


def test_cosine():
    a = direction("a", [1.0, 2.0])
    assert cosine(a, a) == pytest.approx(1.0)
    assert cosine(a, [-2.0, 1.0]) == pytest.approx(0.0)
    assert cosine([1e-30, 0.0], [-1e-30, 0.0]) == pytest.approx(-1.0)
    with pytest.raises(ValueError, match="second vector 'zero' is zero"):
        cosine(a, direction("zero", [0.0, 0.0]))
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(3,\)"):
        cosine(a, [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="first vector is zero"):
        cosine([0.0], [1.0])


def test_equal_directions_make_equal_files(tmp_path: Path) -> None:
    one = Direction(
        vector=np.ones(3, np.float32), layer=1, site="resid_post", name="v", provenance={"n": 2}
    )
    for number in range(8):  # the library's order is random: eight files agree by luck once in 2^7
        save_directions(tmp_path / f"{number}.safetensors", [one])
    contents = {path.read_bytes() for path in tmp_path.iterdir()}
    assert len(contents) == 1
    assert load_directions(tmp_path / "0.safetensors")["v"].provenance == {"n": 2}

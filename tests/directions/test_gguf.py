import struct

import numpy as np
import pytest

from jaxsteer.directions.direction import Direction
from jaxsteer.directions.gguf import load_gguf, save_gguf


def direction(layer, name="v", vector=(1.0, -2.5, 3.0), site="resid_post"):
    return Direction(np.array(vector), layer, site, name, {"offsets": [-8], "from": "a test"})


def text(value):
    return struct.pack("<Q", len(value)) + value


def number(key, value):
    return text(key) + struct.pack("<II", 4, value)


def about(value):
    return text(b"jaxsteer.directions") + struct.pack("<I", 8) + text(value.encode())


def foreign(tensors, *, architecture=b"controlvector", version=3, kind=0, rank=1, extra=b""):
    """Bytes of a control vector as another program would write it, tensors in the order given."""
    pairs = text(b"general.architecture") + struct.pack("<I", 8) + text(architecture)
    pairs += text(b"controlvector.model_hint") + struct.pack("<I", 8) + text(b"llama")
    pairs += text(b"controlvector.layer_count") + struct.pack("<Ii", 5, len(tensors))
    n_pairs = 3 + bool(extra)
    infos, body = b"", b""
    for name, values in tensors:
        infos += text(name) + struct.pack("<I", rank) + struct.pack("<Q", len(values)) * rank
        infos += struct.pack("<IQ", kind, len(body))
        body += struct.pack(f"<{len(values)}f", *values).ljust(32, b"\0")
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), n_pairs) + pairs + extra + infos
    return head.ljust(-(-len(head) // 32) * 32, b"\0") + body


def test_round_trip_keeps_layers_names_and_provenance(tmp_path):
    path = tmp_path / "v.gguf"
    items = [direction(11, "late", np.linspace(-1, 1, 37)), direction(1, "Ω", np.ones(37))]
    save_gguf(path, items)
    loaded = load_gguf(path)
    assert [(d.name, d.layer) for d in loaded.values()] == [("Ω", 1), ("late", 11)]
    for item in items:
        again = loaded[item.name]
        np.testing.assert_array_equal(again.vector, item.vector)
        assert (again.site, again.provenance) == ("resid_post", item.provenance)


def test_the_file_is_laid_out_as_llama_cpp_reads_it(tmp_path):
    path = tmp_path / "v.gguf"
    save_gguf(path, [direction(10), direction(3, "w", (4.0, 5.0, 6.0))], model_hint="llama")
    data = path.read_bytes()
    assert data[:24] == b"GGUF" + struct.pack("<IQQ", 3, 2, 4)
    assert text(b"general.architecture") + struct.pack("<I", 8) + text(b"controlvector") in data
    assert text(b"controlvector.layer_count") + struct.pack("<II", 4, 2) in data
    # direction.N is the output of block N counted from 0: our layer, without a shift.
    assert text(b"direction.3") + struct.pack("<IQIQ", 1, 3, 0, 0) in data
    assert text(b"direction.10") + struct.pack("<IQIQ", 1, 3, 0, 32) in data
    assert len(data) % 32 == 0
    assert data[-64:-52] == struct.pack("<3f", 4.0, 5.0, 6.0)
    assert data[-32:] == struct.pack("<3f", 1.0, -2.5, 3.0).ljust(32, b"\0")


@pytest.mark.parametrize("version", [2, 3])
def test_a_file_of_another_program(tmp_path, version):
    path = tmp_path / "v.gguf"
    array = text(b"list") + struct.pack("<IIQ", 9, 8, 2) + text(b"x") + text(b"y")
    tensors = [(b"direction.2", [1.0, 2.0]), (b"direction.1", [3.0, 4.0])]
    path.write_bytes(foreign(tensors, version=version, extra=array))
    loaded = load_gguf(path)
    assert list(loaded) == ["direction.1", "direction.2"]
    assert loaded["direction.2"].layer == 2
    assert loaded["direction.2"].vector.tolist() == [1.0, 2.0]
    assert loaded["direction.1"].provenance["model_hint"] == "llama"


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([direction(0)], "'v': llama.cpp cannot steer layer 0"),
        ([direction(2, site="resid_pre")], "'v': site 'resid_pre'"),
        ([direction(2, "a"), direction(2, "b")], "'b': layer 2 already has 'a'"),
        ([direction(1), direction(2)], "the name 'v' is used more than once"),
        ([direction(1), direction(2, "w", (1.0,))], "'w': got 1, expected width 3"),
        ([], "there is none"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(tmp_path, items, message):
    with pytest.raises(ValueError, match=message):
        save_gguf(tmp_path / "v.gguf", items)
    assert list(tmp_path.iterdir()) == []


ONE = [(b"direction.2", [1.0, 2.0])]


def overlapping(count):
    """Many tensors that all lie over one another."""
    names = [f"direction.{n}".encode() for n in range(1, count + 1)]
    data = foreign([(name, [1.0]) for name in names])
    for name in names:
        at = data.index(text(name)) + len(text(name)) + 4 + 8 + 4
        data = data[:at] + struct.pack("<Q", 0) + data[at + 8 :]
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"ZIP", "does not begin with GGUF"),
        (b"GGUF\3", "damaged or no GGUF file"),
        (foreign(ONE, version=1), "version 1, expected 2 or 3"),
        (foreign(ONE)[:-32], "'direction.2' ends 8 bytes after the file"),
        (foreign(ONE)[:60], "damaged or no GGUF file"),
        (foreign(ONE, architecture=b"llama"), "architecture 'llama'"),
        (foreign(ONE, kind=1), "'direction.2' is of GGML type 1"),
        (foreign(ONE, rank=2), "'direction.2' has 2 dimensions"),
        (foreign(ONE * 2), "'direction.2' is there twice"),
        (foreign([(b"direction.00", [1.0])]), "'direction.00': expected direction.N"),
        (overlapping(400), "'direction.2' overlaps the one before it"),
        (foreign(ONE, extra=text(b"a") + struct.pack("<IIQ", 9, 0, 1 << 60)), "1,152,921,504,606"),
        (foreign(ONE, extra=text(b"a") + struct.pack("<IQ", 8, 1 << 62)), "the header has more"),
        (foreign([(b"other", [1.0])]), "'other': expected direction.N"),
        (foreign([(b"direction.2", [float("nan")])]), "direction 'direction.2': 1 of 1 numbers"),
        (foreign([(b"direction.01", [1.0])]), "'direction.01': expected direction.N"),
        (foreign([("direction.٣".encode(), [1.0])]), "expected direction.N"),
        (foreign([(b"direction." + b"9" * 5000, [1.0])]), r"v.gguf: tensor 'direction.999"),
        (foreign([]), "v.gguf: directions: there is none"),
        (foreign([*ONE, (b"direction.3", [1.0])]), "v.gguf: direction 'direction.3': got 1, exp"),
        (foreign(ONE, extra=about("[" * 100_000)), "v.gguf: .*nested too deep"),
        (foreign(ONE, extra=about('{"2": {}, "2": {}}')), "v.gguf: .*given twice: '2'"),
        (foreign(ONE, extra=number(b"general.alignment", 0)), "general.alignment: got 0, expected"),
        (
            foreign(ONE, extra=text(b"a") + struct.pack("<IIQ", 9, 9, 1) * 5000),
            "array of type 9",
        ),
        (foreign(ONE, extra=number(b"jaxsteer.directions", 7)), "expected an object by layer"),
    ],
)
def test_bad_files_are_refused(tmp_path, data, message):
    (tmp_path / "v.gguf").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        load_gguf(tmp_path / "v.gguf")


def test_files_of_easysteer_begin_with_direction_0(tmp_path):
    """`direction.0` is the output of the first block; llama.cpp has no such direction."""
    (tmp_path / "v.gguf").write_bytes(foreign([(b"direction.1", [2.0]), (b"direction.0", [1.0])]))
    with pytest.warns(UserWarning, match=r"v\.gguf: direction\.0 is the output of the first block"):
        loaded = load_gguf(tmp_path / "v.gguf")
    assert [(item.layer, item.vector.tolist()) for item in loaded.values()] == [(0, [1]), (1, [2])]
    assert "as EasySteer counts" in loaded["direction.1"].provenance["layers"]


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_gguf(tmp_path / "v.gguf")

"""Whatever the input: headers, configs, tokenizers' texts, and files that were tampered with."""

import contextlib
import itertools
import json
import random
import struct
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzz_files import check, corpus, fuzz
from hf_folders import byte_tokenizer, write_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.numpy import load, save

from jaxsteer.config.shape import LlamaConfig
from jaxsteer.directions.direction import Direction
from jaxsteer.directions.direction_files import load_directions, save_directions
from jaxsteer.files.safetensors_header import parse_header
from jaxsteer.steering.steering import Steering
from jaxsteer.sweeps.cells import check_cells, grid
from jaxsteer.tokenizers import load_tokenizer
from jaxsteer.tokenizers.tokenizer_check import check_tokenizer, text_problems

names = st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__")
arrays = st.builds(
    np.zeros,
    st.lists(st.integers(0, 4), max_size=3).map(tuple),
    st.sampled_from([np.float32, np.float16, np.int64, np.uint8, np.bool_]),
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
values = st.recursive(
    scalars, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=4), x, max_size=3)
)


def split(data: bytes) -> tuple[int, bytes, int]:
    """The arguments of `parse_header` for a whole file."""
    length = int.from_bytes(data[:8], "little")
    return length, data[8 : 8 + length], len(data)


@given(st.dictionaries(names, arrays, max_size=4), st.dictionaries(names, st.text(), max_size=2))
@settings(max_examples=80, deadline=None)
def test_headers_say_what_the_library_wrote(
    tensors: dict[str, np.ndarray], metadata: dict[str, str]
) -> None:
    data = save(tensors, metadata=metadata or None)  # the library spoils a file with neither
    header = parse_header(*split(data))
    assert header.entries.keys() == tensors.keys()
    assert header.metadata == metadata
    for name, x in tensors.items():
        entry = header.entries[name]
        assert entry.shape == x.shape
        assert entry.end - entry.begin == x.nbytes


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_what_the_library_refuses_is_refused(data: st.DataObject) -> None:
    """A header with one value replaced by any other."""
    whole = save({"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float16)})
    length, text, _ = split(whole)
    header = json.loads(text)
    name = data.draw(st.sampled_from(["a", "b", "c", "__metadata__"]))
    if data.draw(st.booleans()) or name not in header:
        header[name] = data.draw(values)
    else:
        header[name][data.draw(st.sampled_from(["dtype", "shape", "data_offsets"]))] = data.draw(
            values | st.lists(st.integers(-1, 40), max_size=3) | st.sampled_from(["F16", "I32"])
        )
    changed = json.dumps(header).encode()
    file = struct.pack("<Q", len(changed)) + changed + whole[8 + length :]
    try:
        found = parse_header(*split(file))
    except ValueError:
        return
    assert load(file).keys() == found.entries.keys()


@given(st.integers(0, 2**64 - 1), st.binary(max_size=64), st.integers(0, 2**40))
@settings(deadline=None)
def test_any_bytes_are_a_header_or_a_value_error(length: int, text: bytes, size: int) -> None:
    try:
        parse_header(length, text, size)
    except ValueError:
        return
    assert text.startswith(b"{")


def test_the_library_lets_twice_given_names_pass_and_we_do_not() -> None:
    """Why headers are read here, and not by the library."""
    one = b'"v":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    text = b"{" + one + b"," + one + b"}"
    file = struct.pack("<Q", len(text)) + text + bytes(4)
    with contextlib.suppress(SafetensorError):  # a later release may refuse it, too
        assert load(file).keys() == {"v"}
    with pytest.raises(ValueError, match="given twice: 'v'"):
        parse_header(*split(file))


GOOD = LlamaConfig.tiny().to_hf()


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_config_is_taken_or_refused_by_name(data: st.DataObject) -> None:
    """A good config with some fields replaced by anything."""
    fields = data.draw(
        st.dictionaries(
            st.sampled_from([*GOOD, "rope_scaling", "rope_theta", "eos_token_id", "surprise"]),
            values | st.integers(-1, 64) | st.fixed_dictionaries({"rope_type": values}),
            max_size=3,
        )
    )
    try:
        config = LlamaConfig.from_hf(GOOD | fields)
    except ValueError:
        return
    assert LlamaConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config
    assert LlamaConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    hash(config)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, byte_tokenizer())
    loaded = load_tokenizer(folder)
    assert check_tokenizer(loaded, replace(LlamaConfig.tiny(), vocab_size=300))
    return loaded


@given(text=st.text() | st.text(st.sampled_from("<>bos/| \n\r\t \u200b\ufeff👩‍🇩🇪é́")))
@settings(max_examples=150, deadline=None)
def test_any_unicode_comes_back_from_a_byte_level_tokenizer(tokenizer: Any, text: str) -> None:
    assert text_problems(tokenizer, None, text) == []


@given(
    st.lists(
        st.tuples(
            names,
            st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1,
                     max_size=3),
            st.integers(0, 10**6),
            st.dictionaries(st.text(), st.none() | st.integers() | st.text(), max_size=2),
        ),
        min_size=1, max_size=3, unique_by=lambda item: item[0],
    )
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_directions_come_back_as_they_were(items: list[tuple[Any, ...]]) -> None:
    width = len(items[0][1])
    saved = [
        Direction(np.resize(np.float32(vector), width), layer, "resid_post", name, about)
        for name, vector, layer, about in items
    ]
    with tempfile.TemporaryDirectory() as folder:
        save_directions(Path(folder) / "v", saved)
        found = load_directions(Path(folder) / "v", width=width)
    assert list(found) == [one.name for one in saved]
    for one in saved:
        again = found[one.name]
        assert again.vector.tobytes() == one.vector.tobytes()
        assert (again.layer, again.provenance) == (one.layer, one.provenance)


TWO_LAYERS = replace(LlamaConfig.tiny(), n_layers=2)


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


def several(good: st.SearchStrategy[Any], other: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Lists that are good two times of three, or many examples would say one thing."""
    lists = st.lists(good, min_size=1, max_size=2, unique=True)
    return lists | lists | st.lists(good | other, max_size=2, unique=True)


@given(
    several(names, names),
    st.sampled_from([TWO_LAYERS.d_model] * 3 + [TWO_LAYERS.d_model - 1]),
    several(st.integers(0, 1), st.integers(-(2**40), 2**40)),
    several(finite, st.sampled_from([np.nan, np.inf, -np.inf])),
)
@settings(max_examples=60, deadline=None)
def test_a_grid_is_every_combination_or_refused(
    vectors: list[str], width: int, layers: list[int], coeffs: list[float]
) -> None:
    fits = (
        bool(vectors and layers and coeffs)
        and width == TWO_LAYERS.d_model
        and all(0 <= layer < 2 for layer in layers)
        and bool(np.isfinite(coeffs).all())
    )
    try:
        rows = {name: np.full(width, i + 1.0) for i, name in enumerate(vectors)}
        cells = grid(rows, layers=layers, coeffs=coeffs)
        check_cells(cells, TWO_LAYERS)
    except ValueError:
        assert not fits
        return
    assert fits
    wanted = list(itertools.product(vectors, layers, coeffs))
    assert [tuple(cell.labels.values()) for cell in cells] == wanted
    for cell, (name, layer, coeff) in zip(cells, wanted, strict=True):
        assert isinstance(cell.steering, Steering)
        np.testing.assert_array_equal(np.ravel(cell.steering.vector), rows[name])
        assert np.ravel(cell.steering.coeff) == np.float32(coeff)
        assert [one for one in np.ravel(cell.steering.layer) if one >= 0] == [layer]


def test_the_corpus_says_no_more_than_value_error(tmp_path: Path) -> None:
    assert len(corpus()) >= 10
    for data in corpus():
        check(data, tmp_path)


def test_fuzzing_for_a_moment() -> None:
    """Another seed in each run; `tests/helpers/fuzz_files.py` goes on for longer."""
    assert fuzz(3.0, random.SystemRandom().randrange(2**32)) > 100

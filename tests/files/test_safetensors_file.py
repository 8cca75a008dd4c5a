"""files.safetensors_file: arrays come back as they were, and equal content makes equal bytes."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxsteer.files.safetensors_file import read_tensors, tensor_bytes

ALL = ("F64", "F32", "F16", "BF16", "I32")


def test_arrays_come_back_whatever_their_strides(tmp_path):
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    tensors = {
        "plain": x,
        "turned": x.transpose(2, 0, 1),
        "masked": x[:, np.array([True, False, True])],
        "half": x.astype(jnp.bfloat16)[:, ::2],
        "whole": np.arange(5, dtype=np.int32)[::-1],
    }
    file = tmp_path / "x.safetensors"
    file.write_bytes(tensor_bytes(tensors, {"a": "1"}))
    found, metadata = read_tensors(file, dtypes=ALL)
    assert metadata == {"a": "1"}
    assert set(found) == set(tensors)
    for name, right in tensors.items():
        assert found[name].dtype == right.dtype
        np.testing.assert_array_equal(found[name], right, err_msg=name)


def test_equal_content_makes_equal_bytes():
    metadata = dict.fromkeys("qwertyuiop", "x")
    tensors = {"v": np.ones(3, np.float32)}
    expected = tensor_bytes(tensors, metadata)
    for _ in range(5):
        assert tensor_bytes(tensors, dict(reversed(metadata.items()))) == expected


def test_other_dtypes_are_refused(tmp_path):
    file = tmp_path / "x.safetensors"
    file.write_bytes(tensor_bytes({"v": np.ones(3, np.int32)}, {}))
    with pytest.raises(ValueError, match="'v': got I32, expected F64, F32, F16"):
        read_tensors(file)
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_tensors(tmp_path / "y.safetensors")

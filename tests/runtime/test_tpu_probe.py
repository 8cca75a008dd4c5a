"""Without a TPU, JAX is kept from starting libtpu; with any sign of one, nothing changes."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from jax._src import xla_bridge

from jaxsteer.runtime import tpu_probe


def with_platforms(names: str | None) -> SimpleNamespace:
    """JAX, as far as its setting of platforms goes."""
    return SimpleNamespace(config=SimpleNamespace(values={"jax_platforms": names}))


@pytest.fixture
def factories(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """A machine with libtpu and a GPU but no TPU, before JAX has started a device."""
    kinds: dict[str, object] = {"cpu": 1, "cuda": 2, "tpu": 3}
    monkeypatch.setattr(xla_bridge, "_backend_factories", kinds)
    monkeypatch.setattr(xla_bridge, "backends_are_initialized", lambda: False)
    monkeypatch.setattr(tpu_probe, "find_spec", lambda name: name)
    monkeypatch.setattr(tpu_probe, "may_be_one", lambda variables: False)
    monkeypatch.setattr(tpu_probe, "jax", with_platforms(None))
    return kinds


def test_only_the_tpu_is_left_out(factories) -> None:
    assert tpu_probe.skip_where_there_is_none()
    assert factories == {"cpu": 1, "cuda": 2}


@pytest.mark.parametrize("reason", ["no libtpu", "platforms", "a sign", "started"])
def test_nothing_changes_where_it_should_not(factories, monkeypatch, reason) -> None:
    if reason == "no libtpu":
        monkeypatch.setattr(tpu_probe, "find_spec", lambda name: None)
    if reason == "platforms":
        monkeypatch.setattr(tpu_probe, "jax", with_platforms("tpu"))
    if reason == "a sign":
        monkeypatch.setattr(tpu_probe, "may_be_one", lambda variables: True)
    if reason == "started":
        monkeypatch.setattr(xla_bridge, "backends_are_initialized", lambda: True)
    assert not tpu_probe.skip_where_there_is_none()
    assert "tpu" in factories


@pytest.mark.parametrize("device", ["accel0", "vfio/0", "vfio/devices/vfio0"])
def test_devices_are_a_sign(device: str, tmp_path: Path) -> None:
    (tmp_path / "vfio").mkdir()
    (tmp_path / "vfio" / "vfio").touch()  # there without a TPU, too
    assert not tpu_probe.may_be_one(["PATH", "TPU_SKIP_MDS_QUERY", "TPU_LIBRARY_PATH"], tmp_path)
    (tmp_path / device).parent.mkdir(exist_ok=True)
    (tmp_path / device).touch()
    assert tpu_probe.may_be_one([], tmp_path)


@pytest.mark.parametrize("variable", ["TPU_NAME", "TPU_WORKER_ID", "COLAB_TPU_ADDR"])
def test_variables_are_a_sign(variable: str, tmp_path: Path) -> None:
    assert tpu_probe.may_be_one([variable], tmp_path)


@pytest.mark.skipif(
    find_spec("libtpu") is None or tpu_probe.may_be_one(os.environ), reason="needs libtpu, no TPU"
)
def test_a_new_process_starts_without_a_word() -> None:
    code = (
        "import jaxsteer, jax; from jax._src import xla_bridge as b; jax.devices();"
        "assert 'tpu' not in b._backend_errors, b._backend_errors"
    )
    env = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")

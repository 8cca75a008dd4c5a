"""jaxsteer.models.placement: views of files on their way to devices."""

import itertools
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import jax
import numpy as np
import pytest
from jax.experimental.layout import Format, Layout
from jax.sharding import NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from oracle import random_model

import jaxsteer
from jaxsteer.models import placement

SHAPE = (4, 6, 8)
ORDERS = list(itertools.permutations(range(3)))


def shardings() -> list[jax.sharding.Sharding]:
    mesh = jaxsteer.make_mesh(data=1, tensor=1, devices=jax.devices()[:1])
    specs = P(), P("tensor"), P(None, "tensor"), P(None, None, "tensor")
    one = SingleDeviceSharding(jax.devices()[0])
    return [one, *(NamedSharding(mesh, spec) for spec in specs)]


@pytest.mark.parametrize("where", shardings(), ids=str)
@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_a_view_is_turned_where_it_is_sent(order, where):
    x = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE).transpose(order)
    placed = placement.place_as_it_lies(x, where)
    assert placed.sharding == where
    assert np.array_equal(placed, x)


@pytest.mark.parametrize(
    "x",
    [
        np.arange(48.0, dtype=np.float32).reshape(6, 8)[:, ::2],  # lies with gaps
        np.arange(48.0, dtype=np.float32).reshape(6, 8)[::-1],
        np.broadcast_to(np.float32(2), (3, 4)),
        np.zeros((1, 5, 1), np.float32).transpose(2, 1, 0),
        np.float32(3),
    ],
    ids=["gaps", "backwards", "repeated", "ones", "scalar"],
)
def test_any_other_array_comes_as_it_is(x):
    x = np.asarray(x)
    placed = placement.place_as_it_lies(x, SingleDeviceSharding(jax.devices()[0]))
    assert np.array_equal(placed, x)


@pytest.mark.parametrize(
    ("platform", "memory", "several", "turned"),
    [
        ("cpu", "device", False, False),
        ("gpu", "device", False, True),
        ("gpu", None, False, True),
        ("gpu", "pinned_host", False, False),
        ("tpu", "device", False, True),
        ("tpu", "device", True, False),
    ],
)
def test_where_a_view_is_turned(platform, memory, several, turned, monkeypatch):
    own = SimpleNamespace(kind="device")
    device = SimpleNamespace(platform=platform, default_memory=lambda: own)
    where = Mock(spec=SingleDeviceSharding, device_set=[device], memory_kind=memory)
    monkeypatch.setattr(placement.hosts, "several", lambda: several)
    assert placement.can_turn(where) is turned


def test_a_place_that_is_no_sharding_is_left_to_jax():
    x = np.arange(6.0, dtype=np.float32).reshape(2, 3).T
    here = SingleDeviceSharding(jax.devices()[0])
    for where in (jax.devices()[0], Format(Layout((1, 0)), here)):
        assert not placement.can_turn(where)
        assert np.array_equal(placement.place(x, where), x)


def test_what_is_sent_is_as_it_lies(monkeypatch):
    sent = []
    place = placement.hosts.place
    monkeypatch.setattr(
        placement.hosts, "place", lambda x, where: sent.append(x) or place(x, where)
    )
    x = np.zeros((5, 7), np.float32).T
    placement.place_as_it_lies(x, SingleDeviceSharding(jax.devices()[0]))
    assert [y.shape for y in sent] == [(5, 7)]
    assert sent[0].flags.c_contiguous


def test_a_folder_that_is_turned_on_its_device(tmp_path: Path, monkeypatch):
    model = random_model(jaxsteer.LlamaConfig.tiny())
    jaxsteer.save(tmp_path / "model", model)
    jaxsteer.export(tmp_path / "model", tmp_path / "hf")
    monkeypatch.setattr(placement, "place", placement.place_as_it_lies)
    loaded, _ = jaxsteer.load(tmp_path / "hf")
    for ours, theirs in zip(
        jax.tree.leaves(model.params), jax.tree.leaves(loaded.params), strict=True
    ):
        assert np.array_equal(ours, theirs)

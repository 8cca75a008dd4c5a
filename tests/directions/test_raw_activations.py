"""raw_activations: what is in the files is the stream, and only what is missing is run."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import SHALLOW, random_model, random_rows, run

from jaxsteer.directions import raw_activations as raw
from jaxsteer.directions.raw_activations import load_shard, read_activations, save_activations
from jaxsteer.llama.tokens import left_pad
from jaxsteer.steering.capture import Capture

TEXTS = dict(zip("abcde", random_rows([9, 4, 12, 7, 5], SHALLOW.vocab_size, seed=2), strict=True))
POSITIONS = {"a": [0, 8], "b": [3], "c": [2, 5, 11], "d": [6, 1], "e": [4]}
SITES, LAYERS = ("resid_post", "attn_out"), (1, 0)


@pytest.fixture(scope="module")
def bf16(shallow):
    return replace(shallow, params=jax.tree.map(lambda x: x.astype(jnp.bfloat16), shallow.params))


@pytest.fixture
def save(shallow):
    def save(folder, *, model=shallow, **changes):
        options = {"sites": SITES, "layers": LAYERS, "rows_per_shard": 2} | changes
        texts = options.pop("texts", TEXTS)
        return save_activations(folder, model, texts, POSITIONS, **options)

    return save


def test_shards_hold_the_stream_at_the_positions(save, shallow, tmp_path):
    files = save(tmp_path, provenance={"models": {"base": "1f"}})
    assert [f.name for f in files] == [
        f"activations-{i:05d}-of-00003.safetensors" for i in (0, 1, 2)
    ]
    batch = left_pad(list(TEXTS.values()), length=12)
    out = run(shallow, batch.tokens, mask=batch.mask, capture=Capture(sites=SITES))
    found = {}
    for shard in read_activations(tmp_path):
        assert (shard.layers, shard.provenance) == (LAYERS, {"models": {"base": "1f"}})
        for n, (row, at) in enumerate(zip(shard.row, shard.position, strict=True)):
            found[shard.ids[row], int(at)] = {s: x[:, n] for s, x in shard.activations.items()}
    assert list(found) == [(name, at) for name in TEXTS for at in POSITIONS[name]]
    for (name, at), activations in found.items():
        row = list(TEXTS).index(name)
        slot = 12 - len(TEXTS[name]) + at
        for site in SITES:
            right = np.asarray(out.captured[site])[list(LAYERS), row, slot]
            np.testing.assert_allclose(activations[site], right, rtol=1e-4, atol=1e-5)


def test_what_is_there_is_not_run_again(save, tmp_path, monkeypatch):
    files = save(tmp_path)
    before = [file.read_bytes() for file in files]
    files[1].unlink()
    (tmp_path / ".activations-half").write_bytes(b"what a kill left")
    calls, real = [], raw._read

    def counted(*args, **options):
        calls.append(1)
        return real(*args, **options)

    monkeypatch.setattr(raw, "_read", counted)
    assert [file.read_bytes() for file in save(tmp_path)] == before
    assert len(calls) == 1
    for changes in ({"layers": (0,)}, {"sites": ("mlp_out",)}, {"provenance": {"x": 1}}):
        with pytest.raises(ValueError, match="holds other activations"):
            save(tmp_path, **changes)
    others = {"a": [1] * 9, "c": TEXTS["c"]}
    for changes in ({"texts": TEXTS | others}, {"model": random_model(SHALLOW, seed=1)}):
        with pytest.raises(ValueError, match="holds other activations"):
            save(tmp_path, **changes)
    with pytest.raises(ValueError, match="holds another number of shards"):
        save(tmp_path, rows_per_shard=3)
    assert len(calls) == 1


def test_the_streams_own_dtype_is_kept(bf16, tmp_path):
    (file,) = save_activations(tmp_path, bf16, TEXTS, POSITIONS, layers=[0])
    shard = load_shard(file)
    assert shard.activations["resid_post"].dtype == jnp.bfloat16
    assert shard.activations["resid_post"].shape == (1, 9, SHALLOW.d_model)
    assert np.isfinite(shard.activations["resid_post"].astype(np.float32)).all()


def test_files_that_are_missing_or_are_something_else(save, tmp_path):
    with pytest.raises(FileNotFoundError, match="no activations in it"):
        read_activations(tmp_path)
    files = save(tmp_path)
    files[1].unlink()
    with pytest.raises(ValueError, match="expected 3 files, activations-00001-of-00003"):
        read_activations(tmp_path)
    data = files[0].read_bytes()
    files[0].write_bytes(data.replace(b"jaxsteer.activations", b"jaxsteer.activity---"))
    with pytest.raises(ValueError, match=r"expected 'jaxsteer\.activations', version 1"):
        load_shard(files[0])


def test_input_that_does_not_fit(save, shallow, tmp_path):
    with pytest.raises(ValueError, match=r"positions\['b'\]: got \[3\], expected .* 0 to 2"):
        save(tmp_path, texts=TEXTS | {"b": TEXTS["b"][:3]})
    with pytest.raises(ValueError, match="'e': got one of the two, expected a text"):
        save(tmp_path, texts={name: TEXTS[name] for name in "abcd"})
    with pytest.raises(ValueError, match="0 a shard"):
        save(tmp_path, rows_per_shard=0)
    with pytest.raises(ValueError, match=r"capture.layers: got 2"):
        save(tmp_path, layers=[2])
    with pytest.raises(ValueError, match=r"site: got 'resid'"):
        save(tmp_path, sites=["resid"])
    assert not list(tmp_path.iterdir())

"""jaxsteer.llama.attention: both paths against a loop in float64.

cuDNN itself needs a GPU. Here its path runs with the XLA implementation of the same JAX function
put in its place: that checks the bias, the lengths and the folding of cells, not the kernel.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsteer.llama import attention
from jaxsteer.llama.attention import cudnn_attention, default_attention, xla_attention
from jaxsteer.llama.attention_splash import tpu_attention

by_xla = jax.jit(xla_attention)

B, S, N, K, H = 3, 7, 4, 2, 8
PADDING = np.array([0, 2, 4])
FLOAT32 = 2e-6  # relative to the largest value: a few roundings of sums of 8 products


def by_loops(q, k, v, valid, start) -> np.ndarray:
    """Attention written out, float64; zeros where a query sees nothing."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    for b, t, n in np.ndindex(q.shape[:3]):
        seen = [s for s in range(k.shape[1]) if valid[b, s] and s <= start + t]
        if not seen:
            continue
        head = n // (q.shape[2] // k.shape[2])
        scores = np.array([q[b, t, n] @ k[b, s, head] for s in seen]) / np.sqrt(q.shape[3])
        weights = np.exp(scores - scores.max())
        out[b, t, n] = (weights / weights.sum()) @ v[b, seen, head]
    return out


def case(T: int, start: int, *, seed: int = 0, dtype=np.float32):
    """Random inputs; slots not written yet hold garbage, as in a cache that is used again."""
    rng = np.random.default_rng(seed)
    q = rng.standard_normal((B, T, N, H)).astype(dtype)
    k, v = (rng.standard_normal((B, S, K, H)).astype(dtype) for _ in range(2))
    slot = np.arange(S)
    valid = (slot >= PADDING[:, None]) & (slot < start + T)
    return q, k, v, valid, jnp.int32(start)


def check(found: np.ndarray, args, tolerance: float = FLOAT32) -> None:
    q, _, _, _, start = args
    expected = by_loops(*args)
    sees = int(start) + np.arange(q.shape[1]) >= PADDING[:, None]  # [B, T], padding sees nothing
    assert np.isfinite(found).all()
    np.testing.assert_allclose(
        np.asarray(found, np.float64)[sees],
        expected[sees],
        rtol=0,
        atol=tolerance * np.abs(expected).max(),
    )


@pytest.fixture
def cudnn_by_xla(monkeypatch):
    """Let `implementation="cudnn"` run on this machine."""
    real = jax.nn.dot_product_attention

    @functools.wraps(real)
    def stand_in(*args, implementation, **kwargs):
        assert implementation == "cudnn"
        options = kwargs | {"implementation": "xla"}
        if "bias" in kwargs:
            # What cuDNN asks for: [B, 1, T, S], and no broadcasting over the queries.
            bias = kwargs["bias"]
            assert bias.shape == (args[0].shape[0], 1, args[0].shape[1], args[1].shape[1])
            assert bias.dtype == args[0].dtype
            options |= {"bias": bias.astype(jnp.float32)}
        # It computes in float32, which XLA's path would not do on a CPU in half precision.
        wide = [x.astype(jnp.float32) for x in args]
        return real(*wide, **options).astype(args[0].dtype)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    # A wrapper of its own, so that nothing compiled with the stand-in outlives the test.
    return jax.jit(lambda *args, valid, start: cudnn_attention(*args, valid=valid, start=start))


CASES = [(S, 0), (3, 0), (3, 4), (1, 0), (1, 5), (1, S - 1)]


@pytest.mark.parametrize(("T", "start"), CASES)
def test_xla_is_the_loop(T, start):
    q, k, v, valid, start = args = case(T, start)
    check(by_xla(q, k, v, valid=valid, start=start), args)


@pytest.mark.parametrize(("T", "start"), CASES)
def test_the_cudnn_path_is_the_loop(T, start, cudnn_by_xla):
    q, k, v, valid, start = args = case(T, start)
    check(cudnn_by_xla(q, k, v, valid=valid, start=start), args)


@pytest.mark.parametrize(("T", "start"), [(S, 0), (1, 5)])
def test_a_query_that_sees_nothing_gives_finite_numbers_in_float16(T, start, cudnn_by_xla):
    q, k, v, valid, start = args = case(T, start, dtype=np.float16)
    # float16 keeps 11 bits, and the probabilities are rounded to it, too.
    check(cudnn_by_xla(q, k, v, valid=valid, start=start), args, tolerance=5e-3)
    check(by_xla(q, k, v, valid=valid, start=start), args, tolerance=5e-3)


@pytest.mark.parametrize(("T", "start"), [(3, 4), (1, 5)])
@pytest.mark.parametrize("shared", ["valid", "valid and k", "nothing"])
def test_cells_under_vmap_are_the_cells_alone(T, start, shared, cudnn_by_xla):
    cells = [case(T, start, seed=seed)[:4] for seed in range(4)]
    own = [np.stack(x) for x in zip(*cells, strict=True)]
    axes = [0, None if "k" in shared.split() else 0, 0, None if "valid" in shared else 0]
    args = [x if axis == 0 else x[0] for x, axis in zip(own, axes, strict=True)]

    def one(q, k, v, valid):
        return cudnn_attention(q, k, v, valid=valid, start=jnp.int32(start))

    found = jax.jit(jax.vmap(one, in_axes=axes))(*args)
    for c in range(4):
        cell = [x[c] if axis == 0 else x for x, axis in zip(args, axes, strict=True)]
        check(found[c], (*cell, start))


def test_cells_of_cells_fold_too(cudnn_by_xla):
    q, k, v, valid, start = args = case(1, 5)
    grid = jnp.broadcast_to(q, (2, 3, *q.shape))

    def one(q):
        return cudnn_attention(q, k, v, valid=valid, start=start)

    found = jax.jit(jax.vmap(jax.vmap(one)))(grid)
    for i, j in np.ndindex(2, 3):
        check(found[i, j], args)


def test_rows_with_cursors_of_their_own_have_them_in_every_cell(cudnn_by_xla):
    q, k, v, valid, _ = case(1, 5)
    starts = np.array([3, 5, 4])

    def one(q):
        return cudnn_attention(q, k, v, valid=valid, start=jnp.asarray(starts, jnp.int32))

    grid = np.stack([q, 2 * q])
    found = jax.jit(jax.vmap(one))(grid)
    for c, b in np.ndindex(2, B):
        row = slice(b, b + 1)
        expected = by_loops(grid[c, row], k[row], v[row], valid[row], starts[b])
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found[c, row], expected, rtol=0, atol=FLOAT32 * scale)


def test_cells_with_cursors_of_their_own_are_refused(cudnn_by_xla):
    q, k, v, valid, _ = case(1, 5)

    def one(start):
        return cudnn_attention(q, k, v, valid=valid, start=start)

    with pytest.raises(NotImplementedError, match="share one cursor"):
        jax.vmap(one)(jnp.arange(2))


@pytest.mark.parametrize(
    ("backend", "dtype", "head_dim", "expected"),
    [
        ("gpu", jnp.bfloat16, 128, cudnn_attention),
        ("gpu", jnp.float16, 64, cudnn_attention),
        ("gpu", jnp.float32, 128, xla_attention),
        ("gpu", jnp.bfloat16, 12, xla_attention),
        ("cpu", jnp.bfloat16, 128, xla_attention),
        ("tpu", jnp.bfloat16, 128, tpu_attention),
        ("tpu", jnp.float32, 128, xla_attention),
    ],
)
def test_cudnn_is_chosen_where_it_runs(monkeypatch, backend, dtype, head_dim, expected):
    monkeypatch.setattr(attention.jax, "default_backend", lambda: backend)
    assert default_attention(jnp.dtype(dtype), head_dim) is expected

"""Attention behind a shared prefix is attention over the prefix and a row's own tokens together."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsteer.llama import attention_cudnn
from jaxsteer.llama.attention import cudnn_attention, tpu_attention, xla_attention
from jaxsteer.llama.attention_reference import attend, visible
from jaxsteer.llama.cache import Shared

P, R, S, PREFIX, N, K, H = 2, 3, 6, 5, 4, 2, 8
B = P * R
LENGTHS = np.array([5, 2])
FLOAT32 = 2e-6  # relative to the largest value: a few roundings of sums of 8 products


def case(T: int, *, cells: int = 1, lengths=LENGTHS):
    """Queries, own keys and values of each cell, and what they share."""
    rng = np.random.default_rng(0)
    q = rng.standard_normal((cells, B, T, N, H)).astype(np.float32)
    k, v = (rng.standard_normal((cells, B, S, K, H)).astype(np.float32) for _ in range(2))
    kp, vp = (rng.standard_normal((P, PREFIX, K, H)).astype(np.float32) for _ in range(2))
    return q, k, v, Shared(jnp.asarray(kp), jnp.asarray(vp), jnp.asarray(lengths, jnp.int32))


def check(found, q, k, v, start, prefix) -> None:
    """Against one softmax over the prefix's real tokens, then the row's own."""
    kp, vp = (np.repeat(x, R, axis=0) for x in (prefix.k, prefix.v))
    real = np.repeat(np.arange(PREFIX) < np.asarray(prefix.length)[:, None], R, axis=0)
    valid = np.concatenate([real, np.ones((B, S), bool)], axis=1)
    expected = xla_attention(
        q,
        np.concatenate([kp, k], axis=1),
        np.concatenate([vp, v], axis=1),
        valid=valid,
        start=jnp.asarray(start) + PREFIX,
    )
    atol = FLOAT32 * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


@pytest.fixture
def kernel(monkeypatch):
    """XLA in the place of cuDNN's kernel: that checks lengths and folding, not the kernel."""

    def stand_in(q, k, v, *, lengths, causal):
        valid = jnp.arange(k.shape[1]) < lengths[:, None]
        start, queries = (jnp.int32(0), q.shape[1]) if causal else (jnp.int32(k.shape[1]), 1)
        return attend(q, k, v, visible(valid, start, queries))

    monkeypatch.setattr(attention_cudnn, "flash", stand_in)


STARTS = [(1, 3), (1, 0), (S, 0), (2, 1), (1, np.array([0, 3, 1, 5, 2, 4]))]


@pytest.mark.parametrize("attention", [xla_attention, cudnn_attention, tpu_attention])
@pytest.mark.parametrize(("T", "start"), STARTS)
def test_it_is_attention_over_both(T, start, attention, kernel):
    q, k, v, prefix = case(T)
    valid = jnp.ones((B, S), bool)
    found = attention(q[0], k[0], v[0], valid=valid, start=jnp.asarray(start), prefix=prefix)
    check(found, q[0], k[0], v[0], start, prefix)


@pytest.mark.parametrize("attention", [xla_attention, cudnn_attention])
def test_a_prefix_of_no_tokens_is_none(attention, kernel):
    q, k, v, prefix = case(1, lengths=[0, 3])
    options = {"valid": jnp.ones((B, S), bool), "start": jnp.int32(2), "prefix": prefix}
    check(attention(q[0], k[0], v[0], **options), q[0], k[0], v[0], 2, prefix)


def test_a_long_prefix_is_read_in_pieces(kernel, monkeypatch):
    """Of the second prefix the last pieces hold nothing."""
    monkeypatch.setattr(attention_cudnn, "_FEWEST_KEYS", 1)
    monkeypatch.setattr(attention_cudnn, "_BLOCKS", 5 * P * N)
    assert attention_cudnn.count_pieces(PREFIX, blocks=P * N) == 5
    q, k, v, prefix = case(1, cells=3)
    options = {"valid": jnp.ones((B, S), bool), "start": jnp.int32(2), "prefix": prefix}
    found = jax.jit(jax.vmap(lambda *rows: cudnn_attention(*rows, **options)))(q, k, v)
    for c in range(3):
        check(found[c], q[c], k[c], v[c], 2, prefix)


@pytest.mark.parametrize("attention", [xla_attention, cudnn_attention])
def test_cells_share_it_too(attention, kernel):
    q, k, v, prefix = case(1, cells=3)
    options = {"valid": jnp.ones((B, S), bool), "start": jnp.int32(2), "prefix": prefix}
    over_cells = jax.jit(jax.vmap(lambda *rows: attention(*rows, **options)))
    found = over_cells(q, k, v)
    for c in range(3):
        check(found[c], q[c], k[c], v[c], 2, prefix)


def test_cells_with_prefixes_of_their_own_are_refused(kernel):
    q, k, v, prefix = case(1, cells=3)

    def one(q, k, v, length):
        own = prefix._replace(length=length)
        return cudnn_attention(q, k, v, valid=None, start=jnp.int32(2), prefix=own)

    with pytest.raises(NotImplementedError, match="share one cursor and prefix"):
        jax.vmap(one)(q, k, v, jnp.tile(prefix.length, (3, 1)))


def test_jax_still_has_what_is_called_of_it_inside():
    from jax._src.cudnn.fused_attention_stablehlo import MaskType, dot_product_attention

    names = {"query", "key", "value", "q_seqlen", "kv_seqlen", "scale", "return_residual"}
    assert names < set(inspect.signature(dot_product_attention).parameters)
    assert MaskType.PADDING
    assert MaskType.PADDING_CAUSAL

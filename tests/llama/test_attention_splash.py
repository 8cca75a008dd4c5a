"""jaxsteer.llama.attention_splash: JAX's kernel, interpreted, against the reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsteer
from jaxsteer.llama import attention
from jaxsteer.llama import attention_splash as tpu
from jaxsteer.llama.attention import default_attention, xla_attention
from jaxsteer.llama.attention_splash import suits_kernel, tpu_attention
from jaxsteer.llama.sharding import make_mesh

B, T, N, K, H = 2, 256, 4, 2, 128
PADDING = np.array([37, 130])  # of blocks of 128 tokens: a part, more than one

interpreted = functools.partial(tpu_attention, interpret=True)


def case(T: int = T, *, H: int = H, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(T), 3)
    shapes = (B, T, N, H), (B, T, K, H), (B, T, K, H)
    q, k, v = (jax.random.normal(*each).astype(dtype) for each in zip(keys, shapes, strict=True))
    valid = jnp.arange(T) >= PADDING[:, None]
    return (q, k, v), {"valid": valid, "start": jnp.int32(0)}


def error(found) -> float:
    """Largest difference from the reference in float32, on real queries, over its largest value."""
    args, where = case(H=found.shape[-1])
    expected = xla_attention(*args, **where)
    assert jnp.isfinite(found).all()
    real = where["valid"][:, :, None, None]
    difference = jnp.where(real, found.astype(jnp.float32) - expected, 0)
    return float(jnp.abs(difference).max() / jnp.abs(expected).max())


@pytest.mark.parametrize(("block", "width"), [(128, 128), (512, 64)])
def test_the_kernel_is_the_reference(block, width, monkeypatch):
    monkeypatch.setattr(tpu, "_BLOCK", block)
    args, where = case(H=width)
    assert error(jax.jit(interpreted)(*args, **where)) < 2e-6


def test_half_precision_on_a_mesh():
    mesh = make_mesh(data=1, tensor=1)
    args, where = case(dtype=jnp.bfloat16)
    heads = jax.NamedSharding(mesh, jax.P("data", None, "tensor", None))
    found = jax.jit(interpreted)(*jax.device_put(args, heads), **where)
    assert found.dtype == jnp.bfloat16
    assert error(found) < 2e-2  # the reference has not rounded its inputs


@pytest.mark.parametrize(
    ("T", "slots", "start"),
    [(1, 256, 200), (128, 256, 128), (160, 160, 0)],
    ids=["a decode step", "more tokens behind a cache", "a length without a block"],
)
def test_all_else_is_the_reference(T, slots, start):
    (q, k, v), where = case(slots)
    where |= {"start": jnp.int32(start)}
    found = tpu_attention(
        q[:, -T:], k, v, **where
    )  # not interpreted: the kernel would not run here
    np.testing.assert_array_equal(found, xla_attention(q[:, -T:], k, v, **where))


def test_caches_in_another_order_hold_the_same(shallow, batch):
    """Prompts of 9 tokens, which go to the reference: what differs is the order in memory."""
    given = shallow.with_attention(tpu_attention)
    plain, ordered = (jaxsteer.generate(m, batch, max_new_tokens=4) for m in (shallow, given))
    np.testing.assert_array_equal(ordered.tokens, plain.tokens)
    cells = jaxsteer.grid({"v": np.ones(16)}, layers=[0], coeffs=[0.0, 1.0])
    found, expected = (
        [
            (r.prompt, r.tokens)
            for chunk in jaxsteer.sweep(m, batch, cells, max_new_tokens=4)
            for r in chunk
        ]
        for m in (given, shallow)
    )
    assert found == expected


def test_which_prompts_suit_the_kernel():
    assert [n for n in (64, 128, 160, 384) if suits_kernel(n)] == [128, 384]


def test_it_is_what_a_tpu_gets(monkeypatch):
    monkeypatch.setattr(attention.jax, "default_backend", lambda: "tpu")
    assert default_attention(jnp.bfloat16, 128) is tpu_attention
    assert default_attention(jnp.float32, 128) is xla_attention

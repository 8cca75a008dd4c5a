"""A Llama in Flax NNX whose residual stream can be read and steered at named sites.

Read `Block.__call__` first: the sites stand there in reading order. Callers hold a `Model`, a
pytree of plain arrays, so two models of one shape share one compiled program and `jax.tree.map`
can mix them. NNX modules exist inside traced code only (`bind`).

Letters: B rows, T query tokens, S key slots, D width, F MLP width, N query heads, K key/value
heads, H head width, V vocabulary, L layers.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxsteer.config import LlamaConfig
from jaxsteer.llama.attention import AttentionFn, compiled_for_cpu, default_attention
from jaxsteer.llama.cache import (
    KVCache,
    by_slot,
    prefix_lengths,
    shared_layer,
    write,
    write_layer,
)
from jaxsteer.llama.parameters import random_weights
from jaxsteer.llama.rope import cos_sin, rotate
from jaxsteer.llama.tokens import TokenBatch, TokenRows, with_mask
from jaxsteer.steering import Capture, Steering, as_tuple, check_steering_unless_traced
from jaxsteer.steering import capture as capturing
from jaxsteer.steering import steering as steers

Params = dict[Any, Any]  # nested dict of arrays, layers under their numbers
# Called with a site's name and the stream there; returns the stream to go on with.
Tap = Callable[[str, jax.Array], jax.Array]
# Makes the parameter of a path in the table of `parameters`; None if the model has none.
Weight = Callable[[str], Any]


class RMSNorm(nnx.Module):
    """Root-mean-square norm over the last axis, computed in float32."""

    def __init__(self, scale: nnx.Param, eps: float):
        self.scale = scale
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + self.eps)
        return wide.astype(x.dtype) * self.scale[...]


def _biased(x: jax.Array, bias: nnx.Param | None) -> jax.Array:
    return x if bias is None else x + bias[...]


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions; biases or norms where the family has them."""

    def __init__(self, config: LlamaConfig, weight: Weight):
        self.qkv_proj = weight("attn.qkv_proj")  # packed, or else the three below
        self.qkv_bias = weight("attn.qkv_bias")
        self.q_proj, self.k_proj, self.v_proj = (weight(f"attn.{x}_proj") for x in "qkv")
        self.q_bias, self.k_bias, self.v_bias = (weight(f"attn.{x}_bias") for x in "qkv")
        self.q_norm, self.k_norm = (_norm(f"attn.{x}_norm", config, weight) for x in "qk")
        self.o_proj = weight("attn.o_proj")

    def project(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries `[B, T, N, H]`, keys and values `[B, T, K, H]`, not yet rotated."""
        if self.qkv_proj is not None:
            qkv = jnp.einsum("BTD,DKGH->BTKGH", x, self.qkv_proj[...])
            qkv = _biased(qkv, self.qkv_bias)
            q, k, v = qkv[:, :, :, :-2], qkv[:, :, :, -2], qkv[:, :, :, -1]
            return q.reshape(*q.shape[:2], -1, q.shape[-1]), k, v
        q = jnp.einsum("BTD,DNH->BTNH", x, self.q_proj[...])
        k = jnp.einsum("BTD,DKH->BTKH", x, self.k_proj[...])
        v = jnp.einsum("BTD,DKH->BTKH", x, self.v_proj[...])
        return _biased(q, self.q_bias), _biased(k, self.k_bias), _biased(v, self.v_bias)

    def __call__(self, x: jax.Array, context: "Context", layer: int) -> tuple[jax.Array, Any]:
        q, k, v = self.project(x)
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = (rotate(x, *context.cos_sin) for x in (q, k))
        kept, shared = (k, v), {}
        if context.cache is not None:
            kept = write_layer(context.cache, layer, k, v)
            k, v = by_slot(context.cache, *kept)
            if context.cache.prefix is not None:
                shared = {"prefix": shared_layer(context.cache, layer)}
        out = context.attention(q, k, v, valid=context.valid, start=context.start, **shared)
        return out.reshape(*out.shape[:2], -1), kept

    def join(self, heads: jax.Array) -> jax.Array:
        """The output projection of the heads' outputs `[B, T, N · H]`."""
        # Heads and their widths are one axis; with two, CPUs would copy the weights.
        o_proj = self.o_proj[...]
        return jnp.einsum("BTI,ID->BTD", heads, o_proj.reshape(-1, o_proj.shape[-1]))


class MLP(nnx.Module):
    """SwiGLU feed-forward."""

    def __init__(self, weight: Weight):
        self.gate_up_proj = weight("mlp.gate_up_proj")  # packed, or else the two below
        self.gate_proj = weight("mlp.gate_proj")
        self.up_proj = weight("mlp.up_proj")
        self.down_proj = weight("mlp.down_proj")

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.gate_up_proj is not None:
            both = jnp.einsum("BTD,DPF->BTPF", x, self.gate_up_proj[...])
            gate, up = both[:, :, 0], both[:, :, 1]
        else:
            gate = jnp.einsum("BTD,DF->BTF", x, self.gate_proj[...])
            up = jnp.einsum("BTD,DF->BTF", x, self.up_proj[...])
        return jnp.einsum("BTF,FD->BTD", jax.nn.silu(gate) * up, self.down_proj[...])


class Block(nnx.Module):
    """One transformer block; `tap` sees the stream at each site and may change it."""

    def __init__(self, config: LlamaConfig, weight: Weight):
        self.attn_norm = _norm("attn_norm", config, weight)
        self.attn = Attention(config, weight)
        self.mlp_norm = _norm("mlp_norm", config, weight)
        self.mlp = MLP(weight)

    def __call__(
        self, x: jax.Array, context: "Context", layer: int, tap: Tap
    ) -> tuple[jax.Array, Any]:
        x = tap("resid_pre", x)
        heads, kv = self.attn(self.attn_norm(x), context, layer)
        heads = tap("head_out", heads)
        attn_out = tap("attn_out", self.attn.join(heads))
        x = tap("resid_mid", x + attn_out)
        mlp_out = self.mlp(self.mlp_norm(x))
        mlp_out = tap("mlp_out", mlp_out)
        x = tap("resid_post", x + mlp_out)
        return x, kv


class Embedding(nnx.Module):
    """Token embeddings, `[V, D]`."""

    def __init__(self, weight: Weight):
        self.embedding = weight("embed.embedding")


class Head(nnx.Module):
    """The untied output projection, `[D, V]`."""

    def __init__(self, weight: Weight):
        self.kernel = weight("lm_head.kernel")


class Llama(nnx.Module):
    """The whole network. Layers are unrolled: a scan over them decodes 10 times slower."""

    def __init__(
        self, config: LlamaConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs, packed: bool = False
    ):
        self.vocab_size = config.vocab_size
        weight = random_weights(config, dtype=dtype, rngs=rngs, packed=packed)
        self.embed = Embedding(weight)
        self.layers = nnx.List([Block(config, weight) for _ in range(config.n_layers)])
        self.final_norm = _norm("final_norm", config, weight)
        self.lm_head = None if config.tie_embeddings else Head(weight)

    def unembed(self, x: jax.Array) -> jax.Array:
        """Final norm and output projection: `[..., D]` to float32 logits `[..., V]`.

        On a mesh the weight may be padded beyond the vocabulary (see `sharding`).
        """
        x = self.final_norm(x)
        if self.lm_head is None:
            weight, spec = self.embed.embedding[...], "...D,VD->...V"
        else:
            weight, spec = self.lm_head.kernel[...], "...D,DV->...V"
        logits = jnp.einsum(spec, x, weight, preferred_element_type=jnp.float32)
        return logits[..., : self.vocab_size]


def _norm(path: str, config: LlamaConfig, weight: Weight) -> Any:  # RMSNorm, or None
    scale = weight(f"{path}.scale")
    return None if scale is None else RMSNorm(scale, config.norm_eps)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Model:
    """Weights and shape of a model: a pytree whose leaves are the weights.

    It can be passed to `jax.jit` and `jax.tree.map`, and with `xla_attention` to `jax.grad`. Config
    and attention are static, so models of one shape share one compiled program.
    """

    params: Params
    config: LlamaConfig = field(metadata={"static": True})
    attention: AttentionFn = field(metadata={"static": True})

    @property
    def dtype(self) -> jnp.dtype:
        """The weights' dtype, which is also the residual stream's."""
        return self.params["embed"]["embedding"].dtype

    def __repr__(self) -> str:
        """One line without weights; leaves need not be arrays (`jax.tree.map`)."""
        sizes = [getattr(x, "size", 0) for x in jax.tree.leaves(self.params)]
        dtype = getattr(self.params["embed"]["embedding"], "dtype", None)
        config = self.config
        return (
            f"Model({config.n_layers} layers, width {config.d_model}, "
            f"vocabulary {config.vocab_size:,}: {sum(sizes):,} parameters, {dtype})"
        )

    def with_attention(self, attention: AttentionFn) -> "Model":
        """The same model with another attention function (see `attention`)."""
        return replace(self, attention=attention)


@dataclass(frozen=True)
class Context:
    """What all layers of one forward pass share."""

    cos_sin: tuple[jax.Array, jax.Array]  # cosine and sine of rotary angles, [B, T, 1, H / 2]
    valid: jax.Array  # bool [B, S]
    start: jax.Array  # int32 scalar or [B], slot of the first query token
    cache: KVCache | None
    attention: AttentionFn


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Output:
    """What a forward pass gives."""

    logits: jax.Array  # float32 [B, T, V], or [B, 1, V] with `last_only`
    cache: KVCache | None  # the cache with this pass's tokens written, if one was given
    captured: dict[str, jax.Array]  # by site; see Capture for the shapes


@functools.lru_cache(maxsize=16)
def _structure(config: LlamaConfig, dtype_name: str, packed: bool = False) -> tuple[Any, Any]:
    dtype = jnp.dtype(dtype_name)
    module = nnx.eval_shape(lambda: Llama(config, dtype=dtype, rngs=nnx.Rngs(0), packed=packed))
    return nnx.split(module)


def abstract_params(config: LlamaConfig, dtype: jnp.dtype = jnp.float32) -> Params:
    """Shapes and dtypes of the parameters, as the nested dict that `Model.params` is."""
    _, state = _structure(config, jnp.dtype(dtype).name)
    return nnx.to_pure_dict(state)


def from_params(params: Params, config: LlamaConfig) -> Model:
    """A `Model` with this machine's default attention function."""
    dtype = params["embed"]["embedding"].dtype
    return Model(params, config, default_attention(dtype, config.head_dim))


def is_packed(model: Model) -> bool:
    """Whether the projections of each layer lie side by side (see `packing`)."""
    return "qkv_proj" in model.params["layers"][0]["attn"]


def init(config: LlamaConfig, *, seed: int = 0, dtype: jnp.dtype = jnp.float32) -> Model:
    """A model with random weights (normal, standard deviation 0.02)."""
    module = Llama(config, dtype=dtype, rngs=nnx.Rngs(seed))
    return from_params(nnx.to_pure_dict(nnx.state(module)), config)


def bind(model: Model) -> Llama:
    """The NNX module with the model's weights in it, for use inside traced code."""
    graphdef, state = _structure(model.config, jnp.dtype(model.dtype).name, is_packed(model))
    leaves = jax.tree.leaves(model.params)
    return nnx.merge(graphdef, jax.tree.unflatten(jax.tree.structure(state), leaves))


def forward(
    model: Model,
    tokens: jax.Array | TokenBatch | TokenRows,
    *,
    mask: jax.Array | None = None,
    cache: KVCache | None = None,
    steering: Steering | Sequence[Steering] | None = None,
    prompt_length: jax.Array | None = None,
    thinking: jax.Array | None = None,
    row: jax.Array | None = None,
    capture: Capture | None = None,
    last_only: bool = False,
    remat: bool = False,
) -> Output:
    """Run the model over `tokens` `[B, T]`; pure, for use in `jax.jit`.

    Args:
        model: the weights.
        tokens: int32 `[B, T]`, left-padded; or a batch with its mask, or token ids row by row.
        mask: bool `[B, T]`, True on real tokens; by default all are real.
        cache: keys and values of earlier tokens. The pass reads them and returns the cache with its
            own tokens written at the cursor. The caller makes sure that they fit.
        steering: one intervention or several, applied in order.
        prompt_length: int32 `[B]`, real tokens of each row that are prompt; scopes of `steering`
            count from it. By default all tokens of this pass are prompt.
        thinking: bool `[B, T]`, which of these tokens lie inside <think>…</think>; needed only by
            scopes that are confined to them.
        row: integers `[B]` that identify each row in any batch; needed only by noise.
        capture: what to return of the stream, after steering at the same site.
        last_only: unembed the last position only.
        remat: under `jax.grad`, save each block's input only and run the block again in the
            backward pass: a third more work, and memory for the stream instead of all activations.

    Raises:
        ValueError: for tokens of another shape, a capture of what the model does not have, and a
            steering that is not traced and does not fit or would steer nothing. Token ids are not
            checked.
    """
    tokens, mask = with_mask(tokens, mask)
    B, T = tokens.shape
    config = model.config
    if capture is not None:
        capturing.check_capture(capture, config)
    module = bind(model)
    before: jax.Array | int = 0
    if cache is None:
        start, valid = jnp.zeros((), jnp.int32), mask
    else:
        start, before = cache.cursor, prefix_lengths(cache)
        valid = write(cache.valid, mask, start)
    # The slot of position 0, [B]: the first real one, or negative if the row goes on from a prefix.
    origin = jnp.argmax(valid, axis=1).astype(jnp.int32) - before
    slot = start[..., None] + jnp.arange(T)  # [T], or [B, T] where each row has a cursor
    position = slot - origin[:, None]  # [B, T], negative on padding
    rotary = cos_sin(position, config, once=compiled_for_cpu(model.attention))
    context = Context(rotary, valid, start, cache, model.attention)

    steerings = as_tuple(steering)
    for one in steerings:
        all_prompt = T if prompt_length is None and cache is None else None
        check_steering_unless_traced(one, config, rows=B, prompt_length=all_prompt)
    if prompt_length is None:
        prompt_length = jnp.sum(valid, axis=1) + before
    coeffs = [steers.token_coeffs(s, position, prompt_length, thinking, row) for s in steerings]

    x = module.embed.embedding[...][tokens]
    captured: dict[tuple[str, int], jax.Array] = {}
    kv = []
    for layer, block in enumerate(module.layers):

        def run_block(x: jax.Array, layer: int = layer, block: Block = block) -> Any:
            seen: dict[tuple[str, int], jax.Array] = {}

            def tap(site: str, x: jax.Array) -> jax.Array:
                for s, c in zip(steerings, coeffs, strict=True):
                    x = steers.apply(x, site=site, layer=layer, steering=s, coeffs=c)
                if capture is not None and capturing.wants(capture, site, layer):
                    seen[site, layer] = capture.read(x, origin - start)
                return x

            return *block(x, context, layer, tap), seen

        x, layer_kv, seen = (jax.checkpoint(run_block) if remat else run_block)(x)
        captured |= seen
        kv.append(layer_kv)

    if cache is not None:
        k, v = [k for k, _ in kv], [v for _, v in kv]
        cache = replace(cache, k=k, v=v, valid=valid, cursor=start + T)
    logits = module.unembed(x[:, -1:] if last_only else x)
    return Output(logits, cache, capturing.collect(capture, captured, config))

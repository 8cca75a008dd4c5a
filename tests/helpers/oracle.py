"""What tests measure against: numpy, transformers, and decoding step by step with captures."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsteer.config.shape import LlamaConfig
from jaxsteer.huggingface import tensor_names as hf
from jaxsteer.llama.model import Model, Output, abstract_params, forward, from_params
from jaxsteer.llama.parameters import flatten, nest
from jaxsteer.llama.prompt_blocks import make_cache
from jaxsteer.llama.tokens import TokenBatch
from jaxsteer.steering.capture import Capture
from jaxsteer.steering.sites import SITES
from jaxsteer.steering.steering import Steering

SMALL = LlamaConfig(
    vocab_size=61,
    d_model=16,
    d_mlp=24,
    n_layers=3,
    n_heads=4,
    n_kv_heads=2,
    head_dim=4,
    max_positions=64,
    rope_theta=100.0,
)
# Decoding loops compile for seconds a layer.
SHALLOW = replace(SMALL, n_layers=2)

run = jax.jit(forward, static_argnames="last_only")  # shared, so that a shape compiles once


def random_model(config: LlamaConfig, *, seed: int = 0) -> Model:
    """Random weights that let errors show.

    Queries and keys are large, so that attention is far from flat and rotary angles matter;
    embeddings are small, so that the norm's epsilon matters; no norm's scale is 1.
    """
    rng = np.random.default_rng(seed)

    def draw(path: tuple[str | int, ...], shape: tuple[int, ...]) -> np.ndarray:
        if path[-1] == "scale":
            return rng.uniform(0.5, 1.5, shape).astype(np.float32)
        std = {"embedding": 0.02, "q_proj": 0.5, "k_proj": 0.5}.get(str(path[-1]), 0.2)
        return (std * rng.standard_normal(shape)).astype(np.float32)

    shapes = flatten(abstract_params(config))
    params = nest((path, jnp.asarray(draw(path, leaf.shape))) for path, leaf in shapes)
    return from_params(params, config)


def random_rows(lengths: Sequence[int], vocab_size: int, *, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(vocab_size, size=n).tolist() for n in lengths]


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest absolute error over the largest absolute value."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def alone(x, row: int):
    """One row of a batch, of a steering or of anything else whose arrays have a row axis."""
    return jax.tree.map(lambda leaf: leaf[row : row + 1], x)


def torch_twin(model: Model, hf_config: dict | None = None) -> Any:
    """transformers' model of the same config and weights, in float32.

    Its config is made of `hf_config`, the fields of a config.json, or else of the model's own.
    """
    import torch  # here, because the imports take seconds, in every process that tests start, too
    import transformers

    fields = copy.deepcopy(hf_config or model.config.to_hf())  # they write into its dicts
    fields |= {"eos_token_id": None, "pad_token_id": 0}
    config = transformers.AutoConfig.for_model(**fields)
    twin = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", dtype=torch.float32
    )
    weights = {k: torch.tensor(x) for k, x in hf.to_hf(model.params, model.config).items()}
    left = twin.load_state_dict(weights, strict=False)
    assert not left.unexpected_keys
    assert left.missing_keys == ([hf.HEAD] if model.config.tie_embeddings else [])
    twin.tie_weights()
    return twin.eval()


def torch_sites(twin, tokens: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Every site of every layer, `[L, B, T, D]`, and the logits, by hooks on the modules.

    (`hidden_states` would not do: its last entry is behind the final norm.)
    """
    import torch

    seen: dict[str, list[np.ndarray]] = {site: [] for site in SITES}

    def keep(site, x):
        seen[site].append((x[0] if isinstance(x, tuple) else x).numpy())

    handles = []
    for layer in twin.model.layers:
        handles += [
            layer.register_forward_pre_hook(lambda m, args: keep("resid_pre", args[0])),
            layer.self_attn.o_proj.register_forward_pre_hook(
                lambda m, args: keep("head_out", args[0])
            ),
            layer.self_attn.register_forward_hook(lambda m, args, out: keep("attn_out", out)),
            layer.post_attention_layernorm.register_forward_pre_hook(
                lambda m, args: keep("resid_mid", args[0])
            ),
            layer.mlp.register_forward_hook(lambda m, args, out: keep("mlp_out", out)),
            layer.register_forward_hook(lambda m, args, out: keep("resid_post", out)),
        ]
    with torch.no_grad():
        logits = twin(torch.tensor(tokens, dtype=torch.long), use_cache=False).logits.numpy()
    for handle in handles:
        handle.remove()
    return {site: np.stack(xs) for site, xs in seen.items()}, logits


def site_errors(model: Model, tokens: np.ndarray, expected, expected_logits) -> dict[str, float]:
    """Largest relative error of each site over the layers, and of the logits."""
    out = run(model, tokens, capture=Capture(sites=SITES))
    found = {
        site: max(relative_error(a, b) for a, b in zip(out.captured[site], xs, strict=True))
        for site, xs in expected.items()
    }
    late = relative_error(out.logits[:, -100:], expected_logits[:, -100:])
    return found | {"logits": relative_error(out.logits, expected_logits), "late logits": late}


def steps(
    model: Model,
    batch: TokenBatch,
    new_tokens: np.ndarray,
    *,
    steering: Steering | Sequence[Steering] | None = None,
    capture: Capture | None = None,
    thinking: np.ndarray | None = None,
    row: np.ndarray | None = None,
) -> Iterator[tuple[np.ndarray, Output]]:
    """Prefill `batch`, then run `new_tokens` `[B, G]` one by one through the cache.

    `thinking` `[B, T + G]` is what `forward` is told of each token.

    Yields for each pass the absolute positions of its tokens, `[B, T]` (negative on padding), and
    the output.
    """
    B, T = batch.tokens.shape
    cache = make_cache(model, rows=B, capacity=T + new_tokens.shape[1])
    lengths = np.asarray(batch.lengths)[:, None]
    options = {"steering": steering, "prompt_length": batch.lengths, "capture": capture, "row": row}
    thought = [None] * (1 + new_tokens.shape[1])
    if thinking is not None:
        thought = np.split(thinking, range(T, thinking.shape[1]), axis=1)
    first = options | {"mask": batch.mask, "thinking": thought[0]}
    out = run(model, batch.tokens, cache=cache, **first)
    yield np.arange(T) - (T - lengths), replace(out, cache=None)
    for g in range(new_tokens.shape[1]):
        now = options | {"thinking": thought[1 + g]}
        out = run(model, new_tokens[:, g : g + 1], cache=out.cache, **now)
        yield lengths + g, replace(out, cache=None)


def last_logits(model: Model, batch: TokenBatch, new_tokens: np.ndarray, **options) -> np.ndarray:
    """Logits behind the prompt and behind each of `new_tokens`, `[B, 1 + G, V]`."""
    passes = steps(model, batch, new_tokens, **options)
    return np.stack([np.asarray(out.logits[:, -1]) for _, out in passes], axis=1)

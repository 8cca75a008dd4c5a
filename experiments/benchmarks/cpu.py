"""Steered generation on a CPU against transformers with a forward hook, on the same weights.

    python -m experiments.benchmarks.cpu

Greedy decoding of the small pair's reasoning model in float32, both steered at one layer by the
same vector from the first generated token on. Both engines take turns, the best of several runs
counts, compilation is not timed; the tokens must be the same. Prints one JSON line a batch size
(`floor_ms` is what the multiplications alone take at the machine's rate, which no engine can beat),
one that compares sampling with top-p to greedy decoding at a vocabulary of 49,152, random weights
otherwise of the same shape, and some that compare rows in parts, one on each core, with all rows
together, also at the shape of SmolLM2-135M. Exits with 1 if a token differs. Needs PyTorch.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from jaxsteer.checkpoints import checkpoint
from jaxsteer.config import LlamaConfig
from jaxsteer.decoding import (
    Generation,
    cache_bytes,
    cores,
    generate,
    sampling,
    weight_bytes,
)
from jaxsteer.files import as_path
from jaxsteer.llama import Model, init, left_pad
from jaxsteer.models import convert
from jaxsteer.planning import Machine, decode_seconds, prefill_operations
from jaxsteer.runtime import matrix_rate
from jaxsteer.steering import add, from_last_prompt_token

SMALL = Path(__file__).parents[2] / "weights" / "small" / "reasoning"
LAYER, COEFF = 4, 4.0  # of the small pair: half-way up, strong enough to change tokens
SMOLLM2_135M = LlamaConfig(
    vocab_size=49_152, d_model=576, d_mlp=1536, n_layers=30, n_heads=9, n_kv_heads=3, head_dim=64,
    rope_theta=1e5, tie_embeddings=True,
)  # fmt: skip


def load_both(source: Path) -> tuple[Model, Any]:
    """The model of a Hugging Face folder in both engines, float32."""
    with tempfile.TemporaryDirectory() as folder:
        convert(source, Path(folder) / "converted")
        model, _ = checkpoint.load(Path(folder) / "converted", dtype=jnp.float32)
    twin = transformers.LlamaForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    twin.generation_config.eos_token_id = None  # the same number of steps for both
    return model, twin


def least_ms(model: Model, machine: Machine, *, rows: int, prompt: int, steps: int) -> float:
    """What the products of a step take at least, in milliseconds, with its share of prefill."""
    prefill = prefill_operations(model, rows=rows, prompt=prompt) / machine.rate
    decode = decode_seconds(model, machine, rows=rows, prompt=prompt, steps=steps)
    return (prefill + decode) / steps * 1e3


def compare(
    model: Model, twin: Any, *, layer: int, rows: int, prompt: int, steps: int, repeats: int
) -> dict[str, Any]:
    """Milliseconds a step of both engines, prefill included, and whether the tokens agree."""
    random = np.random.default_rng(0)
    config = model.config
    tokens = random.integers(3, config.vocab_size, (rows, prompt))
    vector = random.normal(size=config.d_model) / config.d_model**0.5
    batch = left_pad(tokens.tolist(), length=prompt)
    steering = add(vector, layer=layer, coeff=COEFF, scope=from_last_prompt_token())
    shift = torch.tensor(COEFF * vector, dtype=torch.float32)

    def hook(module: Any, inputs: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        hidden[:, -1] += shift  # the prompt's last token, then each new one
        return output

    def ours() -> np.ndarray:
        return generate(model, batch, max_new_tokens=steps, steering=steering).tokens

    def theirs() -> np.ndarray:
        ids = torch.tensor(tokens)
        with torch.inference_mode():
            out = twin.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=steps,
                do_sample=False,
                pad_token_id=0,
            )
        return out[:, prompt:].numpy()

    handle = twin.model.layers[layer].register_forward_hook(hook)
    try:
        same = bool(np.array_equal(ours(), theirs()))
        times: dict[str, list[float]] = {"jaxsteer": [], "transformers": []}
        for _ in range(repeats):
            for name, work in (("jaxsteer", ours), ("transformers", theirs)):
                started = time.perf_counter()
                work()
                times[name].append(time.perf_counter() - started)
    finally:
        handle.remove()
    best = {f"{name}_ms": min(spent) / steps * 1e3 for name, spent in times.items()}
    return {
        "rows": rows,
        "prompt": prompt,
        "steps": steps,
        **best,
        "times_faster": best["transformers_ms"] / best["jaxsteer_ms"],
        "same_tokens": same,
    }


def compare_sampling(
    config: LlamaConfig, *, rows: int, prompt: int, steps: int, repeats: int
) -> dict[str, Any]:
    """Milliseconds a step of greedy decoding and of top-p sampling, which take turns."""
    model = init(config)
    tokens = np.random.default_rng(0).integers(3, config.vocab_size, (rows, prompt))
    batch = left_pad(tokens.tolist(), length=prompt)
    top_p = sampling(rows, temperature=0.6, top_p=0.95)
    best = least_in_turns(
        {
            "greedy": lambda: generate(model, batch, max_new_tokens=steps),
            "top_p": lambda: generate(model, batch, max_new_tokens=steps, sampling_params=top_p),
        },
        steps=steps,
        repeats=repeats,
    )
    return {
        "vocabulary": config.vocab_size,
        "rows": rows,
        "prompt": prompt,
        "steps": steps,
        **best,
        "times_greedy": best["top_p_ms"] / best["greedy_ms"],
    }


def least_in_turns(
    works: dict[str, Callable[[], Any]], *, steps: int, repeats: int
) -> dict[str, float]:
    """The shortest time of each work in milliseconds a step; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(1 + repeats):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            if turn:  # the first compiles
                times[name].append(time.perf_counter() - started)
    return {f"{name}_ms": min(spent) / steps * 1e3 for name, spent in times.items()}


def compare_parts(
    model: Model, *, rows: int, prompt: int, steps: int, repeats: int
) -> dict[str, Any]:
    """Rows in as many parts as there are cores against all rows together, greedy."""
    tokens = np.random.default_rng(0).integers(3, model.config.vocab_size, (rows, prompt))
    batch = left_pad(tokens.tolist(), length=prompt)

    def run(cache_share: float) -> Generation:
        with mock.patch.multiple(cores, CACHE_SHARE=cache_share, LEAST_ROWS=1):
            return generate(model, batch, max_new_tokens=steps)

    works = {"together": lambda: run(math.inf), "in_parts": lambda: run(1e-9)}
    best = least_in_turns(works, steps=steps, repeats=repeats)
    sizes = {"rows": rows, "prompt_length": prompt, "new_tokens": steps}
    return {
        "weights_MB": round(weight_bytes(model) / 1e6),
        "caches_MB": round(cache_bytes(model, **sizes) / 1e6),
        "rows": rows,
        **best,
        "times_faster": best["together_ms"] / best["in_parts_ms"],
        "same_tokens": bool(np.array_equal(run(math.inf).tokens, run(1e-9).tokens)),
    }


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.cpu")
    parser.add_argument("--source", type=as_path, default=SMALL, help="a Hugging Face folder")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--steps", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--vocabulary", type=int, default=49_152, help="of sampling against greedy")
    args = parser.parse_args(argv)
    jax.config.update("jax_default_matmul_precision", "highest")
    # A model this small may lie in the processor's caches: reading counts as nothing.
    machine = Machine(bandwidth=math.inf, rate=matrix_rate(dtype=jnp.float32))
    print(json.dumps({"jax": jax.__version__, "GFLOP_s": machine.rate / 1e9}), flush=True)
    model, twin = load_both(args.source)
    same = True
    for rows in args.rows:
        sizes = {"rows": rows, "prompt": args.prompt, "steps": args.steps}
        figures = compare(model, twin, layer=LAYER, repeats=args.repeats, **sizes)
        floor = least_ms(model, machine, **sizes)
        figures |= {"floor_ms": floor, "at_most": figures["transformers_ms"] / floor}
        print(json.dumps(figures), flush=True)
        same &= figures["same_tokens"]
    large = replace(model.config, vocab_size=args.vocabulary)
    steps = max(1, args.steps // 4)
    sizes = {"rows": max(args.rows), "prompt": args.prompt, "steps": steps}
    print(json.dumps(compare_sampling(large, repeats=args.repeats, **sizes)), flush=True)
    for one, counts in ((model, (4, 8, 32, 128)), (init(SMOLLM2_135M), (8, 32, 128))):
        for rows in counts:
            figures = compare_parts(one, rows=rows, prompt=args.prompt, steps=steps, repeats=2)
            print(json.dumps(figures), flush=True)
            same &= figures["same_tokens"]
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())

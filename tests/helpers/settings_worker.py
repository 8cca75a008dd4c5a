"""Everything that generates, once; run as a process whose environment sets an option of JAX."""

import json
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[2]))  # the process starts in this folder

import jax
import numpy as np
from oracle import SHALLOW, random_model, random_rows

import jaxsteer
from jaxsteer import Capture, scope
from jaxsteer.llama.cache import empty_cache

PROMPTS = random_rows((3, 8, 5), SHALLOW.vocab_size)
V = np.random.default_rng(0).standard_normal(SHALLOW.d_model)


def everything() -> list[Any]:
    """Tokens of `generate`, `stream`, `generate_queue` and `sweep`, and what a cache gives."""
    model = random_model(SHALLOW)
    mixed = jaxsteer.rows(
        [
            jaxsteer.when(jaxsteer.add(V, layer=0, coeff=2.0), V, above=0.5),
            jaxsteer.add(V, layer=1, coeff=-1.0, scope=scope.everywhere()),
            jaxsteer.ablate(V, layer="all"),
        ]
    )
    settings = jaxsteer.sampling(3, temperature=1.0, top_p=0.9, seed=1)
    asked: dict[str, Any] = {
        "max_new_tokens": 4,
        "max_tokens": [4, 2, 4],
        "sampling_params": settings,
        "stop_tokens": [7],
    }
    capture = Capture(layers=(1,), where=scope.everywhere())
    out = jaxsteer.generate(model, PROMPTS, **asked, steering=mixed, capture=capture)
    assert out.captured is not None
    steps = jaxsteer.stream(model, PROMPTS, **asked, steering=mixed)
    queue = jaxsteer.generate_queue(model, PROMPTS, **asked, steering=mixed, slots=2)
    cells = jaxsteer.grid({"v": V}, layers=[1], coeffs=[0.0, 2.0], scope=scope.everywhere())
    swept = jaxsteer.sweep(model, PROMPTS, cells, **asked)
    batch = jaxsteer.left_pad(PROMPTS, length=8)
    cache = empty_cache(SHALLOW, rows=3, capacity=9, dtype=model.dtype)
    first = jaxsteer.forward(model, batch.tokens, mask=batch.mask, cache=cache)
    read = Capture(positions=[0, 2])
    again = jaxsteer.forward(model, batch.tokens[:, :1], cache=first.cache, capture=read)
    found = {
        "generate": out.tokens,
        "captured": out.captured.positions,
        "stream": np.stack(list(steps)),
        "queue": [row.tokens for row in sorted(queue, key=lambda row: row.index)],
        "sweep": [result.tokens for chunk in swept for result in chunk],
        "cache": np.argmax(again.logits, axis=-1),
    }
    return jax.tree.map(lambda x: np.asarray(x).tolist(), found)


if __name__ == "__main__":
    jax.config.update("jax_default_matmul_precision", "highest")
    print(json.dumps(everything()))

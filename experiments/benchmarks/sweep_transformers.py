"""The sweep of `sweep` by transformers with a forward hook: what people do without jaxsteer.

    python -m experiments.benchmarks.sweep --engine transformers

The same shapes with random bf16 weights, in batches of whole cells. The hook adds each row's vector
times its coefficient at one layer, at every generated token. Greedy, no stop token, SDPA attention,
transformers' own `generate` with its default cache. Needs PyTorch.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import transformers

from experiments.benchmarks.sweep_work import Work, make_work
from jaxsteer.config import LlamaConfig

_WARM_UP = 2  # tokens


def measure(work: Work, *, batch: int, tokens: int) -> Iterator[dict[str, Any]]:
    """Time the first `tokens` new tokens of every batch of at most `batch` rows."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = random_model(work.config, device)
    prompts, mask, vectors, coeffs = make_work(work)
    ids = torch.tensor(np.asarray(prompts), dtype=torch.long, device=device)
    attend = torch.tensor(np.asarray(mask), dtype=torch.long, device=device)
    shift = torch.tensor(vectors * coeffs[:, None], dtype=torch.bfloat16, device=device)
    cells = max(1, batch // work.prompts)  # a batch holds whole cells
    parts = [shift[i : i + cells] for i in range(0, work.cells, cells)]
    run_cells(model, ids, attend, parts[0], layer=work.layer, tokens=_WARM_UP)
    started = time.perf_counter()
    for part in parts:
        run_cells(model, ids, attend, part, layer=work.layer, tokens=tokens)
    seconds = time.perf_counter() - started
    step_ms = seconds / (len(parts) * tokens) * 1e3
    rows = work.cells * work.prompts
    figures = {
        "case": "sweep, transformers with a hook",
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "batches": len(parts),
        "rows_per_batch": len(parts[0]) * work.prompts,
        "tokens_timed": tokens,
        "step_ms": step_ms,  # of one batch, prefill included
        "tokens_per_s": rows * tokens / seconds,
        "seconds": seconds,
    }
    if tokens < work.new_tokens:
        # Later tokens attend to more, so this is rather too little.
        figures["seconds_extrapolated"] = seconds * work.new_tokens / tokens
    if device == "cuda":
        figures["peak_GB"] = torch.cuda.max_memory_allocated() / 1e9
    yield figures


def random_model(config: LlamaConfig, device: str) -> Any:
    """Transformers' model of a shape, bf16, with random weights; it never ends a row."""
    twin = transformers.AutoConfig.for_model(
        **config.to_hf(),
        attn_implementation="sdpa",
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = transformers.AutoModelForCausalLM.from_config(twin).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    model.generation_config.eos_token_id = None  # the same number of tokens for both
    return model


def run_cells(
    model: Any,
    ids: torch.Tensor,
    mask: torch.Tensor,
    shift: torch.Tensor,
    *,
    layer: int,
    tokens: int,
) -> torch.Tensor:
    """Every prompt with every one of `shift` `[C, D]`; returns new tokens `[C · B, tokens]`."""
    each = shift.repeat_interleave(len(ids), dim=0)[:, None]
    ids, mask = (x.repeat(len(shift), 1) for x in (ids, mask))
    return generate(model, ids, mask, {layer: each}, tokens=tokens)


def generate(
    model: Any,
    ids: torch.Tensor,
    mask: torch.Tensor,
    shifts: Mapping[int, torch.Tensor],
    *,
    tokens: int,
) -> torch.Tensor:
    """New tokens `[B, tokens]`; a layer's `shifts` `[B, 1, D]` are added at generated tokens."""
    length = ids.shape[1]

    def adding(shift: torch.Tensor) -> Callable[..., Any]:
        def hook(module: Any, inputs: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            if hidden.shape[1] == 1:  # a generated token
                hidden += shift
            return output

        return hook

    layers = model.model.layers
    handles = [layers[i].register_forward_hook(adding(shift)) for i, shift in shifts.items()]
    try:
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=mask,
                min_new_tokens=tokens,
                max_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
            )
    finally:
        for handle in handles:
            handle.remove()
    if out.is_cuda:
        torch.cuda.synchronize()
    return out[:, length:]

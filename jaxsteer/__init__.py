"""jaxsteer: steer and read the residual stream of Llama and Qwen2 models in JAX.

    model, tokenizer = jaxsteer.load("checkpoints/r1-distill-llama-8b")
    batch = jaxsteer.left_pad([tokenizer.encode("1 + 1 =")])
    steering = jaxsteer.add(v, layer=10, coeff=8.0)
    out = jaxsteer.generate(model, batch, max_new_tokens=100, steering=steering)

Read `model`, `steering` and `generate` first, in this order.
"""

from jaxsteer.analysis import graft, score, token_logprobs
from jaxsteer.checkpoints import end_tokens, load, save
from jaxsteer.config import LlamaConfig
from jaxsteer.decoding import (
    DecodeState,
    Request,
    StopStrings,
    append,
    decode_step,
    generate,
    generate_queue,
    greedy,
    make_request,
    prefill,
    run,
    sample,
    sampling,
    stop_strings,
    stream,
    think_tokens,
    token_bytes,
    unfinished,
)
from jaxsteer.directions import Direction, cosine, load_directions, save_directions
from jaxsteer.llama import (
    Model,
    TokenBatch,
    arrange,
    forward,
    init,
    left_pad,
    make_mesh,
    pack,
    shard_batch,
    shard_model,
    unpack,
)
from jaxsteer.runtime import compile_cache, hosts, preemption
from jaxsteer.steering import (
    SITES,
    Capture,
    Steering,
    ablate,
    add,
    amplify,
    clamp,
    head_vector,
    noise,
    replace,
    rows,
    schedules,
    scope,
    stack,
    when,
)
from jaxsteer.sweeps import Cell, grid, sweep, sweep_to_file

__version__ = "0.1.0"

compile_cache.turn_on_by_default()

__all__ = [
    "SITES",
    "Capture",
    "Cell",
    "DecodeState",
    "Direction",
    "LlamaConfig",
    "Model",
    "Request",
    "Steering",
    "StopStrings",
    "TokenBatch",
    "ablate",
    "add",
    "amplify",
    "append",
    "arrange",
    "clamp",
    "compile_cache",
    "cosine",
    "decode_step",
    "end_tokens",
    "forward",
    "generate",
    "generate_queue",
    "graft",
    "greedy",
    "grid",
    "head_vector",
    "hosts",
    "init",
    "left_pad",
    "load",
    "load_directions",
    "make_mesh",
    "make_request",
    "noise",
    "pack",
    "preemption",
    "prefill",
    "replace",
    "rows",
    "run",
    "sample",
    "sampling",
    "save",
    "save_directions",
    "schedules",
    "scope",
    "score",
    "shard_batch",
    "shard_model",
    "stack",
    "stop_strings",
    "stream",
    "sweep",
    "sweep_to_file",
    "think_tokens",
    "token_bytes",
    "token_logprobs",
    "unfinished",
    "unpack",
    "when",
]

"""jaxsteer: steer and read the residual stream of Llama and Qwen2 models in JAX.

    model, tokenizer = jaxsteer.load("checkpoints/r1-distill-llama-8b")
    batch = jaxsteer.left_pad([tokenizer.encode("1 + 1 =")])
    steering = jaxsteer.add(v, layer=10, coeff=8.0)
    out = jaxsteer.generate(model, batch, max_new_tokens=100, steering=steering)

Read `model`, `steering` and `generate` first, in this order.
"""

from jaxsteer import compile_cache, hosts, preemption, schedules, scope
from jaxsteer.capture import Capture
from jaxsteer.cells import Cell, grid
from jaxsteer.checkpoint import load, save
from jaxsteer.config import LlamaConfig
from jaxsteer.end_tokens import end_tokens
from jaxsteer.generate import (
    DecodeState,
    append,
    decode_step,
    generate,
    prefill,
    run,
    stream,
    unfinished,
)
from jaxsteer.graft import graft
from jaxsteer.interventions import ablate, add, amplify, clamp, head_vector, noise, replace, when
from jaxsteer.model import Model, forward, init
from jaxsteer.packing import arrange, pack, unpack
from jaxsteer.refill import generate_queue
from jaxsteer.request import Request, make_request
from jaxsteer.sampling import greedy, sample, sampling
from jaxsteer.score import score, token_logprobs
from jaxsteer.sharding import make_mesh, shard_batch, shard_model
from jaxsteer.sites import SITES
from jaxsteer.steering import Steering, rows, stack
from jaxsteer.stop_strings import StopStrings, stop_strings
from jaxsteer.sweep import sweep
from jaxsteer.sweep_file import sweep_to_file
from jaxsteer.thinking import think_tokens
from jaxsteer.token_text import token_bytes
from jaxsteer.tokens import TokenBatch, left_pad
from jaxsteer.vectors import Direction, cosine, load_directions, save_directions

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

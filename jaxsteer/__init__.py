"""jaxsteer: steer and read the residual stream of Llama, Qwen and Mistral models in JAX.

Texts in, texts out:

    lm = jaxsteer.load("Qwen/Qwen2.5-7B-Instruct")
    v = jaxsteer.direction(lm, texts, other_texts)
    lm.generate(prompts, steering=jaxsteer.add(v[10], coeff=[0, 2]))

Arrays in, arrays out, for your own `jax.jit`:

    model, tokenizer = lm
    batch = jaxsteer.left_pad([jaxsteer.encode(tokenizer, "1 + 1 =").ids])
    out = jaxsteer.generate(model, batch, max_new_tokens=100, steering=steering)

Rooms, each of which uses only those above it:

    runtime      the machine: hosts, signals, compiled programs on disk
    files        bytes on a disk or in a bucket: whole or not there
    config       the shape of a model, presets, `config.json`
    steering     what is read and changed in the residual stream, as data
    llama        the network, its attention, cache and meshes
    decoding     generation: prefill, a step, the loop; samplers, ends of rows
    queues       many prompts in a fixed number of slots
    tokenizers   texts and chats as token ids, and what goes before them
    huggingface  other people's files: names of tensors, shards, GGUF, the hub
    checkpoints  models on disk
    models       models in and out: load, convert, export, verify
    sweeps       cells × prompts in one compiled program
    directions   where a direction comes from and where it is kept
    analysis     what a direction or a text shows
    pages        a sweep as one HTML file: plots, every text, figures
    texts        texts in, texts out: what people type first
    planning     what fits on which chips
    cli          the command `jaxsteer`

Read `steering.steering`, `llama.model`, `decoding.generation` and `sweeps.chunks`, in this order.
"""

from jaxsteer import (
    analysis,
    checkpoints,
    config,
    decoding,
    directions,
    files,
    huggingface,
    llama,
    models,
    pages,
    planning,
    queues,
    runtime,
    steering,
    sweeps,
    texts,
    tokenizers,
)
from jaxsteer.analysis import graft, repetition, score, token_logprobs
from jaxsteer.checkpoints import end_tokens, save
from jaxsteer.config import LlamaConfig
from jaxsteer.decoding import (
    DecodeState,
    Request,
    StopStrings,
    choose_and_append,
    compile_generate,
    decode_step,
    generate,
    greedy,
    make_request,
    prefill,
    run,
    sample,
    sampling,
    stop_strings,
    stream,
    think_tokens,
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
from jaxsteer.models import Loaded, convert, export
from jaxsteer.queues import generate_queue
from jaxsteer.runtime import VERSION, compile_cache, hosts, preemption, tpu_probe
from jaxsteer.steering import (
    SITES,
    At,
    Capture,
    EventSums,
    Project,
    RowSums,
    Steering,
    TokenSums,
    ablate,
    above,
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
from jaxsteer.sweeps import Cell, compile_sweep, grid, sweep, sweep_to_file
from jaxsteer.texts import (
    LanguageModel,
    LayerDirections,
    Table,
    Texts,
    contains,
    direction,
    load,
    measure,
    on_result,
    perplexity,
    words,
)
from jaxsteer.tokenizers import EncodedPrompt, encode, text_beginning, token_bytes

__version__ = VERSION

tpu_probe.skip_where_there_is_none()
compile_cache.turn_on_by_default()

__all__ = [  # noqa: RUF022 - by room, in the order above
    # The rooms themselves.
    "analysis",
    "checkpoints",
    "config",
    "decoding",
    "directions",
    "files",
    "huggingface",
    "llama",
    "models",
    "pages",
    "planning",
    "queues",
    "runtime",
    "steering",
    "sweeps",
    "texts",
    "tokenizers",
    # runtime
    "compile_cache",
    "compile_generate",
    "compile_sweep",
    "hosts",
    "preemption",
    # config
    "LlamaConfig",
    # steering
    "ablate",
    "above",
    "add",
    "amplify",
    "At",
    "Capture",
    "clamp",
    "EventSums",
    "head_vector",
    "noise",
    "Project",
    "replace",
    "rows",
    "RowSums",
    "schedules",
    "scope",
    "SITES",
    "stack",
    "Steering",
    "TokenSums",
    "when",
    # llama
    "arrange",
    "forward",
    "init",
    "left_pad",
    "make_mesh",
    "Model",
    "pack",
    "shard_batch",
    "shard_model",
    "TokenBatch",
    "unpack",
    # decoding
    "choose_and_append",
    "decode_step",
    "DecodeState",
    "generate",
    "greedy",
    "make_request",
    "prefill",
    "Request",
    "run",
    "sample",
    "sampling",
    "stop_strings",
    "StopStrings",
    "stream",
    "think_tokens",
    "unfinished",
    # queues
    "generate_queue",
    # tokenizers
    "encode",
    "EncodedPrompt",
    "text_beginning",
    "token_bytes",
    # checkpoints
    "end_tokens",
    "save",
    # models
    "convert",
    "export",
    "Loaded",
    # sweeps
    "Cell",
    "grid",
    "sweep",
    "sweep_to_file",
    # directions
    "cosine",
    "Direction",
    "load_directions",
    "save_directions",
    # analysis
    "graft",
    "repetition",
    "score",
    "token_logprobs",
    # texts
    "contains",
    "direction",
    "LanguageModel",
    "LayerDirections",
    "load",
    "measure",
    "on_result",
    "perplexity",
    "Table",
    "Texts",
    "words",
]

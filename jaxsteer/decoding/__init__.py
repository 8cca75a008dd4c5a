"""Generation: prompts in, sampled tokens out, steered, in batches.

Start with `generation`: `prefill`, `decode_step`, the loop and `generate`. What rows ask for is in
`request`, how a token is chosen in `samplers`, ends of rows in `stops`, activations of generated
tokens in `captured`, the memory that rows take in `memory`, rows in parts on the cores of a CPU in
`cores`.

Uses `runtime`, `config`, `steering`, `llama`.
"""

from jaxsteer.decoding.captured import Captured, capture_bytes
from jaxsteer.decoding.cores import Part, count_parts, run_parts
from jaxsteer.decoding.generation import (
    DecodeState,
    Loop,
    Step,
    begin_shared,
    begins_in_loop,
    choose_and_append,
    decode_step,
    generate,
    is_plain,
    loop_with_growing_cache,
    new_state,
    prefill,
    prepare,
    run,
    slots_by_loop,
    unfinished,
)
from jaxsteer.decoding.memory import (
    CPU_BYTES,
    USABLE,
    cache_bytes,
    check_capture_fits,
    has_room,
    is_out_of_memory,
    program_bytes,
    prompt_token_bytes,
    room_for_another,
    rows_that_fit,
    sweep_bytes,
    usable_bytes,
    weight_bytes,
)
from jaxsteer.decoding.request import (
    Asked,
    Request,
    as_request,
    make_request,
    map_rows,
)
from jaxsteer.decoding.request_checks import check_think_tokens
from jaxsteer.decoding.results import (
    Generation,
    Outcome,
    check_activations_kept,
    generated_row,
    warn_not_finite,
)
from jaxsteer.decoding.samplers import (
    Sampler,
    Sampling,
    choose_sampler,
    greedy,
    keys,
    sample,
    sampling,
)
from jaxsteer.decoding.shared_prompts import reaches_prefix, repeat_prompts
from jaxsteer.decoding.stops import StopStrings, stop_strings
from jaxsteer.decoding.streaming import stream
from jaxsteer.decoding.thinking import think_tokens, thinking_in
from jaxsteer.decoding.warming import compile_generate

__all__ = [
    "CPU_BYTES",
    "USABLE",
    "Asked",
    "Captured",
    "DecodeState",
    "Generation",
    "Loop",
    "Outcome",
    "Part",
    "Request",
    "Sampler",
    "Sampling",
    "Step",
    "StopStrings",
    "as_request",
    "begin_shared",
    "begins_in_loop",
    "cache_bytes",
    "capture_bytes",
    "check_activations_kept",
    "check_capture_fits",
    "check_think_tokens",
    "choose_and_append",
    "choose_sampler",
    "compile_generate",
    "count_parts",
    "decode_step",
    "generate",
    "generated_row",
    "greedy",
    "has_room",
    "is_out_of_memory",
    "is_plain",
    "keys",
    "loop_with_growing_cache",
    "make_request",
    "map_rows",
    "new_state",
    "prefill",
    "prepare",
    "program_bytes",
    "prompt_token_bytes",
    "reaches_prefix",
    "repeat_prompts",
    "room_for_another",
    "rows_that_fit",
    "run",
    "run_parts",
    "sample",
    "sampling",
    "slots_by_loop",
    "stop_strings",
    "stream",
    "sweep_bytes",
    "think_tokens",
    "thinking_in",
    "unfinished",
    "usable_bytes",
    "warn_not_finite",
    "weight_bytes",
]

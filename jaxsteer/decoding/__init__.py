"""Generation: prompts in, sampled tokens out, steered, in batches.

`prefill`, `decode_step` and the loop in `generation`; what rows ask for in `request`; samplers,
ends of rows, slots that are filled again, and the memory that rows take.

Uses `runtime`, `config`, `steering`, `llama`.
"""

from jaxsteer.decoding.generation import (
    DecodeState,
    Generation,
    Loop,
    Outcome,
    Step,
    append,
    begin_shared,
    check_read,
    decode_step,
    generate,
    growing_rooms,
    loop_in_rooms,
    outcome,
    prefill,
    run,
    stream,
    tell_not_finite,
    unfinished,
)
from jaxsteer.decoding.kept import Captured, captured_of, row_bytes_kept
from jaxsteer.decoding.memory import (
    CPU_BYTES,
    USABLE,
    cache_bytes,
    check_room_for_kept,
    has_room,
    is_out_of_memory,
    program_bytes,
    prompt_token_bytes,
    room_for_another,
    rows_that_fit,
    sweep_bytes,
    usable_bytes,
)
from jaxsteer.decoding.refill import generate_queue
from jaxsteer.decoding.request import (
    Asked,
    Request,
    as_request,
    check_think_tokens,
    make_request,
    map_rows,
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
from jaxsteer.decoding.shared_prompts import reaches_prefix
from jaxsteer.decoding.slots import FinishedRow, Occupancy, pool_sizes
from jaxsteer.decoding.stops import StopStrings, stop_strings
from jaxsteer.decoding.thinking import think_tokens
from jaxsteer.decoding.token_text import byte_alphabet, token_bytes

__all__ = [
    "CPU_BYTES",
    "USABLE",
    "Asked",
    "Captured",
    "DecodeState",
    "FinishedRow",
    "Generation",
    "Loop",
    "Occupancy",
    "Outcome",
    "Request",
    "Sampler",
    "Sampling",
    "Step",
    "StopStrings",
    "append",
    "as_request",
    "begin_shared",
    "byte_alphabet",
    "cache_bytes",
    "captured_of",
    "check_read",
    "check_room_for_kept",
    "check_think_tokens",
    "choose_sampler",
    "decode_step",
    "generate",
    "generate_queue",
    "greedy",
    "growing_rooms",
    "has_room",
    "is_out_of_memory",
    "keys",
    "loop_in_rooms",
    "make_request",
    "map_rows",
    "outcome",
    "pool_sizes",
    "prefill",
    "program_bytes",
    "prompt_token_bytes",
    "reaches_prefix",
    "room_for_another",
    "row_bytes_kept",
    "rows_that_fit",
    "run",
    "sample",
    "sampling",
    "stop_strings",
    "stream",
    "sweep_bytes",
    "tell_not_finite",
    "think_tokens",
    "token_bytes",
    "unfinished",
    "usable_bytes",
]

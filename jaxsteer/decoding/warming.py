"""Compiling ahead: the program of `generate` from shapes, before there are weights.

    lm = jaxsteer.load(path, warm=lambda lm: jaxsteer.compile_generate(
        lm.model, rows=32, prompt_length=64, max_new_tokens=100))

It is the program that a call of `generate` with these sizes runs: values are data, sizes are not.
"""

from typing import Unpack

import jax

from jaxsteer.decoding.cores import row_parts
from jaxsteer.decoding.generation import _run, decode_step
from jaxsteer.decoding.request import Asked, as_request
from jaxsteer.decoding.samplers import Sampler, choose_sampler
from jaxsteer.llama import Model, spread_rows


def compile_generate(
    model: Model,
    *,
    rows: int,
    prompt_length: int,
    sampler: Sampler | None = None,
    **asked: Unpack[Asked],
) -> None:
    """Compile what `generate` runs for so many prompts, the longest of `prompt_length` tokens.

    Nothing is run, and `model` may be one of shapes. Prompts are padded as lists of token ids are.
    `asked` are the keywords of `make_request`, of which those count that change a shape or a kind:
    `max_new_tokens`, `samples`, steering of as many rows and of the same sites, a temperature above
    0, `stop_strings`, `capture`.

    Raises:
        ValueError: for what `generate` refuses.
    """
    prompts = [[0] * prompt_length] * rows
    batch, request = as_request(model, prompts, None, asked)
    plain = sampler is None
    part, *_ = row_parts(model, *spread_rows((batch, request), model), plain=plain)
    options = {"step": decode_step, "loop": jax.lax.while_loop}
    options["sampler"] = sampler or choose_sampler(request.sampling)
    _run.lower(model, *part, **options).compile()

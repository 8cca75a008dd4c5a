"""Time decoding with refill against batches, rows as long as real reasoning traces.

    python -m experiments.benchmarks.refill

Prompts of random tokens, each decoded to the length of one of 300 recorded traces over `--scale`.
Prints one JSON line: live share of the row-steps, seconds (with the programs compiled) and
compiled programs of both ways, and whether the tokens are the same.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.machine import config_of, preset_parser
from jaxsteer.decoding import Request, make_request, run, sample, sampling
from jaxsteer.llama import Model, TokenBatch, init, left_pad
from jaxsteer.queues import Occupancy, generate_queue, pool_sizes

_LENGTHS = Path(__file__).with_name("trace_lengths.json")

_run = jax.jit(run, static_argnames="sampler")


def recorded_lengths() -> list[int]:
    """Lengths of 300 reasoning traces in tokens, in the order in which they were generated."""
    return json.loads(_LENGTHS.read_text())["tokens"]


def plain_share(lengths: Sequence[int], slots: int) -> float:
    """Live share of the row-steps when batches of `slots` rows run one after the other.

    Prefill makes the first token of a row; each batch runs until its longest row is done.

    >>> plain_share([3, 5, 2], slots=2)
    0.7
    """
    batches = [lengths[i : i + slots] for i in range(0, len(lengths), slots)]
    spent = slots * sum(max(batch) - 1 for batch in batches)
    return sum(n - 1 for n in lengths) / spent


def plain_rows(model: Model, batch: TokenBatch, request: Request, *, slots: int) -> list[list[int]]:
    """Tokens of each row, in batches of `slots` rows, the last filled up with its last row."""
    rows: list[list[int]] = []
    prompts = batch.tokens.shape[0]
    for first in range(0, prompts, slots):
        index = np.minimum(np.arange(first, first + slots), prompts - 1)
        part, asks = jax.tree.map(lambda x, i=index: x[i], (batch, request))
        state = _run(model, part, asks, sampler=sample)
        tokens, length = jax.device_get((state.tokens, state.length))
        count = min(slots, prompts - first)
        rows += [tokens[i, : length[i]].tolist() for i in range(count)]
    return rows


def measure(model: Model, lengths: Sequence[int], *, slots: int, prompt: int) -> dict[str, object]:
    """One case: both ways twice, the second time with everything compiled."""
    rng = np.random.default_rng(0)
    G, vocab = max(lengths), model.config.vocab_size
    prompts = [rng.integers(0, vocab, rng.integers(1, prompt + 1)).tolist() for _ in lengths]
    batch = left_pad(prompts, length=prompt)
    params = sampling(len(lengths), temperature=1.0)
    request = make_request(model, batch, max_new_tokens=G, sampling_params=params)
    request = replace(request, max_tokens=jnp.asarray(lengths, jnp.int32))
    for _ in range(2):
        started = time.perf_counter()
        expected = plain_rows(model, batch, request, slots=slots)
        plain_s = time.perf_counter() - started
    for _ in range(2):
        spent = Occupancy()
        started = time.perf_counter()
        queue = generate_queue(model, batch, request, slots=slots, sampler=sample, occupancy=spent)
        finished = list(queue)
        refill_s = time.perf_counter() - started
    same = sum(row.tokens == expected[row.index] for row in finished)
    return {
        "device": jax.devices()[0].device_kind,
        "prompts": len(lengths),
        "tokens": sum(lengths),
        "slots": slots,
        "live_share_plain": round(plain_share(lengths, slots), 3),
        "live_share_refill": round(spent.live_share, 3),
        "plain_s": round(plain_s, 2),
        "refill_s": round(refill_s, 2),
        "refills": spent.refills,
        "decoding_programs_plain": 1,
        "decoding_programs_refill": len(pool_sizes(slots)),
        "same_rows": same,
    }


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = preset_parser("refill", default="tiny")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--scale", type=int, default=8, help="recorded lengths are divided by it")
    args = parser.parse_args(argv)
    lengths = [max(1, n // args.scale) for n in recorded_lengths()]
    model = init(config_of(args.preset), dtype=jnp.dtype(args.dtype))
    print(json.dumps(measure(model, lengths, slots=args.slots, prompt=args.prompt)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What the examples share: both models of a run, and its problems in each one's format."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from experiments.pipeline.run import Run
from experiments.pipeline.text import decode, encode_prompts
from experiments.stages import derive
from jaxsteer import Model, Request, TokenBatch, left_pad, load_directions, make_request, sampling
from jaxsteer.decoding import DecodeState
from jaxsteer.directions import rescale
from jaxsteer.llama import KVCache, bucket, run_prompts

Models = tuple[Model, Model]  # the reasoning model, and the base model that it was made from
Prompts = tuple[TokenBatch, TokenBatch]  # the same problems in each one's format


@dataclass(frozen=True)
class Pair:
    """Two models that share a vocabulary, and problems for them."""

    models: Models
    prompts: Prompts
    tokenizer: Any  # the reasoning model's
    stop_tokens: list[int]
    max_new_tokens: int

    def request(self, *, temperature: float = 0.0, **options: Any) -> Request:
        """What is asked of the reasoning model; see `make_request` for more options."""
        rows = len(self.prompts[0].tokens)
        return make_request(
            self.models[0],
            self.prompts[0],
            max_new_tokens=self.max_new_tokens,
            sampling_params=sampling(rows, temperature=temperature),
            stop_tokens=self.stop_tokens,
            **options,
        )

    def print(self, title: str, row: int, tokens: list[int]) -> None:
        """Print the text that `tokens` add to the prompt of `row`."""
        batch = self.prompts[0]
        prompt = np.asarray(batch.tokens[row])[np.asarray(batch.mask[row])].tolist()
        text = decode(self.tokenizer, prompt, tokens, self.stop_tokens)
        print(f"[{title}, problem {row}]{text}\n")

    def print_state(self, title: str, state: DecodeState) -> None:
        """Print what the first rows of `state` have generated."""
        for row, (tokens, n) in enumerate(zip(state.tokens[:4], state.length, strict=False)):
            self.print(title, row, tokens[:n].tolist())


def load_pair(run: Run, *, problems: int) -> Pair:
    """The models of `run` and the first of its problems.

    Raises:
        ValueError: if the models do not share a vocabulary.
    """
    reasoning, tokenizer = run.load("reasoning")
    base, _ = run.load("base")
    sizes = reasoning.config.vocab_size, base.config.vocab_size
    if sizes[0] != sizes[1]:
        raise ValueError(f"vocab_size: got {sizes[0]} and {sizes[1]}, expected one vocabulary")
    chosen = run.evaluate_prompts[:problems]
    rows, base_rows = (
        encode_prompts(
            run.prompt_tokenizer(role),
            chosen,
            role=role,
            base_template=run.settings.prompts.base_template,
            form=run.settings.prompts.form(role),
        )
        for role in ("reasoning", "base")
    )
    batches = [left_pad(r, length=bucket(max(map(len, r)), step=16)) for r in (rows, base_rows)]
    return Pair(
        models=(reasoning, base),
        prompts=(batches[0], batches[1]),
        tokenizer=tokenizer,
        stop_tokens=run.stop_tokens("reasoning"),
        max_new_tokens=run.settings.decoding.max_new_tokens,
    )


def read_prompts(model: Model, batch: TokenBatch, *, room: int) -> tuple[jax.Array, KVCache]:
    """Logits `[B, V]` behind each prompt, and a cache with room for `room` tokens more."""
    out = run_prompts(
        model,
        batch,
        capacity=batch.tokens.shape[1] + room,
        steering=(),
        prompt_length=batch.lengths,
    )
    assert out.cache is not None
    return out.logits, out.cache


def load_direction(run: Run) -> tuple[np.ndarray, int]:
    """The base model's direction at its layer, as long as the reasoning model's stream there.

    Runs the stages that it comes from if `run` has not done so.
    """
    folder, layer = derive.stage(run), run.settings.direction.layer
    lengths = derive.read_facts(folder)["residual_norm"]["reasoning"]
    direction = load_directions(folder / derive.FILE)[f"base.{layer}.union"]
    return rescale(direction.vector, lengths[layer]), layer

"""Prompts as people write them: texts and conversations, encoded by one rule, samples beside."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import jax
import numpy as np

from jaxsteer.llama import TokenBatch, left_pad
from jaxsteer.tokenizers import EncodedPrompt, encode

Message = Mapping[str, Any]
_MOST_TEXTS = 1_000_000  # of one call: their tokens are lists of Python
Prompt = str | Sequence[Message]  # a text to continue, or a conversation to answer


@dataclass(frozen=True)
class Prompts:
    """Encoded prompts, each as many times as there are samples: row = prompt · samples + sample."""

    encoded: tuple[EncodedPrompt, ...]
    samples: int
    batch: TokenBatch

    @property
    def once(self) -> TokenBatch:
        """Each prompt once, `[P, T]`, on the host: slices there compile nothing."""
        return jax.tree.map(lambda x: np.asarray(x)[:: self.samples], self.batch)

    @property
    def rules(self) -> list[str]:
        """What stands at the beginning of the prompts and why, each rule once."""
        return list(dict.fromkeys(prompt.rule for prompt in self.encoded))

    @property
    def notes(self) -> list[str]:
        """What a reader of the results should know of the prompts, each note once."""
        return list(dict.fromkeys(note for prompt in self.encoded for note in prompt.notes))


def as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or several, as a list.

    >>> as_list("1 + 1 ="), as_list([{"role": "user", "content": "hi"}])
    (['1 + 1 ='], [[{'role': 'user', 'content': 'hi'}]])

    Raises:
        ValueError: for none, or for something that is no prompt.
    """
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, Sequence) or not prompts:
        raise ValueError(
            f"prompts: got {prompts!r:.80}, expected a text, a conversation, or several"
        )
    is_conversation = isinstance(prompts[0], Mapping)
    return [cast(Prompt, prompts)] if is_conversation else list(cast(Sequence[Prompt], prompts))


def encode_prompts(
    tokenizer: Any, prompts: Prompt | Sequence[Prompt], *, samples: int = 1, bos: Any = "auto"
) -> Prompts:
    """Token ids of prompts by `jaxsteer.encode`, left-padded, each `samples` times.

    Raises:
        ValueError: for a model without a tokenizer, no samples, or a prompt that `encode` refuses.
    """
    if tokenizer is None:
        raise ValueError("tokenizer: got None, expected a model that was loaded with its tokenizer")
    if not isinstance(samples, int) or samples < 1:
        raise ValueError(f"samples: got {samples!r}, expected at least 1")
    encoded = tuple(encode(tokenizer, prompt, bos=bos) for prompt in as_list(prompts))
    if len(encoded) * samples > _MOST_TEXTS:
        raise ValueError(f"samples: got {samples} of {len(encoded)} prompts, more than a million")
    rows = [prompt.ids for prompt in encoded for _ in range(samples)]
    return Prompts(encoded, samples, left_pad(rows))

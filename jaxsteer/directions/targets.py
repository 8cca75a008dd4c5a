"""Targets: tokens of given texts whose log-probability is raised or measured.

    targets = make_targets(texts, prompt_lengths, spans)

Texts are teacher-forced: each is read as it is, with interventions at its generated positions.
Tokens after a target do not affect it, so a text may have several.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxsteer.llama import Model, TokenBatch, bind, bucket, forward, left_pad
from jaxsteer.steering import Capture, Steering, int32s


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Targets:
    """Texts, and the tokens in them that are to become likelier or are measured."""

    batch: TokenBatch  # [B, T]
    prompt_length: jax.Array  # int32 [B]
    position: jax.Array  # int32 [B, P]: of each target among its row's real tokens; -1 for none

    def take(self, index: ArrayLike) -> "Targets":
        """Some of the texts, in this order."""
        chosen = np.asarray(index)
        return jax.tree.map(lambda x: x[chosen], self)


def make_targets(
    texts: Sequence[Sequence[int]],
    prompt_lengths: Sequence[int],
    spans: Sequence[Sequence[tuple[int, int]]],
    *,
    length: int | None = None,
) -> Targets:
    """Put texts and their target spans into one batch.

    Args:
        texts: token ids, the prompt's first.
        prompt_lengths: how many of them are the prompt's; nothing there is steered or a target.
        spans: of each text, `(start, stop)` token indices of its targets.
        length: the length that rows are padded to; by default that of the longest, rounded up to
            16. Texts are cut after their last target.

    Raises:
        ValueError: for no text, one without a span, or a span that reaches outside the answer.

    >>> make_targets([[5, 6, 7, 8, 9]], [2], [[(3, 4)]], length=6).position.tolist()
    [[3]]
    """
    if not len(texts) == len(prompt_lengths) == len(spans):
        raise ValueError(
            f"texts, prompt_lengths, spans: got {len(texts)}, {len(prompt_lengths)} and "
            f"{len(spans)}, expected equally many"
        )
    prompts = int32s("prompt_lengths", prompt_lengths)
    positions, cut = [], []
    for i, (text, prompt, own_spans) in enumerate(zip(texts, prompt_lengths, spans, strict=True)):
        if not own_spans:
            raise ValueError(f"spans[{i}]: got none, expected at least one per text")
        for start, stop in own_spans:
            if not max(1, prompt) <= start < stop <= len(text):
                raise ValueError(
                    f"spans[{i}]: got ({start}, {stop}), expected tokens between the prompt's "
                    f"{prompt} and the text's {len(text)}"
                )
        positions.append(sorted({p for start, stop in own_spans for p in range(start, stop)}))
        cut.append(text[: positions[-1][-1] + 1])
    if length is None and cut:
        length = bucket(max(map(len, cut)), step=16)
    batch = left_pad(cut, length=length)
    table = np.full((len(cut), max(map(len, positions))), -1, np.int32)
    for row, wanted in zip(table, positions, strict=True):
        row[: len(wanted)] = wanted
    return Targets(batch, jnp.asarray(prompts), jnp.asarray(table))


def target_logprobs(
    model: Model,
    targets: Targets,
    *,
    steering: Steering | Sequence[Steering] | None = None,
    remat: bool = False,
) -> jax.Array:
    """Log-probability of each target given the tokens before it, `[B, P]`; 0 for no target.

    Pure, to be called inside `jax.jit`. Only the targets are unembedded.
    """
    batch, config = targets.batch, model.config
    real = targets.position > 0
    capture = Capture(
        layers=(config.n_layers - 1,), positions=jnp.where(real, targets.position - 1, -1)
    )
    out = forward(
        model,
        batch.tokens,
        mask=batch.mask,
        steering=steering,
        prompt_length=targets.prompt_length,
        capture=capture,
        last_only=True,  # nobody reads these logits; the compiler leaves them out
        remat=remat,
    )
    stream = jnp.where(real[..., None], out.captured["resid_post"][0], 0)
    logits = bind(model).unembed(stream)
    padding = batch.tokens.shape[1] - batch.lengths
    slot = jnp.where(real, targets.position + padding[:, None], 0)
    token = jnp.take_along_axis(batch.tokens, slot, axis=1)
    chosen = jnp.take_along_axis(logits, token[..., None], axis=-1)[..., 0]
    return jnp.where(real, chosen - jax.nn.logsumexp(logits, axis=-1), 0)

"""Best of n: sample n answers to each prompt in one batch, keep the most likely one.

    python -m experiments.decoding.best_of_n --out runs/small

Answer j to prompt i draws from seed + j and row i: it stays the same whatever n is and whichever
prompts are asked beside it. No piece is swapped: what rows of one batch differ in is data.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from experiments.decoding.pair import load_pair
from experiments.pipeline.run import Run, command
from jaxsteer import Model, TokenBatch, generate, sampling


@dataclass(frozen=True)
class Answers:
    """All answers to B prompts, scored."""

    tokens: list[list[list[int]]]  # n answers to each prompt
    score: np.ndarray  # float32 [B, n]: log-probability, nats, in total or a token
    best: np.ndarray  # int [B]: the answer with the highest score


def best_of_n(
    model: Model,
    batch: TokenBatch,
    *,
    n: int,
    max_new_tokens: int,
    by: str = "mean",
    temperature: float = 1.0,
    seed: int = 0,
    stop_tokens: Sequence[int] = (),
) -> Answers:
    """Sample `n` answers a prompt and score them `by` the `"mean"` or `"total"` log-probability.

    Scores are the model's at temperature 1, whatever the sampling. The total favours short ones.

    Raises:
        ValueError: for `n` below 1 or another `by`.
    """
    if n < 1 or by not in ("mean", "total"):
        raise ValueError(f"n, by: got {n}, {by!r}, expected at least 1, and 'mean' or 'total'")
    B = batch.tokens.shape[0]
    prompt, answer = np.divmod(np.arange(B * n), n)
    out = generate(
        model,
        jax.tree.map(lambda x: jnp.repeat(x, n, axis=0), batch),
        max_new_tokens=max_new_tokens,
        sampling_params=sampling(B * n, temperature=temperature, seed=seed + answer, row=prompt),
        stop_tokens=stop_tokens,
    )
    total = out.logprobs.sum(axis=1)  # 0 after a row's end
    score = (total / out.length if by == "mean" else total).reshape(B, n)
    rows = out.rows()
    return Answers([rows[i * n : (i + 1) * n] for i in range(B)], score, score.argmax(axis=1))


def show(run: Run) -> None:
    """Print the best and the worst of eight answers to a few problems."""
    pair = load_pair(run, problems=2)
    G, stops = pair.max_new_tokens, pair.stop_tokens
    answered = best_of_n(pair.models[0], pair.prompts[0], n=8, max_new_tokens=G, stop_tokens=stops)
    for row, answers in enumerate(answered.tokens):
        for name, j in (("best", answered.best[row]), ("worst", answered.score[row].argmin())):
            pair.print(f"{name}: {answered.score[row, j]:.3f} nats a token", row, answers[j])


if __name__ == "__main__":
    sys.exit(command("decoding.best_of_n", "The most likely of n sampled answers.", show))

"""What the engines of the sweep's benchmark have to do: the paper's Figure 3 for one model."""

from dataclasses import dataclass

import numpy as np

from jaxsteer.config import LlamaConfig


@dataclass(frozen=True, kw_only=True)
class Work:
    """A grid of cells × prompts × new tokens."""

    config: LlamaConfig
    cells: int
    prompts: int
    prompt_length: int  # of the longest; the shortest has half as many tokens
    new_tokens: int
    layer: int


def make_work(work: Work) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Prompts and mask `[B, T]`, left-padded, and vectors `[C, D]` with coefficients `[C]`."""
    random = np.random.default_rng(0)
    T = work.prompt_length
    lengths = random.integers(T - T // 2, T + 1, work.prompts)
    lengths[0] = T
    mask = np.arange(T) >= T - lengths[:, None]
    prompts = random.integers(1, work.config.vocab_size, mask.shape) * mask
    vectors = random.normal(size=(work.cells, work.config.d_model)) * 0.01
    return prompts, mask, vectors, random.normal(size=work.cells) * 8

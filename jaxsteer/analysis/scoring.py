"""Log-probabilities of the tokens of given texts under a model, one pass a batch.

    texts = [prompt + answer for prompt, answer in zip(prompts, answers)]
    for prompt, found in zip(prompts, score(model, texts)):
        print(np.exp(-found[len(prompt):].mean()))      # perplexity of the answer

Logits over the vocabulary are never held for whole texts: they are computed for some tokens at a
time, and each token's are reduced to one number.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxsteer.decoding import prompt_token_bytes, usable_bytes
from jaxsteer.llama import (
    BLOCK_TOKENS,
    KVCache,
    Model,
    Prefix,
    TokenBatch,
    bind,
    bucket,
    check_batch,
    count_blocks,
    forward,
    left_pad,
    mesh_sizes,
    rows_after,
    share_prompts,
    spread_rows,
)
from jaxsteer.runtime import hosts
from jaxsteer.steering import (
    Capture,
    Steering,
    as_tuple,
    broadcast_rows,
    check_steering,
    int32s,
)

# Logits that are made at once, of float32: 1 GiB. Products are at their full rate far below it.
BLOCK_LOGITS = 2**28


def token_logprobs(
    model: Model,
    batch: TokenBatch,
    *,
    steering: Steering | Sequence[Steering] | None = None,
    prompt_length: jax.Array | None = None,
    thinking: jax.Array | None = None,
    row: jax.Array | None = None,
    cache: KVCache | None = None,
    block_logits: int = BLOCK_LOGITS,
) -> jax.Array:
    """Log-probability of each token given those before it, float32 `[B, T]`; pure.

    0 on padding and on each row's first token. The arguments are those of `forward`; scopes of
    `steering` count from `prompt_length`. At most `block_logits` logits, or those of one token a
    row, are held on each device at a time. With a `cache` padding comes last.
    """
    B, T = batch.tokens.shape
    out = forward(
        model,
        batch.tokens,
        mask=batch.mask if cache is None else None,  # nobody sees what comes behind a text
        cache=cache,
        steering=steering,
        prompt_length=prompt_length,
        thinking=thinking,
        row=row,
        capture=Capture(layers=(model.config.n_layers - 1,)),
    )
    # The stream behind the last block; the logits of all tokens are not used and so not computed.
    stream = out.captured["resid_post"][0]
    data, _ = mesh_sizes(model)
    rows_per_device = B // data if B % data == 0 else B
    n = count_blocks(
        T, rows_per_device, limit=max(rows_per_device, block_logits // model.config.vocab_size)
    )
    target = jnp.roll(batch.tokens, -1, axis=1)  # the last column's is nobody's

    def one_block(j: jax.Array) -> jax.Array:
        x, wanted = (
            jax.lax.dynamic_slice_in_dim(a, j * (T // n), T // n, axis=1) for a in (stream, target)
        )
        logits = bind(model).unembed(x)
        chosen = jnp.take_along_axis(logits, wanted[..., None], axis=-1)[..., 0]
        return chosen - jax.nn.logsumexp(logits, axis=-1)

    blocks = jax.lax.map(one_block, jnp.arange(n))  # [n, B, T / n]
    following = jnp.moveaxis(blocks, 0, 1).reshape(B, T)
    own = jnp.roll(following, 1, axis=1)
    known = batch.mask & jnp.roll(batch.mask, 1, axis=1) & (jnp.arange(T) > 0)
    return jnp.where(known, own, 0.0)


def _behind_prefix(model: Model, prefix: Prefix, batch: TokenBatch, **asked: Any) -> jax.Array:
    B, T = batch.tokens.shape
    cache = rows_after(model, prefix, rows=B, capacity=T)
    return token_logprobs(model, batch, cache=cache, **asked)


_token_logprobs = jax.jit(token_logprobs, static_argnames="block_logits")
_behind = jax.jit(_behind_prefix)
_share = jax.jit(share_prompts)


def score(
    model: Model,
    texts: Sequence[Sequence[int]],
    *,
    prefix: Sequence[int] | None = None,
    steering: Steering | Sequence[Steering] | None = None,
    prompt_lengths: Sequence[int] | None = None,
    length: int | None = None,
    rows_per_batch: int | None = None,
    progress: str | None = None,
) -> list[np.ndarray]:
    """Log-probabilities of each text's tokens, float32 `[tokens]`; the first token has 0.

    Args:
        model: the weights.
        texts: token ids, a prompt and what follows it, say.
        prefix: token ids before every text, run and kept once; with it the texts' first tokens
            have log-probabilities, too. It is not part of the texts, and all of it is prompt. Only
            its last token is steered.
        steering: one intervention or several for every text, of one row each; by default none.
        prompt_lengths: how many tokens of each text are prompt. Scopes of `steering` count from
            it: by default the tokens after the prompt are steered.
        length: the length that texts are padded to, by default that of the longest. Calls that
            share it share a compiled program.
        rows_per_batch: texts that run at once, by default as many as fit the device. They run in
            the order of their lengths, in batches of that length, half or a quarter of it.
        progress: what a progress bar says; none if not given.

    Raises:
        ValueError: before anything runs, for texts or steering that do not fit the model, a
            steering without `prompt_lengths` or one that reaches into the prefix.
    """
    steerings = as_tuple(steering)
    prompts = _prompt_lengths(prompt_lengths, steerings, texts, model)
    if prefix is not None:
        front = left_pad([prefix])
        check_batch(front, model.config, new_tokens=max(map(len, texts), default=0))
        prompts = prompts + len(prefix)
        _check_reach(steerings, len(prefix), prompts)
        texts = [[prefix[-1], *text] for text in texts]
        length = None if length is None else length + 1
    if rows_per_batch is not None and rows_per_batch < 1:
        raise ValueError(f"rows_per_batch: got {rows_per_batch}, expected at least 1")
    longest = max(map(len, texts), default=0)
    length = bucket(longest, step=16) if length is None else length
    whole = left_pad(texts, length=length)
    check_batch(whole, model.config)
    reads = length + (0 if prefix is None else len(prefix))  # tokens that the last one sees
    rows = min(len(texts), rows_per_batch or rows_that_score(model, length=length, reads=reads))
    shared = None if prefix is None else _share(model, front)
    order = np.argsort([len(text) for text in texts], kind="stable")
    scores: list[np.ndarray] = [np.zeros(0, np.float32)] * len(texts)
    for first in tqdm(
        range(0, len(texts), rows), desc=progress, unit="batch", disable=progress is None
    ):
        # The last batch repeats its last text up to the common shape.
        index = order[np.minimum(np.arange(first, first + rows), len(texts) - 1)]
        batch = _columns(whole, index, _width(len(texts[index[-1]]), length))
        batch = batch if prefix is None else _padding_last(batch)
        rows_of = (batch, jnp.asarray(prompts[index]), jnp.asarray(index))
        batch, prompt, who = spread_rows(rows_of, model)
        asked: dict[str, Any] = {"steering": steerings, "prompt_length": prompt, "row": who}
        if shared is None:
            scored = _token_logprobs(model, batch, **asked)
        else:
            scored = _behind(model, shared, batch, **asked)
        for i, row in zip(index, hosts.gather(scored), strict=True):
            n = len(texts[i])
            scores[i] = row[len(row) - n :] if prefix is None else row[1:n]
    return scores


def _check_reach(steerings: Sequence[Steering], prefix: int, prompts: np.ndarray) -> None:
    """Raise `ValueError` for steering that would have to act on a prefix that all texts share."""
    lengths = jnp.asarray(prompts)
    position = jnp.broadcast_to(jnp.arange(prefix - 1), (len(prompts), prefix - 1))
    for one in steerings:
        scope = broadcast_rows(one.scope, len(prompts), "scope")
        if bool(jnp.any(scope.may_cover(position, lengths))):
            raise ValueError(
                f"steering: got one that reaches into the prefix of {prefix} tokens, before its "
                "last; expected a scope behind it, or the prefix in each text"
            )


def _padding_last(batch: TokenBatch) -> TokenBatch:
    """The same rows with their padding at the end."""
    tokens, mask = np.asarray(batch.tokens), np.asarray(batch.mask)
    width = tokens.shape[1]
    column = (np.arange(width) + (width - mask.sum(axis=1))[:, None]) % width
    rows = np.arange(len(tokens))[:, None]
    return TokenBatch(jnp.asarray(tokens[rows, column]), jnp.asarray(mask[rows, column]))


def _prompt_lengths(
    given: Sequence[int] | None,
    steerings: Sequence[Steering],
    texts: Sequence[Sequence[int]],
    model: Model,
) -> np.ndarray:
    """How many tokens of each text are prompt, int32 `[texts]`; none if nobody asks."""
    for one in steerings:
        check_steering(one, model.config, rows=1)
    if steerings and given is None:
        raise ValueError("prompt_lengths: got None, expected as many as texts, to steer by")
    lengths = int32s("prompt_lengths", [0] * len(texts) if given is None else given)
    if lengths.shape != (len(texts),):
        raise ValueError(f"prompt_lengths: got {lengths.size}, expected one of each text")
    for i, (length, text) in enumerate(zip(lengths, texts, strict=True)):
        if length > len(text):
            raise ValueError(f"prompt_lengths[{i}]: got {length}, expected at most {len(text)}")
    return lengths


def _width(longest: int, length: int) -> int:
    """The common length, half or a quarter of it: the least that a batch fits in."""
    widths = [bucket(-(-length // share), step=16) for share in (4, 2)]
    return next((width for width in widths if longest <= width < length), length)


def _columns(batch: TokenBatch, index: np.ndarray, width: int) -> TokenBatch:
    """Some rows of a batch, the last `width` columns."""
    tokens, mask = np.asarray(batch.tokens), np.asarray(batch.mask)
    return TokenBatch(jnp.asarray(tokens[index, -width:]), jnp.asarray(mask[index, -width:]))


def rows_that_score(model: Model, *, length: int, reads: int | None = None) -> int:
    """Texts of `length` tokens that `score` runs at once: what fits, and no more than pays.

    `reads` are the tokens that the last one attends to, `length` if not given.

    At least 1 (on a mesh, 1 for each part of its `data` axis, and always a multiple of that).
    """
    data, tensor = mesh_sizes(model)
    config = model.config
    logits = 3 * 4 * min(BLOCK_LOGITS, length * config.vocab_size) // tensor
    token = prompt_token_bytes(model, prompt_length=reads or length)
    fitting = (usable_bytes(model) - logits) // (length * token)
    return data * max(1, min(fitting, BLOCK_TOKENS // length))

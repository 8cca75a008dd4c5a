"""The logit lens: what a direction of the residual stream says to the unembedding.

A direction is not a state of the stream: it has no length of its own, and the final norm is not
linear. So its length is taken out first, and nothing here depends on it:

    normed    logits = W_U · (g ∘ v̂)    v̂ = v / rms(v), g the final norm's scale
    plain     logits = W_U · v̂

`normed` is the final RMSNorm applied to the direction itself, its epsilon left out, which would
matter for short vectors only. `plain` is the unembedding alone. The rank of a token is the number
of tokens with a strictly larger logit: 0 is the highest, and tokens of equal logits share a rank.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsteer.llama import Model
from jaxsteer.runtime import hosts
from jaxsteer.steering import Vectors, as_arrays, int32s
from jaxsteer.tokenizers import token_bytes

LENSES = ("normed", "plain")

_DIRECTIONS_AT_ONCE = 16  # a row of logits over 128,256 tokens is 0.5 MB


@dataclass(frozen=True)
class Lens:
    """What R directions say of K tokens, and the k tokens that each says loudest."""

    logits: np.ndarray  # float32 [R, K]
    ranks: np.ndarray  # int32 [R, K], 0 is the highest
    top_tokens: np.ndarray  # int32 [R, k], the highest first
    top_logits: np.ndarray  # float32 [R, k]


def keyword_tokens(tokenizer: Any, keywords: Sequence[str]) -> dict[int, str]:
    """The tokens that spell a keyword by themselves: their text by id, in the order of the ids.

    A token counts in any case and with any white space around it (`wait`, ` Wait`, `WAIT`).
    Spellings that take several tokens have no token of their own and are not there.

    Raises:
        ValueError: for no keywords, or if none of them is a token.
    """
    wanted = {word.strip().casefold() for word in keywords} - {""}
    if not wanted:
        raise ValueError(f"keywords: got {list(keywords)!r}, expected at least one word")
    texts = [piece.decode(errors="replace") for piece in token_bytes(tokenizer)]
    tokens = {i: text for i, text in enumerate(texts) if text.strip().casefold() in wanted}
    if not tokens:
        raise ValueError(f"keywords: no token of the tokenizer spells {' or '.join(keywords)}")
    return tokens


def lens(
    model: Model,
    directions: Vectors,
    tokens: Sequence[int],
    *,
    kind: str = "normed",
    top: int = 10,
) -> Lens:
    """Read directions `[R, D]` through the model's unembedding; only what is asked for comes back.

    Computed in float32 whatever the weights' dtype, 16 directions at a time.

    Args:
        model: whose final norm and unembedding are used; also one on a mesh.
        directions: `[R, D]`, or a list of directions, of any length but 0.
        tokens: the K tokens whose logits and ranks come back.
        kind: "normed" or "plain", see above.
        top: how many of the highest tokens come back for each direction.

    Raises:
        ValueError: for directions that are not `[R, D]`, not finite or 0, ids outside the
            vocabulary, another kind, or a `top` that is not between 1 and V.
    """
    D, V = model.config.d_model, model.config.vocab_size
    vectors = np.asarray(as_arrays(directions), np.float64)
    if vectors.ndim != 2 or vectors.shape[1] != D or not len(vectors):
        raise ValueError(f"directions: got shape {vectors.shape}, expected [R, {D}]")
    scale = np.sqrt(np.mean(vectors**2, axis=1, keepdims=True))
    if not (np.isfinite(scale) & (scale > 0)).all():
        bad = int(np.flatnonzero(~(np.isfinite(scale) & (scale > 0)))[0])
        raise ValueError(f"directions[{bad}]: got zeros, NaN or infinity, which point nowhere")
    ids = int32s("tokens", tokens, high=V - 1)
    if ids.ndim != 1 or not ids.size:
        raise ValueError(f"tokens: got {tokens!r:.80}, expected ids from 0 to {V - 1}")
    if kind not in LENSES:
        raise ValueError(f"kind: got {kind!r}, expected {' or '.join(LENSES)}")
    if not 1 <= top <= V:
        raise ValueError(f"top: got {top}, expected 1 to {V}")
    units = jnp.asarray(vectors / scale, jnp.float32)
    readings = _read(model, units, jnp.asarray(ids), kind=kind, top=top)
    return Lens(*hosts.gather(readings))


@functools.partial(jax.jit, static_argnames=("kind", "top"))
def _read(
    model: Model, units: jax.Array, tokens: jax.Array, *, kind: str, top: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    params = model.params
    if kind == "normed":
        units = units * params["final_norm"]["scale"].astype(jnp.float32)
    tied = model.config.tie_embeddings
    weight = params["embed"]["embedding"] if tied else params["lm_head"]["kernel"]
    spec = "D,VD->V" if tied else "D,DV->V"

    def one(unit: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        exact = jax.lax.Precision.HIGHEST
        logits = jnp.einsum(spec, unit, weight.astype(jnp.float32), precision=exact)
        logits = logits[: model.config.vocab_size]  # of a mesh, the weight may be padded
        chosen = logits[tokens]
        ranks = jax.lax.map(lambda x: jnp.sum(logits > x, dtype=jnp.int32), chosen)
        highest, which = jax.lax.top_k(logits, top)
        return chosen, ranks, which, highest

    return jax.lax.map(one, units, batch_size=_DIRECTIONS_AT_ONCE)

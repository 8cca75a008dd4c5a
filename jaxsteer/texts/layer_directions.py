"""A direction from two lists of texts: difference of means, at every layer, in one pass."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxsteer.analysis import auroc
from jaxsteer.directions import Direction, cosines
from jaxsteer.llama import Model, TokenBatch, forward, is_abstract
from jaxsteer.models import Loaded
from jaxsteer.steering import Capture
from jaxsteer.texts.prompts import Prompt, encode_prompts

Position = Literal["last", "mean"]
_ROWS = 16  # of a pass
_HALVES = 20  # random splits for the reliability
_FEW = 8  # texts a side, with fewer of which the two measures vary much
_FOLDS = 5  # for AUROC on texts that the direction has not seen


@dataclass(frozen=True, repr=False, eq=False)
class LayerDirections:
    """One direction a layer, and how far to trust it. `v[layer]` is a `Direction`.

    L layers; every array is `[L]` but the vectors.
    """

    vectors: np.ndarray  # float32 [L, D]: mean over the texts − mean over the others
    reliability: np.ndarray  # mean cosine of the directions of two random halves of the texts
    auroc: np.ndarray  # chance that a held-out text scores above a held-out other one
    residual: np.ndarray  # root mean square length of the stream at the tokens that were read
    name: str
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def norms(self) -> np.ndarray:
        """Lengths of the vectors `[L]`."""
        return np.linalg.norm(self.vectors, axis=1)

    def __len__(self) -> int:
        return len(self.vectors)

    def __iter__(self) -> Iterator[Direction]:
        return (self[layer] for layer in range(len(self)))

    def __getitem__(self, layer: int) -> Direction:
        if not 0 <= layer < len(self):
            raise IndexError(f"layer: got {layer}, expected 0 to {len(self) - 1}")
        name = f"{self.name}.{layer}"
        return Direction(self.vectors[layer], layer, "resid_post", name, dict(self.provenance))

    def at_layer(self, layer: int) -> Direction:
        """The direction of a layer, for `add(v, layer=4, …)`.

        Raises:
            ValueError: if there is no such layer.
        """
        try:
            return self[layer]
        except IndexError as error:
            raise ValueError(str(error)) from None

    def __repr__(self) -> str:
        lines = ["layer    norm  of the stream  reliability  AUROC, held out"]
        for layer, norm in enumerate(self.norms):
            share, reliability, auroc = (
                f"{value:.2f}" if np.isfinite(value) else "–"
                for value in (norm / self.residual[layer], self.reliability[layer],
                              self.auroc[layer])
            )  # fmt: skip
            lines.append(f"{layer:>5} {norm:>7.3g} {share:>14} {reliability:>12} {auroc:>16}")
        fewest = min(self.provenance.get(side, _FEW) for side in ("texts", "other_texts"))
        if fewest < _FEW:
            lines.append(f"{fewest} texts a side tell little of reliability and AUROC.")
        return "\n".join(lines)


def direction(
    lm: Loaded,
    texts: Sequence[Prompt],
    other_texts: Sequence[Prompt],
    *,
    position: Position = "last",
    name: str = "direction",
    bos: Any = "auto",
) -> LayerDirections:
    """Difference of means between two lists of texts, behind every layer, in one pass.

    Args:
        lm: what `jaxsteer.load` gives.
        texts: texts or conversations that have what the direction is to stand for.
        other_texts: those that do not.
        position: read the last token of each text, or the mean over all its tokens but the first.
        name: of the direction.
        bos: see `jaxsteer.encode`.

    Raises:
        ValueError: for fewer than two texts on a side, or what `encode` refuses.
    """
    if position not in ("last", "mean"):
        raise ValueError(f"position: got {position!r}, expected 'last' or 'mean'")
    for side, rows in (("texts", texts), ("other_texts", other_texts)):
        if isinstance(rows, str) or len(rows) < 2:
            raise ValueError(f"{side}: got {rows!r:.80}, expected a list of at least 2")
    encoded = encode_prompts(lm.tokenizer, [*texts, *other_texts], bos=bos)
    read = _read(lm.model, encoded.batch, position)  # [L, n, D]
    positive = np.arange(read.shape[1]) < len(texts)
    provenance = {
        "method": "difference of means",
        "position": position,
        "texts": len(texts),
        "other_texts": len(other_texts),
        "prompts": encoded.rules,
        "model": dict(lm.provenance),
    }
    return LayerDirections(
        vectors=_difference(read, positive),
        reliability=_reliability(read, positive),
        auroc=_held_out_auroc(read, positive),
        residual=np.sqrt((read.astype(np.float64) ** 2).sum(-1).mean(1)),
        name=name,
        provenance=provenance,
    )


def without_first(batch: TokenBatch) -> jax.Array:
    """Where a row has a token that is not its first, `[B, T]`; a single token counts all the same.

    In many models the stream at the first token is a constant of hundreds of times the length that
    it has elsewhere (arXiv 2402.17762), which would outweigh the text.
    """
    first = jnp.argmax(batch.mask, axis=1)[:, None] == jnp.arange(batch.mask.shape[1])
    return batch.mask & (~first | (batch.lengths == 1)[:, None])


def residual_norms(model: Model, batch: TokenBatch) -> np.ndarray:
    """Root mean square length of the stream behind each layer `[L]`, first tokens left out."""
    means = _read(model, batch, "square")[:, :, 0].astype(np.float64)  # [L, n]
    counts = np.maximum(np.asarray(batch.mask).sum(axis=1) - 1, 1)  # as `without_first` has them
    return np.sqrt(np.average(means, axis=1, weights=counts))


def _read(model: Model, batch: TokenBatch, what: Position | Literal["square"]) -> np.ndarray:
    """What is read of each row behind every layer, float32 `[L, n, D]`; see `_pass`.

    With a model of shapes the pass is compiled, and the answer is of any numbers above 0.
    """
    n = batch.tokens.shape[0]
    pad = -n % min(_ROWS, n)
    rows = np.arange(n + pad) % n  # blocks of one shape: the last is filled up
    blocks = rows.reshape(-1, min(_ROWS, n))
    if is_abstract(model):
        first = jax.tree.map(lambda x: x[blocks[0]], batch)
        shape = _pass.lower(model, first, what).compile().out_info.shape
        return np.random.default_rng(0).uniform(1, 2, (shape[0], n, shape[2]))
    parts = [
        np.asarray(_pass(model, jax.tree.map(lambda x, b=b: x[b], batch), what)) for b in blocks
    ]
    return np.concatenate(parts, axis=1)[:, :n]


@jax.jit(static_argnames="what")
def _pass(model: Model, batch: TokenBatch, what: str) -> jax.Array:
    """The stream at the last token or its mean `[L, B, D]`, or its mean square `[L, B, 1]`."""
    kept = without_first(batch)
    share = kept / kept.sum(axis=1, keepdims=True)  # [B, T]
    capture = Capture(
        weights=share[..., None] * jnp.eye(len(share))[:, None],  # one group per row
        squares=what == "square",
    )
    if what == "last":
        capture = Capture(positions=batch.lengths[:, None] - 1)
    out = forward(model, batch.tokens, mask=batch.mask, capture=capture, last_only=True)
    stream = out.captured["resid_post"]
    if what == "square":
        return stream[:, 1].sum(axis=-1, keepdims=True)
    return (stream[:, :, 0] if what == "last" else stream).astype(jnp.float32)


def _difference(read: np.ndarray, positive: np.ndarray) -> np.ndarray:
    return read[:, positive].mean(axis=1) - read[:, ~positive].mean(axis=1)


def _reliability(read: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Mean over random splits of the cosine between the directions of two halves, `[L]`."""
    random = np.random.default_rng(0)
    by_split = []
    for _ in range(_HALVES):
        first = np.zeros(len(positive), bool)
        for side in (positive, ~positive):
            members = random.permutation(np.flatnonzero(side))
            first[members[: len(members) // 2]] = True
        halves = [_difference(read[:, half], positive[half]) for half in (first, ~first)]
        by_split.append(cosines(*halves))
    return np.mean(by_split, axis=0)


def _held_out_auroc(read: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """AUROC of projections on directions from the other folds of the texts, `[L]`."""
    folds = min(_FOLDS, int(positive.sum()), int((~positive).sum()))
    fold = np.empty(len(positive), int)
    for side in (positive, ~positive):
        fold[side] = np.arange(side.sum()) % folds
    scores = np.empty(read.shape[:2])
    for k in range(folds):
        out = fold == k
        vectors = _difference(read[:, ~out], positive[~out])
        centre = read[:, ~out].mean(axis=1, keepdims=True)
        scores[:, out] = np.einsum("LnD,LD->Ln", read[:, out] - centre, vectors)
    return np.array([auroc(s, positive, n_resamples=0).mean for s in scores])

"""Pages to look at: a small one with hostile texts, and one of a thousand long texts."""

import numpy as np

from jaxsteer.pages import Band, Page, PageCell, PageClaim, PageFigure, PagePrompt, PageText, Series

# What a model might write to run in a reader's browser.
HOSTILE = (
    "</script><script>window.harmed = 1</script> wait , <img src=x onerror='window.harmed = 2'> "
    "<!-- ]]> </style> &lt; \u2028 <svg onload=window.harmed=3> 𝑥 → ok ."
)
SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="200" height="100">'
    '<rect x="20" y="20" width="120" height="50" fill="#1f5fa8"/></svg>'
)
COEFFS = (-0.5, 0.25, 0.5)
MODELS = ("reasoning model", "base model")
_WORDS = "so the number of red boxes is now wait no 12 that makes 7 left . check ,".split()


def page(*, prompts: int = 6, words: int = 24, claims: bool = True) -> Page:
    """Two models, two directions, four coefficients; prompt 0 has hostile texts."""
    random = np.random.default_rng(0)
    cells, texts = [], []
    for model in MODELS:
        for series, coeff in [("", 0.0), *((s, c) for s in ("found", "random") for c in COEFFS)]:
            effect = 0.03 + 0.2 * max(coeff, 0) * (series == "found") * (model == MODELS[0])
            coherence = 0.99 - 0.2 * coeff**2
            cells.append(
                PageCell(
                    panel=model,
                    series=series,
                    coeff=coeff,
                    effect=Band(effect, effect - 0.01, effect + 0.01, prompts),
                    coherence=Band(coherence, coherence - 0.01, coherence + 0.005, prompts),
                    strength=coeff,
                    python="text, row = $TEXT, $ROW" if series != "random" else None,
                )
            )
            texts += [_text(random, len(cells) - 1, i, words, coeff) for i in range(prompts)]
    asked = [
        PagePrompt(f"eval-{i}", f"how many boxes are in room {i} ?", "7") for i in range(prompts)
    ]
    rows = [
        PageClaim("C2", "It induces backtracking", "yes", "gain 0.05 [0.04, 0.06], n = 6",
                  "reproduced", "fig", 3),
        PageClaim("C3", "Not in the base model", "no", "gain 0.0 [-0.01, 0.01] <b>",
                  "not reproduced", "fig", 10),
        PageClaim("C4", "It is similar", "0.74", "not made", "not in this run"),
    ]  # fmt: skip
    return Page(
        title="Steering <i>here</i>",
        summary="Two models, one direction & 84 texts.",
        effect="backtracking share",
        coherence="coherence",
        event="backtracks",
        margin=0.03,
        unit="residual norms",
        series=[
            Series("found"),
            Series("random", colour="grey", shape="cross", main=False),
        ],
        cells=cells,
        prompts=asked,
        texts=texts,
        claims=rows if claims else (),
        figures=[PageFigure("fig", "A figure", "What <it> shows.", SVG, "x,y\n1,2\n")],
        about={"Settings": {"steering.coeffs": list(COEFFS), "note": "</dd><script>"}},
        notes=["Nothing is left out."],
        tint="Tokens are tinted by their projection.",
        logprobs="Log-probabilities are the unsteered model's.",
    )


def _text(
    random: np.random.Generator, cell: int, prompt: int, words: int, coeff: float
) -> PageText:
    chosen = ["first", "then", *random.choice(_WORDS, words - 2)]
    text = (
        HOSTILE
        if prompt == 0 and coeff > 0
        else ""
        if prompt == 1 and coeff < 0
        else " ".join(chosen)
    )
    ends = [i for i, letter in enumerate(text) if letter == " "] + ([len(text)] if text else [])
    marks = [(text.index("wait"), text.index("wait") + 4)] if "wait" in text else []
    half = text.find(" ", len(text) // 2)
    sentences = [(0, half, "backtracking"), (half + 1, len(text), "other")] if half > 0 else []
    return PageText(
        cell=cell,
        prompt=prompt,
        sample=0,
        text=text,
        row=prompt,
        ended="end token",
        ends=ends,
        logprobs=random.uniform(-6, 0, len(ends)).tolist(),
        projections=(random.normal(size=len(ends)) + coeff).tolist(),
        sentences=sentences,
        marks=marks,
        effect=0.5 if marks else 0.0,
        coherence=0.9,
        repetition=0.1,
        perplexity=2.5,
        right=prompt % 2 == 0,
    )

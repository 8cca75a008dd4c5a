"""The texts of a sweep as a page: what `Table.report` writes."""

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from typing import Any

from jaxsteer.analysis import repetition
from jaxsteer.pages import LIGHT, SHAPES, Band, Page, PageCell, PagePrompt, PageText, Series
from jaxsteer.runtime import VERSION
from jaxsteer.texts.metrics import Measured, Metric, measure, name_of, perplexity, value_of
from jaxsteer.texts.printing import flattened
from jaxsteer.texts.results import Text, Texts

MARGIN = 0.03  # how far coherence may fall below the unsteered
_PACKAGES = ("jax", "flax", "transformers", "numpy")
_BASELINES = ("random", "noise")


def coherence(text: str) -> float:
    """Return 1 − the share of word 4-grams that repeat an earlier one; NaN for few words."""
    return 1 - repetition(text)


def page_of(texts: Texts, metrics: Sequence[Metric], *, title: str) -> Page:
    """The page of some texts; the first metric that is not repetition is the effect."""
    if not len(texts):
        raise ValueError("texts: got none, expected at least one")
    metrics = tuple(metrics) or (repetition,)
    effect = next((metric for metric in metrics if metric is not repetition), metrics[0])
    measured = measure(texts, (*metrics, coherence))
    cells = texts.cells()
    numbers = {json.dumps(cell): i for i, cell in enumerate(cells)}
    plain = next((cell for cell in cells if cell.get("coeff") == 0), None)
    prompts = {row.prompt: row.prompt_text for row in texts}
    unit = texts.about.get("unit")
    has_projections = any(len(row.projections) for row in texts)
    return Page(
        title=title,
        summary=f"prompts {len(prompts)}, cells {len(cells)}, texts {len(texts):,}",
        effect=name_of(effect),
        coherence="1 − share of repeated 4-grams",
        event=name_of(effect),
        margin=MARGIN,
        unit="residual norms" if unit == "residual" else "times the vector",
        series=_series([cell for cell in cells if cell is not plain]),
        cells=[_cell(cell, plain, measured, effect, texts.about) for cell in cells],
        prompts=[PagePrompt(f"prompt {i}", prompts.get(i, "")) for i in range(1 + max(prompts))],
        texts=[_text(row, numbers[json.dumps(row.labels)], effect, texts) for row in texts],
        about={
            "Sweep": flattened({k: v for k, v in texts.about.items() if k != "prompt_tokens"}),
            "Versions that made this page": versions(),
        },
        notes=[*texts.about.get("notes", ())],
        tint=(
            "Tint: the stream's projection at each token, as it was written, on the first vector "
            "at its first layer; orange is above, blue below the mean of the unsteered texts, in "
            "full at 3 standard deviations."
            if has_projections
            else "The sweep recorded no projections (tokens=True does), so no token is tinted by "
            "them."
        ),
        logprobs=(
            "Log-probabilities are those of the model as it was steered, perplexity is that of the "
            "unsteered."
            if any(row.plain_logprobs for row in texts)
            else "Log-probabilities and perplexity are those of the model as it was steered."
        ),
    )


def series_of(labels: Mapping[str, Any]) -> str:
    """What a cell is called apart from its coefficient.

    >>> series_of({"source": "doubt", "layer": 4, "coeff": 0.5})
    'doubt, layer 4'
    """
    named = [
        f"{name} {value}" if name == "layer" else str(value)
        for name, value in labels.items()
        if name != "coeff"
    ]
    return ", ".join(named) or "steered"


def _series(cells: Sequence[Mapping[str, Any]]) -> list[Series]:
    by_name: dict[str, Series] = {}
    colours = [name for name in LIGHT if name != "grey"]
    for cell in cells:
        name, main = series_of(cell), cell.get("source") not in _BASELINES
        if name not in by_name:
            n = sum(one.main for one in by_name.values())
            colour = colours[n % len(colours)] if main else "grey"
            shape = SHAPES[n % len(SHAPES)] if main else "cross"
            by_name[name] = Series(name, colour, shape, main)
    return list(by_name.values())


def _cell(
    cell: Mapping[str, Any],
    plain: Mapping[str, Any] | None,
    measured: Sequence[Measured],
    effect: Metric,
    about: Mapping[str, Any],
) -> PageCell:
    bands = {line.metric: _band(line) for line in measured if line.labels == cell}
    coeff = float(cell.get("coeff") or 0.0)
    shown = (name_of(effect), name_of(coherence))
    return PageCell(
        panel="",
        series="" if cell is plain else series_of(cell),
        coeff=coeff,
        effect=bands[name_of(effect)],
        coherence=bands[name_of(coherence)],
        strength=coeff if about.get("unit") == "residual" else None,
        numbers={name: band for name, band in bands.items() if band and name not in shown},
        python=python_of(cell, cell is plain, about),
    )


def _band(line: Measured) -> Band | None:
    return Band(line.mean, line.low, line.high, line.prompts) if line.prompts else None


def python_of(cell: Mapping[str, Any], is_plain: bool, about: Mapping[str, Any]) -> str | None:
    """Lines that write a text of a cell again; None where its steering is not one addition."""
    sampling = about.get("sampling")
    source, layer = cell.get("source"), cell.get("layer")
    if sampling is None or not (is_plain or (layer is not None and source not in _BASELINES)):
        return None
    length = (about.get("lengths") or {}).get(f"{source}.{layer}")
    options = ", ".join(f"{name}={value!r}" for name, value in sampling.items())
    model = about.get("model") or {}
    dtype = f", dtype={json.dumps(about['dtype'])}" if about.get("dtype") else ""
    added = [f"# v: the vector of {source!r} at layer {layer}, as the sweep was given it"]
    if length is not None:
        added += [
            "from jaxsteer.directions import rescale",
            f"v = rescale(v, {length!r})  # coefficient 1",
        ]
    steering = f"js.add(v, layer={layer}, coeff={cell.get('coeff')!r})"
    return "\n".join(
        [
            "import jaxsteer as js",
            *([] if is_plain else added),
            f"lm = js.load({json.dumps(str(model.get('path', '')))}{dtype})",
            "prompt = js.encode(lm.tokenizer, $TEXT, bos=False)  # what it begins with is in it",
            "out = js.generate(",
            "    lm.model,",
            "    js.left_pad([prompt.ids]),",
            f"    max_new_tokens={about.get('max_new_tokens')},",
            f"    steering={'None' if is_plain else steering},",
            f"    sampling_params=js.sampling(1, {options}, row=[$ROW]),",
            "    stop_tokens=lm.end_tokens,",
            ")",
            "print(lm.tokenizer.decode(out.rows()[0]))",
        ]
    )


def _text(row: Text, cell: int, effect: Metric, texts: Texts) -> PageText:
    pattern = getattr(effect, "pattern", None)
    ends, logprobs, projections = _aligned(row)
    return PageText(
        cell=cell,
        prompt=row.prompt,
        sample=row.sample,
        row=row.prompt * int(texts.about.get("samples", 1)) + row.sample,
        text=row.text,
        ended="cut off" if row.end == "length" else row.end,
        ends=ends,
        logprobs=logprobs,
        projections=projections,
        marks=[match.span() for match in pattern.finditer(row.text)] if pattern else [],
        effect=value_of(effect, row),
        coherence=coherence(row.text),
        repetition=repetition(row.text),
        perplexity=_perplexity(row),
    )


def _perplexity(row: Text) -> float:
    """That of the unsteered model if it has read the text, else of the model as it was steered."""
    logprobs = row.plain_logprobs or row.logprobs
    if len(logprobs) != len(row.tokens):
        return math.nan
    return perplexity(replace(row, plain_logprobs=logprobs))


def _aligned(row: Text) -> tuple[Sequence[int], Sequence[float], Sequence[float]]:
    """Ends, log-probabilities and projections of the tokens, if they are of equally many."""
    n = len(row.token_ends)
    return (
        row.token_ends,
        row.logprobs if n and len(row.logprobs) == n else (),
        [math.nan if x is None else x for x in row.projections]
        if n and len(row.projections) == n
        else (),
    )


def versions() -> dict[str, str]:
    """Of Python, this library and what it runs on."""
    named = {"jaxsteer": VERSION, "python": platform.python_version()}
    return named | {name: metadata.version(name) for name in _PACKAGES}

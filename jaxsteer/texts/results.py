"""What models wrote: texts with their cell, prompt and tokens, printed as a table."""

import html
import itertools
import json
import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jaxsteer.files import MOST_DATA, as_path, read_json, read_rows, write_atomic
from jaxsteer.runtime import escaped
from jaxsteer.sweeps import config_path, key_of
from jaxsteer.texts.printing import as_text, data_frame, html_table

_WIDTH = 96  # of a printed line
_SHOWN = 12  # texts of a printed table
_KINDS = {
    "labels": dict, "prompt": int, "prompt_text": str, "sample": int, "text": str, "tokens": list,
    "logprobs": list, "end": str, "token_ends": list, "projections": list, "plain_logprobs": list,
}  # fmt: skip


@dataclass(frozen=True)
class Text:
    """One generated text. `tokens` and `logprobs` `[G]` include the token that ended it."""

    labels: Mapping[str, Any]  # of the cell, e.g. {"coeff": 2.5}
    prompt: int  # number of the prompt
    prompt_text: str
    sample: int
    text: str
    tokens: Sequence[int]
    logprobs: Sequence[float]  # under the steered model
    end: str  # "end token", "length", or "not finite"
    # [G], if a sweep was asked for `tokens`: where each token ends in `text`, and the stream's
    # projection there, None at the last one, which no pass has read.
    token_ends: Sequence[int] = ()
    projections: Sequence[float | None] = ()
    plain_logprobs: Sequence[float] = ()  # [G] under the unsteered model, where it has read them


@dataclass(frozen=True, repr=False)
class Texts:
    """Generated texts, and how they came about; a sequence of `Text`."""

    rows: tuple[Text, ...]
    about: Mapping[str, Any] = field(default_factory=dict)  # JSON-ready: model, prompts, sampling

    def __iter__(self) -> Iterator[Text]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Text:
        return self.rows[index]

    def cells(self) -> list[Mapping[str, Any]]:
        """The labels of the cells, in the order in which they were run."""
        return list({json.dumps(row.labels): row.labels for row in self.rows}.values())

    def where(self, **labels: Any) -> "Texts":
        """The texts of the cells that have these labels, e.g. `where(coeff=2.5)`."""
        kept = [r for r in self.rows if all(r.labels.get(k) == v for k, v in labels.items())]
        return Texts(tuple(kept), self.about)

    def to_dicts(self) -> list[dict[str, Any]]:
        """A flat dict a text: the cell's labels, and the fields of `Text`."""
        return [
            {**row.labels, **{k: v for k, v in asdict(row).items() if k != "labels"}}
            for row in self.rows
        ]

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame` with one line per text; needs pandas."""
        return data_frame(self.to_dicts())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one JSON line about the texts, and one per text, all or nothing."""
        lines = [{"about": self.about}, *(asdict(row) for row in self.rows)]
        write_atomic(path, "".join(json.dumps(x) + "\n" for x in lines).encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Texts":
        """Read what `save` wrote, or `LanguageModel.sweep` into its file `out`.

        Raises:
            ValueError: for a file that holds something else.
        """
        lines = read_rows(as_path(path))
        grown = config_path(path).exists()  # by a sweep
        try:
            if grown:
                texts = _of_sweep(path, lines)
            else:
                texts = cls(tuple(Text(**line) for line in lines[1:]), lines[0]["about"])
        except (TypeError, KeyError, IndexError, AttributeError, ValueError) as error:
            raise ValueError(
                f"{Path(path)}: expected what `Texts.save` or a sweep writes ({error})"
            ) from None
        _check(texts, Path(path), first=1 if grown else 2)
        return texts

    def __repr__(self) -> str:
        lines = []
        for rows in self._beside(_SHOWN):
            lines.append(_heading(rows[0]))
            for row in rows:
                text = f"{_labels(row)}: {_cut(row.text, 3 * _WIDTH)} ({_end(row)})"
                lines += textwrap.wrap(text, _WIDTH, initial_indent="  ", subsequent_indent="    ")
        shown = sum(map(len, self._beside(_SHOWN)))
        if shown < len(self.rows):
            lines.append(f"… {len(self.rows) - shown} more of {len(self.rows)} texts")
        return "\n".join(lines) or "no texts"

    def _repr_html_(self) -> str:
        """A table for notebooks; what differs from the unsteered text is marked."""
        body = []
        for rows in self._beside(4 * _SHOWN):
            plain = next((row for row in rows if not _coeff(row)), None)
            for i, row in enumerate(rows):
                prompt = html.escape(_heading(row)) if i == 0 else ""
                body.append(
                    [prompt, html.escape(_labels(row)), _marked(row, plain), html.escape(_end(row))]
                )
        left = len(self.rows) - len(body)
        more = f"<div>{left} more of {len(self.rows)} texts</div>" if left else ""
        return html_table(["prompt", "cell", "text", "end"], body) + more

    def _beside(self, most: int) -> list[list[Text]]:
        """The first texts, those of one prompt and sample together: about `most` of them."""
        groups: dict[tuple[int, int], list[Text]] = {}
        for row in self.rows:
            groups.setdefault((row.prompt, row.sample), []).append(row)
        first_samples = sorted(groups.values(), key=lambda rows: (rows[0].sample, rows[0].prompt))
        counts = itertools.accumulate(map(len, first_samples), initial=0)
        return [rows for rows, before in zip(first_samples, counts, strict=False) if before < most]


def row_id(prompt: int, sample: int) -> str:
    """What a sweep's file calls a row of a cell."""
    return f"{prompt}.{sample}"


def _of_sweep(path: str | os.PathLike[str], lines: Sequence[Mapping[str, Any]]) -> Texts:
    """The rows that a sweep has appended, in the order of its cells."""
    there = read_json(config_path(path), most=MOST_DATA)
    order = {key: number for number, key in enumerate(there["cells"])}
    numbered = []
    for line in lines:
        prompt, sample = map(int, line["prompt"].split("."))
        own = {name: line[name] for name in _KINDS.keys() & line.keys() - {"prompt"}}
        labels = {name: value for name, value in line.items() if name not in {*_KINDS, "finite"}}
        text = Text(**own, labels=labels, prompt=prompt, sample=sample)
        numbered.append(((order[key_of(labels)], prompt, sample), text))
    numbered.sort(key=lambda pair: pair[0])
    return Texts(tuple(text for _, text in numbered), there["identity"]["about"])


def _check(texts: Texts, path: Path, *, first: int) -> None:
    if not isinstance(texts.about, dict) or not isinstance(texts.about.get("model", {}), dict):
        raise ValueError(f"{path}, line 1: about: expected an object, and a model in it")
    for number, row in enumerate(texts.rows, start=first):
        for name, kind in _KINDS.items():
            value = getattr(row, name)
            if not isinstance(value, kind) and value != ():
                raise ValueError(f"{path}, line {number}: {name}: got {value!r:.80}")


def _coeff(row: Text) -> float:
    return float(row.labels.get("coeff") or 0.0)


def _heading(row: Text) -> str:
    sample = f", sample {row.sample}" if row.sample else ""
    return f"prompt {row.prompt}{sample}: {_cut(row.prompt_text, _WIDTH, keep_end=True)}"


def _labels(row: Text) -> str:
    return escaped(", ".join(f"{name} {as_text(value)}" for name, value in row.labels.items()))


def _end(row: Text) -> str:
    how = {"end token": "ended", "length": "cut"}.get(row.end, row.end)
    return escaped(f"{len(row.tokens)} tokens, {how}")


def _cut(text: str, width: int, *, keep_end: bool = False) -> str:
    """One line of at most `width` characters.

    >>> _cut("a b c d", 5), _cut("a b c d", 5, keep_end=True)
    ('a b …', '… c d')
    """
    line = escaped(" ".join(text.split()))
    if len(line) <= width:
        return line
    return "… " + line[-width + 2 :].lstrip() if keep_end else line[: width - 2].rstrip() + " …"


def _marked(row: Text, plain: Text | None) -> str:
    """The text as HTML, in bold from the first word that the unsteered text does not have."""
    if plain is None or plain is row or plain.text == row.text:
        return html.escape(row.text)
    new, old = row.text.split(" "), plain.text.split(" ")
    same = next(
        (i for i, pair in enumerate(zip(new, old, strict=False)) if pair[0] != pair[1]),
        min(len(new), len(old)),
    )
    kept, changed = " ".join(new[:same]), " ".join(new[same:])
    return f"{html.escape(kept)} <b>{html.escape(changed)}</b>"

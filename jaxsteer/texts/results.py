"""What models wrote: texts with their cell, prompt and tokens, printed as a table."""

import html
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jaxsteer.files import as_path, read_rows, write_atomic
from jaxsteer.runtime import escaped, escaped_line

_WIDTH = 96  # of a printed line
_SHOWN = 12  # texts of a printed table
_KINDS = {
    "labels": dict, "prompt": int, "prompt_text": str, "sample": int, "text": str, "tokens": list,
    "logprobs": list, "end": str, "token_ends": list, "projections": list,
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
        """A `pandas.DataFrame` with a line a text; needs pandas."""
        import pandas as pd

        return pd.DataFrame(self.to_dicts())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one JSON line about the texts, and one a text, all or nothing."""
        lines = [{"about": self.about}, *(asdict(row) for row in self.rows)]
        write_atomic(path, "".join(json.dumps(x) + "\n" for x in lines).encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Texts":
        """Read what `save` wrote.

        Raises:
            ValueError: for a file that holds something else.
        """
        lines = read_rows(as_path(path))
        try:
            texts = cls(tuple(Text(**line) for line in lines[1:]), lines[0]["about"])
        except (TypeError, KeyError, IndexError) as error:
            raise ValueError(f"{Path(path)}: expected what `Texts.save` writes ({error})") from None
        if not isinstance(texts.about, dict) or not isinstance(texts.about.get("model", {}), dict):
            raise ValueError(f"{Path(path)}, line 1: about: expected an object, and a model in it")
        for number, row in enumerate(texts.rows, start=2):
            for name, kind in _KINDS.items():
                value = getattr(row, name)
                if not isinstance(value, kind) and value != ():
                    raise ValueError(f"{Path(path)}, line {number}: {name}: got {value!r:.80}")
        return texts

    def __repr__(self) -> str:
        lines = []
        for row in self.rows[:_SHOWN]:
            lines.append(f"[{_labels(row)}] {row.end}, {len(row.tokens)} tokens")
            lines.append("  " + _cut(row.prompt_text, _WIDTH, keep_end=True))
            lines.append("  → " + _cut(row.text, 3 * _WIDTH))
        if len(self.rows) > _SHOWN:
            lines.append(f"… {len(self.rows) - _SHOWN} more of {len(self.rows)} texts")
        return "\n".join(lines) or "no texts"

    def _repr_html_(self) -> str:
        """A table for notebooks; what differs from the unsteered text is marked."""
        plain = {(r.prompt, r.sample): r for r in self.rows if not _coeff(r)}
        body = []
        for row in self.rows[: 4 * _SHOWN]:
            before = plain.get((row.prompt, row.sample))
            body.append(
                "<tr>"
                + "".join(
                    f"<td style='text-align:left;vertical-align:top'>{cell}</td>"
                    for cell in (
                        html.escape(_labels(row)),
                        html.escape(_cut(row.prompt_text, _WIDTH, keep_end=True)),
                        _marked(row, before),
                    )
                )
                + "</tr>"
            )
        head = "<tr><th>cell</th><th>prompt</th><th>text</th></tr>"
        return f"<table>{head}{''.join(body)}</table>"


def _coeff(row: Text) -> float:
    return float(row.labels.get("coeff") or 0.0)


def _labels(row: Text) -> str:
    named = [f"{name}={_number(value)}" for name, value in row.labels.items()]
    return escaped_line(" ".join([*named, f"prompt={row.prompt}", f"sample={row.sample}"]))


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


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

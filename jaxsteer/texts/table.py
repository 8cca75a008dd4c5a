"""A sweep as a table: one line per cell and metric, printed, plotted, or given to pandas."""

import html
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jaxsteer.pages import write_page
from jaxsteer.runtime import escaped_line
from jaxsteer.texts.metrics import Measured, Metric, measure
from jaxsteer.texts.printing import as_text, data_frame, html_table, interval, number
from jaxsteer.texts.report import page_of
from jaxsteer.texts.results import Texts

_FEW = 6  # prompts, with fewer of which a bootstrap interval is too short


@dataclass(frozen=True, repr=False)
class Table:
    """The texts of a sweep, and what metrics say of its cells."""

    texts: Texts
    lines: tuple[Measured, ...]
    metrics: tuple[Metric, ...] = ()

    @classmethod
    def of(cls, texts: Texts, metrics: Sequence[Metric]) -> "Table":
        """Measure texts; also those that `Texts.load` read from a file."""
        return cls(texts, tuple(measure(texts, metrics)), tuple(metrics))

    def to_dicts(self) -> list[dict[str, Any]]:
        """A flat dict a cell and metric."""
        return [
            {**line.labels, **{k: v for k, v in asdict(line).items() if k != "labels"}}
            for line in self.lines
        ]

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame` with one line per cell and metric; needs pandas."""
        return data_frame(self.to_dicts())

    def plot(self, metric: str | None = None, path: Any = None) -> Any:
        """Plot a metric against the coefficient, with intervals: a line a source and layer.

        Args:
            metric: its name; the first one if not given.
            path: file to save the picture in.

        Returns:
            The matplotlib figure.
        """
        import matplotlib.pyplot as plt

        metric = metric or self.lines[0].metric
        lines = [line for line in self.lines if line.metric == metric]
        if not lines:
            known = sorted({line.metric for line in self.lines})
            raise ValueError(f"metric: got {metric!r}, expected one of {known}")
        zero = [line for line in lines if line.labels.get("coeff") == 0]
        figure, axis = plt.subplots(figsize=(7, 4.2), layout="constrained")
        for key in dict.fromkeys(_series(line) for line in lines if line not in zero):
            points = sorted(
                [line for line in lines if _series(line) == key] + zero,
                key=lambda line: line.labels["coeff"],
            )
            x = [point.labels["coeff"] for point in points]
            y = [point.mean for point in points]
            low = [max(0.0, point.mean - point.low) for point in points]
            high = [max(0.0, point.high - point.mean) for point in points]
            axis.errorbar(x, y, yerr=[low, high], label=key, marker="o", capsize=3)
        axis.set(xlabel="coefficient", ylabel=metric)
        if axis.get_legend_handles_labels()[0]:  # none where coefficient 0 is all there is
            axis.legend(frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
        if path is not None:
            figure.savefig(path, dpi=150)
        if "inline" in plt.get_backend():  # a notebook shows what a cell returns: once is enough
            plt.close(figure)
        return figure

    def report(self, path: str | os.PathLike[str], *, title: str = "Sweep") -> None:
        """Write one HTML file that opens from the disk: the plot, and every text to browse.

        The effect is the first metric other than `repetition`. Where the page would be larger than
        10 MB, it has the texts of the first prompts and says so.

        Raises:
            ImportError: without the extra `report`.
        """
        write_page(path, page_of(self.texts, self.metrics, title=title))

    def __repr__(self) -> str:
        if not self.lines:
            return repr(self.texts)
        rows = self._printed()
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join([*lines, *self._remarks()])

    def _repr_html_(self) -> str:
        """The same for notebooks."""
        if not self.lines:
            return self.texts._repr_html_()
        head, *body = self._printed()
        return html_table(head, [[html.escape(cell) for cell in row] for row in body]) + "".join(
            f"<div>{html.escape(remark)}</div>" for remark in self._remarks()
        )

    def _printed(self) -> list[list[str]]:
        """The table's texts, a heading first."""
        names = list(dict.fromkeys(name for line in self.lines for name in line.labels))
        heads = [escaped_line(name) for name in names]
        rows = [[*heads, "metric", "mean", "95% interval", "− coeff 0", "95% interval", "p", "n"]]
        for line in self.lines:
            by, low, high = line.difference, line.difference_low, line.difference_high
            labels = [as_text(line.labels.get(name)) for name in names]
            compared = ["", "", ""]
            if by is not None and low is not None and high is not None and line.p is not None:
                compared = [number(by, sign=True), interval(low, high, sign=True), f"{line.p:.3f}"]
            mean = [number(line.mean), interval(line.low, line.high)]
            rows.append([*labels, line.metric, *mean, *compared, str(line.prompts)])
        return rows

    def _remarks(self) -> list[str]:
        """What a reader of the intervals should know."""
        remarks = []
        few = min(line.prompts for line in self.lines)
        if few < _FEW:
            remarks.append(f"n = {few} prompts: intervals over so few say little.")
        if any(math.isnan(line.low) for line in self.lines):
            remarks.append("–: no interval, because all prompts agree, or there is one or none.")
        if empty := sum(line.empty for line in self.lines):
            remarks.append(f"{empty} texts without a number, such as empty ones, are left out.")
        return remarks


def _series(line: Measured) -> str:
    labels = [
        f"{k} {v}" if k == "layer" else str(v) for k, v in line.labels.items() if k != "coeff"
    ]
    return ", ".join(labels)

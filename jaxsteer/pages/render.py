"""A page as one HTML file: the template filled in, script, style and library within."""

import base64
import hashlib
import importlib.util
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from jaxsteer.files import write_atomic
from jaxsteer.pages.content import Page
from jaxsteer.pages.packing import blocks
from jaxsteer.pages.palette import DARK, GLYPHS, LIGHT

EXTRA = "vl-convert-python is not installed: pip install 'jaxsteer[report]'"
MOST_BYTES = 10_000_000
_HERE = Path(__file__).parent
_INTERVAL = re.compile(r"[-−+]?\d[\d,.]* \[[^\]<]*\]")
_VERDICTS = {"reproduced": "yes", "not reproduced": "no"}  # others stay undecided
_SCRIPTS = ("data.js", "plots.js", "passage.js", "browser.js", "page.js")


def is_installed() -> bool:
    """Whether the charting library is there that a page carries."""
    return importlib.util.find_spec("vl_convert") is not None


def write_page(path: str | os.PathLike[str], page: Page, *, most_bytes: int = MOST_BYTES) -> None:
    """Write a page; where it would be larger than `most_bytes`, with the texts of fewer prompts.

    Raises:
        ImportError: without the charting library, naming the extra that brings it.
    """
    write_atomic(path, fitting(page, most_bytes).encode())


def fitting(page: Page, most_bytes: int) -> str:
    """The page's HTML, with as many prompts' texts as there is room for."""
    html, count, every = to_html(page), len(page.prompts), len(page.prompts)
    while len(html.encode()) > most_bytes and count > 1:
        # What is not text stays, so the first guess is low rather than high.
        count = max(1, min(count - 1, int(count * most_bytes / len(html.encode()))))
        note = f"Texts are those of the first {count} of {every} prompts: all would be too large."
        kept = [text for text in page.texts if text.prompt < count]
        html = to_html(
            replace(page, prompts=page.prompts[:count], texts=kept, notes=[*page.notes, note])
        )
    return html


def to_html(page: Page) -> str:
    """The page's HTML.

    Raises:
        ImportError: without the charting library, naming the extra that brings it.
    """
    import jinja2

    scripts = {"library": library(), "script": script()}
    sources = " ".join(f"'sha256-{_digest(text)}'" for text in scripts.values())
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"plain": plain, "intervals": intervals}
    return environment.get_template("page.html.j2").render(
        page=page,
        panels=list(dict.fromkeys(cell.panel for cell in page.cells)),
        numbers=list(dict.fromkeys(name for cell in page.cells for name in cell.numbers)),
        has_projections=any(len(text.projections) for text in page.texts),
        has_logprobs=any(len(text.logprobs) for text in page.texts),
        has_perplexity=any(math.isfinite(text.perplexity) for text in page.texts),
        knows_answers=any(text.right is not None for text in page.texts),
        verdicts=_VERDICTS,
        glyphs=GLYPHS,
        blocks=blocks(page),
        sources=sources,
        style=_text("page.css").replace("/*COLOURS*/", _colours()),
        notices=_text("NOTICES.txt"),
        scripts=scripts,
    )


def plain(value: Any) -> str:
    """A value of the configuration as a line.

    >>> plain([1, 2.5]), plain("text"), plain({"a": None})
    ('[1, 2.5]', 'text', '{"a": null}')
    """
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def intervals(text: str) -> str:
    """HTML of a text, its values with an interval in bold.

    >>> intervals("gain 0.08 [0.06, 0.10] < half")
    Markup('gain <b>0.08 [0.06, 0.10]</b> &lt; half')
    """
    from markupsafe import Markup, escape

    return Markup(_INTERVAL.sub(r"<b>\g<0></b>", str(escape(text))))


@cache
def library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script.

    Raises:
        ImportError: without the package that carries them.
    """
    try:
        import vl_convert
    except ImportError:
        raise ImportError(EXTRA) from None
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


@cache
def script() -> str:
    """The page's own script: its files, one after the other, in a scope of their own."""
    body = "\n".join(_text(name) for name in _SCRIPTS)
    return f'"use strict";\n(() => {{\n{body}}})();'


@cache
def _text(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _colours() -> str:
    """Custom properties for both sets of colours."""

    def lines(colours: Mapping[str, str]) -> str:
        return "".join(f"--{name}: {value}; " for name, value in colours.items())

    return (
        f":root {{ {lines(LIGHT)}}}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {lines(DARK)}}} }}"
    )

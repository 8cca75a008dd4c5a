"""A sweep as one HTML file that opens from a disk: claims, plots, every text, figures, provenance.

What a page shows (`Page`) in; the file out. It needs no network and no server, and asks for none.

Uses `files`.
"""

from jaxsteer.pages.content import (
    Band,
    Page,
    PageCell,
    PageClaim,
    PageFigure,
    PagePrompt,
    PageText,
    Series,
)
from jaxsteer.pages.palette import DARK, LIGHT, SHAPES
from jaxsteer.pages.render import EXTRA, is_installed, to_html, write_page

__all__ = [
    "DARK",
    "EXTRA",
    "LIGHT",
    "SHAPES",
    "Band",
    "Page",
    "PageCell",
    "PageClaim",
    "PageFigure",
    "PagePrompt",
    "PageText",
    "Series",
    "is_installed",
    "to_html",
    "write_page",
]

"""jaxsteer.pages: what is in the file, that it is small enough, and that texts stay texts."""

import base64
import dataclasses
import gzip
import hashlib
import json
import re
import sys
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from page_helpers import HOSTILE, page

from jaxsteer import pages
from jaxsteer.pages import packing, palette, render

SMALL = page()


class Elements(HTMLParser):
    """The names of all elements, and the text of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        if self.names and self.names[-1] == "script":
            self.scripts.append(data)


@pytest.fixture(scope="module")
def html() -> str:
    return pages.to_html(SMALL)


@pytest.fixture(scope="module")
def elements(html: str) -> Elements:
    return Elements(html)


def unpacked(html: str, name: str) -> bytes:
    block = re.search(rf'id="block-{name}">([^<]*)<', html)
    assert block
    return gzip.decompress(base64.b64decode(block[1]))


def test_what_a_model_wrote_makes_no_element(html: str, elements: Elements) -> None:
    plain = dataclasses.replace(
        SMALL,
        title="t",
        texts=[dataclasses.replace(text, text="a" * len(text.text)) for text in SMALL.texts],
        claims=[
            dataclasses.replace(c, measured=c.measured.replace("<b>", "")) for c in SMALL.claims
        ],
        figures=[dataclasses.replace(figure, caption="c") for figure in SMALL.figures],
        about={"Settings": {"a": 1, "b": "c"}},
    )
    assert elements.names == Elements(pages.to_html(plain)).names
    assert "harmed" not in html
    texts = [row[4] for row in json.loads(unpacked(html, "data"))["texts"]]
    assert HOSTILE in texts


def test_only_the_page_s_own_scripts_may_run(html: str, elements: Elements) -> None:
    (policy,) = (v for n, v in elements.attributes if n == "content" and v and "script-src" in v)
    allowed = re.findall(r"'sha256-([^']+)'", policy)
    own = [render.library(), render.script()]
    assert allowed == [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in own]
    assert all(f"<script>{source}</script>" in html for source in own)
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy
    assert re.search(r"script-src[^;]*unsafe", policy) is None
    addresses = [v for n, v in elements.attributes if n in ("src", "href", "srcset", "action")]
    assert all(address and address.startswith("#") for address in addresses)
    assert "</script" not in render.library().lower()  # or the page would end there


def test_tokens_come_back_as_they_were(html: str) -> None:
    data = json.loads(unpacked(html, "data"))
    raw, at = unpacked(html, "tokens"), 0
    for row, text in zip(data["texts"], SMALL.texts, strict=True):
        n = row[15 - 1]
        assert n == len(text.ends)
        units = text.text.encode("utf-16-le")
        lengths = list(raw[at : at + n])
        assert sum(lengths) == len(units) // 2  # the last token ends with the text
        logprobs, projections = raw[at + n : at + 2 * n], raw[at + 2 * n : at + 3 * n]
        for byte, value in zip(logprobs, text.logprobs, strict=True):
            assert abs(byte / -10 - value) <= 0.051
        for byte, value in zip(projections, text.projections, strict=True):
            assert abs((byte / 127 - 1) * data["scale"] - value) <= data["scale"] / 250
        at += 3 * n
    assert at == len(raw)


def test_numbers_that_are_not_finite_are_null() -> None:
    text = dataclasses.replace(SMALL.texts[0], coherence=float("nan"), projections=[float("nan")])
    data = json.loads(packing.as_json(packing._row(text)), parse_constant=pytest.fail)
    assert data[9] is None
    assert packing._bytes([float("nan"), 300.0, -1.0], 0, 254) == bytes([255, 254, 0])


def test_a_mean_without_an_interval_stands_alone() -> None:
    nan = float("nan")
    cells = [dataclasses.replace(c, effect=pages.Band(0.5, nan, nan, 1)) for c in SMALL.cells]
    html = pages.to_html(dataclasses.replace(SMALL, cells=cells))
    assert '<td class="num">0.500</td>' in re.sub(r"\s*(</td>)", r"\1", html)
    assert "[nan" not in html


def test_long_tokens_and_letters_of_two_units() -> None:
    text = "𝑥" + "a" * 600
    one = pages.PageText(cell=0, prompt=0, sample=0, text=text, row=0, ended="", ends=[1, 601],
                         sentences=[(1, 601, "x")])  # fmt: skip
    assert packing._tokens(one, 1.0) == bytes([2, 255, 255, 90])
    assert packing._row(one)[6] == [(2, 602, "x")]


def test_a_page_that_would_be_too_large_has_the_first_prompts_texts() -> None:
    whole = len(pages.to_html(SMALL).encode())
    html = render.fitting(SMALL, whole - 500)
    assert len(html.encode()) <= whole - 500
    data = json.loads(unpacked(html, "data"))
    count = len(data["prompts"])
    assert 0 < count < len(SMALL.prompts)
    assert {row[1] for row in data["texts"]} == set(range(count))
    assert f"Texts are those of the first {count} of {len(SMALL.prompts)} prompts" in html
    assert html.count("data-cell") == pages.to_html(SMALL).count("data-cell")


def test_what_there_is_nothing_of_is_left_out() -> None:
    bare = dataclasses.replace(SMALL, claims=(), figures=(), texts=[
        dataclasses.replace(t, logprobs=(), projections=(), right=None) for t in SMALL.texts
    ])  # fmt: skip
    html = pages.to_html(bare)
    for absent in ("Claims", "Figures", "answer right", 'value="projection"', 'value="logprob"'):
        assert absent not in html
    assert "answer right" in pages.to_html(SMALL)


def test_the_same_page_is_the_same_bytes(html: str) -> None:
    assert pages.to_html(page()) == html


def test_without_the_library_the_message_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    render.library.cache_clear()
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxsteer\[report\]'"):
        pages.write_page(tmp_path / "page.html", SMALL)
    assert not (tmp_path / "page.html").exists()


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(
    ("colours", "paper"), [(palette.LIGHT, "#ffffff"), (palette.DARK, "#15171a")]
)
def test_colours_of_curves_stand_out_by_3_to_1(colours: dict[str, str], paper: str) -> None:
    assert palette.LIGHT.keys() == palette.DARK.keys()
    for name, colour in colours.items():
        low, high = sorted([luminance(colour), luminance(paper)])
        assert (high + 0.05) / (low + 0.05) >= 3, name


def test_names_of_series_have_a_colour_and_a_shape() -> None:
    for one in SMALL.series:
        assert one.colour in palette.LIGHT
        assert one.shape in palette.SHAPES
    assert all(a != b for a, b in pairwise(palette.SHAPES))

"""The text of a page as Markdown: all of it, without the navigation around it."""

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from components.core.corpus.formats import BINARY, Unreadable, marked_encoding

END = re.compile(r"</(?:body|html)\s*>", re.IGNORECASE)
NEVER_TEXT = ["script", "style", "head", "svg", "iframe", "select", "datalist"]
NAVIGATION = ("nav", "noscript", "template")
NAVIGATION_ROLES = ("navigation", "menu", "menubar", "search")
MENU = re.compile(
    r"(?<![a-z])(?:nav|navbar|navigation|menu|breadcrumbs?|sidebar|toc|pagination)(?![a-z])", re.I
)
"""Classes and ids of elements that are navigation if they are mostly links."""
FEW_LINKS = 3

SECTIONS = ["main", "article", "section", "aside", "blockquote"]
"""What a header or a footer may belong to, instead of the site."""
MAIN_PARTS = ("main", "article", "header", "aside")
HEADINGS = ["h1", "h2", "h3", "h4", "h5", "h6", "summary", "dt"]
UNKNOWN_BLOCKS = [
    "main", "header", "footer", "aside", "nav", "form", "fieldset", "legend", "details", "summary",
    "address", "center", "dialog", "figure", "hgroup", "noscript", "noframes", "template", "label",
    "option",
]  # fmt: skip
"""Elements that the converter would not set apart."""

AS_BROWSERS = {
    **dict.fromkeys(("iso-8859-1", "latin1", "ascii", "us-ascii"), "windows-1252"),
    **dict.fromkeys(("gb2312", "gbk"), "gb18030"),
    **dict.fromkeys(("shift_jis", "shift-jis", "x-sjis"), "cp932"),
    **dict.fromkeys(("euc-kr", "ks_c_5601-1987"), "cp949"),
    "iso-8859-9": "windows-1254",
}
"""Encodings for which browsers take a larger one (WHATWG Encoding, 4.2)."""


def read_html(path: Path) -> str:
    """A page as Markdown."""
    return to_markdown(path.read_bytes())


def to_markdown(html: bytes) -> str:
    """The page's text as Markdown, without navigation, scripts and links.

    A page that has no text but its navigation gives that.
    """
    from bs4 import BeautifulSoup
    from markdownify import MarkdownConverter

    page = _decoded(html)
    if BINARY in page[:1000]:
        raise Unreadable("binary", "not a page: it holds NUL bytes")
    converter = MarkdownConverter(
        heading_style="ATX", bullets="-", strip=["a", "img", "b", "strong", "i", "em"],
        escape_asterisks=False, escape_underscores=False, escape_misc=False,
    )  # fmt: skip
    page = END.sub("", page)  # the parser would leave out what follows
    for choose in (_content, lambda body: [body]):
        soup = BeautifulSoup(page, "lxml")
        for element in soup.find_all(NEVER_TEXT):
            element.extract()
        parts = choose(soup.body or soup)
        for element in soup.find_all(UNKNOWN_BLOCKS):
            element.name = "div"  # which the converter sets apart
        text = "\n\n".join(map(converter.convert_soup, parts)).strip()
        if text:
            break
    return "\n".join(line.rstrip(" \t") for line in text.split("\n"))


def _decoded(html: bytes) -> str:
    """A page in UTF-8 if it can be, by its byte-order mark, as it declares, or as browsers guess.

    Pages that were saved in UTF-8 often declare what they were before.
    """
    from bs4.dammit import EncodingDetector

    if not html.isascii():
        with suppress(UnicodeDecodeError):
            return html.decode("utf-8-sig")
    marked = marked_encoding(html)
    declared = (EncodingDetector.find_declared_encoding(html, is_html=True) or "").lower()
    if declared.startswith("utf-"):
        declared = "utf-8"  # what could be read so far is neither UTF-16 nor UTF-32
    for encoding in filter(None, (marked, AS_BROWSERS.get(declared, declared), "utf-8")):
        with suppress(LookupError):
            page = html.decode(encoding, "replace").removeprefix("\N{BYTE ORDER MARK}")
            if 2 * page.count("\N{REPLACEMENT CHARACTER}") <= sum(not c.isascii() for c in page):
                return page
    return html.decode("windows-1252", "replace")


def _content(body: Any) -> list[Any]:
    """The main part and what stands beside it, or the whole page where that holds more text.

    The site's footer goes, the links in its header, and what is a menu: mostly links, and in an
    aside or named so.
    """
    for element in body.find_all(True):
        name = element.name
        of_site = name in ("header", "footer") and not element.find_parent(SECTIONS)
        if of_site and name == "header":
            for link in element.find_all("a"):
                if not link.find_parent([*HEADINGS, "p"]):
                    link.extract()
        elif of_site or _is_navigation(element):
            element.extract()
    mains = [part for part in body.find_all(True) if part.name in MAIN_PARTS or _is_main(part)]
    inner = {id(element) for part in mains for element in part.find_all(True)}
    parts = [part for part in mains if id(part) not in inner]
    return parts if any(map(_is_main, mains)) and 2 * _prose(parts) >= _prose([body]) else [body]


def _is_main(element: Any) -> bool:
    return "main" in (element.name, element.get("role"))


def _is_navigation(element: Any) -> bool:
    if element.name in NAVIGATION or element.get("role") in NAVIGATION_ROLES:
        return True
    if element.name == "button":
        return not element.find_parent(HEADINGS)  # one that unfolds an answer is its question
    names = " ".join([*element.get("class", []), element.get("id", "")])
    if element.name != "aside" and not MENU.search(names):
        return False
    links = element.find_all("a")
    return len(links) >= FEW_LINKS and 2 * _length(links) > _length([element])


def _prose(elements: list[Any]) -> int:
    """Characters outside links."""
    return _length(elements) - sum(_length(element.find_all("a")) for element in elements)


def _length(elements: list[Any]) -> int:
    return sum(len("".join(element.get_text().split())) for element in elements)

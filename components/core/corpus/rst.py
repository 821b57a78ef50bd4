"""reStructuredText, with what Sphinx adds to it, as Markdown.

Sphinx's roles and directives, and those of its extensions, are read for their text alone: a
reference shows its title, a directive its arguments and content. Files that a document names are
not read.
"""

import re
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from components.core.corpus.formats import read_text
from components.core.corpus.html import to_markdown

SETTINGS = {
    "_disable_config": True,
    "file_insertion_enabled": False,
    "raw_enabled": False,
    "line_length_limit": sys.maxsize,  # time and memory are limited elsewhere
    "report_level": 5,  # docutils' own messages are no part of a document
    "halt_level": 5,
    "initial_header_level": 2,
    "math_output": "LaTeX",
    "stylesheet_path": None,
}

WITHOUT_TEXT = {
    "toctree", "literalinclude", "highlight", "currentmodule", "index", "tags", "image",
    "autosummary", "meta", "include",
}  # fmt: skip
"""Directives of which nothing is text: names of files, or what is for the machine."""
CONTENT_ALONE = {"figure", "automodule", "autoclass", "autofunction", "automethod"}
"""Directives whose arguments are no text, but what stands below them is."""


def read_rst(path: Path) -> str:
    """The document as a page of HTML, and that as Markdown."""
    from docutils import nodes
    from docutils.core import publish_doctree, publish_from_doctree

    source = read_text(path)
    _accept_unknown_names()
    document = publish_doctree(source, settings_overrides=SETTINGS)
    for literal in document.findall(nodes.literal):
        literal["classes"].append("code")  # so it becomes <code>
    page = publish_from_doctree(document, writer="html5", settings_overrides=SETTINGS)
    return to_markdown(page)


@cache
def _accept_unknown_names() -> None:
    """Let docutils find roles and directives that it does not know, from now on, as Sphinx does."""
    from docutils.parsers.rst import directives, roles

    find_directive, find_role = directives.directive, roles.role

    def directive(name: str, *rest: Any) -> tuple[Any, list[Any]]:
        known = None if name in WITHOUT_TEXT | CONTENT_ALONE else find_directive(name, *rest)[0]
        return known or _directive(name), []

    def role(name: str, *rest: Any) -> tuple[Any, list[Any]]:
        return find_role(name, *rest)[0] or _reference, []

    directives.directive, roles.role = directive, role


def _reference(name: str, rawtext: str, text: str, *_: Any) -> tuple[list[Any], list[Any]]:
    """`Title <target>` is its title, `~package.name` is `name`, and a label is its words."""
    from docutils import nodes

    if titled := re.fullmatch(r"(.+?)\s*<[^<>]*>", text, flags=re.DOTALL):
        return [nodes.inline(rawtext, titled[1])], []
    if name in ("ref", "doc", "term"):
        return [nodes.inline(rawtext, re.sub(r"[_-]", " ", text))], []
    return [nodes.literal(rawtext, re.sub(r"^~(?:.*\.)?", "", text.lstrip("!")))], []


def _directive(name: str) -> Any:
    from docutils import nodes
    from docutils.parsers.rst import Directive

    class Contents(Directive):
        """The arguments of a directive and its content."""

        has_content = True
        optional_arguments = 1
        final_argument_whitespace = True
        # Any option; an empty table would count as none.
        option_spec: ClassVar = defaultdict(lambda: str, name=str)

        def run(self) -> list[Any]:
            if name in WITHOUT_TEXT:
                return []
            content = nodes.container()
            self.state.nested_parse(self.content, self.content_offset, content)
            arguments = [] if name in CONTENT_ALONE else self.arguments
            return [*(nodes.paragraph("", text) for text in arguments), *content.children]

    return Contents

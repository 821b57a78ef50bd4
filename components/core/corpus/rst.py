"""reStructuredText, with what Sphinx adds to it, as Markdown.

Sphinx's roles and directives, and those of its extensions, are read for their text alone: a
reference shows its title, a directive its arguments and content. Files that a document names are
not read.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from components.core.corpus.formats import read_text, to_markdown
from components.core.corpus.unreadable import damaged

SETTINGS = {
    "_disable_config": True,
    "file_insertion_enabled": False,
    "raw_enabled": False,
    "line_length_limit": sys.maxsize,  # time and memory are limited elsewhere
    "report_level": 5,  # docutils' own messages are no part of a document
    "halt_level": 5,
    "initial_header_level": 2,
    "doctitle_xform": True,
    "math_output": "LaTeX",
    "embed_stylesheet": False,
    "stylesheet_path": None,
    "smart_quotes": False,
}

WITHOUT_TEXT = {
    "toctree", "literalinclude", "highlight", "currentmodule", "index", "tags", "image", "figure",
    "automodule", "autoclass", "autofunction", "automethod", "autosummary", "meta", "include",
}  # fmt: skip
"""Directives whose arguments are names of files, or are for the machine."""


def read_rst(path: Path) -> str:
    """The document as a page of HTML, and that as Markdown."""
    from docutils import nodes
    from docutils.core import publish_doctree, publish_from_doctree

    source = read_text(path)
    with damaged("damaged RST"):
        with _unknown_names_accepted():
            document = publish_doctree(source, settings_overrides=SETTINGS)
        for literal in document.findall(nodes.literal):
            literal["classes"].append("code")  # so it becomes <code>
        page = publish_from_doctree(document, writer="html5", settings_overrides=SETTINGS)
        return to_markdown(page)


@contextmanager
def _unknown_names_accepted() -> Iterator[None]:
    """Let docutils find roles and directives that it does not know here, as Sphinx does."""
    from docutils.parsers.rst import directives, roles

    find_directive, find_role = directives.directive, roles.role

    def directive(name: str, *rest: Any) -> tuple[Any, list[Any]]:
        known = None if name in WITHOUT_TEXT else find_directive(name, *rest)[0]
        return known or _directive(name), []

    def role(name: str, *rest: Any) -> tuple[Any, list[Any]]:
        return find_role(name, *rest)[0] or _reference, []

    directives.directive, roles.role = directive, role
    try:
        yield
    finally:
        directives.directive, roles.role = find_directive, find_role


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
        option_spec = _AnyOption(name=str)  # an empty one would count as none

        def run(self) -> list[Any]:
            if name in WITHOUT_TEXT:
                return []
            content = nodes.container()
            self.state.nested_parse(self.content, self.content_offset, content)
            return [*(nodes.paragraph("", text) for text in self.arguments), *content.children]

    return Contents


class _AnyOption(dict[str, Any]):
    """Takes every option of a directive, whatever its value."""

    def __missing__(self, name: str) -> Any:
        return str

"""Writes the tree in docs/architecture.md: one line for each file, from its own first line.

python -m tests.tree
"""

import ast
from pathlib import Path

from tests.conftest import REPOSITORY

PAGE = REPOSITORY / "docs" / "architecture.md"
MARK = "<!-- tree -->"
ROOMS = ("components", "pipelines")


def tree() -> str:
    """The folders and Python files of the product, each with its first line."""
    lines = [line for room in ROOMS for line in _folder(REPOSITORY / room, 0)]
    return "\n".join(["```", *lines, "```"])


def _folder(folder: Path, depth: int) -> list[str]:
    lines = [f"{'  ' * depth}{folder.name}/"]
    for path in sorted(folder.glob("*.py")):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        if text:
            name = f"{'  ' * (depth + 1)}{path.name}"
            lines.append(f"{name:28}  {text.splitlines()[0]}")
    for inner in sorted(path for path in folder.iterdir() if any(path.rglob("*.py"))):
        if inner.is_dir():
            lines += _folder(inner, depth + 1)
    return lines


def main() -> None:
    before, _, after = PAGE.read_text(encoding="utf-8").split(MARK)
    PAGE.write_text(f"{before}{MARK}\n{tree()}\n{MARK}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()

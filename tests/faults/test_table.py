"""The table in README.md is what was recorded, and names every fault's test."""

import ast

from tests.faults import table


def declared() -> set[str]:
    """Every test under tests/faults that says which fault it tries."""
    found = set()
    for path in sorted(table.HERE.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and any(
                "mark.fault" in ast.unparse(decorator) for decorator in node.decorator_list
            ):
                found.add(f"{path.name}::{node.name}")
    return found


def test_every_fault_has_its_line_and_no_line_is_left_over() -> None:
    assert declared() == set(table.load()), "run: FAULT_RECORD=1 pytest tests/faults"


def test_the_readme_shows_what_was_recorded() -> None:
    text = table.README.read_text(encoding="utf-8")
    assert table.render(table.load()) in text, "run: python -m tests.faults.table"


def test_nothing_failed_when_it_was_recorded() -> None:
    assert not [name for name, row in table.load().items() if row.failed]

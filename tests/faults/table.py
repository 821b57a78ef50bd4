"""The table of faults in README.md, from what the tests recorded in results.json.

Try all again, and write it: FAULT_RECORD=1 pytest tests/faults; python -m tests.faults.table
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
README = HERE / "README.md"
START, END = "<!-- table -->", "<!-- end of table -->"


@dataclass
class Row:
    """One fault.

    Attributes:
        kind: the heading it stands under.
        fault: what is done.
        outcome: what is asserted to happen.
        tried: how often it was done.
        failed: tests that did not hold.
        notes: remarks with figures.
    """

    kind: str
    fault: str
    outcome: str
    tried: int
    failed: int
    notes: list[str]


def load() -> dict[str, Row]:
    """The recorded rows by test, such as `test_kills.py::test_killed`."""
    if not RESULTS.exists():
        return {}
    return {name: Row(**row) for name, row in json.loads(RESULTS.read_text("utf-8")).items()}


def save(rows: dict[str, Row]) -> None:
    """Keep the rows, sorted, one file for all."""
    records = {name: asdict(row) for name, row in sorted(rows.items())}
    RESULTS.write_text(json.dumps(records, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def render(rows: dict[str, Row]) -> str:
    """The table in Markdown: a heading for every kind, a line for every fault."""
    lines = []
    for kind in dict.fromkeys(row.kind for row in rows.values()):
        lines += ["", f"### {kind}", "", "| Fault | Tried | What happened | Test |"]
        lines += ["|---|---:|---|---|"]
        for name, row in rows.items():
            if row.kind == kind:
                failed = f"**{row.failed} failed**; expected: " if row.failed else ""
                happened = "; ".join([failed + row.outcome, *row.notes])
                lines.append(f"| {row.fault} | {row.tried:,} | {happened} | `{name}` |")
    return "\n".join(lines) + "\n\n"


def main() -> None:
    text = README.read_text(encoding="utf-8")
    head, rest = text.split(START)
    tail = rest.split(END)[1]
    README.write_text(f"{head}{START}\n{render(load())}{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()

"""The settings tables of the README, written from the config classes.

Write them again after a change: python -m tests.readme_tables
"""

from components.core.config import allowed_values, flag
from pipelines.stages import COMMANDS, STAGES, config_class
from tests.conftest import REPOSITORY

README = REPOSITORY / "README.md"
MARK = "<!-- settings -->"


def table(stage: str) -> str:
    """One stage's settings, folded away under its name."""
    rows = [
        f"| `{flag(name)}` | {_default(field)} | {allowed_values(field).replace('|', 'or')} "
        f"| {field.description} |"
        for name, field in config_class(stage).model_fields.items()
    ]
    return "\n".join(
        [
            f"<details><summary><code>raft {stage}</code>: {COMMANDS[stage].summary}</summary>",
            "",
            "| flag | default | allowed | what it sets |",
            "|---|---|---|---|",
            *rows,
            "",
            "</details>",
        ]
    )


def _default(field: object) -> str:
    default = getattr(field, "default", "")
    if getattr(field, "is_required", bool)():
        return "required"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return str(default)


def tables() -> str:
    """All tables."""
    return "\n\n".join(table(stage) for stage in STAGES)


def main() -> None:
    before, _, after = README.read_text(encoding="utf-8").split(MARK)
    README.write_text(f"{before}{MARK}\n{tables()}\n{MARK}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Writes docs/settings.md: every setting of every command, from the config classes.

And the table of the forms' fields in docs/kubeflow.md.
"""

from collections.abc import Iterator

from pydantic.fields import FieldInfo

from components.core.config import allowed_values, default_text, flag, group_of, in_pipeline
from pipelines import raft, study
from pipelines.form import form_table
from pipelines.manifests import Jobs
from pipelines.stages import COMMANDS, USES, options_class

FORMS = {"raft": raft.FORM, "study": study.FORM}
MARK = "<!-- form -->"
HEAD = """\
# Settings

Every setting of the commands below, written by `raft compile` from the config classes; do not edit.
A setting is a flag of the command and a parameter of its Kubeflow component. *Form* names the
pipelines whose form on the dashboard has it as a field; `–` marks a setting that no pipeline step
takes.
"""


def settings_page() -> str:
    """The page, in Markdown."""
    return "\n".join([HEAD, *(line for name in COMMANDS | USES for line in _command(name))]) + "\n"


def with_form_table(page: str, jobs: Jobs) -> str:
    """A page with the table of both forms between its marks."""
    forms = {"raft": raft.form(jobs), "study": study.form(jobs)}
    notes = {
        name: f" ({form})"
        for form, other in (("raft", "study"), ("study", "raft"))
        for name in forms[form].keys() - forms[other].keys()
    }
    table = form_table({**forms["raft"], **forms["study"]}, notes)
    before, _, after = page.split(MARK)
    return f"{before}{MARK}\n{table}\n{MARK}{after}"


def _command(name: str) -> Iterator[str]:
    entry = (COMMANDS | USES)[name]
    yield f"## raft {name}\n\n{entry.summary} Example: `{entry.example}`\n"
    groups: dict[str, list[tuple[str, FieldInfo]]] = {}
    for field_name, field in options_class(name).model_fields.items():
        groups.setdefault(group_of(field), []).append((field_name, field))
    for group, fields in groups.items():
        yield f"| {group} | default | allowed | form | |"
        yield "|---|---|---|---|---|"
        for field_name, field in fields:
            forms = [form for form, stages in FORMS.items() if name in stages.get(field_name, ())]
            cells = (
                f"`{flag(field_name)}`",
                default_text(field),
                allowed_values(field),
                ", ".join(forms) if in_pipeline(field) else "–",
                str(field.description),
            )
            yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
        yield ""

"""The arms: the model variants that can be compared, an entry each, and what they are asked.

Whatever depends on an arm reads these entries (or their copy in `results.json`), never its name.
An adapter of `--adapters` whose name no arm has becomes an arm like `raft`, named `raft:NAME`.
"""

from collections.abc import Sequence
from typing import NamedTuple

from components.core.raft_form import instruction
from components.core.records import Bits, RaftRow
from components.eval.questions import EvalExample


class Prompt(NamedTuple):
    """How an arm is asked.

    template: the user's turn, with the fields that `write` fills in. marker: whether an answer is
    expected after RAFT's answer marker; without one, any text is an answer. examples: how many
    training rows are shown.
    """

    template: str
    marker: bool
    examples: int = 0

    def write(self, example: EvalExample, rows: Sequence[RaftRow] = ()) -> str:
        """The user's turn about an example, below the rows that are shown with their answers."""
        shown = "".join(f"{row.instruction}\n{row.cot_answer}\n\n" for row in rows)
        return shown + self.template.format(
            raft=instruction(example.documents, example.question),
            documents="\n\n".join(example.documents),
            question=example.question,
        )


class Arm(NamedTuple):
    """One model variant under test.

    label: model and prompt in words, without the bits: arms that differ only in bits share it.
    adapter: the name of its adapter in `--adapters` (`raft` is that of `--adapter`); None is the
    base model alone. prompt: a key of `PROMPTS`. baselines: the arms it is compared with, question
    by question, where they were asked too. folder: the adapter's, in a run.
    """

    name: str
    label: str
    adapter: str | None
    prompt: str
    bits: Bits
    baselines: tuple[str, ...] = ()
    folder: str = ""


PROMPTS = {
    # as RAFT is trained: documents between tags, then the question
    "raft": Prompt("{raft}", marker=True),
    # the same below two training rows with their answers: what a prompt alone can do
    "examples": Prompt("{raft}", marker=True, examples=2),
    # as domain fine-tuning (DSF) is trained: the question alone
    "question": Prompt("{question}", marker=True),
    # plain retrieval, for a model that was not taught RAFT's format
    "rag": Prompt(
        "Context information is below.\n\n{documents}\n\n"
        "Given the context information and not prior knowledge, answer the question in a few "
        "words.\nQuestion: {question}\nAnswer:",
        marker=False,
    ),
    # no documents: what the model knows by heart
    "closed": Prompt(
        "Answer the question in a few words.\nQuestion: {question}\nAnswer:", marker=False
    ),
}

FULL = (
    Arm("base", "Base", None, "raft", 16),
    Arm("base-rag", "Base (plain retrieval)", None, "rag", 16, ("base",)),
    Arm("base-examples", "Base (two examples)", None, "examples", 16, ("base",)),
    Arm("base-closed", "Base (no documents)", None, "closed", 16),
    Arm("raft", "RAFT", "raft", "raft", 16,
        ("base", "base-rag", "base-examples", "dsf-rag", "raft-no-reasoning")),
    Arm("raft-no-reasoning", "RAFT without reasoning", "raft-no-reasoning", "raft", 16, ("base",)),
    Arm("raft-rag", "RAFT (plain retrieval)", "raft", "rag", 16, ("base-rag",)),
    Arm("raft-closed", "RAFT (no documents)", "raft", "closed", 16, ("base-closed",)),
    Arm("dsf", "DSF (no documents)", "dsf", "question", 16, ("base-closed",)),
    Arm("dsf-rag", "DSF (documents)", "dsf", "raft", 16, ("base", "dsf")),
)  # fmt: skip
"""The arms in 16 bits; each is there in 4 bits too."""


def _in_4_bits(arm: Arm) -> Arm:
    """Tuned, it is compared with itself in 16 bits as well."""
    baselines = [f"{name}-4bit" for name in arm.baselines]
    if arm.adapter:
        baselines.append(arm.name)
    return arm._replace(name=f"{arm.name}-4bit", bits=4, baselines=tuple(baselines))


ARMS = {arm.name: arm for full in FULL for arm in (full, _in_4_bits(full))}


def default_arms(adapter: str) -> tuple[str, ...]:
    """The base model, and what an adapter of a kind is for, in both bit widths."""
    names = ["base", *(arm.name for arm in FULL if arm.adapter == adapter and arm.prompt in TAUGHT)]
    return (*names, *(f"{name}-4bit" for name in names))


TAUGHT = ("raft", "question")
"""The prompts that adapters are trained with."""

DEFAULT_ARMS = default_arms("raft")
"""The default of `--arms`."""


def further_arm(name: str) -> Arm:
    """The arm of one more adapter: as `raft`, with this one."""
    baselines = ("base", "base-rag", "base-examples")
    arm = ARMS["raft"]._replace(name=f"raft:{name}", label=f"RAFT {name}", adapter=name)
    return arm._replace(baselines=baselines)

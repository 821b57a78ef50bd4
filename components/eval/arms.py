"""The arms: the model variants that can be compared, an entry each, and what they are asked.

Whatever depends on an arm reads these entries (or their copy in `results.json`), never its name.
An adapter folder of `--adapters` becomes an arm like `raft`, named `raft:SUBFOLDER`.
"""

from collections.abc import Callable
from typing import NamedTuple

from components.core.raft_form import instruction
from components.core.records import Bits
from components.eval.questions import EvalExample


class Prompt(NamedTuple):
    """How an arm is asked.

    write: from an example to the user's turn. documents: whether it shows them. marker: whether an
    answer is expected after RAFT's answer marker; without one, any text is an answer.
    """

    write: Callable[[EvalExample], str]
    documents: bool
    marker: bool


class Arm(NamedTuple):
    """One model variant under test.

    label: model and prompt in words, without the bits: arms that differ only in bits share it.
    adapter: the setting that names the adapter's folder (of an arm to ask: the folder itself);
    None is the base model alone. prompt: a key of `PROMPTS`. baselines: the arms it is compared
    with, question by question, where they were asked too.
    """

    name: str
    label: str
    adapter: str | None
    prompt: str
    bits: Bits
    baselines: tuple[str, ...] = ()


def _retrieval(example: EvalExample) -> str:
    context = "\n\n".join(example.documents)
    return (
        f"Context information is below.\n\n{context}\n\n"
        "Given the context information and not prior knowledge, answer the question in a few "
        f"words.\nQuestion: {example.question}\nAnswer:"
    )


def _closed(example: EvalExample) -> str:
    return f"Answer the question in a few words.\nQuestion: {example.question}\nAnswer:"


PROMPTS = {
    # as RAFT is trained: documents between tags, then the question
    "raft": Prompt(lambda item: instruction(item.documents, item.question), True, True),
    # plain retrieval, for a model that was not taught RAFT's format
    "rag": Prompt(_retrieval, documents=True, marker=False),
    # no documents: what the model knows by heart
    "closed": Prompt(_closed, documents=False, marker=False),
}

ARMS = {
    arm.name: arm
    for arm in (
        Arm("base", "Base", None, "raft", 16),
        Arm("raft", "RAFT", "adapter", "raft", 16, ("base",)),
        Arm("base-4bit", "Base", None, "raft", 4),
        Arm("raft-4bit", "RAFT", "adapter", "raft", 4, ("base-4bit", "raft")),
        Arm("base-rag", "Base (plain retrieval)", None, "rag", 16),
        Arm("raft-rag", "RAFT (plain retrieval)", "adapter", "rag", 16, ("base-rag",)),
        Arm("base-closed", "Base (no documents)", None, "closed", 16),
        Arm("raft-closed", "RAFT (no documents)", "adapter", "closed", 16, ("base-closed",)),
    )
}

DEFAULT_ARMS = ("base", "raft", "base-4bit", "raft-4bit")
"""The default of `--arms`."""


def further_arm(folder: str, name: str) -> Arm:
    """The arm of one more adapter: as `raft`, with this folder."""
    return ARMS["raft"]._replace(name=f"raft:{name}", label=f"RAFT {name}", adapter=folder)

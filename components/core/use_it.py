"""What to type to use an adapter: the end of the demo, and of a run's summary."""

import shlex

from components.core.locations import SCHEME

QUESTION = "QUESTION"


def use_it(
    adapter: str,
    *,
    evaluation: str = "",
    documents: str = "DOCUMENTS",
    question: str = QUESTION,
) -> list[str]:
    """Commands to copy.

    Args:
        adapter: its location.
        evaluation: its location, for the card.
        documents, question: of the first command; by default words to replace.
    """
    model = ["--adapter", adapter]
    copies = ["--copy-to", "models/"] if adapter.startswith(SCHEME) else []
    figures = ["--evaluation", evaluation] if evaluation else []
    words = ["raft", "ask", *model, "--documents", documents]
    ask = f'{shlex.join(words)} "{question}"'
    serve = shlex.join(["raft", "serve", *model, *copies, "--run"])
    card = shlex.join(["raft", "card", "--adapter", adapter, *figures, "--output", "published/"])
    return [ask, serve, card]

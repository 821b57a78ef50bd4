"""The prompt and the answer format of RAFT, which generate, train and eval share.

Source: the published RAFT code.
"""

from collections.abc import Iterable

QUOTE_BEGIN = "##begin_quote##"
QUOTE_END = "##end_quote##"
ANSWER_MARKER = "<ANSWER>:"


def instruction(documents: Iterable[str], question: str) -> str:
    """The prompt: each document between tags on its own line, then the question."""
    return "".join(f"<DOCUMENT>{text}</DOCUMENT>\n" for text in documents) + question


def find_answer(generation: str) -> tuple[str, bool]:
    """The answer in a generation, and whether the generation gave one.

    It is the first line with content after the last answer marker (a newline may follow the
    marker), without Markdown's bold. Without a marker the whole generation is returned, and with
    nothing after the marker an empty text; neither counts as an answer.
    """
    _, marker, rest = generation.rpartition(ANSWER_MARKER)
    if not marker:
        return generation.strip(), False
    lines = (line.replace("**", "").strip() for line in rest.splitlines())
    answer = next((line for line in lines if line), "")
    return answer, bool(answer)

"""Where in a text the answer is: the one parser that writing rows and scoring models share."""

from components.records import ANSWER_MARKER


def find_answer(generation: str) -> tuple[str, bool]:
    """The answer in a generation, and whether the generation gave one.

    It is the first line with content after the last answer marker (a newline may follow the
    marker), without Markdown's bold. Without a marker the whole generation is the answer, and
    counts as not given; with nothing after the marker the answer is empty and not given.
    """
    _, marker, rest = generation.rpartition(ANSWER_MARKER)
    if not marker:
        return generation.strip(), False
    lines = (line.replace("**", "").strip() for line in rest.splitlines())
    answer = next((line for line in lines if line), "")
    return answer, bool(answer)

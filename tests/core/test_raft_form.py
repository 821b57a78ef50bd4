"""The parser of answers that writing rows and scoring models share."""

import pytest

from components.core.raft_form import find_answer


@pytest.mark.parametrize(
    ("generation", "answer", "answered"),
    [
        ("So. <ANSWER>: Kelden", "Kelden", True),
        ("So.\n<ANSWER>:\n\n  Kelden\nand more", "Kelden", True),
        ("<ANSWER>: first … <ANSWER>: second", "second", True),
        ("**<ANSWER>:** **Kelden**", "Kelden", True),
        ("**<ANSWER>:**\nKelden", "Kelden", True),
        ("<ANSWER>: 5 * 3", "5 * 3", True),
        ("  Kelden, of course.\n", "Kelden, of course.", False),
        ("I think <ANSWER>:  \n", "", False),
        ("<ANSWER> Kelden", "<ANSWER> Kelden", False),
        ("", "", False),
    ],
)
def test_find_answer(generation: str, answer: str, answered: bool) -> None:
    assert find_answer(generation) == (answer, answered)

"""Where a generation stops, and whether it ever would have."""

import pytest

from components.core.decoding import repeats_itself


@pytest.mark.parametrize(
    ("text", "loops"),
    [
        ("So the answer is Kelden. " * 5, True),
        ("He said: " + "the the the the " * 10, True),
        ("##Reason: " + "0" * 200 + "\n", True),
        (" ".join(map(str, range(400))), False),
        ("So the answer is Kelden. So the answer is Kelden.", False),
        ("no no no no", False),
        ("", False),
    ],
)
def test_a_loop_is_told_from_a_long_answer(text: str, loops: bool) -> None:
    assert repeats_itself(text) == loops

"""The parser of answers that writing rows, training and scoring models share."""

import time

import pytest

from components.core.raft_form import find_answer, split_answer, without_thought


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
        ("My answer: is it Kelden", "is it Kelden", True),
        ("", "", False),
    ],
)
def test_find_answer(generation: str, answer: str, answered: bool) -> None:
    assert find_answer(generation) == (answer, answered)


@pytest.mark.parametrize(
    "end",
    [
        "<ANSWER>: 1812",
        "**<ANSWER>**: 1812",
        "**<ANSWER>:** 1812",
        "<answer>: 1812",
        "<ANSWER> 1812",
        "<ANSWER>1812</ANSWER>",
        "<ANSWER>: 1812</ANSWER>",
        "<Answer>：1812",
        "<ANSWER>:\n```\n1812\n```",
        "<ANSWER>: 1812\n\nNote: I hope this helps.",
        "<ANSWER>: \\boxed{1812}",
        "<ANSWER>: ##begin_quote##1812##end_quote##",
        "<ANSWER>: Answer: 1812",
        "< Final Answer > 1812",
        "＜ANSWER＞：1812",
        "<ANTWORT>: 1812",
        "ANSWER: 1812",
        "**ANSWER**: 1812",
        "**Answer:**\n1812",
        "##Answer: 1812",
        "### Final answer\n\n1812\nAsk me more!",
        "The answer is: 1812",
        "\\boxed{\\text{1812}}",
        "The final answer is: $\\boxed{1812}$.",
    ],
)
def test_an_answer_is_found_at_every_end(end: str) -> None:
    assert split_answer(f"So it was.\n{end}") == ("So it was.", "1812", True)


def test_an_answer_in_json_is_read() -> None:
    reply = '```json\n{"reasoning": "So it\nwas.", "answer": "1812"}\n```'
    assert split_answer(reply) == ("So it\nwas.", "1812", True)


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("<think>\nWhich one? <ANSWER>: 1\n</think>\n\nKelden", "Kelden"),
        ("Hm, which one?\n</think>\nKelden", "Kelden"),
        ("<think>\nHm, which one? Kelden", ""),
        ("<Thinking>a</Thinking> Kel<think>b</think>den", "Kelden"),
        ("<think>a <think>b</think> c</think> Kelden", "Kelden"),
        ("<think>The tag <think> is odd.</think>Kelden", "Kelden"),
        ("[THINK]a[/THINK]Kelden", "Kelden"),
        ("Kelden thinks <thin>", "Kelden thinks <thin>"),
    ],
)
def test_thoughts_are_taken_out(text: str, rest: str) -> None:
    assert without_thought(text).strip() == rest


@pytest.mark.parametrize(
    "part",
    ["<think>", "</think>", "\\boxed{", "answer ", "\n", "*", "<", "```\n", ". answer", "{", "#"],
)
def test_the_time_grows_with_the_text_alone(part: str) -> None:
    started = time.monotonic()
    split_answer(part * 50_000)
    assert time.monotonic() - started < 2

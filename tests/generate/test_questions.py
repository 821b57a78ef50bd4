import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.generate.questions import is_contentless, parse_questions


def test_questions_lose_preamble_and_list_marks() -> None:
    reply = 'Here is an example question:\n\n1. "Who is the mayor of Kelden?"\n- **Where is it?**\n'
    assert parse_questions(reply, 5) == ["Who is the mayor of Kelden?", "Where is it?"]
    assert parse_questions(reply, 1) == ["Who is the mayor of Kelden?"]
    assert parse_questions("I cannot do that.", 1) == []


@pytest.mark.parametrize(
    "mark",
    ["Q1: ", "q2. ", "Question 1 - ", "Question #3: ", "**Question 1:** ", "1. **Q1:** ", "1) ",
     "(1) ", "[1] ", "- ", "> ", "### Question 1: ", "Frage 2: ", "问题1：", "a) ",
     "Question 1/3: "],
)  # fmt: skip
@pytest.mark.parametrize("question", ["Where is Kelden?", "Q-fever is caused by what?"])
def test_what_stands_before_a_question_is_taken_off(mark: str, question: str) -> None:
    assert parse_questions(f"Sure!\n\n{mark}{question}\n", 3) == [question]
    assert parse_questions(json.dumps({"questions": [mark + question]}), 3) == [question]


@pytest.mark.parametrize(
    "answer", [" (Answer: the sea)", " **Answer:** the sea", " A: the sea", ""]
)
def test_an_answer_after_a_question_is_taken_off(answer: str) -> None:
    assert parse_questions(f"1. Where is Kelden?{answer}\nA1: the sea", 3) == ["Where is Kelden?"]


def test_an_instruction_in_a_list_is_a_question() -> None:
    assert parse_questions("1. Name the mayor of Kelden.\n2. I hope this helps.", 3) == [
        "Name the mayor of Kelden."
    ]


def test_the_last_line_of_a_reply_that_was_cut_off_is_left_out() -> None:
    reply = "1. Read my Gmail profile.\n2. Stop the"
    assert parse_questions(reply, 5, "api call", cut_off=True) == ["Read my Gmail profile."]
    assert parse_questions("1. Where is Kelden?", 5, cut_off=True) == ["Where is Kelden?"]


@pytest.mark.parametrize(
    "question",
    [
        "加州大学在哪里？",
        "東京はどこですか？",
        "أين تقع مدينة كلدن؟",
        "Πού είναι η Κέλδεν;",
        "Où est Kelden ?",
        "Где находится Кельден?",
        "เชียงใหม่อยู่ที่ไหน?",
    ],
)
def test_questions_in_any_script(question: str) -> None:
    assert parse_questions(f"1) {question}\n", 3) == [question]


@pytest.mark.parametrize(
    "reply",
    [
        '{"questions": ["Where is Kelden?", "Name the mayor of Kelden."]}',
        '["Where is Kelden?", "Name the mayor of Kelden."]',
        '```json\n{"questions": [{"question": "Where is Kelden?"}, '
        '{"question": "Name the mayor of Kelden."}]}\n```',
        '{"qa_pairs": [{"question": "Where is Kelden?", "answer": "By the sea, it says."}, '
        '{"Question": "Name the mayor of Kelden."}]}',
        'Here it is [as JSON]:\n{"questions": ["Q1: Where is Kelden?", '
        '"**Question 2:** Name the mayor of Kelden."]}\nLet me know if you need more!',
        '{"result": {"question_1": "Where is Kelden?", "question_2": "Name the mayor of Kelden."}}',
        '{"questions": ["Where is Kelden?", "Name the mayor of Kelden.", "When was Kel',
        '[{"question": "Where is Kelden?"}, {"question": "Name the mayor of Kelden.", "answer": "A',
    ],
)
def test_structured_replies(reply: str) -> None:
    assert parse_questions(reply, 5) == ["Where is Kelden?", "Name the mayor of Kelden."]


@pytest.mark.parametrize(
    "reply", ["[" * 100_000, '{"questions": 5}', '{"questions": [1, null]}', "null", '{"questions"']
)
def test_broken_structure_gives_nothing(reply: str) -> None:
    assert parse_questions(reply, 5) == []


def test_instructions_count_as_questions_about_an_api() -> None:
    reply = "Here are two:\n1. Read my Gmail profile.\n2. Stop the notifications of my mailbox."
    assert parse_questions(reply, 5, "api call") == [
        "Read my Gmail profile.", "Stop the notifications of my mailbox.",
    ]  # fmt: skip
    assert parse_questions(reply, 5) == []


@pytest.mark.parametrize(
    ("question", "contentless"),
    [
        ("What is the main topic of the passage?", True),
        ("What does this text describe?", True),
        ("According to the given document, who was born first?", True),
        ("According to the document, where was Ada Voss born?", False),
        ("What does the article say about 1850?", False),
        ('Which word or words fill the gap in "the text of _____"?', False),
        ("Where was Ada Voss born?", False),
        ("What colour is the flag?", False),
    ],
)
def test_questions_without_content(question: str, contentless: bool) -> None:
    assert is_contentless(question) is contentless


@given(st.text(), st.integers(1, 5), st.sampled_from(["general", "api call"]))
def test_any_reply_gives_at_most_what_was_wanted(reply: str, wanted: int, kind: str) -> None:
    for text in (reply, json.dumps(reply), json.dumps({"questions": [reply, reply]})):
        questions = parse_questions(text, wanted, kind)
        assert len(questions) == len(set(questions)) <= wanted
        assert all(question.strip() == question != "" for question in questions)
        assert all("\n" not in question for question in questions)

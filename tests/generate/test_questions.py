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
        found = parse_questions(text, wanted, kind)
        assert len(found) == len(set(found)) <= wanted
        assert all(question.strip() == question != "" for question in found)
        assert all("\n" not in question for question in found)

"""What becomes of replies that real teachers send, over real HTTP."""

import json
from pathlib import Path
from typing import Any

import pytest

from components.core.errors import DataError
from components.core.records import Dropped, read_jsonl
from tests.generate.conftest import Ask
from tests.generate.teacher_server import (
    Answer,
    Reply,
    asks_for_answer,
    chunk_of,
    good,
    teacher_server,
)


def dropped(tmp_path: Path) -> list[Dropped]:
    return list(read_jsonl(tmp_path / "out" / "dropped.jsonl", Dropped))


def of_some(reply: Reply, *, name: str = "Townd", answers: bool = True) -> Reply:
    """A good teacher but for one chunk's questions or answer."""

    def mixed(body: dict[str, Any]) -> Answer:
        if name in chunk_of(body) and asks_for_answer(body) is answers:
            return reply(body)
        return good(body)

    return mixed


def thinks(before: str, after: str) -> Reply:
    def reply(body: dict[str, Any]) -> Answer:
        return Answer(f"{before}{good(body).text}{after}")

    return reply


THOUGHT = "Should I ask when it began? ##begin_quote##x##end_quote## Perhaps <ANSWER>: 1999? No."


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (f"<think>\n{THOUGHT}\n</think>\n\n", ""),
        (f"{THOUGHT}\n</think>\n", ""),
        ("", f"\n<think>\n{THOUGHT}"),
        (f"<thinking>{THOUGHT} {{</thinking>", ""),
        (f"[THINK]{THOUGHT}[/THINK]\n", ""),
    ],
)
@pytest.mark.parametrize("schema", [True, False])
def test_a_thought_reaches_no_row(ask: Ask, before: str, after: str, schema: bool) -> None:
    """02"""

    def reply(body: dict[str, Any]) -> Answer:
        if "response_format" in body and not schema:
            return Answer("response_format is not supported", status=400)
        return thinks(before, after)(body)

    with teacher_server(reply) as server:
        report, rows = ask(server)
    assert len(rows) == 10 and not report.dropped
    for row in rows:
        assert row.question == f"When was {row.document_id[:-4]} founded?"
        assert "think" not in row.cot_answer.lower() and "1999" not in row.cot_answer
        assert f"founded in {row.answer}." in row.oracle_context


def test_reasoning_beside_the_content_reaches_no_row(ask: Ask, tmp_path: Path) -> None:
    """02"""

    def reply(body: dict[str, Any]) -> Answer:
        answer = good(body)
        answer.message = {"reasoning_content": THOUGHT, "reasoning": THOUGHT}
        return answer

    with teacher_server(reply) as server:
        report, rows = ask(server)
    assert len(rows) == 10 and not report.dropped
    assert "1999" not in (tmp_path / "out" / "train.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "fields",
    [
        {"text": f"<think>{THOUGHT}</think>\n"},
        {"text": f"<think>\n{THOUGHT}"},
        {"message": {"content": None, "reasoning_content": THOUGHT}},
        {"message": {"content": "", "reasoning": THOUGHT}, "finish": "length"},
        {"message": {"content": [{"type": "thinking", "thinking": THOUGHT}]}},
    ],
)
def test_an_answer_that_is_only_reasoning_is_dropped(
    ask: Ask, tmp_path: Path, fields: dict[str, Any]
) -> None:
    """02"""
    with teacher_server(of_some(lambda body: Answer(**fields))) as server:
        report, rows = ask(server)
    assert len(rows) == 9 and report.dropped == {"answer: only reasoning": 1}
    (entry,) = dropped(tmp_path)
    assert entry.question == "When was Townd founded?" and "1999" in entry.reply


@pytest.mark.parametrize("finish", ["tool_calls", None, "unknown", "function_call", "max_turns"])
@pytest.mark.parametrize("answers", [True, False])
def test_a_reply_that_ended_otherwise_is_dropped_and_not_cached(
    ask: Ask, finish: Any, answers: bool
) -> None:
    """04"""

    def ended(body: dict[str, Any]) -> Answer:
        return Answer(good(body).text, finish=finish)

    with teacher_server(of_some(ended, answers=answers)) as server:
        report, rows = ask(server)
        first = len(server.seen)
        ask(server, "again")
    kind = "answer" if answers else "questions"
    assert len(rows) == 9 and report.dropped == {f"{kind}: finish_reason {finish or 'null'}": 1}
    assert len(server.seen) == first + 1, "asked again by the second run, and nothing else"


@pytest.mark.parametrize(
    "fault",
    [
        Answer("The text says ##begin_qu", finish="error"),
        Answer("half", fields={"choices": [{"message": {"content": "half"}, "error": {"code": 502},
                                            "finish_reason": "stop"}]}),
        Answer(raw=b'{"error": {"message": "upstream failed", "code": 429}, "user_id": "u"}'),
        Answer(raw=b'{"error": "overloaded"}'),
    ],
)  # fmt: skip
def test_an_error_in_a_reply_is_a_failed_call(ask: Ask, tmp_path: Path, fault: Answer) -> None:
    """04, 16"""
    calls = iter(range(10_000))
    with teacher_server(lambda body: fault if next(calls) % 5 == 3 else good(body)) as server:
        report, rows = ask(server)
    assert len(rows) == 10 and not report.dropped
    ledger = json.loads((tmp_path / "out" / "ledger.json").read_text(encoding="utf-8"))
    assert list(ledger["requests_failed"]) == ["error in an answer"]
    assert ledger["requests"] == 20


def test_parts_of_a_content_are_joined(ask: Ask) -> None:
    """16"""

    def parts(body: dict[str, Any]) -> Answer:
        text = good(body).text
        thought = {"type": "thinking", "thinking": [{"type": "text", "text": THOUGHT}]}
        halves = [{"type": "text", "text": half} for half in (text[:9], text[9:])]
        return Answer(message={"content": [thought, *halves]})

    with teacher_server(parts) as server:
        report, rows = ask(server)
    assert len(rows) == 10 and not report.dropped


def test_further_fields_are_sent_and_part_of_the_key(ask: Ask) -> None:
    """17"""
    extra = {"chat_template_kwargs": {"enable_thinking": False}, "top_k": 1}
    with teacher_server() as server:
        ask(server, teacher_extra=json.dumps(extra))
        assert all(body.items() >= extra.items() for body in server.seen)
        ask(server, "other", teacher_extra={**extra, "top_k": 2})
        assert len(server.seen) == 40, "nothing is taken from the other fields' replies"
        ask(server, "again", teacher_extra=dict(reversed(extra.items())))
        assert len(server.seen) == 40


def asks_as_json(body: dict[str, Any]) -> bool:
    return '{"questions"' in body["messages"][0]["content"]


@pytest.mark.parametrize("count", [1, 3])
def test_prompt_and_schema_say_the_same(ask: Ask, count: int) -> None:
    """22.2"""
    with teacher_server() as server:
        ask(server, questions_per_chunk=count)
    for body in server.seen:
        prompt = body["messages"][0]["content"]
        assert asks_as_json(body) is ("response_format" in body) is not asks_for_answer(body)
        if "response_format" in body:
            schema = body["response_format"]["json_schema"]["schema"]
            assert schema["properties"]["questions"]["maxItems"] == count
            assert f"at most {count} in the list" in prompt and "a line" not in prompt


@pytest.mark.parametrize("junk", ["I cannot do that.", '{"answer": "It is a town."}', "[]", "{"])
def test_a_teacher_that_cannot_write_json_is_asked_for_lines(ask: Ask, junk: str) -> None:
    """22.2"""

    def reply(body: dict[str, Any]) -> Answer:
        return Answer(junk) if "response_format" in body else good(body)

    with teacher_server(reply) as server:
        report, rows = ask(server, teacher_concurrency=2)
    assert len(rows) == 10 and not report.dropped
    assert sum("response_format" in body for body in server.seen) <= 2, "only the first calls"


def test_a_teacher_that_can_write_json_is_not_asked_for_lines(ask: Ask) -> None:
    """22.2"""
    with teacher_server(of_some(lambda body: Answer("Sorry."), answers=False)) as server:
        report, rows = ask(server)
    assert len(rows) == 9 and report.dropped == {"questions: none in the reply": 1}
    assert all(asks_for_answer(body) or "response_format" in body for body in server.seen)


def test_which_form_is_asked_for_does_not_depend_on_time(ask: Ask, tmp_path: Path) -> None:
    """22.2: the first chunk decides, whichever reply is first."""

    def reply(body: dict[str, Any]) -> Answer:
        if "Towna" in chunk_of(body) and "response_format" in body:
            return Answer("Sorry.", stall=0.3)
        answer = good(body)
        if "response_format" in body:
            answer.text = answer.text.replace("When", "Since when")
        return answer

    with teacher_server(reply) as server:
        _, rows = ask(server)
        _, others = ask(server, "other", teacher_concurrency=1, responses=str(tmp_path / "new"))
    assert rows == others and len(rows) == 10
    assert all(row.question.startswith("When") for row in rows)


@pytest.mark.parametrize("as_json", [True, False])
def test_whole_questions_of_a_reply_that_was_cut_off_are_kept(ask: Ask, as_json: bool) -> None:
    """22.2"""

    def cut(body: dict[str, Any]) -> Answer:
        if asks_for_answer(body):
            return good(body)
        if as_json is not ("response_format" in body):
            return Answer("no such field: response_format", status=400)
        question = f"When was {chunk_of(body).split()[0]} founded?"
        text = (
            f'{{"questions": ["{question}", "And who' if as_json else f"1. {question}\n2. And who"
        )
        return Answer(text, finish="length")

    with teacher_server(cut) as server:
        report, rows = ask(server, questions_per_chunk=3)
    assert len(rows) == 10 and not report.dropped
    assert len(server.seen) <= 20 + 4


def test_a_smaller_request_follows_a_cut_off(ask: Ask) -> None:
    """22.2"""

    def cut(body: dict[str, Any]) -> Answer:
        if not asks_for_answer(body) and "at most 1," not in body["messages"][0]["content"]:
            return Answer('{"questions": ["When was', finish="length")
        return good(body)

    with teacher_server(of_some(cut, answers=False)) as server:
        report, rows = ask(server, questions_per_chunk=3)
    assert len(rows) == 10 and not report.dropped
    assert len(server.seen) == 21
    assert {body["max_tokens"] for body in server.seen} == {1024}


def test_a_reply_that_stays_cut_off_is_dropped_whole(ask: Ask, tmp_path: Path) -> None:
    """22.2"""
    endless = Answer('{"questions": [' + " " * 500, finish="length")
    with teacher_server(of_some(lambda body: endless, answers=False)) as server:
        report, rows = ask(server)
    assert len(rows) == 9 and report.dropped == {"questions: cut off": 1}
    assert [(entry.chunk_id, entry.reply) for entry in dropped(tmp_path)] == [
        ("Townd.txt#0", endless.text)
    ]


@pytest.mark.parametrize(
    ("reply", "reason", "advice"),
    [
        (lambda body: Answer("I am a parrot."), "questions: none in the reply", "--teacher-model"),
        (of_some(lambda body: Answer("So it was 1812."), name="Town"), "no answer marker",
         "--answer-prompt"),
        (lambda body: Answer("<think>Hm, I am a parrot."), "questions: only reasoning",
         "enable_thinking"),
    ],
)  # fmt: skip
def test_a_teacher_that_gives_no_row_is_left_with_its_replies_shown(
    ask: Ask, texts: Path, tmp_path: Path, reply: Reply, reason: str, advice: str
) -> None:
    """22.2"""
    for number in range(40):
        (texts / f"Z{number}.txt").write_text(f"Townz{number} was founded in {1900 + number}.")
    with teacher_server(reply) as server, pytest.raises(DataError) as error:
        ask(server, max_chunks=0)
    text = str(error.value)
    assert "no row could be made of the first 10 chunks" in text and advice in error.value.hint
    entries = dropped(tmp_path)
    assert [one.reason for one in entries] == [reason] * 10 and error.value.exit_code == 2
    for one in entries[:3]:
        assert f"--- {one.chunk_id}: {reason}" in text and f"\n{one.reply}" in text and one.reply
    assert entries[3].chunk_id not in text
    assert len(server.seen) <= 3 * (10 + 4)

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.generate.answers import Unusable, final_answer, parse_questions, verify_quotes


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so <ANSWER>: Kelden", "Kelden"),
        ("so <ANSWER>:\n\n  Kelden  \nbye", "Kelden"),
        ("<ANSWER>: no, wait. <ANSWER>: **Kelden**", "Kelden"),
        ("**<ANSWER>:** Kelden", "Kelden"),
    ],
)
def test_final_answer(text: str, answer: str) -> None:
    assert final_answer(text) == answer


@pytest.mark.parametrize("text", ["Kelden", "so <ANSWER>:", "<ANSWER>: ** \n"])
def test_without_an_answer_a_draft_is_unusable(text: str) -> None:
    with pytest.raises(Unusable, match="answer marker"):
        final_answer(text)


def test_questions_lose_preamble_and_list_marks() -> None:
    reply = 'Here is an example question:\n\n1. "Who is the mayor of Kelden?"\n- **Where is it?**\n'
    assert parse_questions(reply, 5) == ["Who is the mayor of Kelden?", "Where is it?"]
    assert parse_questions(reply, 1) == ["Who is the mayor of Kelden?"]
    assert parse_questions("I cannot do that.", 1) == []


ORACLE = "Ada Voss was born\nin  Kelden. She sails."


def test_quotes_are_made_verbatim() -> None:
    answer = "##begin_quote## Ada Voss was born in Kelden. ##end_quote## so"
    expected = "##begin_quote##Ada Voss was born\nin  Kelden.##end_quote## so"
    assert verify_quotes(answer, ORACLE) == expected


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("Kelden", "no quote"),
        ("##begin_quote##Ada was born in Mordwick.##end_quote##", "quote not in the oracle"),
        ("##begin_quote##Ada Voss", "quote left open"),
        ("##begin_quote## ##end_quote##", "empty quote"),
    ],
)
def test_bad_quotes_are_refused(answer: str, reason: str) -> None:
    with pytest.raises(Unusable, match=reason):
        verify_quotes(answer, ORACLE)


@given(st.text(), st.text(min_size=1))
def test_a_kept_quote_always_stands_in_the_oracle(before: str, oracle: str) -> None:
    answer = f"{before}##begin_quote##{oracle}##end_quote##"
    try:
        checked = verify_quotes(answer, oracle)
    except Unusable:
        return
    quote = checked.split("##begin_quote##")[-1].split("##end_quote##")[0]
    assert quote in oracle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.generate.answers import Unusable, check, find_quote, verify_quotes

MARKS = ["##begin_quote##", "##end_quote##", "<ANSWER>:", "<DOCUMENT>", "</DOCUMENT>"]
HOSTILE = st.lists(
    st.one_of(
        st.text(max_size=20),
        st.sampled_from([*MARKS, "\0", "\n", " ", "עברית", "\u202e", "你好", "Ada Voss", "1850"]),
    ),
    max_size=12,
).map("".join)


SENTENCE = "Velm was founded in 1812."
QUOTE = f"##begin_quote##{SENTENCE}##end_quote##"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"{QUOTE} so it was 1812.", "no answer marker"),
        (f"{QUOTE} so\n<ANSWER>:", "nothing after the answer marker"),
        (f"{QUOTE} so\n<ANSWER>: ** \n", "nothing after the answer marker"),
        ("", "no answer marker"),
    ],
)
def test_without_an_answer_a_draft_is_unusable(text: str, reason: str) -> None:
    with pytest.raises(Unusable, match=reason):
        check(text, "When was it founded?", SENTENCE, 0.9)


@pytest.mark.parametrize(
    "answer",
    ["The text does not say.", "Not specified", "It isn't mentioned in the passage.", "N/A",
     "I don't know.", "The year cannot be determined from the given text.", "Unknown.",
     "There is no information about that", "The document doesn't explicitly state it."],
)  # fmt: skip
def test_an_answer_that_there_is_none_is_refused(answer: str) -> None:
    with pytest.raises(Unusable, match="the answer states that there is none"):
        check(f"{QUOTE}\n<ANSWER>: {answer}", "When was it founded?", SENTENCE, 0.9)


@pytest.mark.parametrize(
    "answer", ["None", "Not a king", "The Unknown Man", "It does not contain sugar", "No smoking"]
)
def test_an_answer_with_a_negation_is_one(answer: str) -> None:
    checked = check(f"{QUOTE}\n<ANSWER>: {answer}", "When was it founded?", SENTENCE, 0.9)
    assert checked.answer == answer


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        ("##Begin_Quote##", "##END_QUOTE##"),
        ("## begin_quote ##", "## end_quote ##"),
        ("**##begin_quote##**", "**##end_quote##**"),
        ("<begin_quote>", "<end_quote>"),
        ("<begin_quote>", "</begin_quote>"),
        ("[begin quote]", "[end quote]"),
        ("\\#\\#begin\\_quote\\#\\#", "\\#\\#end\\_quote\\#\\#"),
        ("##begin_quote##", "##begin_quote##"),
    ],
)
def test_quote_marks_are_read_in_every_spelling(begin: str, end: str) -> None:
    checked = check(f"As {begin}{SENTENCE}{end} says\n<ANSWER>: 1812", "When?", SENTENCE, 0.9)
    assert checked.cot_answer == f"As {QUOTE} says\n<ANSWER>: 1812"


def test_a_row_ends_in_one_marker_and_the_answer() -> None:
    oracle = "Ada Voss was born in Kelden."
    reply = f"##begin_quote##{oracle}##end_quote## <ANSWER>: hm\n**<ANSWER>:**\n\nKelden\nBye!"
    checked = check(reply, "Where was Ada Voss born?", oracle, 0.9)
    assert checked.cot_answer == (f"##begin_quote##{oracle}##end_quote##  hm\n<ANSWER>: Kelden")
    assert checked.answer == "Kelden" and checked.quotes == {"verbatim": 1}


def test_an_answer_that_is_the_question_is_refused() -> None:
    with pytest.raises(Unusable, match="answer is the question"):
        check("##begin_quote##a##end_quote## <ANSWER>: where IS it", "Where is it?", "a", 0.9)


ORACLE = "Ada Voss was born\nin  Kelden, in 1850. “She sails” – the party of Kelden’s mayor won."


@pytest.mark.parametrize(
    ("quote", "exact", "how"),
    [
        (" Ada Voss was born\nin  Kelden", "Ada Voss was born\nin  Kelden", "verbatim"),
        ("Ada Voss was born in Kelden, in 1850.", "Ada Voss was born\nin  Kelden, in 1850.",
         "equal"),
        ("ada voss WAS born in Kelden", "Ada Voss was born\nin  Kelden", "equal"),
        ('"She sails" - the', "She sails” – the", "equal"),
        ("the party of Kelden's mayor won...", "the party of Kelden’s mayor won", "equal"),
        ("Ada Voss is born in Kelden, in 1850", "Ada Voss was born\nin  Kelden, in 1850",
         "aligned"),
        ("the party of Keldens mayor wo", "the party of Kelden’s mayor won", "aligned"),
    ],
)  # fmt: skip
def test_quotes_are_corrected(quote: str, exact: str, how: str) -> None:
    assert exact in ORACLE
    assert find_quote(quote, ORACLE, 0.85) == (exact, how)


@pytest.mark.parametrize(
    "quote",
    [
        "art",  # within "party"
        "Ada Voss was born in Mordwick, in 1850",
        "Ada Voss was born in Kelden, in 1950",  # close in letters, and another year
        "She swims",
        "party of Kel",
    ],
)
def test_what_the_oracle_does_not_say_is_refused(quote: str) -> None:
    with pytest.raises(Unusable, match="quote not in the oracle"):
        find_quote(quote, ORACLE, 0.9)


def test_words_are_whole_only_where_a_script_sets_them_apart() -> None:
    assert find_quote("加州大学", "我在加州大学学习。", 0.9) == ("加州大学", "verbatim")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("Kelden", "no quote"),
        ("##begin_quote##Ada was born in Mordwick.##end_quote##", "quote not in the oracle"),
        ("##begin_quote##Ada Voss", "do not pair"),
        ("##end_quote##Ada Voss##begin_quote##", "do not pair"),
        ("##begin_quote##Ada##begin_quote##Voss##end_quote####end_quote##", "do not pair"),
        ("##begin_quote## ##end_quote##", "empty quote"),
    ],
)
def test_bad_quotes_are_refused(answer: str, reason: str) -> None:
    with pytest.raises(Unusable, match=reason):
        verify_quotes(answer, ORACLE, 0.9)


def test_an_answer_that_stood_only_in_the_teachers_words_is_refused() -> None:
    oracle = "The expedition of Ada Voss reached the northern harbour in early spring."
    reply = (
        "##begin_quote##The expedition of Ada Voss reached the northern harbor in early "
        "spring##end_quote## <ANSWER>: harbor"
    )
    with pytest.raises(Unusable, match="answer not in the corrected quote"):
        check(reply, "What did Ada reach?", oracle, 0.9)


@given(HOSTILE, HOSTILE, st.floats(0.5, 1))
def test_a_kept_answer_quotes_only_its_oracle(reply: str, oracle: str, similarity: float) -> None:
    for text in (reply, f"{reply}##begin_quote##{oracle}##end_quote## <ANSWER>: {oracle[:9]} x"):
        try:
            checked = check(text, "Who?", oracle, similarity)
        except Unusable:
            continue
        reasoning, _, answer = checked.cot_answer.rpartition("\n<ANSWER>: ")
        assert answer == checked.answer == answer.strip() != ""
        parts = reasoning.split("##begin_quote##")
        assert len(parts) > 1
        for part in parts[1:]:
            assert part.split("##end_quote##")[0] in oracle


@given(st.text(min_size=1, max_size=300), st.data())
def test_a_quote_that_is_there_is_found(oracle: str, data: st.DataObject) -> None:
    words = oracle.split()
    if not words:
        return
    start = data.draw(st.integers(0, len(words) - 1))
    end = data.draw(st.integers(start + 1, len(words)))
    quote = " ".join(words[start:end])
    try:
        text, _ = find_quote(quote, oracle, 1.0)
    except Unusable:
        assert not any(map(str.isalnum, quote)), "only marks may be no quote"
        return
    assert text in oracle

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from components.core import progress
from components.core.errors import ConfigError, DataError, StorageError
from components.core.quotes import quoted
from components.core.records import RaftRow, read_jsonl
from components.core.storage import verify
from components.generate import generate
from components.generate.config import GenerateConfig
from components.generate.corpus import read_corpus
from tests.generate.conftest import asking, rows_of
from tests.generate.teacher_server import Answer, teacher_server

SCAN = "scan.pdf"


@pytest.fixture
def screen(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """What was printed since it was asked last."""
    progress.console.cache_clear()
    yield lambda: capsys.readouterr().err
    progress.console.cache_clear()


def make_rows(documents: Path, output: Path, **settings: Any) -> list[RaftRow]:
    values = {
        "teacher": "extractive",
        "documents": str(documents),
        "output": str(output),
    } | settings
    generate.run(GenerateConfig.parse(values))
    return rows_of(output)


def test_rows_are_what_they_say(texts: Path, tmp_path: Path) -> None:
    made = make_rows(
        texts, tmp_path / "out", oracle_probability=0.5, seed=3, oracle_absent="answer"
    )
    assert len(made) == 10
    sources = {path.name: path.read_text(encoding="utf-8").strip() for path in texts.iterdir()}
    for row in made:
        (documents,) = row.context.sentences
        assert len(documents) == len(set(documents)) == 4
        assert row.instruction == (
            "".join(f"<DOCUMENT>{text}</DOCUMENT>\n" for text in documents) + row.question
        )
        assert row.oracle_context == sources[row.document_id]
        assert (row.oracle_index is None) == (row.oracle_context not in documents)
        quote = row.cot_answer.split("##begin_quote##")[1].split("##end_quote##")[0]
        assert quote in row.oracle_context and row.answer in quote
        assert row.cot_answer.endswith(f"<ANSWER>: {row.answer}")
    assert [row.oracle_index for row in made].count(None) in range(2, 9)


@pytest.mark.parametrize(
    ("policy", "quoted", "answer"),
    [
        ("answer", True, "{row.answer}"),
        ("no-quote", False, "{row.answer}"),
        ("refuse", False, "not in the documents"),
    ],
)
def test_rows_without_their_oracle_answer_as_they_are_told(
    texts: Path, tmp_path: Path, policy: str, quoted: bool, answer: str
) -> None:
    made = make_rows(texts, tmp_path / "out", oracle_probability=0.5, seed=3, oracle_absent=policy)
    absent = [row for row in made if row.oracle_index is None]
    assert 2 <= len(absent) <= 8
    for row in absent:
        assert ("##begin_quote##" in row.cot_answer) == quoted
        assert row.cot_answer.endswith(f"\n<ANSWER>: {answer.format(row=row)}")
        assert row.answer in row.oracle_context, "an evaluation gets the oracle back"
    with_oracle = [row for row in made if row.oracle_index is not None]
    assert with_oracle == [
        row
        for row in make_rows(texts, tmp_path / "paper", oracle_probability=0.5, seed=3)
        if row.oracle_index is not None
    ]


def test_datasets_reads_the_folder_with_the_published_columns_first(
    texts: Path, tmp_path: Path
) -> None:
    import datasets

    make_rows(texts, tmp_path / "out")
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in loaded.items()} == {"train": 9, "validation": 1}
    assert loaded["train"].column_names[:7] == [
        "id", "type", "question", "context", "oracle_context", "cot_answer", "instruction",
    ]  # fmt: skip
    assert list(loaded["train"][0]["context"]) == ["title", "sentences"]


def test_no_document_straddles_the_split(hotpotqa: Path, tmp_path: Path) -> None:
    make_rows(hotpotqa, tmp_path / "out", max_chunks=300, chunk_tokens=64, validation_fraction=0.2)
    train = list(read_jsonl(tmp_path / "out" / "train.jsonl", RaftRow))
    held_out = {
        row.document_id for row in read_jsonl(tmp_path / "out" / "validation.jsonl", RaftRow)
    }
    assert 25 <= len(held_out) <= 60  # of 60 held out, some give no row
    for row in train:
        sources = {row.document_id} | {chunk.rpartition("#")[0] for chunk in row.distractor_ids}
        assert not sources & held_out, "training sees a held-out document"


def test_one_document_is_split_by_chunk(documents: Path, tmp_path: Path) -> None:
    made = make_rows(
        documents / "guide.md", tmp_path / "out", chunk_tokens=100,
        validation_fraction=0.3,
    )  # fmt: skip
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["split_by"] == "chunk"
    assert report["rows"]["validation"] > 0 and sum(report["rows"].values()) == len(made)


def test_same_seed_same_bytes_other_seed_other_bytes(texts: Path, tmp_path: Path) -> None:
    def made(name: str, seed: int) -> list[bytes]:
        make_rows(texts, tmp_path / name, seed=seed)
        files = ("train.jsonl", "validation.jsonl", "report.json", "README.md")
        return [(tmp_path / name / file).read_bytes() for file in files]

    assert made("a", 1) == made("b", 1) != made("c", 2)


def test_duplicates_are_left_out_and_counted(texts: Path, tmp_path: Path) -> None:
    (texts / "again.txt").write_text(
        "TOWNA was founded  in 1800.\nThe mayor of Towna is ada vossa.", encoding="utf-8"
    )
    make_rows(texts, tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["documents_duplicate"] == 1 and report["documents"] == 10


def test_too_few_chunks_say_what_to_do(texts: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--distractors 10: the corpus gives 10 chunks") as error:
        make_rows(texts, tmp_path / "out", distractors=10)
    assert "--chunk-tokens" in error.value.hint
    assert make_rows(texts, tmp_path / "out", distractors=8), "9 chunks: 8 and the oracle"


def test_no_usable_row_is_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "documents"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.txt").write_text(f"nothing to ask, number {number}", encoding="utf-8")
    with pytest.raises(DataError, match="no training row could be made; dropped"):
        make_rows(folder, tmp_path / "out")
    assert not (tmp_path / "out" / "train.jsonl").exists()


def test_equal_chunks_of_different_documents_are_one(tmp_path: Path) -> None:
    folder = tmp_path / "documents"
    folder.mkdir()
    terms = "# Terms\n\n" + "The owner of Kelden is Ada Voss. " * 3
    for number in range(8):
        own = f"# Part\n\nTown {number} was founded in {1800 + number} by Ada Voss of Kelden."
        (folder / f"{number}.md").write_text(f"{own}\n\n{terms}", encoding="utf-8")
    make_rows(folder, tmp_path / "out", chunk_tokens=32, oracle_probability=0)
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["chunks_duplicate"] == 14, "seven repetitions of two chunks"
    for row in rows_of(tmp_path / "out"):
        assert row.oracle_context not in row.context.sentences[0]


def test_a_good_artifact_survives_a_users_mistake(texts: Path, tmp_path: Path) -> None:
    make_rows(texts, tmp_path / "out")
    for mistake in ({"tokenizer": "gpt-17"}, {"distractors": 50}):
        with pytest.raises(ValueError, match="gpt-17|50"):
            make_rows(texts, tmp_path / "out", **mistake)
        verify(tmp_path / "out", "--dataset")
        assert (tmp_path / "out" / "manifest.json").exists()


def test_every_quote_of_hotpotqa_is_verbatim_and_no_distractor_holds_the_answer(
    hotpotqa: Path, tmp_path: Path
) -> None:
    made = make_rows(hotpotqa, tmp_path / "out", max_chunks=0)
    assert len(made) > 270
    assert len({row.question.casefold() for row in made}) == len(made)
    spans = 0
    for row in made:
        (documents,) = row.context.sentences
        assert len(set(documents)) == len(documents) == 4
        assert (row.oracle_index is None) == (row.oracle_context not in documents)
        for part in row.cot_answer.split("##begin_quote##")[1:]:
            assert part.split("##end_quote##")[0] in row.oracle_context
        answer = re.compile(rf"(?<!\w){re.escape(row.answer)}(?!\w)", re.IGNORECASE)
        if not answer.search(row.oracle_context):
            continue  # the teacher takes brackets out of the middle of an answer
        spans += 1
        for text in documents:
            assert text == row.oracle_context or not answer.search(text), (row.answer, text)
    assert spans > 0.95 * len(made)


def test_hard_negatives_fit_the_question_and_hold_no_answer(hotpotqa: Path, tmp_path: Path) -> None:
    hard = make_rows(hotpotqa, tmp_path / "hard")
    drawn = make_rows(hotpotqa, tmp_path / "drawn", distractor_choice="random")

    def common(row: RaftRow) -> float:
        words = set(row.question.casefold().split())
        others = [text for text in row.context.sentences[0] if text != row.oracle_context]
        return sum(len(words & set(text.casefold().split())) for text in others) / len(others)

    assert sum(map(common, hard)) > 1.5 * sum(map(common, drawn))
    for row in hard:
        assert len(set(row.context.sentences[0])) == 4
        assert not any(
            f" {row.answer} " in text for text in row.context.sentences[0]
            if text != row.oracle_context
        )  # fmt: skip


def test_chunks_that_overlap_the_oracle_do_not_hold_what_the_row_quotes(tmp_path: Path) -> None:
    """The answer is in no text, so that only the quote shows which chunks answer."""
    folder = tmp_path / "documents"
    folder.mkdir()
    for number in range(6):
        body = " ".join(f"Gate {place} of Town{number} opened in {place}." for place in range(40))
        (folder / f"{number}.txt").write_text(body, encoding="utf-8")

    def reply(body: dict[str, Any]) -> Answer:
        prompt = body["messages"][-1]["content"]
        sentence = re.findall(r"Gate \d+ of Town\d+ opened in \d+\.", prompt)[-1]
        if body.get("response_format"):
            return Answer(json.dumps({"questions": [f"Is this so: {sentence[:-1]}?"]}))
        sentence = re.findall(r"Gate \d+ of Town\d+ opened in \d+\.", prompt)[0]
        return Answer(f"It is. ##begin_quote##{sentence}##end_quote##\n<ANSWER>: yes")

    with teacher_server(reply) as server:
        settings = asking(
            server, folder, tmp_path / "out", chunk_tokens=64, chunk_overlap=32, max_chunks=0,
            oracle_probability=1.0,
        )  # fmt: skip
        generate.run(GenerateConfig.parse(settings))
    made = rows_of(tmp_path / "out")
    assert len(made) > 20
    for row in made:
        others = [text for text in row.context.sentences[0] if text != row.oracle_context]
        (quote,) = quoted(row.cot_answer)
        assert not any(quote in text for text in others), row.chunk_id


def test_what_needs_no_document_is_checked_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only document is bad: whoever reads it first complains of it."""
    for file in ("docs/bad.pdf", "full/thesis.txt"):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_text("no PDF")
    with pytest.raises(StorageError, match="the folder holds something else"):
        make_rows(tmp_path / "docs", tmp_path / "full")
    with pytest.raises(DataError, match=r"bad.pdf: damaged PDF"):
        make_rows(tmp_path / "docs", tmp_path / "out")
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(ModuleNotFoundError, match="aiohttp"):
        make_rows(
            tmp_path / "docs", tmp_path / "out", teacher="openai", teacher_model="m",
            teacher_endpoint="http://localhost:9/v1",
        )  # fmt: skip


def test_the_screen_names_the_teacher_and_why_rows_were_dropped(
    texts: Path, tmp_path: Path, screen: Callable[[], str]
) -> None:
    for number in range(2):
        (texts / f"void{number}.txt").write_text(f"nothing to ask, number {number}")
    make_rows(texts, tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    ((reason, count),) = report["dropped"].items()
    assert count == 2
    text = screen()
    assert f"{tmp_path / 'out'} (teacher: extractive)" in text
    assert f"  2 drafts dropped: {reason} (2)\n" in text


def towns(folder: Path, *sizes: int) -> Path:
    """A document of so many paragraphs for each size, each paragraph worth a question."""
    folder.mkdir()
    for document, lines in enumerate(sizes):
        facts = [
            f"Town{document}x{n} was founded in {1700 + n} by Ada Voss of Kelden.\n\n"
            for n in range(lines)
        ]
        (folder / f"{document}.txt").write_text("".join(facts))
    return folder


def report_of(output: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((output / "report.json").read_text(encoding="utf-8"))
    return report


def read_once(folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
    """Read the documents of many runs, which takes most of a run's time, only once."""
    values = {"documents": str(folder), "output": "o", "teacher": "extractive"} | settings
    reading = read_corpus(GenerateConfig.parse(values), None)
    monkeypatch.setattr(generate, "read_corpus", lambda *_: reading)


@pytest.mark.parametrize("sizes", [(30, 3), (3, 30, 2), (1, 4)])
def test_two_documents_with_rows_always_leave_rows_to_validate_on(
    tmp_path: Path, sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = towns(tmp_path / "documents", *sizes)
    for number in range(5):
        (documents / f"void{number}.txt").write_text(f"nothing to ask, number {number}")
    read_once(documents, monkeypatch, chunk_tokens=20)
    for seed in range(20):
        make_rows(documents, tmp_path / "out", distractors=1, seed=seed)
        report = report_of(tmp_path / "out")
        assert 0 < report["rows"]["validation"] <= report["rows"]["train"], seed
        assert report["split_by"] == "document"


def test_real_documents_always_leave_rows_to_validate_on(
    documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six files in pairs and all together, with 20 seeds each."""
    files = sorted(set(documents.iterdir()) - {documents / SCAN})
    assert len(files) == 6
    for number, chosen in enumerate([*combinations(files, 2), files]):
        folder = tmp_path / str(number)
        folder.mkdir()
        for path in chosen:
            shutil.copy(path, folder)
        read_once(folder, monkeypatch)
        for seed in range(20):
            make_rows(folder, tmp_path / "out", seed=seed)
            assert report_of(tmp_path / "out")["rows"]["validation"] > 0, (chosen, seed)


def test_a_dataset_without_validation_rows_says_so(
    texts: Path, tmp_path: Path, screen: Callable[[], str]
) -> None:
    make_rows(texts, tmp_path / "out", validation_fraction=0)
    expected = "No row is held out for validation"
    assert [text for text in report_of(tmp_path / "out")["warnings"] if expected in text]
    assert f"WARNING: {expected}" in screen()
    assert expected in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_rows_by_rules_and_few_rows_are_warned_of(
    texts: Path, tmp_path: Path, screen: Callable[[], str]
) -> None:
    make_rows(texts, tmp_path / "out", max_chunks=5)
    text = screen()
    for warning in ("Rules wrote these questions", "Only 4 rows: "):
        assert f"WARNING: {warning}" in text
        assert warning in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "  at most 5 rows: --max-chunks 5 × --questions-per-chunk 1\n" in text

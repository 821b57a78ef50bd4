import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components.core import progress
from components.core.errors import ConfigError, DataError, MissingDependencyError, StorageError
from components.core.records import RaftRow, read_jsonl
from components.core.storage import verify
from components.generate import generate
from components.generate.config import GenerateConfig

PUBLISHED_COLUMNS = [
    "id", "type", "question", "context", "oracle_context", "cot_answer", "instruction",
]  # fmt: skip


def run(documents: Path, output: Path, **settings: Any) -> list[RaftRow]:
    values = {"documents": str(documents), "output": str(output), **settings}
    generate.run(GenerateConfig.parse(values))
    return list(rows(output))


def rows(output: Path) -> Iterator[RaftRow]:
    for split in ("train", "validation"):
        yield from read_jsonl(output / f"{split}.jsonl", RaftRow)


def test_rows_are_what_they_say(texts: Path, tmp_path: Path) -> None:
    made = run(texts, tmp_path / "out", oracle_probability=0.5, seed=3)
    assert len(made) == 10
    sources = {path.name: path.read_text(encoding="utf-8").strip() for path in texts.iterdir()}
    for row in made:
        (shown,) = row.context.sentences
        assert len(shown) == len(set(shown)) == 4
        assert row.instruction == (
            "".join(f"<DOCUMENT>{text}</DOCUMENT>\n" for text in shown) + row.question
        )
        assert row.oracle_context == sources[row.document_id]
        assert (row.oracle_index is None) == (row.oracle_context not in shown)
        quote = row.cot_answer.split("##begin_quote##")[1].split("##end_quote##")[0]
        assert quote in row.oracle_context and row.answer in quote
        assert row.cot_answer.endswith(f"<ANSWER>: {row.answer}")
    assert [row.oracle_index for row in made].count(None) in range(2, 9)


def test_published_columns_come_first(texts: Path, tmp_path: Path) -> None:
    run(texts, tmp_path / "out")
    first = json.loads((tmp_path / "out" / "train.jsonl").open(encoding="utf-8").readline())
    assert list(first)[:7] == PUBLISHED_COLUMNS
    assert list(first["context"]) == ["title", "sentences"]
    assert isinstance(first["context"]["sentences"][0], list)


def test_datasets_reads_the_folder(texts: Path, tmp_path: Path) -> None:
    import datasets

    run(texts, tmp_path / "out")
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in loaded.items()} == {"train": 9, "validation": 1}


def test_no_document_straddles_the_split(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "hotpotqa" / "dev_distractor.json"
    run(path, tmp_path / "out", max_chunks=300, chunk_tokens=64, validation_fraction=0.2)
    train = list(read_jsonl(tmp_path / "out" / "train.jsonl", RaftRow))
    held_out = {
        row.document_id for row in read_jsonl(tmp_path / "out" / "validation.jsonl", RaftRow)
    }
    assert 25 <= len(held_out) <= 60  # of 60 held out, some give no row
    for row in train:
        shown = {row.document_id} | {chunk.rpartition("#")[0] for chunk in row.distractor_ids}
        assert not shown & held_out, "training sees a held-out document"


def test_one_document_is_split_by_chunk(shared_data: Path, tmp_path: Path) -> None:
    made = run(
        shared_data / "documents" / "trl_sft_trainer.md", tmp_path / "out", chunk_tokens=100,
        validation_fraction=0.3,
    )  # fmt: skip
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["split_by"] == "chunk"
    assert report["rows"]["validation"] > 0 and sum(report["rows"].values()) == len(made)


def test_same_seed_same_bytes_other_seed_other_bytes(texts: Path, tmp_path: Path) -> None:
    def made(name: str, seed: int) -> list[bytes]:
        run(texts, tmp_path / name, seed=seed)
        files = ("train.jsonl", "validation.jsonl", "report.json", "README.md")
        return [(tmp_path / name / file).read_bytes() for file in files]

    assert made("a", 1) == made("b", 1) != made("c", 2)


def test_duplicates_are_left_out_and_counted(texts: Path, tmp_path: Path) -> None:
    (texts / "again.txt").write_text(
        "TOWNA was founded  in 1800.\nThe mayor of Towna is ada vossa.", encoding="utf-8"
    )
    run(texts, tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["documents_duplicate"] == 1 and report["documents"] == 10


def test_artifact_is_sealed_and_damage_is_seen(texts: Path, tmp_path: Path) -> None:
    run(texts, tmp_path / "out")
    verify(tmp_path / "out", "--dataset")
    train = tmp_path / "out" / "train.jsonl"
    train.write_bytes(train.read_bytes().replace(b"Ada", b"Eve", 1))
    with pytest.raises(DataError, match="train.jsonl: is damaged"):
        verify(tmp_path / "out", "--dataset")


def test_too_few_chunks_say_what_to_do(texts: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--distractors 10: the corpus gives 9 chunks") as error:
        run(texts, tmp_path / "out", distractors=10)
    assert "--chunk-tokens" in error.value.hint
    assert run(texts, tmp_path / "out", distractors=8), "9 chunks are enough for 8 and the oracle"


def test_no_usable_row_is_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "documents"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.txt").write_text(f"nothing to ask, number {number}", encoding="utf-8")
    with pytest.raises(DataError, match="no training row could be made; dropped"):
        run(folder, tmp_path / "out")
    assert not (tmp_path / "out" / "train.jsonl").exists()


def test_equal_chunks_of_different_documents_are_one(tmp_path: Path) -> None:
    folder = tmp_path / "documents"
    folder.mkdir()
    terms = "# Terms\n\n" + "The owner of Kelden is Ada Voss. " * 3
    for number in range(8):
        own = f"# Part\n\nTown {number} was founded in {1800 + number} by Ada Voss of Kelden."
        (folder / f"{number}.md").write_text(f"{own}\n\n{terms}", encoding="utf-8")
    run(folder, tmp_path / "out", chunk_tokens=32, oracle_probability=0)
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["chunks_duplicate"] == 14, "seven repetitions of two chunks"
    for row in rows(tmp_path / "out"):
        assert row.oracle_context not in row.context.sentences[0]


@pytest.mark.parametrize(("documents", "output"), [("a", "a"), ("a", "a/out"), ("a/in", "a")])
def test_output_and_documents_keep_apart(tmp_path: Path, documents: str, output: str) -> None:
    (tmp_path / documents).mkdir(parents=True)
    with pytest.raises(ConfigError, match="lie in each other"):
        run(tmp_path / documents, tmp_path / output)


def test_a_good_artifact_survives_a_users_mistake(texts: Path, tmp_path: Path) -> None:
    run(texts, tmp_path / "out")
    for mistake in ({"prices": "nope.json"}, {"tokenizer": "gpt-17"}, {"distractors": 50}):
        with pytest.raises(ValueError, match="nope|gpt-17|50"):
            run(texts, tmp_path / "out", **mistake)
        verify(tmp_path / "out", "--dataset")
        assert (tmp_path / "out" / "manifest.json").exists()


def test_every_quote_of_hotpotqa_is_verbatim_and_no_distractor_holds_the_answer(
    shared_data: Path, tmp_path: Path
) -> None:
    path = shared_data / "hotpotqa" / "dev_distractor.json"
    made = run(path, tmp_path / "out", max_chunks=0)
    assert len(made) > 3500
    assert len({row.question.casefold() for row in made}) == len(made)
    spans = 0
    for row in made:
        (shown,) = row.context.sentences
        assert len(set(shown)) == len(shown) == 4
        assert (row.oracle_index is None) == (row.oracle_context not in shown)
        for part in row.cot_answer.split("##begin_quote##")[1:]:
            assert part.split("##end_quote##")[0] in row.oracle_context
        answer = re.compile(rf"(?<!\w){re.escape(row.answer)}(?!\w)", re.IGNORECASE)
        if not answer.search(row.oracle_context):
            continue  # the teacher takes brackets out of the middle of an answer
        spans += 1
        for text in shown:
            assert text == row.oracle_context or not answer.search(text), (row.answer, text)
    assert spans > 0.95 * len(made)


def test_hard_negatives_fit_the_question_and_hold_no_answer(
    shared_data: Path, tmp_path: Path
) -> None:
    path = shared_data / "hotpotqa" / "dev_distractor.json"
    hard = run(path, tmp_path / "hard", distractor_choice="bm25")
    drawn = run(path, tmp_path / "drawn")

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


def test_chunks_with_marks_of_raft_itself_are_left_out(texts: Path, tmp_path: Path) -> None:
    for number, mark in enumerate(("</DOCUMENT>", "##begin_quote##", "<ANSWER>:")):
        text = f"Mark{number} was founded in 1700. It is written {mark} there."
        (texts / f"mark{number}.txt").write_text(text, encoding="utf-8")
    report = generate.run(GenerateConfig(documents=str(texts), output=str(tmp_path / "out")))
    assert report.chunks_left_out == {"holds one of RAFT's own marks": 3}
    assert all(row.instruction.count("</DOCUMENT>") == 4 for row in rows(tmp_path / "out"))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"teacher_endpoint": "http://localhost:9/v1", "teacher_model": "llama"},
         "--teacher-endpoint, --teacher-model are given"),
        ({"question_prompt": "prompt.md"}, "--question-prompt is given"),
        ({"teacher": "extractive", "teacher_timeout": "5"}, "--teacher-timeout is given"),
    ],
)  # fmt: skip
def test_a_forgotten_teacher_is_no_extractive_one(settings: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigError, match=f"{named}, but --teacher is extractive.*--teacher open"):
        GenerateConfig.parse({"documents": "d", "output": "o", **settings})


def test_a_pipeline_may_pass_every_default_on_as_text() -> None:
    defaults = {
        name: f"{field.default:f}" if isinstance(field.default, float) else str(field.default)
        for name, field in GenerateConfig.model_fields.items()
        if not field.is_required()
    }
    config = GenerateConfig.parse({**defaults, "documents": "d", "output": "o"})
    assert config.teacher == "extractive"


def test_the_teacher_is_named_on_screen(
    texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    progress.console.cache_clear()
    run(texts, tmp_path / "out")
    progress.console.cache_clear()
    said = capsys.readouterr().err
    assert f"{tmp_path / 'out'} (teacher: extractive, rules for trials)" in said


def test_what_needs_no_document_is_checked_before_they_are_read(tmp_path: Path) -> None:
    """The only document is bad: whoever reads it first complains of it."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "bad.pdf").write_text("no PDF")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(StorageError, match="the folder holds something else"):
        run(tmp_path / "docs", tmp_path / "full")
    with pytest.raises(DataError, match=r"bad.pdf: damaged PDF"):
        run(tmp_path / "docs", tmp_path / "out")


def test_a_teachers_library_is_looked_for_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "bad.pdf").write_text("no PDF")
    with pytest.raises(MissingDependencyError, match="needs aiohttp"):
        run(
            tmp_path / "docs", tmp_path / "out", teacher="openai", teacher_model="m",
            teacher_endpoint="http://localhost:9/v1",
        )  # fmt: skip


def test_a_split_that_took_more_than_was_asked_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(sizes: tuple[int, ...], **settings: Any) -> str:
        folder = tmp_path / f"documents{len(sizes)}"
        folder.mkdir(exist_ok=True)
        for document, lines in enumerate(sizes):
            facts = [
                f"Town{document}x{n} was founded in {1700 + n} by Ada Voss of Kelden.\n\n"
                for n in range(lines)
            ]
            (folder / f"{document}.txt").write_text("".join(facts))
        progress.console.cache_clear()
        run(folder, tmp_path / "out", chunk_tokens=20, distractors=1, **settings)
        progress.console.cache_clear()
        return capsys.readouterr().err

    uneven = [said((3, 3, 30), seed=seed, questions_per_chunk=3) for seed in range(8)]
    noted = [text for text in uneven if "note: validation has" in text]
    for text in uneven:
        found = re.search(r"(\d+) training and (\d+) validation row", text)
        assert found is not None
        train, validation = map(int, found.groups())
        assert ("note: validation has" in text) == (validation > 0.2 * (train + validation))
        if validation > train:
            assert (
                f"{validation / (train + validation):.0%} of the rows, asked for were 10%" in text
            )
    assert 0 < len(noted) < len(uneven)
    assert "note" not in said((5, 5, 5, 5), validation_fraction=0.25)


def test_why_rows_were_dropped_is_told(
    texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(2):
        (texts / f"void{number}.txt").write_text(f"nothing to ask, number {number}")
    progress.console.cache_clear()
    run(texts, tmp_path / "out")
    progress.console.cache_clear()
    said = capsys.readouterr().err
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert sum(report["dropped"].values()) == 2
    (reason,) = report["dropped"]
    assert f"  2 drafts dropped: {reason} (2)\n" in said

import json
import shutil
from pathlib import Path

import pytest

from components.core.corpus.chunking import make_chunker
from components.core.corpus.documents import find_documents, read_document, unreadable_document
from components.core.corpus.formats import Unreadable
from components.core.errors import DataError
from components.core.records import Document
from components.generate import generate
from components.generate.corpus import read_corpus
from tests.conftest import DATA, MORE_DATA, by_rules


def read(source: Path, text_field: str = "") -> list[Document]:
    """Every document of a source, with bad ones as the stage's errors."""
    root = source if source.is_dir() else source.parent
    documents = []
    for path in find_documents(source):
        try:
            documents += read_document(path, root, text_field)
        except Unreadable as error:
            raise unreadable_document(path, error) from error
    return documents


def test_texts_come_in_the_order_of_their_paths(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.MD").write_text("# B\n\nTwo.\n", encoding="utf-8")
    (tmp_path / "a.txt").write_text("One.", encoding="utf-8")
    (tmp_path / ".hidden").write_text("not me", encoding="utf-8")
    documents = [(document.id, document.text, document.form) for document in read(tmp_path)]
    assert documents == [("a.txt", "One.", "text"), ("sub/b.MD", "# B\n\nTwo.", "markdown")]


def test_hotpotqa_gives_its_paragraphs_and_never_its_questions(hotpotqa: Path) -> None:
    rows = json.loads(hotpotqa.read_text(encoding="utf-8"))
    documents = read(hotpotqa)
    assert len(documents) == sum(len(row["context"]) for row in rows)
    assert documents[0].text == "".join(rows[0]["context"][0][1]).strip()
    texts = {document.text for document in documents}
    assert not any(row["question"] in text for row in rows for text in texts)
    assert len({document.id for document in documents}) == len(documents)


def test_both_nestings_of_hotpotqa_are_read(tmp_path: Path) -> None:
    rows = [{"context": {"title": ["T"], "sentences": [["One.", " Two."]]}}]
    (tmp_path / "hub.json").write_text(json.dumps(rows), encoding="utf-8")
    (tmp_path / "lines.jsonl").write_text('{"context": [["T", ["One.", " Two."]]]}\n')
    (tmp_path / "misnamed.json").write_text('\n{"context": [["T", ["One.", " Two."]]]}\n')
    assert [document.text for document in read(tmp_path)] == ["One. Two."] * 3


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("rows.jsonl", '{"context": [["T", ["a"]]]}\n{"context": 5}\n', "rows.jsonl:2: context"),
        ("rows.jsonl", '{"context": [["T", ["a"]]]}\n{"conte\n', "rows.jsonl:2: "),
        ("rows.jsonl", b'{"context": []}\n{"a": "\xff"}\n', "rows.jsonl:2: not UTF-8"),
        ("rows.json", '[{"context":\n[}]', "rows.json:2: not JSON"),
        ("rows.json", '[{"context": []}, {"question": "?"}]', "row 2: context: Field required"),
        ("rows.json", '"text"', "rows.json:1: Input should be"),
        ("api.json", '[{"api_call": "f()"}]', "row 1: api_name: Field required"),
        (
            "hub.json",
            '[{"context": {"title": ["A", "B"], "sentences": [["a"]]}}]',
            "2 titles but 1 lists",
        ),
        ("hub.json", '[{"context": {"title": null, "sentences": null}}]', "must be lists"),
        ("empty.txt", " \n", "empty"),
        ("empty.pdf", b"", "damaged PDF"),
        ("not.pdf", b"%PDF-1.7 nothing else", "damaged PDF"),
        ("not.docx", b"PK nothing else", "damaged DOCX"),
        ("latin.txt", b"caf\xe9\nline", "latin.txt:1: not UTF-8"),
        ("binary.md", b"# a\n\0\0\0", "binary.md:2: .*binary"),
        ("photo.jpeg", b"\xff\xd8", "cannot read .jpeg"),
    ],
)
def test_a_bad_document_is_named_with_its_place(
    tmp_path: Path, name: str, content: str | bytes, complaint: str
) -> None:
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=complaint):
        read(tmp_path)


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no documents in this folder"):
        read(tmp_path)
    with pytest.raises(DataError, match="no such file or folder"):
        read(tmp_path / "nowhere")


def test_titles_that_come_back_get_ids_of_their_own(tmp_path: Path) -> None:
    rows = [{"context": [["A", ["one"]], ["A", ["two"]], ["A~2", ["three"]], ["A", ["four"]]]}]
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    ids = [document.id for document in read(tmp_path)]
    assert len(set(ids)) == len(ids) == 4


def test_a_field_of_rows_can_be_the_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"title": "T", "body": "One."}\n{"body": " Two. "}\n', encoding="utf-8")
    assert [(d.id, d.title, d.text) for d in read(path, "body")] == [
        ("rows.jsonl#1", "T", "One."),
        ("rows.jsonl#2", "", "Two."),
    ]
    with pytest.raises(DataError, match=r"rows.jsonl:1: text: the row has no such text"):
        read(path, "text")


WANTED = {
    DATA / "documents": {
        "handbook.docx": ["## Climbing!", "- Ask about what it says."],
        "guide.rst": ["# Places and people", "## Dummy corporation", "Kelden | 1,200"],
        "guide.md": ["## Real estate benchmarking"],
        "annals.pdf": ["Metrico is an indie puzzle-platform video game developed and published by"],
        "page.html": ["## Duke Energy Florida"],
        "gorilla.json": ["api_call: towns.elect(name='Kelden', mayor='Ada Voss')"],
    },
    MORE_DATA / "documents": {
        "docling_word_sample.docx": ["# Let’s swim!", "- You can relax and look around"],
        "torchtune_memory_optimizations.rst": [
            "## Gradient Accumulation", "> `total_batch_size = batch_size",
            "In torchtune, you can enable this feature using `OptimizerInBackward`, which wraps",
            "| glossary precision | You'll usually want to leave this as its default `bfloat16`.",
        ],
        "trl_sft_trainer.md": ["# SFT Trainer"],
        "uc_berkeley_short.pdf": [
            "The University of California, Berkeley (UC Berkeley, Berkeley, Cal, or California)",
            "Berkeley has the most top-ranked departments nationally",
        ],
        "wiki_duck.html": [
            "Duck is the common name for numerous species of waterfowl", "## Etymology",
        ],
        "gorilla_apizoo.json": ["api_call: service.users().getProfile(userId='me').execute()"],
    },
}  # fmt: skip


@pytest.mark.parametrize("folder", [path for path in WANTED if path.exists()])
def test_every_kind_of_real_document(folder: Path) -> None:
    """What a person would look for in each of them is in one chunk, in reading order."""
    cut = make_chunker(by_rules("d"))
    for name, texts in WANTED[folder].items():
        chunks = [chunk for document in read(folder / name) for chunk in cut(document)]
        for text in texts:
            assert any(text in chunk.text for chunk in chunks), f"{name}: {text}"
        assert {chunk.type for chunk in chunks} == (
            {"api call"} if name.startswith("gorilla") else {"general"}
        )
        assert not any("<script" in chunk.text or "\0" in chunk.text for chunk in chunks)


def test_restructured_text_is_read_as_sphinx_shows_it(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("hunter2")
    (tmp_path / "page.rst").write_text(
        ".. _top-label:\n\nTitle\n=====\n\n"
        "See :ref:`the start <top-label>`, :class:`~package.Thing` and :ref:`top-label`.\n\n"
        ".. versionadded:: 2.0\n   It was new.\n\n"
        ".. tab-set::\n   :unknown-option: 5\n\n   .. tab-item:: Linux\n\n      Type ``ls``.\n\n"
        ".. toctree::\n   :maxdepth: 2\n\n   other\n\n"
        f".. include:: {secret}\n\n.. literalinclude:: {secret}\n\n"
        f".. csv-table:: T\n   :file: {secret}\n\n"
        f".. raw:: html\n   :file: {secret}\n\n"
        ".. |broken| unknown::\n\nLast *word* and |broken|.\n",
        encoding="utf-8",
    )
    [document] = read(tmp_path / "page.rst")
    assert document.text.split("\n\n") == [
        "# Title", "See the start, `Thing` and top label.", "2.0\nIt was new.",
        "Linux", "Type `ls`.", "Last word and |broken|.",
    ]  # fmt: skip


def test_a_heading_alone_is_no_chunk(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("# A\n\n## B\n\n" + "Words of a text. " * 40)
    (tmp_path / "tail.md").write_text("Some more words.\n\n# The end\n")
    reading = read_corpus(
        by_rules(tmp_path, chunk_tokens=64),
        None,
    )
    assert reading.chunks_left_out == {"only a heading": 2}
    assert all("Words" in reading.corpus[n].text for n in range(len(reading.corpus) - 1))


def test_a_scan_is_refused_by_name_or_left_out_and_counted(documents: Path, tmp_path: Path) -> None:
    folder = tmp_path / "documents"
    shutil.copytree(documents, folder)
    (folder / "photo.jpeg").write_bytes(b"\xff\xd8")
    (folder / "void.txt").write_text("")
    config = by_rules(folder, tmp_path / "out")
    with pytest.raises(DataError) as error:
        generate.run(config)
    assert str(error.value).splitlines() == [
        f"{folder}: 3 documents cannot be used",
        f"  {folder}/photo.jpeg: of an unknown kind (cannot read .jpeg)",
        f"  {folder}/scan.pdf: PDF without text (a scan: its pages are pictures; "
        "run OCR on it first)",
        f"  {folder}/void.txt: empty (the file is empty)",
    ]
    assert "--on-bad-document skip. --documents takes .txt" in error.value.hint
    assert not (tmp_path / "out" / "train.jsonl").exists()
    (folder / "photo.jpeg").unlink()
    (folder / "void.txt").rename(folder / ".void.txt")
    with pytest.raises(DataError, match=r"scan.pdf: PDF without text.*a scan"):
        generate.run(config)
    (folder / ".void.txt").rename(folder / "void.txt")
    report = generate.run(config.model_copy(update={"on_bad_document": "skip"}))
    assert report.documents_bad == {"PDF without text": 1, "empty": 1}
    assert report.bad_documents == [
        "scan.pdf: PDF without text", "void.txt: empty",
    ]  # fmt: skip
    assert report.rows["train"] > 15
    assert "| PDF without text | 1 |" in (tmp_path / "out" / "README.md").read_text()


def test_many_bad_documents_are_told_in_one_run(texts: Path, tmp_path: Path) -> None:
    for number in range(12):
        (texts / f"{number:02}.csv").write_text("a,b\n")
    config = by_rules(texts, tmp_path / "out")
    with pytest.raises(DataError) as error:
        generate.run(config)
    lines = str(error.value).splitlines()
    assert lines[0] == f"{texts}: 12 documents cannot be used"
    assert lines[-1] == "  and 2 more" and len(lines) == 12


def test_an_encrypted_pdf_is_named(tmp_path: Path) -> None:
    from pypdf import PdfWriter

    writer = PdfWriter()
    writer.add_blank_page(100, 100)
    writer.encrypt("secret", algorithm="RC4-128")
    writer.write(tmp_path / "locked.pdf")
    with pytest.raises(DataError, match=r"locked.pdf: encrypted PDF"):
        read(tmp_path)

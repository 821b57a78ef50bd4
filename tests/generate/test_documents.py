import json
from pathlib import Path

import pytest

from components.errors import DataError
from components.generate.documents import read_documents


def test_texts_come_in_the_order_of_their_paths(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.md").write_text("# B\n\nTwo.\n", encoding="utf-8")
    (tmp_path / "a.txt").write_text("One.", encoding="utf-8")
    (tmp_path / ".hidden").write_text("not me", encoding="utf-8")
    found = [(document.id, document.text) for document in read_documents(tmp_path)]
    assert found == [("a.txt", "One."), ("sub/b.md", "# B\n\nTwo.")]


def test_hotpotqa_gives_its_paragraphs_and_never_its_questions(shared_data: Path) -> None:
    path = shared_data / "hotpotqa" / "dev_distractor.json"
    rows = json.loads(path.read_text(encoding="utf-8"))
    documents = list(read_documents(path))
    assert len(documents) == sum(len(row["context"]) for row in rows)
    assert documents[0].text == "".join(rows[0]["context"][0][1]).strip()
    texts = {document.text for document in documents}
    assert not any(row["question"] in text for row in rows for text in texts)
    assert len({document.id for document in documents}) == len(documents)


def test_both_nestings_of_hotpotqa_are_read(tmp_path: Path) -> None:
    rows = [{"context": {"title": ["T"], "sentences": [["One.", " Two."]]}}]
    (tmp_path / "hub.json").write_text(json.dumps(rows), encoding="utf-8")
    (tmp_path / "lines.jsonl").write_text('{"context": [["T", ["One.", " Two."]]]}\n')
    assert [document.text for document in read_documents(tmp_path)] == ["One. Two."] * 2


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("rows.jsonl", '{"context": [["T", ["a"]]]}\n{"context": 5}\n', "rows.jsonl:2: context"),
        ("rows.jsonl", '{"context": [["T", ["a"]]]}\n{"conte\n', "rows.jsonl:2: "),
        ("rows.json", '[{"context":\n[}]', "rows.json:2: not JSON"),
        ("rows.json", '[{"context": []}, {"question": "?"}]', "row 2: context: Field required"),
        ("rows.json", '{"context": []}', "not a JSON list"),
        (
            "hub.json",
            '[{"context": {"title": ["A", "B"], "sentences": [["a"]]}}]',
            "2 titles but 1 lists",
        ),
        ("hub.json", '[{"context": {"title": null, "sentences": null}}]', "must be lists"),
        ("empty.txt", " \n", "empty"),
        ("latin.txt", b"caf\xe9\nline", "latin.txt:1: not UTF-8"),
        ("photo.jpeg", b"\xff\xd8", "cannot read .jpeg"),
    ],
)
def test_a_bad_document_is_named_with_its_place(
    tmp_path: Path, name: str, content: str | bytes, complaint: str
) -> None:
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=complaint.replace(".", r"\.")):
        list(read_documents(tmp_path))


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no documents in this folder"):
        list(read_documents(tmp_path))
    with pytest.raises(DataError, match="no such file or folder"):
        list(read_documents(tmp_path / "nowhere"))


def test_titles_that_come_back_get_ids_of_their_own(tmp_path: Path) -> None:
    rows = [{"context": [["A", ["one"]], ["A", ["two"]], ["A~2", ["three"]], ["A", ["four"]]]}]
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    ids = [document.id for document in read_documents(tmp_path)]
    assert len(set(ids)) == len(ids) == 4

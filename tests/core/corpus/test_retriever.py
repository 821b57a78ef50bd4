"""A folder of documents, searched by question."""

from pathlib import Path

import pytest

from components.core.corpus.options import CorpusOptions
from components.core.corpus.retriever import Retriever
from components.core.errors import DataError


def retriever(folder: Path, **options: object) -> Retriever:
    return Retriever(CorpusOptions.model_validate({"documents": str(folder), **options}))


def test_the_fitting_chunk_comes_first_and_a_copy_once(tmp_path: Path) -> None:
    for name, ship in (("a", "Amber Lantern"), ("b", "Silver Crow"), ("c", "Silver  Crow")):
        (tmp_path / f"{name}.txt").write_text(f"The {ship} was built in Kelden {ship[0]}.")
    corpus = retriever(tmp_path)
    assert len(corpus.chunks) == 2
    documents = [chunk.document_id for chunk in corpus.best("Where was the Silver Crow built?", 2)]
    assert documents == ["b.txt", "a.txt"]
    assert corpus.best("Who paints?", 2) == []


def test_chunks_far_behind_the_best_are_dropped_but_not_the_best_two(tmp_path: Path) -> None:
    ships = ("Silver Crow", "Silver Raven", "Silver Gull", "Golden Crown")
    for number, ship in enumerate(ships):
        (tmp_path / f"{number}.txt").write_text(f"The {ship} was built in Kelden.")
    corpus = retriever(tmp_path)

    def found(question: str, **options: float) -> list[str]:
        return [chunk.document_id for chunk in corpus.best(question, 4, **options)]

    assert found("Where was the Silver Crow built?") == ["0.txt", "1.txt", "2.txt", "3.txt"]
    assert found("Where was the Silver Crow built?", min_score=0.9) == ["0.txt", "1.txt"]
    assert found("Where was the Silver Crow built?", min_score=0.2) == ["0.txt", "1.txt", "2.txt"]
    assert found("What is silver?", min_score=0.9) == ["0.txt", "1.txt", "2.txt"], "all fit alike"


def test_a_bad_document_stops_or_is_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("Ada was born in Kelden.")
    (tmp_path / "b.exe").write_text("?")
    with pytest.raises(DataError, match=r"b\.exe.*cannot read \.exe"):
        retriever(tmp_path)
    assert len(retriever(tmp_path, on_bad_document="skip").chunks) == 1
    assert "skipped" in "".join(capsys.readouterr())
    (tmp_path / "a.txt").unlink()
    with pytest.raises(DataError, match="no text in these documents"):
        retriever(tmp_path, on_bad_document="skip")

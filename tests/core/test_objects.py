"""Objects in a bucket that no folder of files is like: compressed, nameless, doubled, paid for.

Numbers are those of the issue that asked for each kind.
"""

import gzip
from pathlib import Path

import pytest

from components.core.errors import AccessError, ConfigError, DataError, StorageError
from components.core.storage import (
    copies,
    fetch,
    finish_artifact,
    publish,
    remove,
    verify,
)
from components.core.storage.bucket import locate
from components.generate.config import GenerateConfig
from pipelines.stages import run_stage
from tests.conftest import by_rules
from tests.gcs import BUCKET, Emulator, artifact, same, upload, upload_files

TEXT = "Towna was founded in 1800. The mayor of Towna is Ada Vossa.\n"


@pytest.mark.parametrize("uri", ["gs://bucket/docs", "gs://bucket/docs/a.txt"])
def test_18_a_compressed_object_is_decompressed(
    gcs: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    monkeypatch.setattr(copies, "PART", 2**12)
    text = "".join(f"{number} {hash(number * 1.1)}\n" for number in range(4000))
    upload("docs/a.txt", gzip.compress(text.encode()), "gzip")
    upload("docs/b.txt", TEXT)
    for _ in range(2):  # the second finds the copy of the first
        fetch(uri, tmp_path / "copy")
        copied = tmp_path / "copy" / "a.txt" if uri.endswith("docs") else tmp_path / "copy"
        assert copied.read_text(encoding="utf-8") == text
    assert len(gcs.ranges) > 4, "in parts"


@pytest.mark.parametrize("content", [b"plain", gzip.compress(b"cut off" * 99)[:-9]])
def test_18_what_only_claims_to_be_compressed(
    gcs: Emulator, tmp_path: Path, content: bytes
) -> None:
    upload("docs/a.txt", content, "gzip")
    with pytest.raises(
        DataError, match=r"gs://bucket/docs/a\.txt: cannot be decompressed"
    ) as error:
        fetch("gs://bucket/docs", tmp_path / "copy")
    assert "--clear-content-encoding" in error.value.hint
    assert not (tmp_path / "copy" / "a.txt").exists()


@pytest.mark.parametrize("compressed_file", ["000.bin", "manifest.json"])
def test_18_an_artifact_that_was_copied_compressed(
    gcs: Emulator, tmp_path: Path, compressed_file: str
) -> None:
    folder = artifact(tmp_path / "artifact")
    publish(folder, "gs://bucket/a")
    upload(f"a/{compressed_file}", gzip.compress((folder / compressed_file).read_bytes()), "gzip")
    fetch("gs://bucket/a", tmp_path / "copy")
    assert same(folder, tmp_path / "copy")
    upload("a/000.bin", gzip.compress(b"other"), "gzip")
    with pytest.raises(DataError, match=r"gs://bucket/a/000\.bin: is damaged"):
        fetch("gs://bucket/a", tmp_path / "other")


def test_18_an_artifact_that_lists_compressed_bytes(gcs: Emulator, tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "rows.gz").write_bytes(gzip.compress(b"rows"))
    finish_artifact(folder)
    publish(folder, "gs://bucket/a")
    upload("a/rows.gz", (folder / "rows.gz").read_bytes(), "gzip")
    fetch("gs://bucket/a", tmp_path / "copy")
    verify(tmp_path / "copy", "--dataset")
    assert same(folder, tmp_path / "copy")


LONG = "ä" * 150  # 300 bytes


@pytest.mark.parametrize("mark", ["docs", "docs/", "docs/sub", "docs/sub/", "docs/sub_$folder$"])
def test_19_what_marks_a_folder_is_no_document(gcs: Emulator, tmp_path: Path, mark: str) -> None:
    upload("docs/a.txt", TEXT)
    upload("docs/sub/b.txt", TEXT)
    upload(mark, "")
    for uri in ("gs://bucket/docs", "gs://bucket/docs/"):
        fetch(uri, tmp_path / "copy")
        copied = {path.name for path in (tmp_path / "copy").rglob("*") if path.is_file()}
        assert copied == {"a.txt", "b.txt"}
    upload(f"empty/{mark}/", "")
    with pytest.raises(StorageError, match="gs://bucket/empty: nothing there"):
        fetch("gs://bucket/empty", tmp_path / "other")


@pytest.mark.parametrize("content", ["", TEXT])
def test_19_an_object_that_is_named_alone(gcs: Emulator, tmp_path: Path, content: str) -> None:
    """An empty file; and a file and a folder of one name, which a slash tells apart."""
    upload("docs/a.txt", content)
    fetch("gs://bucket/docs/a.txt", tmp_path / "copy")
    assert (tmp_path / "copy").read_text(encoding="utf-8") == content
    if content:
        upload("docs/a.txt/b.txt", "other")
        fetch("gs://bucket/docs/a.txt", tmp_path / "file")
        fetch("gs://bucket/docs/a.txt/", tmp_path / "folder")
        assert (tmp_path / "file").read_text(encoding="utf-8") == TEXT
        assert (tmp_path / "folder" / "b.txt").read_text(encoding="utf-8") == "other"


@pytest.mark.parametrize(
    ("names", "named"),
    [
        (["a.txt", "a.txt/b.txt"], "gs://bucket/docs/a.txt: .*it is an object, and a folder"),
        (["x/y", "x/y/z/c.txt"], "gs://bucket/docs/x/y: .*it is an object, and a folder"),
        (["/b.txt"], "gs://bucket/docs//b.txt: no file can have this name"),
        (["x//b.txt", "x/b.txt"], "gs://bucket/docs/x//b.txt: .* an empty part"),
        (["./b.txt"], "gs://bucket/docs/./b.txt: .* an empty part"),
        ([f"{LONG}.txt"], f"gs://bucket/docs/{LONG}.txt: .* over 255 bytes"),
        ([f"{LONG}/b.txt"], f"gs://bucket/docs/{LONG}/b.txt: .* over 255 bytes"),
    ],
)
def test_19_names_that_no_file_can_have(
    gcs: Emulator, tmp_path: Path, names: list[str], named: str
) -> None:
    upload("docs/c.txt", TEXT)
    for name in names:
        upload(f"docs/{name}", TEXT)
    config = by_rules("gs://bucket/docs", tmp_path / "out")
    with pytest.raises(DataError, match=named) as error:
        run_stage(config)
    assert str(tmp_path) not in str(error.value) + error.value.hint
    assert "gcloud storage mv" in error.value.hint and error.value.exit_code == 2


@pytest.mark.parametrize("uri", [f"gs://bucket/{LONG}", f"gs://bucket/{LONG}/docs"])
@pytest.mark.parametrize("name", ["documents", "output"])
def test_19_a_setting_with_such_a_name(tmp_path: Path, uri: str, name: str) -> None:
    settings = {"documents": str(tmp_path), "output": "gs://bucket/out", name: uri}
    with pytest.raises(ConfigError, match=f"--{name} '{uri}': .*over 255 bytes"):
        GenerateConfig.parse(settings)


@pytest.mark.parametrize(("name", "content"), [("a.txt", b"\xff\xfe\xff"), ("b.pdf", b"no PDF")])
def test_19_a_bad_document_is_named_by_its_uri(
    gcs: Emulator, tmp_path: Path, name: str, content: bytes
) -> None:
    upload("docs/c.txt", TEXT)
    upload(f"docs/{name}", content)
    config = by_rules("gs://bucket/docs/", tmp_path / "out")
    with pytest.raises(DataError, match=rf"gs://bucket/docs/{name}") as error:
        run_stage(config)
    assert str(tmp_path) not in str(error.value)


LAYOUTS = {
    "object": {"docs": TEXT},
    "prefix": {"docs/a.txt": TEXT, "docs/b.txt": TEXT},
    "deep": {"docs/a.txt/c.txt": TEXT, "docs/b.txt": "other"},
}
"""What `gs://bucket/docs` may be, and then be instead."""
CHANGES = [(one, other) for one in LAYOUTS for other in LAYOUTS if one != other]


def lay(layout: str, gcs: Emulator) -> None:
    remove("gs://bucket/docs")
    for name in gcs.names("docs"):
        locate("gs://bucket")[0].blob(name).delete()
    for name, content in LAYOUTS[layout].items():
        upload(name, content)


def read(folder: Path) -> dict[str, str]:
    """The files of a copy, as the objects of a layout."""
    files = [path for path in (folder, *folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder.parent).as_posix(): path.read_text() for path in files}


@pytest.mark.parametrize(("before", "after"), CHANGES)
def test_20_what_a_try_before_has_left_is_not_in_the_way(
    gcs: Emulator, tmp_path: Path, before: str, after: str
) -> None:
    for layout in (before, after):
        lay(layout, gcs)
        fetch("gs://bucket/docs", tmp_path / "docs")
        assert read(tmp_path / "docs") == LAYOUTS[layout]


@pytest.mark.parametrize(("before", "after"), CHANGES)
def test_20_a_change_between_listing_and_reading(
    gcs: Emulator, tmp_path: Path, before: str, after: str
) -> None:
    lay(before, gcs)

    def change(method: str, path: str) -> int:
        if "alt=media" in path:
            gcs.fault = lambda method, path: 0
            lay(after, gcs)
        return 0

    gcs.fault = change
    fetch("gs://bucket/docs", tmp_path / "docs")
    assert read(tmp_path / "docs") == LAYOUTS[after]


@pytest.mark.parametrize("uri", ["gs://bucket/docs", "gs://bucket/docs/"])
def test_20_what_keeps_changing_is_an_error(gcs: Emulator, tmp_path: Path, uri: str) -> None:
    lay("prefix", gcs)

    def change(method: str, path: str) -> int:
        if "alt=media" in path:
            gcs.fault = lambda method, path: 0
            lay("object" if gcs.names("docs/") else "prefix", gcs)
            gcs.fault = change
        return 0

    gcs.fault = change
    with pytest.raises(StorageError, match="an object vanished|nothing there") as error:
        fetch(uri, tmp_path / "docs")
    assert uri in str(error.value) and str(tmp_path) not in str(error.value)


@pytest.mark.parametrize("name", ["documents", "output"])
def test_21_a_bucket_whose_readers_pay(
    gcs: Emulator, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(copies, "PART", 20)  # parts are sent and composed too
    monkeypatch.delenv("GOOGLE_CLOUD_QUOTA_PROJECT", raising=False)
    upload_files(texts, "in")
    gcs.requester_pays = True
    local = {"teacher": "extractive", "documents": str(texts), "output": str(tmp_path / "out")}
    config = GenerateConfig.parse(local | {name: "gs://bucket/in"})
    with pytest.raises(AccessError, match="gs://bucket/in: .*requester pays") as error:
        run_stage(config)
    assert "GOOGLE_CLOUD_QUOTA_PROJECT" in error.value.hint and error.value.exit_code == 2
    monkeypatch.setenv("GOOGLE_CLOUD_QUOTA_PROJECT", "our-project")
    assert run_stage(config) is not None
    assert run_stage(config) is None, "up to date"


@pytest.mark.parametrize("name", ["a.txt", "sub/000.bin"])
def test_k19_an_object_without_a_size_is_empty(gcs: Emulator, tmp_path: Path, name: str) -> None:
    """By itself, among documents, and in an artifact."""
    folder = tmp_path / "artifact"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_bytes(b"")
    upload(f"docs/{name}", "")
    upload("docs/b.txt", TEXT)
    finish_artifact(folder)
    publish(folder, "gs://bucket/a")
    for listed in (f"docs/{name}", f"a/{name}"):
        del gcs.storage.objects[BUCKET][listed]["size"]
    fetch(f"gs://bucket/docs/{name}", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b""
    fetch("gs://bucket/docs", tmp_path / "docs")
    assert read(tmp_path / "docs") == {f"docs/{name}": "", "docs/b.txt": TEXT}
    fetch("gs://bucket/a", tmp_path / "copy")
    assert same(folder, tmp_path / "copy")
    gcs.uploads.clear()
    publish(folder, "gs://bucket/a")
    assert not gcs.uploads, "nothing differs"

"""`raft rows`: what a person reads before training, in a page that runs its own script alone."""

import base64
import hashlib
import html
import re
import subprocess
from pathlib import Path

import pytest

from components.core.records import Context, Dropped, RaftRow, TrainingRecord, read_json, read_jsonl
from components.use import rows
from components.use.config import RowsConfig
from tests.browser import BROWSER, OPTIONS, opened
from tests.conftest import Raft

HOSTILE = '\u202e</script><script>alert(1)</script><img src=x onerror=alert(2)> "\' onclick="x'


def row(number: int, **changes: object) -> RaftRow:
    oracle = f"Ada{number} was born in Kelden. She paints."
    fields: dict[str, object] = {
        "id": f"seed_task_{number}", "question": f"Where was Ada{number} born?",
        "context": Context(title=[["Bram", "Ada"]], sentences=[["Bram bakes bread.", oracle]]),
        "oracle_context": oracle, "oracle_index": 1, "instruction": "",
        "cot_answer": f"##begin_quote##Ada{number} was born in Kelden.##end_quote## and "
        "##begin_quote##nobody knows##end_quote## <ANSWER>: Kelden",
    }  # fmt: skip
    return RaftRow.model_validate(fields | changes)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "dataset"
    folder.mkdir()
    absent = Context(title=[["Bram", "Cora"]], sentences=[["Bram bakes.", "Cora sings."]])
    files = {
        "train": [row(0), row(1, question=HOSTILE, cot_answer=HOSTILE), row(2)],
        "validation": [row(3, context=absent, oracle_index=None)],
        "dropped": [
            Dropped(chunk_id="b#0", question="Why?", reason="quote not found", reply=HOSTILE)
        ],
    }
    for name, records in files.items():
        text = "".join(record.model_dump_json() + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def page(dataset: Path, tmp_path: Path) -> Path:
    rows.run(RowsConfig(dataset=str(dataset), output=str(tmp_path / "rows.html")))
    return tmp_path / "rows.html"


def test_quotes_are_marked_in_answer_and_chunk(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.count("<article") == 5
    first = text.split("<article")[1]
    answer = first.split("<h2>")[1].split("<details>")[0]
    assert '<mark class="found">Ada0 was born in Kelden.</mark> and ' in answer
    assert ' and <mark class="lost">nobody knows</mark> &lt;ANSWER&gt;: Kelden' in answer
    oracle = first.split('<summary class="oracle">Ada</summary>')[1]
    assert oracle.startswith('<p><mark class="found">Ada0 was born in Kelden.</mark> She paints.')
    assert 'data-line="seed_task_0%09Where%20was%20Ada0%20born%3F"' in first
    assert "dropped: quote not found" in text and "oracle not shown (1)" in text


def test_hostile_texts_stay_texts(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "\u202e" not in text and "U+202E" in text
    assert text.count("<script>") == 1 and text.count("</script>") == 1 and "<img" not in text
    assert not re.search(r"<[^>]* on\w+=", re.sub(r'"[^"]*"', '""', text))
    script = text.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = html.unescape(text.split('Security-Policy" content="')[1].split('"')[0])
    assert policy == (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    )
    assert text.index("Security-Policy") < text.index("<title>") < text.index("<script>")


@pytest.mark.skipif(not BROWSER, reason="chromium is not installed")
@pytest.mark.parametrize(("words", "shown"), [("", 5), ("#ada2", 1), ("#KELDEN", 4), ("#zz", 0)])
def test_a_browser_filters_rows(words: str, shown: int, page: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [BROWSER, *OPTIONS, "--virtual-time-budget=2000", f"--user-data-dir={tmp_path / 'profile'}",
         "--dump-dom", f"{page.as_uri()}{words}"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert f">{shown} of 5</output>" in done.stdout
    assert done.stdout.count("<article") - done.stdout.count('hidden=""') == shown


TICK_TWO = """
const ticks = document.querySelectorAll("input[type=checkbox]");
ticks[0].click(); ticks[2].click(); ticks[1].click(); ticks[2].click();
document.getElementById("save").textContent"""


@pytest.mark.skipif(not BROWSER, reason="chromium is not installed")
def test_train_skips_the_two_rows_that_were_ticked_and_saved(
    world_dataset: Path, demo_model: Path, raft: Raft, tmp_path: Path
) -> None:
    records = [*read_jsonl(world_dataset / "train.jsonl", RaftRow)]
    records[1] = records[1].model_copy(update={"question": f"Who?\n\t{HOSTILE} %41"})
    folder = tmp_path / "dataset"
    folder.mkdir()
    text = "".join(record.model_dump_json() + "\n" for record in records)
    (folder / "train.jsonl").write_text(text, encoding="utf-8")
    page = tmp_path / "rows.html"
    rows.run(RowsConfig(dataset=str(folder), output=str(page)))
    with opened(page, tmp_path) as tab:
        assert tab.run(TICK_TWO) == "Save 2 ticked as exclude.txt"
        saved = tab.download("document.getElementById('save').click()")
    assert saved.name == "exclude.txt"
    assert saved.read_text(encoding="utf-8") == "".join(
        f"{record.id}\t{' '.join(record.question.split())}\n" for record in records[:2]
    )
    adapter = tmp_path / "adapter"
    done = raft(
        "train", "--dataset", folder, "--base-model", demo_model, "--output", adapter,
        "--exclude", saved, "--epochs", 1, "--gradient-checkpointing", "false",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"2 rows are skipped by {saved}" in done.stderr
    training = read_json(adapter / TrainingRecord.FILE, TrainingRecord)
    assert (training.rows_excluded, training.rows_train) == (2, len(records) - 2)


def test_only_so_many_rows_and_no_dataset(dataset: Path, raft: Raft, tmp_path: Path) -> None:
    output = tmp_path / "few.html"
    done = raft("rows", dataset, "--output", output, "--max-rows", 2)
    assert done.returncode == 0, done.stderr
    assert f"2 rows: {output}" in done.stderr and "3 more are not on it" in done.stderr
    assert "3 more rows are not shown" in output.read_text(encoding="utf-8")
    nothing = raft("rows", tmp_path)
    assert nothing.returncode == 2 and "Give a folder of raft generate" in nothing.stderr

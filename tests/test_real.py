"""A slice of `make real`: every part runs on the real model, with a few questions."""

import json
from pathlib import Path

import pytest

from tests.benchmarks import real


@pytest.mark.timeout(2400)
def test_a_slice(
    hotpotqa: Path, smollm2_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published = real.RESULTS.read_text(encoding="utf-8")
    (tmp_path / "model").symlink_to(smollm2_model)
    questions = json.loads(hotpotqa.read_text(encoding="utf-8"))
    learn, test = tmp_path / "learn-from.json", tmp_path / "test-on.json"
    learn.write_text(json.dumps(questions[:18]), encoding="utf-8")
    test.write_text(json.dumps(questions[18:]), encoding="utf-8")
    real.main([str(tmp_path), str(learn), str(test), "--slice"])
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    for arm in ("base-rag", "raft", "raft-4bit"):
        assert f"\n| `{arm}` | " in text
    assert "\n| `raft` − `base-rag` | f1 | " in text
    taught = json.loads((tmp_path / "teacher" / "outcome.json").read_text(encoding="utf-8"))
    assert taught["requests"] >= real.SLICE.teacher_chunks
    speed = json.loads((tmp_path / "beside-trl" / "speed.json").read_text(encoding="utf-8"))
    assert all(side["tokens_per_cpu_second"] > 0 for side in speed.values())
    assert real.RESULTS.read_text(encoding="utf-8") == published, "a slice is no result"
    seconds = json.loads((tmp_path / "seconds.json").read_text(encoding="utf-8"))
    assert set(seconds) == {
        "model", "teacher", "dataset", "adapter", "answers", "answers-4bit", "quantization",
        "evaluation", "beside-trl",
    }  # fmt: skip


def test_the_section_is_replaced_in_its_place(tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    page.write_text("# Results\n\n## First\none\n", encoding="utf-8")
    real.publish(f"{real.TITLE}\nold\n", page)
    with page.open("a", encoding="utf-8") as file:
        file.write("\n## Last\nthree\n")
    real.publish(f"{real.TITLE}\nnew\n", page)
    text = page.read_text(encoding="utf-8")
    assert text == f"# Results\n\n## First\none\n\n{real.TITLE}\nnew\n\n## Last\nthree\n"


def test_what_the_figures_mean_is_not_replaced(tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    page.write_text(f"# R\n\n{real.TITLE}\nold\n\n{real.MEANING}\n\nMuch.\n\n## Last\nthree\n")
    real.publish(f"{real.TITLE}\nnew\n", page)
    text = page.read_text(encoding="utf-8")
    assert text == f"# R\n\n{real.TITLE}\nnew\n\n{real.MEANING}\n\nMuch.\n\n## Last\nthree\n"

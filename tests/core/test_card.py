"""The card of an adapter: in the hub's form, with what the adapter was made from, and no path."""

from pathlib import Path

from huggingface_hub import ModelCard

from components.core.card import FILE, with_figures, write_card
from components.core.raft_form import TEMPLATE, instruction
from components.core.records import GenerationReport, TrainingRecord, read_json
from tests.report.test_summary import evaluated

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def records(adapter: Path, dataset: Path) -> tuple[TrainingRecord, GenerationReport]:
    report = GenerationReport.of(dataset)
    assert report is not None
    return read_json(adapter / TrainingRecord.FILE, TrainingRecord), report


def test_train_writes_the_card_and_the_form(world_adapter: Path, world_dataset: Path) -> None:
    training, report = records(world_adapter, world_dataset)
    text = (world_adapter / FILE).read_text(encoding="utf-8")
    assert text == write_card(training, report)
    card = ModelCard(text)
    assert card.data.library_name == "peft" and card.data.base_model is None
    assert "40 documents" in text and "| teacher | extractive |" in text
    assert "Rules wrote these questions" in text and "rank 64" in text
    assert str(world_adapter) not in text and str(world_dataset) not in text
    assert f"| 9 | {training.validation_loss:.4f} |" in text
    prompt = text.split("turn then is:\n\n```\n")[1].split("\n```")[0]
    documents = ["Ada Voss was born in Kelden. She paints.", "Bram Kell bakes bread."]
    assert prompt == instruction(documents, "Where was Ada Voss born?")
    assert (world_adapter / "chat_template.jinja").read_text("utf-8").startswith(TEMPLATE)


def test_a_base_of_the_hub_is_linked_with_its_commit(
    world_adapter: Path, world_dataset: Path
) -> None:
    training, report = records(world_adapter, world_dataset)
    training = training.model_copy(update={"base_fingerprint": f"org/tiny_1@{COMMIT}"})
    report = report.model_copy(update={"teacher": "org/70B", "rows_without_oracle": 0})
    text = write_card(training, report)
    card = ModelCard(text)
    assert card.data.base_model == "org/tiny_1"
    assert card.data.to_dict()["base_model_relation"] == "adapter"
    assert f"(https://huggingface.co/org/tiny_1) (commit {COMMIT})" in text
    assert "| teacher | org/70B |" in text and "not taught to decline" in text


def test_words_from_elsewhere_stay_words(world_adapter: Path, world_dataset: Path) -> None:
    training, report = records(world_adapter, world_dataset)
    hostile = "<script>alert(1)</script>\n---\nlicense: mit\n| $base [x](http://y)"
    training = training.model_copy(update={"base_model": hostile, "about_rows": [hostile]})
    text = write_card(training, report.model_copy(update={"teacher": hostile}))
    assert "<script>" not in text and "[x](http" not in text
    assert ModelCard(text).data.license == "other"


def test_the_figures_of_an_evaluation_come_last(world_adapter: Path) -> None:
    card = (world_adapter / FILE).read_text(encoding="utf-8")
    text = with_figures(card, evaluated(0.8))
    assert text.startswith(card.rstrip()) and ModelCard(text).data.license == "other"
    assert "| raft | " in text.split("## Evaluation")[1]

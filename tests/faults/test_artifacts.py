"""Damaged artifacts: every file that a stage hands on, damaged in every way, and who notices.

Whatever is finished is caught by its manifest. What comes from outside (a base model, rows, an
adapter) has none: there a file that is cut off, empty, missing or something else is caught.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.core import storage
from components.core.records import read_json
from components.core.storage import MANIFEST, Manifest, ManifestFile, finish_artifact, verify
from components.core.storage.bucket import locate
from components.eval.generations import Generations
from components.train.checkpoints import Checkpoints
from tests.faults.conftest import Leave, Tally, refused
from tests.gcs import BUCKET, Emulator
from tests.generate.teacher_server import teacher_server


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "a flipped bit": flipped,
    "truncated": lambda data: data[: len(data) // 2],
    "emptied": lambda data: b"",
    "missing": lambda data: None,
    "replaced": lambda data: b'{"a": 1}\n',
    "a list": lambda data: b"[]",
    "noise": lambda data: bytes(range(256)),
}


def damages_of(path: Path) -> list[str]:
    """The ways that change a file: an empty one can only be replaced or lost."""
    data = path.read_bytes()
    return [how for how in DAMAGES if data or how not in ("a flipped bit", "truncated", "emptied")]


def damage(path: Path, how: str) -> None:
    data = DAMAGES[how](path.read_bytes())
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)


@pytest.fixture(scope="module")
def made(
    world_dataset: Path, world_adapter: Path, demo_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:  # fmt: skip
    """One artifact of every kind."""
    from components.eval import eval as evaluation
    from components.eval.config import EvalConfig
    from components.generate.export import ExportConfig
    from components.generate.export import run as export
    from components.quantize_check import quantize_check
    from components.quantize_check.config import QuantizeCheckConfig

    folder = tmp_path_factory.mktemp("made")
    parts = {"base_model": str(demo_model), "adapter": str(world_adapter)}
    quantize_check.run(QuantizeCheckConfig(
        dataset=str(world_dataset), output=str(folder / "quantization"), max_rows=1,
        max_new_tokens=4, **parts,
    ))  # fmt: skip
    evaluation.run(EvalConfig.parse({
        "questions": str(world_dataset), "output": str(folder / "evaluation"), "max_questions": 1,
        "arms": "base", "max_new_tokens": 4, **parts,
    }))  # fmt: skip
    # A model as a part of an artifact.
    shutil.copytree(demo_model, folder / "bundle" / "model")
    finish_artifact(folder / "bundle")
    export(ExportConfig(dataset=str(world_dataset), output=str(folder / "rows")))
    return {
        "dataset": world_dataset,
        "adapter": world_adapter,
        "model": demo_model,
        **{name: folder / name for name in ("quantization", "evaluation", "rows", "bundle")},
    }


# ---- finished ------------------------------------------------------------------------------------


def readers(made: dict[str, Path], broken: Path, out: Path) -> dict[str, list[list[object]]]:
    """The commands that read each kind of artifact, given a damaged one."""
    model: list[object] = ["--base-model", made["model"]]
    tuned: list[object] = [*model, "--adapter", made["adapter"]]
    dataset: list[object] = ["--dataset", made["dataset"]]
    questions: list[object] = ["--questions", made["dataset"]]
    few: list[object] = ["--max-new-tokens", 4, "--max-questions", 1, "--arms", "base"]
    to: list[object] = ["--output", out]
    return {
        "dataset": [
            ["train", "--dataset", broken, *model, *to],
            ["quantize-check", "--dataset", broken, *tuned, *to],
            ["eval", "--questions", broken, *tuned, *few, *to],
            ["export", "--dataset", broken, *to],
        ],
        "adapter": [
            ["quantize-check", *dataset, *model, "--adapter", broken, *to],
            ["eval", *questions, *model, "--adapter", broken, "--arms", "raft", *to],
        ],
        "quantization": [["eval", *questions, *tuned, "--quantization", broken, *few, *to]],
        "evaluation": [["compare", broken, *to]],
        "rows": [
            ["export", "--dataset", broken, *to],
            ["export", "--dataset", broken / "train.jsonl", *to],
        ],
    }


@pytest.mark.fault(
    "Damaged artifacts", "every file of every artifact, and its manifest, in seven ways",
    "every command that reads it names the file and exits with 2",
)  # fmt: skip
@pytest.mark.parametrize("kind", ["dataset", "adapter", "quantization", "evaluation", "rows"])
def test_a_finished_artifact(
    made: dict[str, Path], kind: str, tmp_path: Path, leave: Leave, tally: Tally
) -> None:
    # A manifest beside a file may be anybody's, unless it still looks like one of ours.
    of_a_file = {(MANIFEST, "a flipped bit"), (MANIFEST, "truncated")}
    of_a_file |= {("train.jsonl", how) for how in DAMAGES}
    files = [entry.path for entry in read_json(made[kind] / MANIFEST, Manifest).files]
    for name in [*files, MANIFEST]:
        for how in damages_of(made[kind] / name):
            broken, out = tmp_path / "broken", tmp_path / "out"
            shutil.copytree(made[kind], broken)
            damage(broken / name, how)
            for command in readers(made, broken, out)[kind]:
                if kind == "evaluation" and name not in ("results.json", MANIFEST):
                    continue  # compare reads no other
                if command[2] == broken / "train.jsonl" and (name, how) not in of_a_file:
                    continue
                result = leave(*command)
                if kind == "rows" and (name, how) == (MANIFEST, "missing"):
                    assert result[0] == 0  # people make such folders, too: it has no ledger
                elif kind == "evaluation" and how == "missing":
                    refused(result, "holds no finished evaluation")
                else:
                    refused(result, name)
                    assert not (out / MANIFEST).exists()
                tally.tried(1)
                shutil.rmtree(out, ignore_errors=True)
            shutil.rmtree(broken)


@pytest.mark.fault(
    "Damaged artifacts",
    "a part of an artifact given for itself: an exported model, a file of rows",
    "checked against the artifact's manifest",
)  # fmt: skip
def test_a_part_of_an_artifact(
    made: dict[str, Path], tmp_path: Path, leave: Leave, tally: Tally
) -> None:
    def evaluate(questions: Path, model: Path) -> tuple[int, str]:
        return leave(
            "eval", "--questions", questions, "--base-model", model, "--adapter", made["adapter"],
            "--max-new-tokens", 4, "--max-questions", 1, "--arms", "base",
            "--output", tmp_path / "out",
        )  # fmt: skip

    for name in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"):
        broken = tmp_path / name
        shutil.copytree(made["bundle"], broken)
        damage(broken / "model" / name, "a flipped bit")
        refused(evaluate(made["dataset"], broken / "model"), name)
        tally.tried(1)
    (broken / MANIFEST).rename(broken / "manifest.partial.json")
    refused(evaluate(made["dataset"], broken / "model"), "not finished")
    rows = tmp_path / "rows"
    shutil.copytree(made["dataset"], rows)
    damage(rows / "validation.jsonl", "a flipped bit")
    refused(evaluate(rows / "validation.jsonl", made["model"]), "validation.jsonl")
    tally.tried(2)


@pytest.mark.fault(
    "Damaged artifacts", "a summary's results, ledgers and manifests, in seven ways",
    "left out, and said so in the summary",
)  # fmt: skip
def test_a_summary_of_damaged_results(
    made: dict[str, Path], tmp_path: Path, leave: Leave, tally: Tally
) -> None:
    for name in ("quantization.json", "ledger.json", MANIFEST):
        for how in DAMAGES:
            broken, out = tmp_path / "run" / "quantization", tmp_path / "out"
            shutil.copytree(made["quantization"], broken)
            shutil.copytree(made["evaluation"], tmp_path / "run" / "evaluation")
            damage(broken / name, how)
            code, printed = leave("summary", "--folders", tmp_path / "run", "--output", out)
            assert code == 0, printed
            text = (out / "summary.md").read_text().replace("\\", "")
            assert f"{name} is" in text or (name, how) == (MANIFEST, "missing"), text
            assert "4-bit weights take" not in text or name == "ledger.json"
            tally.tried(1)
            shutil.rmtree(tmp_path / "run")


# ---- from outside --------------------------------------------------------------------------------

BASE = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


@pytest.mark.fault(
    "Damaged artifacts", "every file of a base model from outside, in six ways (a flipped bit of a "
    "weight cannot be known without a manifest)",
    "named; exit code 2",
)  # fmt: skip
@pytest.mark.parametrize("name", BASE)
def test_a_base_model(
    made: dict[str, Path], name: str, tmp_path: Path, leave: Leave, tally: Tally
) -> None:
    also = {"model.safetensors": ["safetensors"], "tokenizer_config.json": ["eos_token"]}
    for how in DAMAGES:
        if how == "a flipped bit" and name in ("model.safetensors", "tokenizer_config.json"):
            continue
        broken, out = tmp_path / "broken", tmp_path / "out"
        shutil.copytree(made["model"], broken)
        damage(broken / name, how)
        result = leave(
            "eval", "--questions", made["dataset"], "--base-model", broken, "--adapter",
            made["adapter"], "--arms", "base", "--max-new-tokens", 4, "--output", out,
        )  # fmt: skip
        words = (name.split(".", maxsplit=1)[0].replace("_", " "), name, *also.get(name, []))
        early = "loading base" not in refused(result, words)
        assert early or (name, how) == ("model.safetensors", "missing")
        tally.tried(1)
        shutil.rmtree(broken)


@pytest.mark.fault(
    "Damaged artifacts",
    "weights that are not all there, or not the config's: tensors, layers, shards",
    "named; nothing is drawn at random in their place",
)  # fmt: skip
def test_weights_of_another_model(
    made: dict[str, Path], tmp_path: Path, leave: Leave, tally: Tally
) -> None:
    from safetensors.numpy import load_file, save_file

    # It does not say what it was trained on: one that does is refused for any other base.
    ignored = shutil.ignore_patterns(MANIFEST, "ledger.json", "training.json")
    unbound = shutil.copytree(made["adapter"], tmp_path / "unbound", ignore=ignored)

    def attempt(*words: str, adapter: Path = unbound) -> None:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        result = leave(
            "eval", "--questions", made["dataset"], "--base-model", broken, "--adapter", adapter,
            "--arms", "raft", "--max-new-tokens", 4, "--max-questions", 1, "--output",
            tmp_path / "out",
        )  # fmt: skip
        refused(result, words)
        tally.tried(1)

    broken = tmp_path / "broken"
    shutil.copytree(made["model"], broken)
    weights = load_file(broken / "model.safetensors")
    lost = next(name for name in weights if "down_proj" in name)
    rest = {name: value for name, value in weights.items() if name != lost}
    save_file(rest, broken / "model.safetensors", {"format": "pt"})
    attempt(f"weights are missing: {lost}")

    index = {"metadata": {}, "weight_map": {lost: "model-2.safetensors"}}
    (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    (broken / "model.safetensors").unlink()
    attempt("model-2.safetensors")
    index["weight_map"][lost] = "../../model.safetensors"  # type: ignore[index]
    (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    attempt("model.safetensors.index.json: weight_map", "'../../model.safetensors'")
    (broken / "model.safetensors.index.json").unlink()

    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    config = json.loads((broken / "config.json").read_text())
    for layers, words in ((1, "has no place for weights"), (9, "weights are missing")):
        (broken / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))
        attempt(words, "does not fit")
    (broken / "config.json").write_text(json.dumps(config | {"model_type": "llamb"}))
    attempt("config.json")
    (broken / "config.json").write_text(json.dumps(config))

    adapter = shutil.copytree(unbound, tmp_path / "adapter")
    lora = load_file(adapter / "adapter_model.safetensors")
    lost = next(name for name in lora if "lora_B" in name)
    save_file({n: v for n, v in lora.items() if n != lost}, adapter / "adapter_model.safetensors")
    attempt(f"weights are missing: {lost}", adapter=adapter)


# ---- what an interrupted run has kept ------------------------------------------------------------


@pytest.mark.fault(
    "Damaged artifacts", "the responses of a paid teacher, a bit flipped in each",
    "only what is damaged is asked again; the same rows",
)  # fmt: skip
def test_kept_responses(texts: Path, tmp_path: Path, leave: Leave, tally: Tally) -> None:
    with teacher_server() as server:
        command = ["generate", "--documents", texts, "--output", tmp_path / "dataset", "--teacher",
                   "openai", "--teacher-endpoint", server.endpoint, "--teacher-model", "m",
                   "--teacher-concurrency", 1, "--overwrite", "true"]  # fmt: skip
        assert leave(*command)[0] == 0
        rows = (tmp_path / "dataset" / "train.jsonl").read_bytes()
        (responses,) = (tmp_path / "dataset-responses").iterdir()
        lines = responses.read_bytes().splitlines(keepends=True)
        assert len(server.seen) == len(lines)
        for number in range(0, len(lines), 4):
            broken = [flipped(line) if n == number else line for n, line in enumerate(lines)]
            responses.write_bytes(b"".join(broken))
            before = len(server.seen)
            code, printed = leave(*command)
            assert code == 0 and "1 response there cannot be read" in printed, printed
            assert len(server.seen) == before + 1
            assert (tmp_path / "dataset" / "train.jsonl").read_bytes() == rows
            for piece in (tmp_path / "dataset-responses").iterdir():
                if piece != responses:
                    piece.unlink()
            tally.tried(1)


@pytest.mark.fault(
    "Damaged artifacts", "finished generations of a stopped eval: flipped, cut, emptied, replaced",
    "what is damaged is asked again; the same scores",
)  # fmt: skip
def test_kept_generations(
    made: dict[str, Path], tmp_path: Path, leave: Leave, tally: Tally,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    command = [
        "eval", "--questions", made["dataset"], "--base-model", made["model"], "--adapter",
        made["adapter"], "--arms", "base", "--max-new-tokens", 8, "--batch-size", 1,
        "--max-questions", 3,
    ]  # fmt: skip
    add, batches = Generations.add, []

    def stop(self: Generations, batch: Any) -> None:
        add(self, batch)
        batches.append(self.path.read_bytes())

    monkeypatch.setattr(Generations, "add", stop)
    assert leave(*command, "--output", tmp_path / "whole")[0] == 0
    samples = (tmp_path / "whole" / "samples.jsonl").read_bytes()
    two = batches[1]
    for how in DAMAGES:
        out = tmp_path / how.replace(" ", "-")
        storage.begin_artifact(out)
        partial = out / "generations.partial.jsonl"
        partial.write_bytes(two)
        # Of two batches the first, but for a file that is gone or another.
        damage(partial, how)
        batches.clear()
        code, printed = leave(*command, "--output", out)
        assert code == 0, printed
        assert (out / "samples.jsonl").read_bytes() == samples
        assert len(batches) in (2, 3), "something damaged was used"
        tally.tried(1)


@pytest.mark.fault(
    "Damaged artifacts", "every file of the newest checkpoint, and its manifest, in seven ways",
    "skipped for the one before, and logged",
)  # fmt: skip
def test_checkpoints(tmp_path: Path, capfd: pytest.CaptureFixture[str], tally: Tally) -> None:
    from components.core.progress import console

    def make() -> Checkpoints:
        checkpoints = Checkpoints(tmp_path / "saved", "", {"rank": "4"})
        for step in (10, 20):
            folder = tmp_path / "saved" / f"checkpoint-{step}"
            folder.mkdir(parents=True)
            for name in ("model.safetensors", "optimizer.pt", "trainer_state.json"):
                (folder / name).write_bytes(os.urandom(5000))
            checkpoints.add(folder, step, 1.0, wait=True)
        return checkpoints

    for name in ("model.safetensors", "optimizer.pt", "trainer_state.json", "run.json", MANIFEST):
        for how in DAMAGES:
            console.cache_clear()
            checkpoints = make()
            damage(tmp_path / "saved" / "checkpoint-20" / name, how)
            newest = checkpoints.newest()
            assert newest is not None and newest.run.step == 10
            log = capfd.readouterr().err
            assert "is skipped" in log or (name, how) == (MANIFEST, "missing")
            shutil.rmtree(tmp_path / "saved")
            tally.tried(1)


# ---- manifests that lie, and other versions ------------------------------------------------------


@pytest.mark.fault(
    "Damaged artifacts", "a manifest that names files outside its folder",
    "refused, when read and when written over; nothing outside is touched",
)  # fmt: skip
@pytest.mark.parametrize(
    "name", ["../outside", "../../etc/passwd", "/etc/passwd", "a/../../outside", "..", "", "a\0b"]
)
def test_a_manifest_that_leads_out(
    made: dict[str, Path], texts: Path, tmp_path: Path, leave: Leave, name: str
) -> None:
    outside = tmp_path / "outside"
    outside.write_text("keep")
    broken = tmp_path / "dataset"
    shutil.copytree(made["dataset"], broken)
    entry = ManifestFile.model_construct(path=name, size=4, crc32c=storage.checksum(outside))
    (broken / MANIFEST).write_text(Manifest(files=[entry]).model_dump_json())
    for command in (
        ["export", "--dataset", broken, "--output", tmp_path / "exported"],
        ["generate", "--teacher", "extractive", "--documents", texts, "--output", broken,
         "--overwrite", "true"],
    ):  # fmt: skip
        refused(leave(*command), "outside the artifact")
    assert outside.read_text() == "keep"
    assert (broken / "train.jsonl").read_bytes() == (made["dataset"] / "train.jsonl").read_bytes()


@pytest.mark.fault(
    "Damaged artifacts", "records of a newer and an older version: a field more, a field less",
    "named with the field, and the version is the hint",
)  # fmt: skip
@pytest.mark.parametrize("change", ["newer", "older"])
def test_another_version(
    made: dict[str, Path], tmp_path: Path, leave: Leave, tally: Tally, change: str
) -> None:
    def edit(path: Path, lost: str) -> None:
        text = path.read_text()
        for row in map(json.loads, text.splitlines() if path.suffix == ".jsonl" else [text]):
            if change == "newer":
                row["invented"] = 1
            else:
                del row[lost]
            path.write_text(json.dumps(row))

    cases = {
        "dataset": {"train.jsonl": "question"},
        "adapter": {"training.json": "curve"},
        "quantization": {"quantization.json": "verdict"},
    }
    for kind, files in cases.items():
        for name, lost in files.items():
            broken = tmp_path / kind
            shutil.copytree(made[kind], broken)
            edit(broken / name, lost)
            finish_artifact(broken)
            command = readers(made, broken, tmp_path / "out")[kind][-1]
            field = "invented" if change == "newer" else lost
            refused(leave(*command), name, field, "another version of raft-pipelines")
            shutil.rmtree(broken)
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
            tally.tried(1)


# ---- gs:// ---------------------------------------------------------------------------------------


@pytest.mark.fault(
    "Damaged artifacts", "every file of an artifact on gs://, and its manifest, in seven ways",
    "named with its URI; nothing is fetched in its place",
)  # fmt: skip
def test_on_gcs(
    made: dict[str, Path], gcs: Emulator, tmp_path: Path, leave: Leave, tally: Tally
) -> None:
    uri = f"gs://{BUCKET}/run/dataset"
    storage.publish(made["dataset"], uri)
    bucket, prefix = locate(uri)
    for name in ("train.jsonl", "report.json", MANIFEST):
        good = (made["dataset"] / name).read_bytes()
        blob = bucket.blob(f"{prefix}/{name}")
        for how, damaged in DAMAGES.items():
            data = damaged(good)
            if data is None:
                blob.delete()
            else:
                blob.upload_from_string(data)
            # What an earlier try has fetched whole is used, whatever became of it since.
            shutil.rmtree(tmp_path / f"raft-{os.getuid()}", ignore_errors=True)
            result = leave("export", "--dataset", uri, "--output", tmp_path / "out")
            damaged_words = (f"{uri}/{name}", f"{uri}: {name} is damaged")
            is_missing = (name, how) == (MANIFEST, "missing")
            refused(result, "manifest.json is missing" if is_missing else damaged_words)
            assert not (tmp_path / "out").exists()
            blob.upload_from_string(good)
            tally.tried(1)
    assert leave("export", "--dataset", uri, "--output", tmp_path / "out")[0] == 0
    verify(tmp_path / "out", "--output")
